"""Images that come as rows of an array: read row by row, given as PNG."""

from __future__ import annotations

import gzip
import importlib
import io
import math
import zipfile
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vprompt.data.prepare.archives import Files, Found, damaged, whole
from vprompt.data.prepare.contents import Contents, Item, Part, documented, move, text
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

_LARGEST_ROW = 1 << 30

# Signatures of the NORB matrix format, in the little-endian files that are given out.
_NORB_TYPES = {0x1E3D4C55: np.dtype(np.uint8), 0x1E3D4C54: np.dtype("<i4")}


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (H, W) or (H, W, 3) as the bytes of a PNG file."""
    buffer = io.BytesIO()
    # Small images: what stronger compression saves is not worth its time.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def row_name(part: str, row: int) -> str:
    """What a row of an array is called among a task's items.

    Example:
        >>> row_name("train", 7)
        'train/000007'
    """
    return f"{part}/{row:06d}"


def rows_as_images(
    parts: dict[str, Callable[[], Iterator[NDArray[np.uint8]]]],
) -> Callable[[Collection[str]], Iterator[tuple[str, bytes]]]:
    """What `Contents.images` is for arrays: `parts` opens the rows of each, which are then read once, in order."""

    def images(names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        wanted = set(names)
        for part, rows in parts.items():
            left = sum(name.startswith(f"{part}/") for name in wanted)
            for row, pixels in enumerate(rows() if left else ()):
                name = row_name(part, row)
                if name in wanted:
                    yield name, to_png(pixels)
                    left -= 1
                    if not left:
                        break

    return images


def npz_rows(path: Path, key: str) -> Iterator[NDArray[Any]]:
    """The rows of one array in an .npz file, without holding it; pickled arrays are refused."""
    with whole(printable(str(path))), zipfile.ZipFile(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            raise DataError(f"{printable(str(path))} has no array {key}; it is not the original.")
        with archive.open(f"{key}.npy") as stream:
            try:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(stream)
            except ValueError as error:
                raise damaged(printable(str(path)), error) from error
            if dtype.hasobject or fortran or not shape:
                raise DataError(f"The array {key} of {printable(str(path))} cannot be read row by row.")
            yield from _rows(stream, shape, dtype)


def norb_shape(path: Path) -> tuple[int, ...]:
    """The shape of a NORB matrix."""
    with _norb(path) as (_, shape, _dtype):
        return shape


def norb_rows(path: Path) -> Iterator[NDArray[Any]]:
    """The rows of a NORB binary matrix (`.mat`, no MATLAB file; or that in gzip).

    The format is described on the page of the data set: signature, number of dimensions, at least three sizes, data,
    all little-endian (https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/).
    """
    with _norb(path) as (stream, shape, dtype):
        yield from _rows(stream, shape, dtype)


@contextmanager
def _norb(path: Path) -> Generator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    openers: Any = gzip.open if path.name.endswith(".gz") else open
    with whole(printable(str(path))), openers(path, "rb") as stream:
        kind, ndim = (int(n) for n in np.frombuffer(_exactly(stream, 8), "<i4"))
        if kind not in _NORB_TYPES or not 1 <= ndim <= 8:
            raise DataError(f"{printable(str(path))} is not a matrix in the format of NORB; fetch it again.")
        sizes = [int(n) for n in np.frombuffer(_exactly(stream, 4 * max(3, ndim)), "<i4")]
        if min(sizes) < 0:
            raise DataError(f"{printable(str(path))} has a negative size in its header; fetch it again.")
        yield stream, tuple(sizes[:ndim]), _NORB_TYPES[kind]


def _rows(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    size = math.prod(shape[1:]) * dtype.itemsize
    if size > _LARGEST_ROW:
        raise EOFError("its header promises impossible sizes")
    for _ in range(shape[0]):
        yield np.frombuffer(_exactly(stream, size), dtype).reshape(shape[1:])


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("it ends early")
    return data


def load_matlab(data: bytes | Path, title: str) -> dict[str, Any]:
    """The variables of a MATLAB file, by SciPy.

    Raises:
        DataError: SciPy is not installed, or the file is damaged.
    """
    scipy = needed("scipy.io", "scipy", "MATLAB files")
    try:
        return scipy.loadmat(io.BytesIO(data) if isinstance(data, bytes) else data, squeeze_me=True)
    except (OSError, MemoryError):
        raise
    # SciPy has no error class of its own for a damaged file.
    except Exception as error:
        raise damaged(title, error) from error


def needed(module: str, package: str, what: str) -> Any:
    """A module that only some tasks need.

    Raises:
        DataError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(
            f"{what} are read with {package}, which is not installed; run `pip install {package}`."
        ) from None


_CIFAR_RECORD = 2 + 3 * 32 * 32

_DSPRITES_COLUMNS = ("color", "shape", "scale", "orientation", "x", "y")


def cifar(found: Found) -> Contents:
    """CIFAR-100 with its 100 fine labels, from the binary version: the other one is pickled."""
    files = found.files["images"]
    parts: dict[Part, NDArray[np.uint8]] = {"train": _cifar(files, "train.bin"), "test": _cifar(files, "test.bin")}
    items = [
        Item(row_name(part, row), int(label), part)
        for part, records in parts.items()
        for row, label in enumerate(records[:, 1])
    ]

    def rows(part: Part) -> Callable[[], Iterator[NDArray[np.uint8]]]:
        return lambda: (record[2:].reshape(3, 32, 32).transpose(1, 2, 0) for record in parts[part])

    return Contents(
        classes=tuple(text(files, "fine_label_names.txt").split()),
        items=items,
        images=rows_as_images({part: rows(part) for part in parts}),
        parts="the official training and test parts",
    )


def svhn(found: Found) -> Contents:
    """House numbers: the digit in the middle; without the extra images."""
    parts: dict[Part, tuple[NDArray[np.uint8], NDArray[Any]]] = {}
    for part in ("train", "test"):
        path = found.paths[part]
        loaded = load_matlab(path, path.name)
        with documented("the source", path.name):
            pixels, labels = np.asarray(loaded["X"]), np.atleast_1d(loaded["y"])
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[2:] != (3, len(labels)):
                raise ValueError(f"images of shape {pixels.shape} for {len(labels)} labels")
            # The files call the digit 0 ten.
            parts[part] = pixels.transpose(3, 0, 1, 2), labels.astype(np.int64) % 10

    def rows(part: Part) -> Callable[[], Iterator[NDArray[np.uint8]]]:
        return lambda: (np.ascontiguousarray(image) for image in parts[part][0])

    return Contents(
        classes=tuple("0123456789"),
        items=[Item(row_name(p, row), int(label), p) for p in parts for row, label in enumerate(parts[p][1])],
        images=rows_as_images({part: rows(part) for part in parts}),
        parts="the official training and test parts, without the extra one",
    )


def patch_camelyon(found: Found) -> Contents:
    """Whether the middle of a patch of tissue has a tumour."""
    h5py = needed("h5py", "h5py", "HDF5 files")
    items: list[Item] = []
    parts: tuple[Part, ...] = ("train", "val", "test")
    for part in parts:
        path = found.paths[f"{part}_y"]
        with whole(path.name), documented("the source", path.name), h5py.File(path, "r") as file:
            items += [Item(row_name(part, row), int(y), part) for row, y in enumerate(np.ravel(file["y"][:]))]

    def rows(part: str) -> Callable[[], Iterator[NDArray[np.uint8]]]:
        def read() -> Iterator[NDArray[np.uint8]]:
            path = found.paths[f"{part}_x"]
            with whole(path.name), h5py.File(path, "r") as file:
                # By blocks: HDF5 is slow row by row.
                for start in range(0, len(file["x"]), 256):
                    yield from file["x"][start : start + 256]

        return read

    return Contents(
        classes=("no tumour", "tumour"),
        items=items,
        images=rows_as_images({part: rows(part) for part in parts}),
        parts="the official parts",
    )


def dsprites_loc(found: Found) -> Contents:
    """The horizontal place of a white shape: 32 places in 16 classes."""
    return _dsprites(found, "x", 32)


def dsprites_ori(found: Found) -> Contents:
    """The orientation of a white shape: 40 angles in 16 classes, of two or three angles each."""
    return _dsprites(found, "orientation", 40)


def smallnorb_azi(found: Found) -> Contents:
    """From which of 18 sides a toy is seen."""
    return _smallnorb(found, 2, [f"{20 * n} degrees" for n in range(18)], 2)


def smallnorb_ele(found: Found) -> Contents:
    """From which of nine heights a toy is seen."""
    return _smallnorb(found, 1, [f"{30 + 5 * n} degrees" for n in range(9)], 1)


def _cifar(files: Files, name: str) -> NDArray[np.uint8]:
    with documented(files.title, name):
        return np.frombuffer(files.read(name), np.uint8).reshape(-1, _CIFAR_RECORD)


def _dsprites(found: Found, factor: str, values: int) -> Contents:
    """The rest of the file, its metadata, is pickled and not read."""
    path = found.paths["images"]
    column = _DSPRITES_COLUMNS.index(factor)
    items: list[Item] = []
    with documented("the source", path.name):
        for row, latents in enumerate(npz_rows(path, "latents_classes")):
            items.append(Item(row_name("train", row), int(latents[column]) * 16 // values, "train"))

    def rows() -> Iterator[NDArray[np.uint8]]:
        return (image * np.uint8(255) for image in npz_rows(path, "imgs"))

    return Contents(
        classes=tuple(f"{_first(n, values)} to {_first(n + 1, values) - 1}" for n in range(16)),
        items=move(items, "train", "test", len(items) // 10),
        images=rows_as_images({"train": rows}),
        parts="a hash draws 10 % of each class for test",
    )


def _first(label: int, values: int) -> int:
    """The smallest of `values` values with that label."""
    return -(-label * values // 16)


def _smallnorb(found: Found, column: int, classes: list[str], step: int) -> Contents:
    """The left of the two cameras. Half of the official test part is for validation."""
    items: list[Item] = []
    parts: tuple[Part, ...] = ("train", "test")
    for part in parts:
        info, pixels = found.paths[f"{part}_info"], found.paths[f"{part}_images"]
        with documented("the source", info.name):
            labels = [int(row[column]) // step for row in norb_rows(info)]
        if norb_shape(pixels)[:1] != (len(labels),):
            raise DataError(f"{pixels.name} has another number of images than {info.name}; fetch both again.")
        items += [Item(row_name(part, row), label, part) for row, label in enumerate(labels)]

    tests = sum(item.part == "test" for item in items)

    def rows(path: Path) -> Callable[[], Iterator[NDArray[np.uint8]]]:
        return lambda: (pair[0] for pair in norb_rows(path))

    return Contents(
        classes=tuple(classes),
        items=move(items, "test", "val", tests // 2),
        images=rows_as_images({part: rows(found.paths[f"{part}_images"]) for part in parts}),
        parts="the official training part; a hash draws half of each class of the official test part for validation",
    )
