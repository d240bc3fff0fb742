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

from laconic.data.images import printable
from laconic.data.prepare.files import damaged, whole
from laconic.errors import DataError

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
