"""Images with labels, in memory or on disk, and a task made of them."""

from __future__ import annotations

import copy
import hashlib
import operator
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vprompt.data.augment import LEVELS, timm_view
from vprompt.data.images import AnyView, Source, decode, render
from vprompt.data.preprocessing import Augment, Preprocessing, View
from vprompt.data.threads import in_threads
from vprompt.tasks.base import Target
from vprompt.tasks.single_label import SingleLabel
from vprompt.utils.errors import DataError
from vprompt.utils.text import listed, printable


class Files(Protocol):
    """Reads images by their names, where these are no paths; goes to other processes, so that it must pickle."""

    def read(self, name: str) -> Source:
        """The bytes of an image's file, or an open binary file, or its path.

        Raises:
            DataError: It cannot be had.
        """
        ...

    def size(self, name: str) -> int:
        """A number that is likely to change with the image, such as its size in bytes."""
        ...


@dataclass(frozen=True)
class FolderFiles:
    """Images in files, by their paths relative to a folder."""

    root: Path

    def read(self, name: str) -> Path:
        """The whole path, so that the decoder reads no more of the file than it needs."""
        return self.root / name

    def size(self, name: str) -> int:
        """The size of the file in bytes.

        Raises:
            DataError: It is gone, or cannot be read.
        """
        try:
            return (self.root / name).stat().st_size
        except OSError as error:
            problem = (error.strerror or "it is gone").lower()
            raise DataError(
                f"{printable(name)} can no longer be read ({problem}); put it back or start anew."
            ) from error


class ImageDataset(Dataset[tuple[Tensor, int | Tensor]]):
    """Labelled images: uint8 pixels held in memory, or files decoded on each access.

    Args:
        labels: Class numbers (N,), or the numbers (N, K) that another target has; see `vprompt.tasks`.
        preprocessing: Gives the size of the pixels, and how they are normalised.
        pixels: uint8 (M, 3, H, W), with `rows` (N,) saying which belong to this dataset; all of them by default.
        root: The folder that `paths` are relative to, or what reads them; needed when there are no `pixels`.
        paths: Relative paths or names of the N files.
        augment: The views that training takes, see `with_augment`; all else takes the images as they are.

    Raises:
        ValueError: Neither pixels nor files are given, or their numbers do not fit the labels.

    Example:
        >>> plain = Preprocessing(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> dataset = ImageDataset(torch.tensor([0, 1]), plain, pixels=torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
        >>> image, label = dataset[1]
        >>> float(image.max()), label
        (-1.0, 1)
    """

    labels: Tensor
    preprocessing: Preprocessing
    paths: list[str] | None
    augment: Augment

    def __init__(
        self,
        labels: Tensor,
        preprocessing: Preprocessing,
        *,
        pixels: Tensor | None = None,
        rows: Tensor | None = None,
        root: Path | Files | None = None,
        paths: Sequence[str] | None = None,
        augment: Augment = "none",
    ) -> None:
        self.labels = labels.to(torch.float32 if labels.is_floating_point() else torch.int64)
        self.preprocessing = preprocessing
        self.paths = None if paths is None else list(paths)
        self.augment = _possible(augment, preprocessing)
        self._store = pixels
        self.files = FolderFiles(root) if isinstance(root, Path) else root
        self._rows = torch.arange(0 if pixels is None else len(pixels)) if rows is None else rows
        if pixels is None and (root is None or paths is None):
            raise ValueError("an image dataset needs pixels, or root and paths")
        if pixels is not None and (pixels.dtype != torch.uint8 or pixels.shape[1:] != preprocessing.shape):
            raise ValueError(f"pixels must be uint8 (N, {', '.join(map(str, preprocessing.shape))})")
        if pixels is not None and len(self._rows) != len(labels):
            raise ValueError(f"{len(self._rows)} images but {len(labels)} labels")
        if paths is not None and len(paths) != len(labels):
            raise ValueError(f"{len(paths)} paths but {len(labels)} labels")

    def __repr__(self) -> str:
        height, width = self.preprocessing.size
        held = "in memory" if self.in_memory else "in files"
        kinds = (
            f"{self.labels.shape[1]} numbers each" if self.labels.ndim > 1 else f"{len(self.labels.unique())} classes"
        )
        return f"ImageDataset({len(self)} images of {height}×{width} pixels {held}, {kinds})"

    @property
    def in_memory(self) -> bool:
        """Whether the decoded pixels are held, rather than decoded on each access."""
        return self._store is not None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        pixels = self._decoded(number) if self._store is None else self._store[self._rows[number]]
        label = self.labels[number]
        return self.preprocessing.normalise(pixels), label if label.ndim else int(label)

    def pixels(self, indices: Tensor) -> Tensor:
        """The uint8 pixels (B, 3, H, W) of the images at `indices` (B,), decoded in threads if they are not held.

        Raises:
            DataError: A file has gone or changed since it was checked.
        """
        if self._store is not None:
            return self._store[self._rows[indices]]
        return self._all_decoded([(int(i), None) for i in indices])

    def training_pixels(self, indices: Tensor, *, seed: int, epoch: int) -> Tensor:
        """The pixels for one epoch of a training: as `pixels`, or with `"crop-flip"` a random view of each image.

        The view of an image depends on the seed, the epoch and the image's number, and on nothing else.

        Raises:
            DataError: A file has gone or changed since it was checked.
        """
        if self.augment == "none":
            return self.pixels(indices)
        numbers = [int(i) for i in indices]
        return self._all_decoded([(i, View.drawn(seed=seed, epoch=epoch, index=i)) for i in numbers])

    def transformed(self, index: int, *, seed: int, epoch: int) -> Tensor:
        """An image (3, H, W) for one epoch by timm's transforms, normalised; not in threads.

        Raises:
            DataError: As `training_pixels`.
        """
        return self._decoded(index, timm_view(self.augment, self.preprocessing, seed=seed, epoch=epoch, index=index))

    def pairs(self, indices: Tensor, **training: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields pixels and labels of images, all at once; of those of several sizes, of one after the other.

        Args:
            indices: (B,).
            training: Seed and epoch, for the views of a training; see `training_pixels`.
        """
        yield self.training_pixels(indices, **training) if training else self.pixels(indices), self.labels[indices]

    def with_augment(self, augment: Augment) -> Self:
        """The same images, to train on as they are (`"none"`), or on random views, half of them mirrored.

        For `"crop-flip"` an image is resized to `size / 0.875` and a part of the size is cut out where chance says.
        `"light"`, `"medium"` and `"strong"` are timm's transforms (`vprompt.data.augment.LEVELS`): crops of any size,
        from medium on RandAugment and random erasing as well. Files are decoded anew in every epoch; where there are
        none, views are made of the pixels that are held. Evaluation and scoring see the images as they are, and the
        fingerprint stays the same: it tells data apart, not what is done with them.

        Raises:
            DataError: There is no such augmentation.

        Source: VPT (arXiv 2203.12119), its appendix on FGVC.
        """
        return self._with(augment=_possible(augment, self.preprocessing))

    def subset(self, indices: Tensor | Sequence[int]) -> Self:
        """The images at `indices`, in that order; pixels in memory are shared, not copied."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        paths = None if self.paths is None else [self.paths[int(i)] for i in chosen]
        rows = self._rows if self._store is None else self._rows[chosen]
        return self._with(labels=self.labels[chosen], _rows=rows, paths=paths)

    def joined(self, other: ImageDataset) -> Self:
        """These images and those of another part of the same task; pixels in one memory are shared, not copied."""
        store, rows = None, self._rows
        if self._store is not None and other._store is not None:
            if self._store is other._store:
                store, rows = self._store, torch.cat([self._rows, other._rows])
            else:
                store = torch.cat([self._store[self._rows], other._store[other._rows]])
                rows = torch.arange(len(store))
        paths = None if self.paths is None or other.paths is None else [*self.paths, *other.paths]
        return self._with(labels=torch.cat([self.labels, other.labels]), _store=store, _rows=rows, paths=paths)

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the data: pixels and labels, or paths, file sizes and labels."""
        kind = "<f4" if self.labels.is_floating_point() else "<i8"
        digest = hashlib.sha256(self.labels.cpu().numpy().astype(kind).tobytes())
        digest.update(repr(tuple(self.preprocessing.size)).encode())
        if self._store is not None:
            for rows in self._rows.split(256):
                digest.update(self._store[rows].numpy().tobytes())
        else:
            files, paths = self._named_files()
            for path in paths:
                digest.update(
                    os.fsencode(unicodedata.normalize("NFC", path)) + b"\0" + str(files.size(path)).encode() + b"\0"
                )
        return digest.hexdigest()[:16]

    def _with(self, **changed: Any) -> Self:
        other = copy.copy(self)
        vars(other).update(changed)
        return other

    def _decoded(self, number: int, view: AnyView = None) -> Tensor:
        if self._store is not None and (self.files is None or self.paths is None):
            pixels = self._store[self._rows[number]]
            return render(pixels.permute(1, 2, 0).numpy(), self.preprocessing, view)
        files, paths = self._named_files()
        source = files.read(paths[number])
        return decode(source, self.preprocessing, name=None if isinstance(source, Path) else paths[number], view=view)

    def _all_decoded(self, wanted: Sequence[tuple[int, AnyView]]) -> Tensor:
        decoded = torch.empty((len(wanted), *self.preprocessing.shape), dtype=torch.uint8)
        for row, image in enumerate(in_threads(lambda pair: self._decoded(*pair), wanted)):
            decoded[row] = image
        return decoded

    def _named_files(self) -> tuple[Files, list[str]]:
        # The constructor has checked it: without pixels there are files.
        assert self.files is not None
        assert self.paths is not None
        return self.files, self.paths


def _possible(augment: Augment, preprocessing: Preprocessing) -> Augment:
    if augment not in ("none", "crop-flip", *LEVELS):
        raise DataError(f"Images are augmented by none, crop-flip, {listed([*LEVELS])}, not {augment!r}.")
    if augment in LEVELS and preprocessing.shape[0] != 3:
        raise DataError(f"timm augments images of three channels, not {preprocessing.shape[0]}; take crop-flip.")
    return augment


def usual_augment(named: Augment, images: ImageDataset) -> Augment:
    """The random views of a training where nobody asks for any: those of the task, or what images with masks need."""
    return images.augment if named == "none" else named


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Facts about the images of a task, for people: found, passed over, and worth knowing before a figure is believed.

    Args:
        per_split: Split -> class -> number of images, for the splits that are there.
        passed_over: Reason -> names of the files and folders that are no part of the task, relative to the data.
        notes: One sentence for each thing to know.
        sample: Beginnings of the SHA-256 of the files to learn from, the 1024 smallest, in one string: tells which
            images of a folder a model has seen.
    """

    per_split: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    passed_over: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    notes: tuple[str, ...] = ()
    sample: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Labelled images for training, validation and test, and what is to be said of them.

    Args:
        name: A short name, such as the folder's.
        source: What the user asked for, such as a folder or `bundled:fashion-mnist`.
        classes: The class with label `i` is `classes[i]`; of another target, the names of what it has.
        preprocessing: The same for all images.
        train: Images to learn from.
        val: Images to choose by, if there are any.
        test: Images to read once, at the end, if there are any.
        skipped: One sentence per file, class or folder that was left out.
        differences: One sentence for each way in which the data are not those of the benchmark that they are named
            after.
        summary: What was found, passed over and is worth knowing.
        target: What is to be said of an image; one of the classes when not given.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    train: ImageDataset
    val: ImageDataset | None
    test: ImageDataset | None
    skipped: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()
    summary: Summary = field(default_factory=Summary)
    target: Target = field(default_factory=lambda: SingleLabel(names=()))

    def __post_init__(self) -> None:
        if not self.target.names:
            object.__setattr__(self, "target", SingleLabel(names=self.classes))

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{len(split)} {name}"
            for name, split in (("train", self.train), ("val", self.val), ("test", self.test))
            if split is not None
        )
        return f"Task({self.name!r}, {self.target.size}, images: {sizes})"

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with the classes or with any split's data.

        A copy elsewhere has the same, however its path is written.
        """
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for name, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            digest.update(f"\0{name}\0{split.fingerprint() if split is not None else 'none'}".encode())
        return digest.hexdigest()[:16]
