"""A source: it lists labelled images. Checking, splitting and decoding them is `vprompt.data.pipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from vprompt.data.listing import Listing
from vprompt.utils.registry import Registry


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
