"""Images in the rows of data sets of the library `datasets`: Parquet files, WebDataset shards, folders and Hub names."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vprompt.data.images import Source
from vprompt.data.table import Sheet, flat_cells, text_of
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable


@dataclass(frozen=True)
class RowFiles:
    """Images in rows, by the names `TABLE#NUMBER`.

    Args:
        tables: Name of a table -> what has its rows, and the key of the image in a row.
        base: The folder that paths are relative to, where rows have paths.
    """

    tables: Mapping[str, tuple[Any, Any]]
    base: Path

    def read(self, name: str) -> Source:
        """The bytes in a row, or the path in it; of a picture or an array, a lossless file.

        Raises:
            DataError: The row holds something else.
        """
        table, _, number = name.rpartition("#")
        rows, key = self.tables[table]
        cell: Any = rows[int(number) - 1][key]
        if isinstance(cell, dict):
            cell = cell["path"] if cell.get("bytes") is None else cell["bytes"]
        if isinstance(cell, str | os.PathLike):
            return self.base / cell
        return b"" if cell is None else cell if isinstance(cell, bytes) else _as_file(cell, name)

    def size(self, name: str) -> int:
        """The number of bytes of an image."""
        source = self.read(name)
        return len(source) if isinstance(source, bytes) else os.path.getsize(str(source))


def _as_file(image: Any, name: str) -> bytes:
    """The bytes of a PNG file of a PIL image, or of an array or tensor of bytes."""
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
            array = array.transpose(1, 2, 0)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise DataError(
                f"{printable(name)} is {type(image).__name__} of {array.dtype} {array.shape}; an image is a path, a PIL "
                "image, or an array of uint8 (H, W), (H, W, C) or (C, H, W), neither scaled nor normalised."
            )
        image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read_rows(file: Path) -> Sheet:
    """The rows of a Parquet file or a WebDataset shard, which are in a cache of `datasets` after the first time.

    Raises:
        DataError: `datasets` is not installed, or it cannot read the file.
    """
    kind = {".parquet": "parquet", ".tar": "webdataset"}[file.suffix.lower()]
    data = with_datasets(
        lambda hf: hf.load_dataset(kind, data_files={"train": [str(file)]}, split="train"), printable(file.name)
    )
    return sheet_of(data, file.name)


def with_datasets(load: Callable[[Any], Any], what: str) -> Any:
    """Something of the library `datasets`, without its bars.

    Args:
        load: Called with the library.
        what: What is read, for the message.

    Raises:
        DataError: It is not installed, or it raises something.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{what} is read after `pip install 'vprompt[datasets]'`.") from error
    shown = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return load(datasets)
    except Exception as error:  # it has no error of its own, and puts that of a reader into another
        cause = error
        while cause.__cause__ is not None or cause.__context__ is not None:
            cause = cause.__cause__ or cause.__context__ or cause
        text = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise DataError(f"{what} cannot be read by the library datasets ({text}).") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def sheet_of(data: Any, name: str, split: str | None = None) -> Sheet:
    """The rows of a `datasets.Dataset`; names of classes stand for their numbers, and images are not decoded.

    Args:
        data: The rows.
        name: What messages call them.
        split: The split that they are.
    """
    import datasets

    def has_image(feature: Any) -> bool:
        if isinstance(feature, dict):
            return "bytes" in feature and "path" in feature
        return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")

    features: dict[str, Any] = {key: kind for key, kind in data.features.items() if not key.startswith("__")}
    images = [key for key, feature in features.items() if has_image(feature)]
    for key in images:
        if isinstance(features[key], datasets.Image):
            data = data.cast_column(key, datasets.Image(decode=False))
    others = [key for key in features if key not in images]
    rows: list[dict[str, Any]] = data.select_columns(others).with_format("arrow")[:].to_pylist() if others else []
    classes: dict[str, list[str]] = {
        key: feature.names for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)
    }
    records = [dict(flat_cells(row.items())) for row in rows]
    columns = {key: [text_of(record.get(key)) for record in records] for key in dict.fromkeys(k for r in records for k in r)}
    for key, names in classes.items():
        columns[key] = [names[int(cell)] if cell and int(cell) >= 0 else "" for cell in columns[key]]
    return Sheet(
        name=name,
        unit="row",
        numbers=range(1, len(data) + 1),
        columns=columns,
        images={key: (data.select_columns([key]), key) for key in images},
        classes=[*classes],
        split=split,
    )
