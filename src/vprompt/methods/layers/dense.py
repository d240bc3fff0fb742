"""Heads on maps of features, which give logits of every place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.tasks import segmentation
from vprompt.tasks.segmentation import resized
from vprompt.utils.errors import VPromptError

HIDDEN, STEPS = 128, 2
"""Channels of `conv`, and how often it doubles the map."""

HEADS: tuple[str, ...] = get_args(segmentation.DenseHead)


def blocks_read(kind: str, widths: Sequence[int]) -> tuple[int, ...]:
    """Numbers of the blocks that a head reads: the last one, or of `multi` four, and where there are stages their last.

    Args:
        kind: One of `HEADS`.
        widths: D_l of every block.

    Example:
        >>> blocks_read("multi", [192] * 12), blocks_read("multi", [96, 96, 192, 192, 384]), blocks_read("conv", [8, 8])
        ((2, 5, 8, 11), (1, 3, 4), (1,))
    """
    depth = len(widths)
    ends = [block for block in range(depth) if block == depth - 1 or widths[block + 1] != widths[block]]
    if kind != "multi":
        return (depth - 1,)
    return tuple(ends[-4:]) if len(ends) > 1 else tuple(sorted({max(0, depth * q // 4 - 1) for q in (1, 2, 3, 4)}))


class DenseHead(nn.Module):
    """Logits (B, C, h, w) of maps of features.

    - `linear`: batch norm and a 1x1 convolution on the map of the last block.
    - `multi`: the same on the maps of four blocks, the smaller ones enlarged to the largest.
    - `conv`: on that of the last block, twice a 3x3 convolution to 128 channels, batch norm and GELU, each followed by
      doubling the map, then a 1x1 convolution.

    Args:
        kind: One of the three.
        widths: D_l of every block of the backbone.
        classes: Number of classes.
        layers: Of 1x1 convolutions before the logits with GELU between, the last included.

    Attributes:
        blocks: Numbers of the blocks whose maps it reads.

    Raises:
        VPromptError: If there is no such head.

    Example:
        >>> DenseHead("multi", [8] * 4, 3)([torch.zeros(2, 8, 5, 5)] * 4).shape
        torch.Size([2, 3, 5, 5])

    Source: `linear` and `multi`, DINOv2 (arXiv 2304.07193), section 7.4; `conv`, after SETR-PUP (arXiv 2012.15840).
    """

    def __init__(self, kind: str, widths: Sequence[int], classes: int, layers: int = 1) -> None:
        super().__init__()
        if kind not in HEADS:
            raise VPromptError(f"A head on maps is one of {', '.join(HEADS)}, not {kind!r}.")
        self.blocks = blocks_read(kind, widths)
        width = sum(widths[block] for block in self.blocks)
        self.growing = nn.ModuleList()
        self.norm = nn.Identity() if kind == "conv" else _norm(width)
        for _ in range(STEPS if kind == "conv" else 0):
            parts = nn.Conv2d(width, HIDDEN, 3, padding=1, bias=False), _norm(HIDDEN), nn.GELU()
            self.growing.append(nn.Sequential(*parts))
            width = HIDDEN
        self.hidden = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(layers - 1))
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits of maps (B, D_l, h_l, w_l), in the order of `blocks`; of the size of the largest, or larger."""
        size = [max(side) for side in zip(*(each.shape[2:] for each in maps), strict=True)]
        x = self.norm(torch.cat([resized(each, size) for each in maps], 1))
        for part in self.growing:
            x = F.interpolate(part(x), scale_factor=2, mode="bilinear", align_corners=False)
        for layer in self.hidden:
            x = F.gelu(layer(x))
        return self.classifier(x)

    @property
    def in_features(self) -> int:
        """Channels of the input of the last layer."""
        return self.classifier.in_channels

    @property
    def out_features(self) -> int:
        """Number of classes."""
        return self.classifier.out_channels

    @property
    def weight(self) -> nn.Parameter:
        """The last layer's."""
        return cast("nn.Parameter", self.classifier.weight)

    @property
    def bias(self) -> nn.Parameter:
        """The last layer's."""
        return cast("nn.Parameter", self.classifier.bias)


def _norm(width: int) -> nn.BatchNorm2d:
    """Batch norm that does not count batches: all of its values are numbers to save."""
    norm = nn.BatchNorm2d(width)
    norm.register_buffer("num_batches_tracked", None)
    return norm
