"""Readers of VTAB tasks whose originals are arrays of pixels; all are read row by row, none is unpickled."""

from __future__ import annotations

import importlib
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from vprompt.data.prepare.archives import Originals, reading
from vprompt.data.prepare.contents import Contents, Part, from_arrays, move

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
    labels: dict[Part, Any] = {}
    images: dict[Part, Any] = {}
    for part in ("train", "test"):
        path = originals["images"] / f"{part}.bin"
        with reading(path.name):
            records = np.fromfile(path, np.uint8).reshape(-1, _CIFAR_RECORD)
        labels[part], images[part] = records[:, 1], records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    classes = (originals["images"] / "fine_label_names.txt").read_text("utf-8").split()
    return from_arrays(labels, images, classes, "the official training and test parts")


def svhn(originals: Originals) -> Contents:
    """House numbers: the digit in the middle; without the extra images."""
    root = originals.arranged({f"{part}_32x32.mat": originals[part] for part in ("train", "test")})
    labels: dict[Part, Any] = {}
    images: dict[Part, Any] = {}
    for part in ("train", "test"):
        with reading(f"{part}_32x32.mat"):
            digits = _SVHN(root, split=part)
            labels[part], images[part] = digits.labels, digits.data.transpose(0, 2, 3, 1)
            if digits.data.dtype != np.uint8:
                raise ValueError(f"its pixels are {digits.data.dtype}")
    rule = "the official training and test parts, without the extra one"
    return from_arrays(labels, images, "0123456789", rule, files={part: root / f"{part}_32x32.mat" for part in labels})


def patch_camelyon(originals: Originals) -> Contents:
    """Tumours in the middle of patches of tissue; torchvision's reader would open two files for each image."""
    h5py: Any = importlib.import_module("h5py")
    labels: dict[Part, Any] = {}
    images: dict[Part, Any] = {}
    parts: tuple[Part, ...] = ("train", "val", "test")
    for part in parts:
        with reading(originals[f"{part}_y"].name), h5py.File(originals[f"{part}_y"]) as file:
            labels[part] = np.ravel(file["y"][:])
        with reading(originals[f"{part}_x"].name):
            images[part] = h5py.File(originals[f"{part}_x"], rdcc_nbytes=_PCAM_CACHE)["x"]
    files = {part: originals[f"{part}_x"] for part in parts}
    return from_arrays(labels, images, ("no tumour", "tumour"), "the official parts", files=files)


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
    arrays: list[NDArray[Any]] = []
    for name in ("latents_classes.npy", "imgs.npy"):
        with reading(name):
            arrays.append(np.load(originals["images"] / name, mmap_mode="r", allow_pickle=False))
    with reading("latents_classes.npy"):
        labels = arrays[0][:, _DSPRITES_COLUMNS.index(factor)].astype(np.int64) * 16 // values
    bounds = [-(-label * values // 16) for label in range(17)]
    classes = [f"{low} to {high - 1}" for low, high in pairwise(bounds)]
    rule = "a hash draws 10 % of each class for test"
    contents = from_arrays({"train": labels}, {"train": arrays[1]}, classes, rule, scale=255)
    return move(contents, "train", "test", len(labels) // 10)


def _smallnorb(originals: Originals, column: int, classes: list[str], step: int) -> Contents:
    """The left of the two cameras. Half of the official test part is for validation."""
    labels: dict[Part, Any] = {}
    images: dict[Part, Any] = {}
    for part in ("train", "test"):
        matrix = norb_matrix(originals[f"{part}_info"])
        with reading(originals[f"{part}_info"].name):
            labels[part] = matrix[:, column] // step
        with reading(originals[f"{part}_images"].name):
            images[part] = norb_matrix(originals[f"{part}_images"])[:, 0]
    rule = "the official training part; a hash draws half of each class of the official test part for validation"
    files = {part: originals[f"{part}_images"] for part in labels}
    contents = from_arrays(labels, images, classes, rule, files=files)
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
