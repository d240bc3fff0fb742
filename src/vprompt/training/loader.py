"""Batches of normalised images and labels, in an order that depends on nothing but the seed and the epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from vprompt.data.dataset import ImageDataset
from vprompt.data.preprocessing import Augment
from vprompt.model.classifier import Classifier
from vprompt.utils.errors import DataError

ImageLabels = Dataset[tuple[Tensor, int]]
"""A data set to train and evaluate on: items are a normalised float image (3, H, W) and an integer label."""


@dataclass(frozen=True, kw_only=True)
class TrainingEpoch:
    """One epoch of a training: the recipe's seed, and the number of the epoch from 0."""

    seed: int
    epoch: int


def epoch_order(length: int, *, seed: int, epoch: int) -> Tensor:
    """The order (N,) of the images in one epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(length, generator=generator)


def iterate(
    dataset: ImageLabels,
    batches: Sequence[Tensor],
    *,
    device: torch.device,
    workers: int = 0,
    seed: int = 0,
    training: TrainingEpoch | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (images, labels) on `device` for each tensor of indices.

    Args:
        dataset: Where the items come from; uint8 images are normalised on the device.
        batches: Indices of each batch.
        device: Where the tensors go.
        workers: Processes that fetch items of a data set that is no `ImageDataset`.
        seed: Seeds those processes.
        training: The epoch that random views of an `ImageDataset` depend on; without it the images are as they are.

    Raises:
        DataError: If items are not float images (3, H, W) of one size with integer labels.
    """
    if isinstance(dataset, ImageDataset):
        for index in batches:
            if training is None:
                pixels = dataset.pixels(index)
            else:
                pixels = dataset.training_pixels(index, seed=training.seed, epoch=training.epoch)
            pixels = pixels.to(device, non_blocking=True)
            yield dataset.preprocessing.normalise(pixels), dataset.labels[index].to(device)
        return
    for images, labels in _fetched(dataset, batches, workers, seed):
        if labels.is_floating_point() or labels.ndim != 1:
            raise DataError(f"Labels must be integers, one per image; these are {labels.dtype}, {_shape(labels)}.")
        yield images.to(device), labels.long().to(device)


def check_images(images: Tensor, size: tuple[int, int], *, any_size: bool) -> None:
    """Raises a `DataError` for images that do not fit a backbone."""
    height, width = size
    if not images.is_floating_point():
        raise DataError(f"Images must be float and normalised, as `Preprocessing.normalise` does; not {images.dtype}.")
    if images.ndim != 4 or images.shape[1] != 3 or (not any_size and tuple(images.shape[2:]) != (height, width)):
        one = f"3, {height}, {width}"
        raise DataError(
            f"Images must be ({one}) for this backbone, and a batch of them (B, {one}); it is {_shape(images)}."
        )


def check_batch(images: Tensor, labels: Tensor, model: Classifier) -> None:
    """Raises a `DataError` for images or labels that do not fit a model."""
    check_images(images, model.preprocessing.size, any_size=model.any_size)
    low, high, classes = int(labels.min()), int(labels.max()), model.num_classes
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise DataError(f"A label is {wrong}, but the model has {classes} classes, numbered from 0.")


def identity(dataset: ImageLabels) -> str | None:
    """A fingerprint of the data where there is one to be had cheaply."""
    if isinstance(dataset, ImageDataset):
        return dataset.fingerprint()
    if isinstance(dataset, TensorDataset):
        digest = hashlib.sha256()
        for tensor in dataset.tensors:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]
    return None


def augmentation(dataset: ImageLabels) -> Augment | None:
    """The random views that training takes of the images; None for none."""
    return dataset.augment if isinstance(dataset, ImageDataset) and dataset.augment != "none" else None


def _fetched(
    dataset: ImageLabels, batches: Sequence[Tensor], workers: int, seed: int
) -> Iterable[tuple[Tensor, Tensor]]:
    if isinstance(dataset, TensorDataset):
        if len(dataset.tensors) != 2:
            raise DataError("A TensorDataset must hold two tensors, images and labels.")
        return ((dataset.tensors[0][index], dataset.tensors[1][index]) for index in batches)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=[index.tolist() for index in batches],
        num_workers=workers,
        collate_fn=_collate,
        # A generator of its own: loading must not move the global one.
        generator=torch.Generator().manual_seed(seed),
    )
    return loader


def _collate(items: list[Any]) -> tuple[Tensor, Tensor]:
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 2:  # pyright: ignore[reportUnknownArgumentType]
            raise DataError(f"Items of a data set must be pairs of an image tensor and a label, not {_kind(item)}.")
        image, label = item  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(image, Tensor):
            raise DataError(f"Images of a data set must be tensors, not {_kind(image)}; convert and normalise them.")
        if not isinstance(label, (int, Tensor, np.integer)):
            raise DataError(f"Labels of a data set must be integers, not {_kind(label)}.")
    shapes = {tuple(image.shape) for image, _ in items}
    if len(shapes) > 1:
        sizes = " and ".join(str(shape) for shape in sorted(shapes)[:2])
        raise DataError(f"Images of a data set must have one size; these have {sizes}.")
    labels = torch.stack([torch.as_tensor(label) for _, label in items])
    return torch.stack([image for image, _ in items]), labels


def _kind(value: object) -> str:
    return type(value).__name__


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


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
