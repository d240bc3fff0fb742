"""Images in rows: of Parquet files, WebDataset shards and other data sets of the library `datasets`, and of objects."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vprompt.data.images import Source
from vprompt.data.sources.sheet import Sheet, columns_of
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable


@dataclass(frozen=True)
class RowFiles:
    """Images in rows, by the names `TABLE#NUMBER`.

    Args:
        tables: Name of a table -> what has its rows, and the key of the image in a row.
        base: The folder that paths in rows are relative to.
    """

    tables: Mapping[str, tuple[Any, Any]]
    base: Path

    def read(self, name: str) -> Source:
        """The bytes in a row, or the path in it; of a picture or an array, those of a lossless file.

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
    buffer = io.BytesIO()
    if isinstance(image, Image.Image):
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    array = np.asarray(image.permute(1, 2, 0) if isinstance(image, Tensor) and image.ndim == 3 else image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise DataError(
            f"{printable(name)} is {type(image).__name__} of {array.dtype} {tuple(np.shape(image))}; an image is a "
            "path, a PIL image, an array of uint8 (H, W) or (H, W, C) or a tensor of it (C, H, W), not normalised."
        )
    np.save(buffer, array)
    return buffer.getvalue()


def read_rows(file: Path, name: str) -> Sheet:
    """The rows of a Parquet file or a WebDataset shard, which the library keeps in its cache.

    Args:
        file: The file.
        name: What messages call it.

    Raises:
        DataError: The library is not installed, or cannot read the file.
    """
    kind = {".parquet": "parquet", ".tar": "webdataset"}[file.suffix.lower()]
    return with_datasets(
        lambda hf: sheet_of(hf, hf.load_dataset(kind, data_files=[str(file)], split="train"), name), name
    )


def with_datasets(load: Callable[[Any], Any], what: str) -> Any:
    """Something of the library `datasets`, without its bars.

    Args:
        load: Called with the library.
        what: What is read, for messages.

    Raises:
        DataError: It is not installed, or cannot read it.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{what} is read after `pip install 'vprompt[datasets]'`.") from error
    shown = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return load(datasets)
    except DataError:
        raise
    except Exception as error:  # it has no error of its own, and puts that of a reader into another
        text = printable(" ".join(str(error.__cause__ or error).split())[:200])
        raise DataError(f"{what} cannot be read by the library datasets ({text}).") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def sheet_of(hf: Any, data: Any, name: str, split: str | None = None) -> Sheet:
    """The rows of a `datasets.Dataset`; names of classes stand for their numbers, and images are not decoded.

    Args:
        hf: The library.
        data: The rows.
        name: What messages call them.
        split: The split that they are.
    """
    kinds: dict[str, Any] = {key: kind for key, kind in data.features.items() if not key.startswith("__")}
    images: list[str] = []
    for key, kind in kinds.items():
        if isinstance(kind, hf.Image):
            data = data.cast_column(key, hf.Image(decode=False))
        binary = getattr(kind, "dtype", "") in ("binary", "large_binary")
        if isinstance(kind, hf.Image) or binary or (isinstance(kind, dict) and "bytes" in kind):
            images.append(key)
    others = [key for key in kinds if key not in images]
    columns = columns_of(data.select_columns(others).with_format("arrow")[:].to_pylist() if others else [])
    for key, kind in kinds.items():
        if isinstance(kind, hf.ClassLabel):  # of which -1 says nothing
            columns[key] = [kind.names[int(cell)] if cell.isdigit() else "" for cell in columns[key]]
    return Sheet(
        name=name,
        unit="row",
        numbers=range(1, len(data) + 1),
        columns=columns,
        images={key: (data.select_columns([key]), key) for key in images},
        split=split,
    )
