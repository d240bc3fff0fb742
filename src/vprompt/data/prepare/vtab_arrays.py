"""Readers of VTAB tasks whose originals are arrays of pixels; all are read row by row, none is unpickled."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from vprompt.data.prepare.archives import Originals, reading
from vprompt.data.prepare.contents import Contents, Part, from_arrays, move
from vprompt.utils.errors import DataError

# Signatures of the NORB matrix format, in the little-endian files that are given out.
_NORB_TYPES = {0x1E3D4C55: np.dtype(np.uint8), 0x1E3D4C54: np.dtype("<i4")}

_CIFAR_RECORD = 2 + 3 * 32 * 32

_DSPRITES_COLUMNS = ("color", "shape", "scale", "orientation", "x", "y")

_PCAM_CACHE = 1 << 28
"""Bytes of decompressed blocks to hold: their rows are read one by one."""


class _SVHN(datasets.SVHN):
    """SVHN without a comparison of hashes: `prepare` has made it, and may have been told to accept a change."""

    def _check_integrity(self) -> bool:
        return True


def cifar(originals: Originals) -> Contents:
    """CIFAR-100 with its fine classes, from the binary version: torchvision's reader unpickles the Python one."""
    parts: dict[Part, NDArray[np.uint8]] = {}
    for part in ("train", "test"):
        path = originals["images"] / f"{part}.bin"
        with reading(path.name):
            parts[part] = np.fromfile(path, np.uint8).reshape(-1, _CIFAR_RECORD)

    def pixels(part: Any, row: int) -> NDArray[np.uint8]:
        return parts[part][row, 2:].reshape(3, 32, 32).transpose(1, 2, 0)

    classes = (originals["images"] / "fine_label_names.txt").read_text("utf-8").split()
    labels: dict[Part, Any] = {part: records[:, 1] for part, records in parts.items()}
    return from_arrays(labels, pixels, classes, "the official training and test parts")


def svhn(originals: Originals) -> Contents:
    """House numbers: the digit in the middle; without the extra images."""
    root = originals.arranged({f"{part}_32x32.mat": originals[part] for part in ("train", "test")})
    parts: dict[Part, _SVHN] = {}
    for part in ("train", "test"):
        with reading(f"{part}_32x32.mat"):
            parts[part] = _SVHN(root, split=part)
            if parts[part].data.dtype != np.uint8 or len(parts[part].data) != len(parts[part].labels):
                raise ValueError(f"{len(parts[part].data)} images for {len(parts[part].labels)} labels")

    def pixels(part: Any, row: int) -> NDArray[np.uint8]:
        return np.asarray(parts[part][row][0])

    labels: dict[Part, Any] = {part: digits.labels for part, digits in parts.items()}
    return from_arrays(labels, pixels, "0123456789", "the official training and test parts, without the extra one")


def patch_camelyon(originals: Originals) -> Contents:
    """Tumours in the middle of patches of tissue; torchvision's reader would open two files for each image."""
    h5py: Any = importlib.import_module("h5py")
    labels: dict[Part, NDArray[Any]] = {}
    images: dict[str, Any] = {}
    parts: tuple[Part, ...] = ("train", "val", "test")
    for part in parts:
        with reading(originals[f"{part}_y"].name), h5py.File(originals[f"{part}_y"]) as file:
            labels[part] = np.ravel(file["y"][:])
        with reading(originals[f"{part}_x"].name):
            images[part] = h5py.File(originals[f"{part}_x"], rdcc_nbytes=_PCAM_CACHE)["x"]
            if len(images[part]) != len(labels[part]):
                raise ValueError(f"{len(images[part])} images for {len(labels[part])} labels")

    def pixels(part: str, row: int) -> NDArray[np.uint8]:
        with reading(originals[f"{part}_x"].name):
            return images[part][row]

    return from_arrays(labels, pixels, ("no tumour", "tumour"), "the official parts")


def dsprites_loc(originals: Originals) -> Contents:
    """The horizontal place of a white shape: 32 places in 16 classes."""
    return _dsprites(originals, "x", 32)


def dsprites_ori(originals: Originals) -> Contents:
    """The orientation of a white shape: 40 angles in 16 classes, of two or three angles each."""
    return _dsprites(originals, "orientation", 40)


def smallnorb_azi(originals: Originals) -> Contents:
    """The side, of 18, from which a toy is seen."""
    return _smallnorb(originals, 2, [f"{20 * n} degrees" for n in range(18)], 2)


def smallnorb_ele(originals: Originals) -> Contents:
    """The height, of nine, from which a toy is seen."""
    return _smallnorb(originals, 1, [f"{30 + 5 * n} degrees" for n in range(9)], 1)


def _dsprites(originals: Originals, factor: str, values: int) -> Contents:
    """The rest of the file, its metadata, is pickled and not read."""
    latents, images = (_array(originals["images"] / f"{name}.npy") for name in ("latents_classes", "imgs"))
    with reading("latents_classes.npy"):
        labels = latents[:, _DSPRITES_COLUMNS.index(factor)].astype(np.int64) * 16 // values
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images for {len(labels)} labels")
    bounds = [-(-label * values // 16) for label in range(17)]
    contents = from_arrays(
        {"train": labels},
        lambda _, row: images[row] * np.uint8(255),
        [f"{bounds[label]} to {bounds[label + 1] - 1}" for label in range(16)],
        "a hash draws 10 % of each class for test",
    )
    return move(contents, "train", "test", len(labels) // 10)


def _array(path: Path) -> NDArray[Any]:
    """An array of NumPy on disk."""
    with reading(path.name):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _smallnorb(originals: Originals, column: int, classes: list[str], step: int) -> Contents:
    """The left of the two cameras. Half of the official test part is for validation."""
    labels: dict[Part, NDArray[Any]] = {}
    images: dict[str, NDArray[Any]] = {}
    for part in ("train", "test"):
        info = originals[f"{part}_info"]
        matrix = norb_matrix(info)
        with reading(info.name):
            labels[part] = matrix[:, column] // step
        images[part] = norb_matrix(originals[f"{part}_images"])
        if len(images[part]) != len(labels[part]):
            name = originals[f"{part}_images"].name
            raise DataError(f"{name} has another number of images than {info.name}; fetch both again.")
    contents = from_arrays(
        labels,
        lambda part, row: images[part][row, 0],
        classes,
        "the official training part; a hash draws half of each class of the official test part for validation",
    )
    return move(contents, "test", "val", len(labels["test"]) // 2)


def norb_matrix(path: Path) -> NDArray[Any]:
    """A NORB binary matrix on disk (`.mat`, no MATLAB file).

    The format is described on the page of the data set: signature, number of dimensions, at least three sizes, data,
    all little-endian (https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/).
    """
    with reading(path.name):
        signature, ndim, *sizes = np.fromfile(path, "<i4", 2 + 8).tolist()
        dtype, shape, start = _NORB_TYPES[signature], tuple(sizes[:ndim]), 4 * (2 + max(3, ndim))
        # Sizes are Python's whole numbers: what a header promises cannot overflow.
        if len(shape) != ndim or start + math.prod(shape) * dtype.itemsize != path.stat().st_size:
            raise ValueError("its size is not the one in its header")
        return np.memmap(path, dtype, "r", start, shape)
