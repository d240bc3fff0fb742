"""Random augmentation of training images by timm's transforms, the same for a seed, an epoch and an image anywhere."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vprompt.data.preprocessing import Preprocessing, drawn_bits

LEVELS: dict[str, dict[str, Any]] = {
    "light": {"scale": (0.5, 1.0)},
    "medium": {"scale": (0.35, 1.0), "auto_augment": "rand-m5-n2-mstd0.5-inc1", "re_prob": 0.1, "re_mode": "pixel"},
    "strong": {"scale": (0.08, 1.0), "auto_augment": "rand-m9-n2-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"},
}
"""What `timm.data.create_transform` is asked for; half of the images are mirrored at each level."""


def timm_view(
    level: str, preprocessing: Preprocessing, *, seed: int, epoch: int, index: int
) -> Callable[[Image.Image], Tensor]:
    """What makes the normalised view (3, H, W) of one image in one epoch; not for threads, which share generators.

    Args:
        level: One of `LEVELS`.
        preprocessing: Size, interpolation, mean and std.
        seed: Of the training.
        epoch: Of the training.
        index: Of the image; batches and processes have no part in its view.
    """
    bits = drawn_bits("timm", seed=seed, epoch=epoch, index=index)

    def view(image: Image.Image) -> Tensor:
        with seeded(int.from_bytes(bits[:4], "big")):
            return _transform(level, preprocessing)(image)

    return view


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Inside, the global generators of Python, NumPy and torch (CPU) start from a seed; then they are as before.

    Example:
        >>> with seeded(1):
        ...     first = random.random(), np.random.rand(), float(torch.rand(()))
        >>> with seeded(1):
        ...     first == (random.random(), np.random.rand(), float(torch.rand(())))
        True
    """
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds accelerators as well
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@functools.cache
def _transform(level: str, preprocessing: Preprocessing) -> Any:
    from timm.data.transforms_factory import create_transform

    plain: Any = {"color_jitter": None}  # which its type does not foresee
    look = {"interpolation": preprocessing.interpolation, "mean": preprocessing.mean, "std": preprocessing.std}
    return create_transform(preprocessing.size, is_training=True, **look, **plain, **LEVELS[level])
