"""Batches of normalised images and labels, in an order that depends on nothing but the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from laconic.data.dataset import ImageDataset
from laconic.errors import DataError

ImageLabels = Dataset[tuple[Tensor, int]]
"""What can be trained and evaluated on: items are a normalised float image (3, H, W) and an integer label."""


def epoch_order(length: int, *, seed: int, epoch: int) -> Tensor:
    """The order (N,) of the images in one epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(length, generator=generator)


def iterate(
    dataset: ImageLabels, batches: Sequence[Tensor], *, device: torch.device, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (images, labels) on `device` for each tensor of indices.

    Args:
        dataset: Where the items come from; uint8 images are normalised on the device.
        batches: Indices of each batch.
        device: Where the tensors go.
        workers: Processes that fetch items of a data set which is not ours.

    Raises:
        DataError: If items are not images of one shape with integer labels.
    """
    if isinstance(dataset, ImageDataset):
        for index in batches:
            pixels = dataset.pixels(index).to(device, non_blocking=True)
            yield dataset.preprocessing.normalise(pixels), dataset.labels[index].to(device)
        return
    for batch in _fetched(dataset, batches, workers):
        if not isinstance(batch, (list, tuple)) or len(batch) != 2 or not all(isinstance(t, Tensor) for t in batch):
            raise DataError("Items of a data set must be pairs of an image tensor and an integer label.")
        images, labels = batch
        if not images.is_floating_point() or labels.is_floating_point() or labels.ndim != 1:
            raise DataError(
                f"Items of a data set must be float images, normalised, and integer labels; these are {images.dtype} "
                f"and {labels.dtype}."
            )
        yield images.to(device), labels.to(device)


def _fetched(dataset: ImageLabels, batches: Sequence[Tensor], workers: int) -> Iterable[Any]:
    if isinstance(dataset, TensorDataset):
        return (tuple(tensor[index] for tensor in dataset.tensors) for index in batches)
    return DataLoader(dataset, batch_sampler=[index.tolist() for index in batches], num_workers=workers)


def in_order(length: int, batch_size: int) -> list[Tensor]:
    """Indices 0 to length-1 cut into batches."""
    return list(torch.arange(length).split(batch_size)) if length else []


def size_of(dataset: ImageLabels) -> int:
    """Number of items.

    Raises:
        DataError: If the data set has no length, or none in it.
    """
    try:
        length = len(dataset)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise DataError("The data set must have a length; iterable-only data sets are not supported.") from None
    if length == 0:
        raise DataError("The data set is empty.")
    return length
