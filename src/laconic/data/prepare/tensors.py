"""Readers of VTAB tasks whose originals are arrays; their images become PNG, which loses nothing.

Labels and parts follow the definition of VTAB (Zhai et al., 2019, arXiv 1910.04867; google-research/task_adaptation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laconic.data.prepare.arrays import load_matlab, needed, norb_rows, norb_shape, npz_rows, row_name, rows_as_images
from laconic.data.prepare.contents import Contents, Item, Part, move
from laconic.data.prepare.files import Files, whole
from laconic.data.prepare.lists import documented, text
from laconic.data.prepare.pieces import Found
from laconic.errors import DataError

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
