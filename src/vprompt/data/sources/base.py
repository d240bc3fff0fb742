"""A source: it lists labelled images. Checking, splitting and decoding them is `vprompt.data.pipeline`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vprompt.data.listing import Listing
from vprompt.tasks.columns import NO_COLUMNS, Columns
from vprompt.utils.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Query:
    """Data that a user asks for.

    Args:
        spec: What the user wrote as DATA.
        root: The folder that benchmark tasks lie in.
        training: Whether they are to train on, so that there must be training images.
        columns: What the columns of a table are.
        target: Name of what is to be said of an image; what the labels look like when not given.
    """

    spec: str
    root: str | Path | None = None
    training: bool = True
    columns: Columns = NO_COLUMNS
    target: str | None = None


class DataSource(Protocol):
    """A kind of data sets that a user can name; one whose images come with it may say so by `renders = True`."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def find(self, query: Query) -> Listing | None:
        """The images that a user asks for.

        Args:
            query: What is asked for.

        Returns:
            None if that is of another kind.

        Raises:
            DataError: It is of this kind, but cannot be used.
        """
        ...


SOURCES: Registry[DataSource] = Registry("data source", "vprompt.data.sources", "vprompt.data")
"""All sources but folders, which are what `spec` is taken for when no source knows it."""
