"""The feature cache: features of the frozen trunk, which no epoch changes, computed once for every image."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from vprompt.data.dataset import ImageDataset
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.model.split import Split
from vprompt.training.loader import ImageLabels, augmentation, check_images, in_order, iterate, size_of
from vprompt.training.precision import attention_for_training, autocast
from vprompt.utils.distributed import gathered
from vprompt.utils.errors import DataError

FEATURES = 128
"""Images in a batch of features where only the head learns."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Features and the part of a model that is trained on them, instead of images and the whole model.

    Args:
        data: Items are the features of an image, and its label.
        trainable: Turns features into logits.
        with_images: Whether it takes the images as well.
    """

    data: TensorDataset
    trainable: nn.Module
    with_images: bool

    @property
    def rows(self) -> Tensor:
        """The features, (N, ...)."""
        return self.data.tensors[0]


def cached(
    model: PromptedModel, data: ImageLabels, recipe: Recipe, *, processes: int, on_images: Callable[[int], None]
) -> Cache | None:
    """Runs the frozen trunk, which is all before the first block that learns, once for every image, in order.

    Whether that is done depends on the arguments alone (but for a full disk), not on how far a training is: a resumed
    one ends with the same bits.

    Args:
        model: The model, on its device.
        data: The images.
        recipe: Its `epochs` and `cache_gb` decide whether features are cached; pooled features are always cached.
        processes: Processes that do the same at once; either all of them have a cache, or none.
        on_images: Called with the number of images that are done; may raise to stop.

    Returns:
        None where a cache gains nothing, or the features are too large.
    """
    head_only = all(name.startswith("head.") for name in model.learned)
    unknown = not isinstance(data, TensorDataset | ImageDataset)
    if (
        model.target.dense
        or augmentation(data) is not None
        or (not head_only and (recipe.num_epochs < 2 or not recipe.cache_gb or unknown))
    ):
        return None
    with ExitStack() as stack:
        if not head_only:  # features deserve full precision: they are computed but once
            stack.enter_context(attention_for_training(model, recipe))
            stack.enter_context(autocast(model, recipe))
        blank = _blank_image(model, data)
        split = None if blank is None else Split(model, blank)
        if split is None or not split.blocks:
            return None
        rows = _allocated(split, size_of(data), recipe, processes)
        if rows is None:
            return None
        # In batches as large as those of the training, most backends compute the same bits as there.
        order = in_order(len(rows), FEATURES if head_only else math.ceil(recipe.batch / processes))
        all_labels, done = list[Tensor](), 0
        for images, labels in iterate(data, order, device=model.device, workers=recipe.workers, model=model):
            rows[done : done + len(labels)] = split.trunk(images)
            all_labels.append(labels.cpu())
            done += len(labels)
            on_images(done)
        features = TensorDataset(rows, torch.cat(all_labels))
        return Cache(data=features, trainable=split.trainable_part(), with_images=split.needs_images)


def _blank_image(model: PromptedModel, data: ImageLabels) -> Tensor | None:
    """A black image (1, 3, H, W) of the size of the others, of which none is read; None if that does not fit."""
    shape, like = model.preprocessing.shape, next(model.parameters())
    if isinstance(data, ImageDataset):
        shape = data.preprocessing.shape
    elif isinstance(data, TensorDataset):
        shape = tuple(data.tensors[0].shape[1:])
    blank = like.new_zeros(1, *shape)
    try:
        check_images(blank, model.preprocessing.shape, any_size=model.any_size)
    except DataError:
        return None  # the images will raise this error when they are read
    return blank


def _allocated(split: Split, length: int, recipe: Recipe, processes: int) -> Tensor | None:
    row = split.sample[0]
    size = length * row.numel() * row.element_size()
    allowed = split.whole or size <= recipe.cache_gb * 1e9
    rows = empty_rows(length, row.shape, row.dtype, processes=processes) if allowed else None
    if all(gathered(rows is not None)):
        return rows
    reason = "there is no room for it" if allowed else f"no more than {recipe.cache_gb:g} may be (cache_gb)"
    warnings.warn(
        f"The first {split.blocks} blocks learn nothing, but to compute them only once {size / 1e9:.2g} GB would have "
        f"to be kept, and {reason}; they are computed anew in every epoch.",
        stacklevel=2,
    )
    return None


SHARE = 4
"""At most one part in so many of the free memory or disk is taken."""


def empty_rows(length: int, shape: Sequence[int], dtype: torch.dtype, *, processes: int = 1) -> Tensor | None:
    """A tensor (length, *shape) to be filled: in memory, or mapped to a file that vanishes with it, however that ends.

    The file has no name, so that the system removes it even after a kill; it lies where `tempfile` puts its own
    (`$TMPDIR`).

    Args:
        length: Number of rows.
        shape: Of a row.
        dtype: Of its numbers.
        processes: Processes on this machine that do the same now.

    Returns:
        The tensor, not initialised; None where neither memory nor disk has room.

    Example:
        >>> rows = empty_rows(5, (2, 3), torch.float32)
        >>> rows.shape
        torch.Size([5, 2, 3])
    """
    size = length * math.prod(shape) * dtype.itemsize
    if size * processes * SHARE <= free_memory():
        return torch.empty(length, *shape, dtype=dtype)
    raw = _in_file(size) if size * processes * SHARE <= shutil.disk_usage(tempfile.gettempdir()).free else None
    return None if raw is None else raw.view(dtype).view(length, *shape)


def free_memory() -> int:
    """Bytes of memory that can be had without harm to others."""
    free = int(psutil.virtual_memory().available)
    try:  # a container may have less
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))


def _in_file(size: int) -> Tensor | None:
    """Bytes mapped to a temporary file, all of them allocated beforehand; None where the system refuses."""
    try:
        with tempfile.TemporaryFile(prefix="vprompt-") as file:
            _allocate(file.fileno(), size)
            return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,)))
    except OSError:
        return None


def _allocate(descriptor: int, size: int) -> None:
    """Allocates the bytes on the disk: writing to a mapped file for which there is none ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    blank = bytes(2**20)
    for start in range(0, size, len(blank)):
        os.write(descriptor, blank[: size - start])
