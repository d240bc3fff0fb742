"""A source: it lists labelled images. Checking, splitting and decoding them is `vprompt.data.pipeline`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vprompt.data.dataset import Files
from vprompt.utils.registry import Registry

UNSPLIT = "all"
"""The only split of images that are not cut into splits yet."""


class Item(NamedTuple):
    """One labelled image: its name (of a file, its path relative to the folder) and the name of its class."""

    name: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Labelled images as a source lists them, before any of them is opened.

    Args:
        name: A short name of the task.
        source: What the user asked for.
        where: What messages call the place that the images are in.
        splits: The images of `train`, `val` and `test`, as far as they are there, or of `UNSPLIT`.
        files: The folder that names are paths in, or what reads an image by its name.
        rendered: Makes the pixels of images that are in no files, (N, H, W) or (N, H, W, 3), in the order of `splits`.
        classes: The classes in the order of their labels, where the source defines them; its splits are then taken as
            they are, and of images that do not fit into memory only the headers are checked. None for those of the
            training images, sorted.
        empty: For each split the classes that are listed without an image.
        notes: Sentences on what is there but has no part in the task.
        differences: See `Task`.
    """

    name: str
    source: str
    where: str
    splits: Mapping[str, Sequence[Item]]
    files: Path | Files | None = None
    rendered: Callable[[], NDArray[np.uint8]] | None = None
    classes: tuple[str, ...] | None = None
    empty: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    notes: Sequence[str] = ()
    differences: tuple[str, ...] = ()


class DataSource(Protocol):
    """A kind of data sets that a user can name."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def find(self, spec: str, *, root: str | Path | None, training: bool) -> Listing | None:
        """The images that `spec` stands for.

        Args:
            spec: What the user wrote as DATA.
            root: The folder that benchmark tasks lie in.
            training: Whether they are to train on, so that there must be training images.

        Returns:
            None if `spec` is of another kind.

        Raises:
            DataError: It is of this kind, but cannot be used.
        """
        ...


SOURCES: Registry[DataSource] = Registry("data source", "vprompt.data.sources", "vprompt.data")
"""All sources but folders, which are what `spec` is taken for when no source knows it."""
