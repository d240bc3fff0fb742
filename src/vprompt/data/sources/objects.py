"""Data sets that are objects in Python: any torch data set of images and labels, and those of the library `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch.utils.data import IterableDataset

from vprompt.data.columns import Columns
from vprompt.data.listing import Listing
from vprompt.data.rows import with_datasets
from vprompt.data.sources.base import Query
from vprompt.data.sources.hub import dataset_listing
from vprompt.data.sources.table import listing_of
from vprompt.data.table import Sheet, text_of
from vprompt.utils.errors import DataError


def object_listing(data: Any, columns: Columns) -> Listing:
    """The images of a data set whose items are pairs of an image and a label, or of one for each split.

    Args:
        data: The data set; or `train`, `val` and `test` of a mapping, or of a tuple in this order.
        columns: What the columns are, of a data set that has them.

    Raises:
        DataError: Items are something else.
    """
    tuples = dict(zip(("train", "val", "test"), data, strict=False)) if isinstance(data, tuple) else {"data": data}
    parts: dict[str, Any] = {**(cast("Mapping[str, Any]", data) if isinstance(data, Mapping) else tuples)}
    parts = {name: part for name, part in parts.items() if part is not None}
    query = Query(spec="the data set", columns=columns)
    if all(hasattr(part, "features") for part in parts.values()):
        whole = {
            name: part if hasattr(part, "__len__") else with_datasets(lambda hf, p=part: hf.Dataset.from_list([*p]), name)
            for name, part in parts.items()
        }
        return replace(dataset_listing(whole, query, Path()), name="data")
    splits = {name: name if len(parts) > 1 else None for name in parts}
    if unknown := [name for name, split in splits.items() if split not in (None, "train", "val", "test")]:
        raise DataError(f"Data sets are called train, val and test, not {unknown[0]!r}.")
    sheets = [_sheet(part, name, splits[name]) for name, part in parts.items()]
    return replace(listing_of(sheets, query, Path()), name="data", remarks=(), label_names=())


def _sheet(data: Any, name: str, split: str | None) -> Sheet:
    whole = hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset)
    rows: Any = data if whole else list(data)
    names: Any = getattr(data, "classes", None) or getattr(getattr(data, "dataset", None), "classes", None)
    labels: list[str] = []
    for number in range(len(rows)):
        row = rows[number]
        if not isinstance(row, tuple | list) or len(cast("list[Any]", row)) < 2:
            raise DataError(f"Items of a data set are pairs of an image and a label, not {type(row).__name__}.")
        label: Any = row[1].tolist() if hasattr(row[1], "tolist") else row[1]
        known = names is not None and isinstance(label, int) and 0 <= label < len(names)
        labels.append(text_of(names[label] if known else label))
    numbers = range(1, len(rows) + 1)
    return Sheet(
        name=name, unit="item", numbers=numbers, columns={"label": labels}, images={"image": (rows, 0)}, split=split
    )
