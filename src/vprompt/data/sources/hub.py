"""Data sets of the library `datasets`: folders that it has saved, and names on the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vprompt.data.listing import Listing
from vprompt.data.rows import sheet_of, with_datasets
from vprompt.data.sources.base import SOURCES, Query
from vprompt.data.sources.folder import split_of
from vprompt.data.sources.table import listing_of
from vprompt.utils.errors import DataError
from vprompt.utils.text import listed, printable

PREFIX = "hf:"


class Hub:
    """`hf:NAME`, `hf:NAME:CONFIG`, and folders written by `save_to_disk`."""

    name = "hub"

    def find(self, query: Query) -> Listing | None:
        """See `DataSource`."""
        folder = Path(query.spec)
        if query.spec.startswith(PREFIX):
            name, _, config = query.spec.removeprefix(PREFIX).partition(":")
            data = with_datasets(lambda hf: hf.load_dataset(name, config or None), printable(query.spec))
        elif any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            data = with_datasets(lambda hf: hf.load_from_disk(str(folder)), printable(query.spec))
        else:
            return None
        return dataset_listing(data, query, folder)


def dataset_listing(data: Any, query: Query, folder: Path) -> Listing:
    """The images of a `datasets.Dataset`, or of a `DatasetDict` of splits.

    Args:
        data: As the library has it.
        query: What the user asked for.
        folder: The folder that paths are relative to.

    Raises:
        DataError: Two splits stand for one of ours, or the columns cannot be told.
    """
    parts: dict[str, Any] = dict(data) if isinstance(data, dict) else {str(data.split or "rows"): data}
    splits = {name: split for name in parts if (split := (split_of(name) or (None,))[0]) is not None}
    used = splits if splits else dict.fromkeys(parts)
    if len({*used.values()}) < len(used):
        raise DataError(f"{printable(query.spec)} has the parts {listed([*used])}, which are not train, val and test.")
    listing = listing_of([sheet_of(parts[name], name, split) for name, split in used.items()], query, folder)
    notes = [f"part {printable(name)} is not used" for name in parts if name not in used]
    name = query.spec.removeprefix(PREFIX).replace("/", "-").replace(":", "-") if query.spec.startswith(PREFIX) else ""
    return replace(listing, name=printable(name or folder.resolve().name), notes=[*notes, *listing.notes])


SOURCES.register(Hub())
