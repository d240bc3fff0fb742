"""Data sets of the library `datasets`: folders that it has saved, and names on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

        on_hub = query.spec.startswith(PREFIX)
        if not on_hub and not any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            return None
        listing = dataset_listing(
            lambda hf: hf.load_dataset(name, config or None) if on_hub else hf.load_from_disk(str(folder)),
            query,
            folder,
        )
        return replace(listing, name=printable(folder.resolve().name.replace(":", "-")))


def dataset_listing(load: Callable[[Any], Any], query: Query, folder: Path) -> Listing:
    """The images of a data set of the library, or of one for each split; streams are read once.

    Args:
        load: Called with the library; gives it.
        query: What the user asked for.
        folder: The folder that paths are relative to.

    Raises:
        DataError: The library cannot read it, or it cannot be told which splits or columns are meant.
    """
    return with_datasets(lambda hf: _listing(hf, load(hf), query, folder), printable(query.spec))


def _listing(hf: Any, data: Any, query: Query, folder: Path) -> Listing:
    parts: dict[str, Any] = {
        name: part if hasattr(part, "__len__") else hf.Dataset.from_list([*part], features=part.features)
        for name, part in (data if isinstance(data, Mapping) else {"all": data}).items()
    }
    split_named = {name: found[0] for name in parts if (found := split_of(name)) is not None}
    used: dict[str, str | None] = {**split_named} or dict.fromkeys(parts)
    if len({*used.values()}) < len(used):
        raise DataError(f"{printable(query.spec)} has {listed([*used])}, where train, val and test should be.")
    listing = listing_of([sheet_of(hf, parts[name], name, split) for name, split in used.items()], query, folder)
    unused = [f"part {printable(name)} is not used" for name in parts if name not in used]
    return replace(listing, notes=[*unused, *listing.notes])


SOURCES.register(Hub())
