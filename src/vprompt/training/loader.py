"""Batches of normalised images and labels, in an order that depends on nothing but the seed and the epoch."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import UnionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from vprompt.data.augment import LEVELS
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.preprocessing import Augment
from vprompt.data.threads import ahead
from vprompt.model.classifier import Classifier
from vprompt.utils.devices import moved
from vprompt.utils.errors import DataError

ImageLabels = Dataset[Any]
"""A data set to train and evaluate on: items are a normalised float image (3, H, W) and an integer label, or what else
the model's target takes."""

PLAUSIBLE = 30.0
"""Normalised images stay far below it, those of 0 to 255 do not."""


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
    model: Classifier | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (images, labels) on `device` for each tensor of indices; for one of images of several sizes, more often.

    Args:
        dataset: Where the items come from; uint8 images are normalised on the device.
        batches: Indices of each batch.
        device: Where the tensors go.
        workers: Processes that fetch items of a data set that is no `ImageDataset`, or that augment images by timm's
            transforms; other files are decoded in threads, the next batch while this one is used.
        seed: Seeds those processes.
        training: The epoch that random views of an `ImageDataset` depend on; without it the images are as they are.
        model: The model that each batch must suit; its labels are looked at before they are on the device.

    Raises:
        DataError: If items are not float images (3, H, W) of one size with labels, or not finite, or do not suit.
    """
    for images, labels in _batches(dataset_in(dataset), batches, device, workers, seed, training):
        if model is not None:
            check_batch(images, labels, model)
        yield images, moved(labels, device)


def _batches(
    dataset: ImageLabels,
    batches: Sequence[Tensor],
    device: torch.device,
    workers: int,
    seed: int,
    training: TrainingEpoch | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images on the device, and labels where they are."""
    if isinstance(dataset, ImageDataset):
        if training and dataset.augment in LEVELS:
            views = _Views(dataset, training)
            for index, (images, _) in zip(batches, _fetched(views, batches, workers, seed), strict=True):
                yield moved(images, device), dataset.labels[index]
            return
        drawn = asdict(training) if training else {}
        pairs = (pair for index in batches for pair in dataset.pairs(index, **drawn))
        still = dataset.in_memory and not (training and augmentation(dataset))
        for pixels, labels in pairs if still else ahead(pairs):
            yield dataset.preprocessing.normalise(moved(pixels, device)), labels
        return
    warned = training is not None and training.epoch > 0
    for index, (images, labels) in zip(batches, _fetched(dataset, batches, workers, seed), strict=True):
        if images.is_floating_point() and images.ndim == 4:
            warned = _check_values(images, index, warned)
        yield moved(images, device), labels if labels.is_floating_point() else labels.long()


@dataclass(frozen=True)
class _Views(Dataset[tuple[Tensor, int]]):
    """What one epoch of a training sees of images that timm's transforms augment."""

    dataset: ImageDataset
    training: TrainingEpoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.dataset.transformed(index, **asdict(self.training)), 0


def _check_values(images: Tensor, index: Tensor, warned: bool) -> bool:
    """Raises for images with values that are no numbers, warns once of such as were not normalised."""
    peaks = images.detach().abs().flatten(1).amax(1)  # NaN where there is one
    if not bool((finite := peaks.isfinite()).all()):
        wrong = int(index[int(finite.logical_not().nonzero()[0])])
        raise DataError(f"In the data set, image {wrong} has values that are NaN or infinite; mend it or leave it out.")
    if warned or float(peaks.max()) <= PLAUSIBLE:
        return warned
    warnings.warn(
        f"In the data set, image {int(index[int(peaks.argmax())])} has values up to {float(peaks.max()):.4g}, and "
        "normalised ones stay below 10 or so; was it normalised, as `Preprocessing.normalise` does?",
        stacklevel=3,
    )
    return True


def dataset_in(data: ImageLabels | DataLoader[Any]) -> ImageLabels:
    """The data set itself, where a `DataLoader` was given: batches, order and processes are the training's own.

    Raises:
        DataError: It is no data set, or the loader does more than to take its items one by one.
    """
    if isinstance(data.dataset if isinstance(data, DataLoader) else data, IterableDataset):
        raise DataError("The data set must have a length; one that can only be iterated is not supported.")
    if isinstance(data, DataLoader):
        usual = (RandomSampler, SequentialSampler, BatchSampler, type(None))
        own = [_kind(part) for part in (data.sampler, data.batch_sampler) if type(part) not in usual]
        own += [getattr(data.collate_fn, "__name__", "collate_fn")] * (data.collate_fn is not default_collate)
        if own:
            raise DataError(f"The DataLoader has a {own[0]}, which would not be followed; give its data set alone.")
        data = data.dataset
    if isinstance(data, Task):
        raise DataError("Here images are needed, not a task; give a part of it, such as task.train.")
    if isinstance(data, str | bytes | Mapping | Tensor | np.ndarray) or not hasattr(data, "__getitem__"):
        raise DataError(f"A data set of images with labels is needed, such as a TensorDataset, not {_kind(data)}.")
    return data


def check_images(images: Tensor, shape: tuple[int, int, int], *, any_size: bool) -> None:
    """Raises a `DataError` for images that do not fit a backbone, whose images have this shape."""
    if not images.is_floating_point():
        raise DataError(f"Images must be float and normalised, as `Preprocessing.normalise` does; not {images.dtype}.")
    if images.ndim != 4 or images.shape[1] != shape[0] or (not any_size and tuple(images.shape[1:]) != shape):
        one = ", ".join(map(str, shape))
        raise DataError(
            f"Images must be ({one}) for this backbone, and a batch of them (B, {one}); it is {tuple(images.shape)}."
        )


def check_batch(images: Tensor, labels: Tensor, model: Classifier) -> None:
    """Raises a `DataError` for images or labels that do not fit a model."""
    check_images(images, model.preprocessing.shape, any_size=model.any_size)
    computes = next((parameter.dtype for parameter in model.parameters()), images.dtype)
    if images.dtype not in (torch.float32, computes):
        raise DataError(f"Images are {images.dtype}, and the model computes in {computes}; convert them by .float().")
    if (problem := model.target.check(labels)) is not None:
        raise DataError(problem)


def check_kind(given: object, kind: type | UnionType, needed: str) -> None:
    """Raises a `DataError` for an argument of another kind, such as one in the place of another."""
    if not isinstance(given, kind):
        raise DataError(f"{needed} is needed, not {_kind(given)}.")


def identity(dataset: ImageLabels) -> str | None:
    """A fingerprint of the data where there is one to be had cheaply."""
    dataset = dataset_in(dataset)
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
    dataset = dataset_in(dataset)
    return dataset.augment if isinstance(dataset, ImageDataset) and dataset.augment != "none" else None


def _fetched(
    dataset: ImageLabels, batches: Sequence[Tensor], workers: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(dataset, TensorDataset):
        if len(dataset.tensors) != 2:
            raise DataError("A TensorDataset must hold two tensors, images and labels.")
        yield from ((dataset.tensors[0][index], dataset.tensors[1][index]) for index in batches)
        return
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=[index.tolist() for index in batches],
        num_workers=workers,
        collate_fn=_collate,
        # A generator of its own: loading must not move the global one.
        generator=torch.Generator().manual_seed(seed),
    )
    try:
        yield from loader
    except DataError as error:  # from another process it comes with the trace of that in front
        raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "A process that loads the images was killed, perhaps for want of memory; take fewer of them (--workers)."
        ) from error


def _collate(items: list[Any]) -> tuple[Tensor, Tensor]:
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 2:  # pyright: ignore[reportUnknownArgumentType]
            raise DataError(f"Items of a data set must be pairs of an image tensor and a label, not {_kind(item)}.")
        image, label = item  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(image, Tensor):
            raise DataError(f"Images of a data set must be tensors, not {_kind(image)}; convert and normalise them.")
        if not isinstance(label, (int, Tensor, np.integer, np.ndarray)):
            raise DataError(f"Labels of a data set must be whole numbers or tensors, not {_kind(label)}.")
    shapes = {tuple(image.shape) for image, _ in items}
    if len(shapes) > 1:
        sizes = " and ".join(str(shape) for shape in sorted(shapes)[:2])
        raise DataError(f"Images of a data set must have one size; these have {sizes}.")
    try:
        labels = torch.stack([torch.as_tensor(label) for _, label in items])
    except (RuntimeError, OverflowError, ValueError):  # too large, or of several shapes
        found = ", ".join(sorted({str(label) for _, label in items})[:3])
        raise DataError(f"Labels of a data set must be numbers of classes, not {found[:80]}.") from None
    return torch.stack([image for image, _ in items]), labels


def _kind(value: object) -> str:
    return type(value).__name__


def labels_of(dataset: ImageLabels, batch_size: int, workers: int) -> Tensor:
    """The labels of all items, in order; of a data set that is unknown, read with its images."""
    dataset = dataset_in(dataset)
    if isinstance(dataset, ImageDataset):
        return dataset.labels
    order, cpu = in_order(size_of(dataset), batch_size), torch.device("cpu")
    return torch.cat([labels for _, labels in iterate(dataset, order, device=cpu, workers=workers)])


def in_order(length: int, batch_size: int) -> list[Tensor]:
    """Indices 0 to length-1 cut into batches."""
    return list(torch.arange(length).split(batch_size)) if length else []


def size_of(dataset: ImageLabels) -> int:
    """Number of items.

    Raises:
        DataError: If the data set has no length, or none in it.
    """
    try:
        length = len(dataset_in(dataset))  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise DataError("The data set must have a length.") from None
    if length == 0:
        raise DataError("The data set is empty.")
    return length
