"""Data sets of the library `datasets`: folders that it has saved, and names on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vprompt.data.listing import Listing
from vprompt.data.sources.base import SOURCES, Query
from vprompt.data.sources.folder import split_of
from vprompt.data.sources.rows import sheet_of, with_datasets
from vprompt.data.sources.table import listing_of
from vprompt.utils.errors import DataError
from vprompt.utils.text import listed, printable

PREFIX = "hf:"


class Hub:
    """`hf:NAME`, `hf:NAME:CONFIG`, and folders written by `save_to_disk`."""

    name = "hub"

    def find(self, query: Query) -> Listing | None:
        """See `DataSource`."""
        folder, (name, _, config) = Path(query.spec), query.spec.removeprefix(PREFIX).partition(":")

        def read(hf: Any) -> Listing:
            on_hub = query.spec.startswith(PREFIX)
            data = hf.load_dataset(name, config or None) if on_hub else hf.load_from_disk(str(folder))
            listing = dataset_listing(hf, data if isinstance(data, dict) else {"all": data}, query, folder)
            return replace(listing, name=printable(folder.resolve().name.replace(":", "-")))

        saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
        return with_datasets(read, printable(query.spec)) if saved or query.spec.startswith(PREFIX) else None


def dataset_listing(hf: Any, parts: Mapping[str, Any], query: Query, folder: Path) -> Listing:
    """The images of data sets of the library.

    Args:
        hf: The library.
        parts: Name of a split -> `datasets.Dataset`.
        query: What the user asked for.
        folder: The folder that paths are relative to.

    Raises:
        DataError: It cannot be told which splits or columns are meant.
    """
    split_named = {name: found[0] for name in parts if (found := split_of(name)) is not None}
    used: dict[str, str | None] = {**split_named} or dict.fromkeys(parts)
    if len({*used.values()}) < len(used):
        raise DataError(f"{printable(query.spec)} has {listed([*used])}, where train, val and test should be.")
    listing = listing_of([sheet_of(hf, parts[name], name, split) for name, split in used.items()], query, folder)
    unused = [f"part {printable(name)} is not used" for name in parts if name not in used]
    return replace(listing, notes=[*unused, *listing.notes])


SOURCES.register(Hub())
