"""The columns of a table that a user names, where their names and cells do not tell what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vprompt.utils.serialization import ADDED


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of a table of images.

    Args:
        image_column: Column of a table that has the images, or their paths; found by name and content when left out.
        label_column: Column of a table that has the labels; of several, the names with commas between them.
        split_column: Column of a table that says train, val or test.
        group: Column of a table that says what belongs together, such as patient or camera: no group is on both sides
            where splits are cut.

    Example:
        >>> Columns(label_column="width,height").labels(["image", "width", "height"])
        ['width', 'height']
    """

    image_column: str | None = field(default=None, metadata=ADDED)
    label_column: str | None = field(default=None, metadata=ADDED)
    split_column: str | None = field(default=None, metadata=ADDED)
    group: str | None = field(default=None, metadata=ADDED)

    @classmethod
    def among(cls, settings: Mapping[str, Any]) -> Columns:
        """Those in the settings of a run as plain data."""
        return cls(**{entry.name: found for entry in fields(cls) if isinstance(found := settings.get(entry.name), str)})

    def over(self, others: Columns) -> Columns:
        """These, and others where these say nothing."""
        return Columns(**{**vars(others), **{name: value for name, value in vars(self).items() if value is not None}})

    def labels(self, names: list[str]) -> list[str]:
        """The columns named as labels, of a table with these columns."""
        if self.label_column is None or self.label_column in names:
            return [] if self.label_column is None else [self.label_column]
        return [name.strip() for name in self.label_column.split(",")]


NO_COLUMNS = Columns()
"""Nothing is named."""
