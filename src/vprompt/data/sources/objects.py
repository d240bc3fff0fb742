"""Data sets that are objects in Python: torch data sets of images and labels, and those of the library `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch.utils.data import IterableDataset

from vprompt.data.listing import Listing
from vprompt.data.sources.base import Query
from vprompt.data.sources.hub import dataset_listing
from vprompt.data.sources.sheet import Sheet, text_of
from vprompt.data.sources.table import listing_of
from vprompt.tasks.columns import Columns
from vprompt.utils.errors import DataError


def object_listing(data: Any, columns: Columns, target: str | None = None) -> Listing:
    """The images of a data set whose items are pairs of an image and a label, or of one for each split.

    Args:
        data: The data set; or a mapping of `train`, `val` and `test` to such.
        columns: What the columns are, of a data set of the library `datasets`.
        target: See `Query`.

    Raises:
        DataError: Items are something else.
    """
    parts = cast("Mapping[str, Any]", data if isinstance(data, Mapping) else {"all": data})
    query = Query(spec="the data set", columns=columns, target=target)
    if parts and all(hasattr(part, "features") for part in parts.values()):
        return replace(dataset_listing(lambda _: cast("Any", data), query, Path()), name="data")
    if not parts or (len(parts) > 1 and not parts.keys() <= {"train", "val", "test"}):
        raise DataError(f"Data sets are called train, val and test, not {', '.join(map(str, parts)) or 'nothing'}.")
    sheets = [_sheet(part, name, name if len(parts) > 1 else None) for name, part in parts.items()]
    return replace(listing_of(sheets, query, Path()), name="data", remarks=())


def _sheet(data: Any, name: str, split: str | None) -> Sheet:
    whole = hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset)
    rows: Any = data if whole else list(data)
    names: Any = getattr(data, "classes", None) or getattr(getattr(data, "dataset", None), "classes", None) or ()
    labels: list[Any] = []
    for number in range(len(rows)):
        row = rows[number]
        if not isinstance(row, tuple | list) or len(cast("list[Any]", row)) != 2:
            raise DataError(f"Items of a data set are pairs of an image and a label, not {type(row).__name__}.")
        label: Any = row[1].tolist() if hasattr(row[1], "tolist") else row[1]
        labels.append(names[label] if isinstance(label, int) and 0 <= label < len(names) else label)
    if all(isinstance(label, list) and len(label) > 1 and all(cell in (0, 1) for cell in label) for label in labels):
        # It says of each tag whether the image has it.
        tags = [[tag for tag, has in enumerate(label) if has] for label in labels]
        labels = [[str(names[tag] if tag < len(names) else tag) for tag in label] for label in tags]
    return Sheet(
        name=name,
        unit="item",
        numbers=range(1, len(rows) + 1),
        columns={"label": [*map(text_of, labels)]},
        images={"image": (rows, 0)},
        split=split,
    )
