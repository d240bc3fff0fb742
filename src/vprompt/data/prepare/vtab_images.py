"""Readers of VTAB tasks whose originals are image files.

The parts and the order of the classes follow the definition of VTAB (Zhai et al., 2019, arXiv 1910.04867;
google-research/task_adaptation) on the data sets of TensorFlow Datasets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from vprompt.data.prepare.archives import Originals, reading
from vprompt.data.prepare.contents import Contents, Item, Part, dense, from_files, move, retain

CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)

KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)

_NO_VEHICLE = 1000.0

_FIFTH = "a hash draws 20 % of each class for test"

# Decoders disagree about this one, and TensorFlow Datasets leaves it out.
_SUN_DAMAGED = "sun_bhenjvsvrtumjuri.jpg"


class _Flowers(datasets.Flowers102):
    """Flowers102 without a comparison of hashes: `prepare` has made it, and may have been told to accept a change."""

    def _check_integrity(self) -> bool:
        return True


def caltech101(originals: Originals) -> Contents:
    """101 categories and the background: 30 images of each for training, the others for testing."""
    contents = _by_folder(originals["images"], "a hash draws 30 images of each class, the rest is test")
    return retain(contents, 30, "test")


def dtd(originals: Originals) -> Contents:
    """Textures: the first of the official ten partitions."""
    root = originals.arranged({"dtd/dtd": originals["images"]})
    parts: dict[Part, Any] = {part: datasets.DTD(root, part, loader=Path) for part in ("train", "val", "test")}
    items = torchvision_items(parts, root / "dtd/dtd/images")
    return from_files(root / "dtd/dtd/images", items, parts["train"].classes, "the first official partition")


def oxford_flowers102(originals: Originals) -> Contents:
    """Flowers: the official parts, 1020 images for training and as many for validation."""
    return flowers(originals, "jpg")


def flowers(originals: Originals, folder: str = "") -> Contents:
    """Flowers, named by their paths below a folder of the original."""
    base = "flowers-102"
    places = {
        "jpg": originals["images"] / "jpg",
        "imagelabels.mat": originals["labels"],
        "setid.mat": originals["parts"],
    }
    root = originals.arranged({f"{base}/{name}": path for name, path in places.items()})
    parts: dict[Part, Any] = {part: _Flowers(root, part, loader=Path) for part in ("train", "val", "test")}
    items = torchvision_items(parts, root / base / folder)
    return from_files(root / base / folder, items, _Flowers.classes, "the official parts")


def oxford_iiit_pet(originals: Originals) -> Contents:
    """37 breeds of cats and dogs: the official lists; torchvision's reader gives decoded images, not files."""
    items: list[Item] = []
    names: dict[int, str] = {}
    parts: dict[str, Part] = {"trainval.txt": "train", "test.txt": "test"}
    for file, part in parts.items():
        path = originals["lists"] / "annotations" / file
        lines = [line for line in rows(path, 2) if not line[0].startswith("#")]
        with reading(file):
            for name, numbers in lines:
                label = int(numbers.split()[0]) - 1
                names[label] = name.rsplit("_", 1)[0]
                items.append(Item(f"{name}.jpg", label, part))
    return from_files(originals["images"] / "images", items, dense(names), "the official trainval and test lists")


def sun397(originals: Originals) -> Contents:
    """397 scenes: a fifth of each for testing."""
    root = originals.arranged({"SUN397": originals["images"]})
    scenes = datasets.SUN397(root, loader=Path)
    items = sorted(torchvision_items({"train": scenes}, root / "SUN397"))
    items = [item for item in items if not item.name.endswith(f"/{_SUN_DAMAGED}")]
    return _fifth(from_files(root / "SUN397", items, scenes.classes, _FIFTH))


def seen_from_above(originals: Originals) -> Contents:
    """Kinds of land use (EuroSAT, RGB) or of places (RESISC45): a fifth of each for testing."""
    return _fifth(_by_folder(originals["images"], _FIFTH))


def clevr_count(originals: Originals) -> Contents:
    """Number of objects, 3 to 10."""
    return _clevr(originals, [str(count) for count in range(3, 11)], lambda depths: len(depths) - 3)


def clevr_dist(originals: Originals) -> Contents:
    """Distance of the closest object, in six bins."""
    classes = [f"{low:g} to {high:g}" for low, high in pairwise(CLEVR_DISTANCES)]
    return _clevr(originals, classes, lambda depths: bin_of(min(depths), CLEVR_DISTANCES))


def kitti(originals: Originals) -> Contents:
    """Distance of the closest car, van or truck: three bins, and none. Drives, not images, are cut into parts."""
    base = "Kitti/raw/training"
    root = originals.arranged(
        {
            f"{base}/image_2": originals["images"] / "training/image_2",
            f"{base}/label_2": originals["labels"] / "training/label_2",
        }
    )
    scenes = datasets.Kitti(root)
    labels: dict[str, int] = {}
    for number in range(len(scenes)):
        image, things = scenes[number]
        with image:
            depths = [thing["location"][2] for thing in things if thing["type"] in ("Car", "Van", "Truck")]
            labels[Path(image.filename).name] = bin_of(min([*depths, _NO_VEHICLE]), KITTI_DISTANCES)
    parts = _kitti_parts(originals["mapping"] / "mapping")
    items = [Item(name, labels[name], part) for name, part in parts.items()]
    classes = ["under 8 m", "8 to 20 m", "over 20 m", "no vehicle"]
    rule = "a tenth of the drives each for test and validation, drawn as TensorFlow Datasets does"
    return from_files(root / base / "image_2", items, classes, rule)


def torchvision_items(parts: Mapping[Part, Any], folder: Path) -> list[Item]:
    """The images of torchvision's data sets, which give (path, label), named by their paths in a folder."""
    return [
        Item(path.relative_to(folder).as_posix(), int(label), part)
        for part, images in parts.items()
        for path, label in (images[number] for number in range(len(images)))
    ]


def rows(path: Path, columns: int) -> list[list[str]]:
    """The lines of a text file, cut at spaces into `columns`; what is left over stays in the last.

    Raises:
        DataError: It is missing, is no UTF-8 text, or has a shorter line.
    """
    with reading(path.name):
        lines = [line.split(maxsplit=columns - 1) for line in path.read_text("utf-8").splitlines() if line.strip()]
        short = next((number for number, line in enumerate(lines, start=1) if len(line) < columns), None)
        if short is not None:
            raise ValueError(f"line {short} does not have {columns} columns")
        return lines


def bin_of(value: float, thresholds: tuple[float, ...]) -> int:
    """The number of the last threshold below a value, compared in single precision as VTAB does.

    Example:
        >>> [bin_of(depth, CLEVR_DISTANCES) for depth in (7.9, 8.0, 8.2, 11.5)]
        [0, 0, 1, 5]
    """
    return max(number for number, low in enumerate(thresholds) if np.float32(low) < np.float32(value))


def _by_folder(folder: Path, parts: str) -> Contents:
    """A folder of images for each class; sorted without regard to case, as TensorFlow Datasets does."""
    images = datasets.ImageFolder(folder, loader=Path)
    classes = sorted(images.classes, key=lambda name: (name.lower(), name))
    found = torchvision_items({"train": images}, folder)
    items = [item._replace(label=classes.index(images.classes[item.label])) for item in found]
    return from_files(folder, sorted(items), classes, parts)


def _fifth(contents: Contents) -> Contents:
    return move(contents, "train", "test", len(contents.items) // 5)


def _clevr(originals: Originals, classes: Sequence[str], label: Callable[[list[float]], int]) -> Contents:
    """Training images, and the validation images as test: the labels of the real test images were never given out.

    Torchvision's reader knows the number of objects, not where they are.
    """
    items: list[Item] = []
    parts: dict[str, Part] = {"train": "train", "val": "test"}
    for folder, part in parts.items():
        path = originals["images"] / f"scenes/CLEVR_{folder}_scenes.json"
        with reading(path.name):
            for scene in json.loads(path.read_text("utf-8"))["scenes"]:
                depths = [float(thing["pixel_coords"][2]) for thing in scene["objects"]]
                items.append(Item(f"{folder}/{scene['image_filename']}", label(depths), part))
    return from_files(originals["images"] / "images", items, classes, "the official validation part is test")


def _kitti_parts(mapping: Path) -> dict[str, Part]:
    """The part of each training image, by its drive.

    TensorFlow Datasets draws drives with NumPy's old generator, whose stream is fixed: these are the published parts.
    """
    with reading("train_mapping.txt or train_rand.txt"):
        lines = (mapping / "train_mapping.txt").read_text("utf-8").splitlines()
        numbers = (mapping / "train_rand.txt").read_text("utf-8").split(",")
        drives = [lines[int(number) - 1].split()[1] for number in numbers]
    names = sorted(set(drives))
    count = max(1, len(names) // 10)
    generator = np.random.RandomState(123)
    test = set(generator.choice(names, count, replace=False).tolist())
    others = sorted(set(names) - test)
    val = set(generator.choice(others, min(count, len(others)), replace=False).tolist())
    return {
        f"{number:06d}.png": "test" if drive in test else "val" if drive in val else "train"
        for number, drive in enumerate(drives)
    }
