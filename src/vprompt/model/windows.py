"""Sliding windows: images of any size for a model whose images have one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

OVERLAP = 1 / 4
"""Part of a window that the next one at least has in common with it."""

AT_ONCE = 32
"""Windows of a pass, where no gradients are wanted."""


def by_windows(model: Callable[[Tensor], Tensor], images_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, K, H, W) of images, the mean over the windows that a pixel is in.

    Images smaller than a window are padded below and to the right with zeros, the mean colour. With gradients all
    windows are one batch: those of the first image, then those of the second, and so on.

    Args:
        model: Logits (N, K, *size) of windows (N, C, *size).
        images_BCHW: Normalised images.
        size: Height and width of a window.

    Example:
        >>> images = torch.rand(2, 3, 70, 90)
        >>> torch.allclose(by_windows(lambda windows: 2 * windows, images, (32, 32)), 2 * images)
        True
    """
    height, width = images_BCHW.shape[2:]
    if (height, width) == tuple(size):
        return model(images_BCHW)
    padded = F.pad(images_BCHW, (0, max(0, size[1] - width), 0, max(0, size[0] - height)))
    places = [(top, left) for top in starts(height, size[0]) for left in starts(width, size[1])]
    cut = [padded[:, :, top : top + size[0], left : left + size[1]] for top, left in places]
    windows = torch.stack(cut, 1).flatten(0, 1)
    parts = (windows,) if torch.is_grad_enabled() else windows.split(AT_ONCE)
    logits = torch.cat([model(part) for part in parts]).unflatten(0, (len(images_BCHW), len(places)))
    total = logits.new_zeros(len(images_BCHW), logits.shape[2], *padded.shape[2:])
    counts = logits.new_zeros(padded.shape[2:])
    for number, (top, left) in enumerate(places):
        total[:, :, top : top + size[0], left : left + size[1]] += logits[:, number]
        counts[top : top + size[0], left : left + size[1]] += 1
    return (total / counts)[:, :, :height, :width]


def number_of(length: int, window: int) -> int:
    """How many windows a side is seen in.

    Example:
        >>> number_of(20, 20), number_of(50, 20), number_of(10**12, 224)
        (1, 3, 5952380953)
    """
    return 1 + math.ceil(max(0, length - window) / max(1, int(window * (1 - OVERLAP))))


def starts(length: int, window: int) -> list[int]:
    """Where windows begin along a side, evenly, so that they cover it.

    Example:
        >>> starts(20, 20), starts(50, 20), starts(5, 20)
        ([0], [0, 15, 30], [0])
    """
    steps = number_of(length, window) - 1
    return [round(step * (length - window) / steps) for step in range(steps + 1)] if steps else [0]
