"""Readers of VTAB tasks whose originals are image files.

What is training and what is test, and the order of the classes, follow the definition of VTAB
(Zhai et al., 2019, arXiv 1910.04867; google-research/task_adaptation) on the data sets of TensorFlow Datasets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from vprompt.data.prepare.archives import Files, Found
from vprompt.data.prepare.contents import (
    Contents,
    Item,
    Part,
    cells,
    dense,
    documented,
    from_files,
    keep,
    move,
    rows,
    sorted_classes,
    text,
)
from vprompt.data.prepare.vtab_arrays import load_matlab

CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)

KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)

_NO_VEHICLE = 1000.0

_FIFTH = "a hash draws 20 % of each class for test"

# Decoders disagree about this one, and TensorFlow Datasets leaves it out.
_SUN_DAMAGED = "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"

_FLOWER_PARTS: dict[str, Part] = {"trnid": "train", "valid": "val", "tstid": "test"}


def caltech101(found: Found) -> Contents:
    """101 categories and the background: 30 images of each for training, the others for testing."""
    files = found.files["images"]
    contents = _by_folder(files, r"([^/]+)/image_\d+\.jpg", "a hash draws 30 images of each class, the rest is test")
    return replace(contents, items=keep(contents.items, 30, "test"))


def dtd(found: Found) -> Contents:
    """Textures: the first of the official ten partitions."""
    files = found.files["images"]
    parts: dict[Part, str] = {"train": "labels/train1.txt", "val": "labels/val1.txt", "test": "labels/test1.txt"}
    listed: list[tuple[str, Part]] = [(name, part) for part, path in parts.items() for (name,) in rows(files, path, 1)]
    labels = sorted_classes({name.split("/")[0] for name, _ in listed})
    items = [Item(name, labels[name.split("/")[0]], part) for name, part in listed]
    return from_files(files, items, list(labels), "the first official partition", prefix="images/")


def oxford_flowers102(found: Found) -> Contents:
    """Flowers: the official parts, 1020 images for training and as many for validation."""
    from torchvision.datasets import Flowers102

    numbers = load_matlab(found.paths["parts"], "setid.mat")
    labels = load_matlab(found.paths["labels"], "imagelabels.mat")
    with documented("the source", "setid.mat or imagelabels.mat"):
        items = [
            Item(f"image_{int(number):05d}.jpg", int(labels["labels"][int(number) - 1]) - 1, part)
            for key, part in _FLOWER_PARTS.items()
            for number in np.atleast_1d(numbers[key])
        ]
    return from_files(found.files["images"], items, Flowers102.classes, "the official parts", prefix="jpg/")


def oxford_iiit_pet(found: Found) -> Contents:
    """37 breeds of cats and dogs: the official lists."""
    lists = found.files["lists"]
    items: list[Item] = []
    names: dict[int, str] = {}
    parts: dict[str, Part] = {"annotations/trainval.txt": "train", "annotations/test.txt": "test"}
    for path, part in parts.items():
        lines = [line for line in rows(lists, path, 2) if not line[0].startswith("#")]
        with documented(lists.title, path):
            for name, numbers in lines:
                label = int(numbers.split()[0]) - 1
                names[label] = name.rsplit("_", 1)[0]
                items.append(Item(f"{name}.jpg", label, part))
    return from_files(
        found.files["images"], items, dense(names), "the official trainval and test lists", prefix="images/"
    )


def sun397(found: Found) -> Contents:
    """397 scenes: a fifth of each for testing."""
    files = found.files["images"]
    listed = [line.strip().lstrip("/") for line in text(files, "ClassName.txt").splitlines() if line.strip()]
    labels = {name: label for label, name in enumerate(listed)}
    names = [name for name in files.names() if re.fullmatch(r"[a-z]/.+/sun_[^/]+\.jpg", name) and name != _SUN_DAMAGED]
    with documented(files.title, "ClassName.txt"):
        items = [Item(name, labels[name.rsplit("/", 1)[0]], "train") for name in sorted(names)]
    # Classes lie in folders named after their first letter.
    classes = [name[2:] for name in listed]
    return from_files(files, move(items, "train", "test", len(items) // 5), classes, _FIFTH)


def eurosat(found: Found) -> Contents:
    """Ten kinds of land use from a satellite (RGB): a fifth of each for testing."""
    return _fifth(found.files["images"], r"([A-Za-z]+)/[A-Za-z]+_\d+\.jpg")


def resisc45(found: Found) -> Contents:
    """45 kinds of places from above: a fifth of each for testing."""
    return _fifth(found.files["images"], r"([a-z_]+)/[a-z_]+_\d+\.jpg")


def clevr_count(found: Found) -> Contents:
    """How many objects there are, 3 to 10."""
    return _clevr(found, [str(count) for count in range(3, 11)], lambda scene: len(scene) - 3)


def clevr_dist(found: Found) -> Contents:
    """How far the closest object is, in six bins."""

    def label(depths: list[float]) -> int:
        return bin_of(min(depths), CLEVR_DISTANCES)

    classes = [f"{low:g} to {high:g}" for low, high in pairwise(CLEVR_DISTANCES)]
    return _clevr(found, classes, label)


def kitti(found: Found) -> Contents:
    """How far the closest car, van or truck is: three bins, and none. Drives, not images, are cut into parts."""
    images, labels = found.files["images"], found.files["labels"]
    parts = _kitti_parts(found.files["mapping"])
    items: list[Item] = []
    names = [f"training/label_2/{number:06d}.txt" for number in range(len(parts))]
    texts = dict(labels.read_all(names))
    for number, (part, name) in enumerate(zip(parts, names, strict=True)):
        with documented(labels.title, name):
            lines = cells(texts[name].decode("utf-8"), name, labels.title, 15)
            depths = [float(line[13]) for line in lines if line[0] in ("Car", "Van", "Truck")]
            items.append(Item(f"{number:06d}.png", bin_of(min([*depths, _NO_VEHICLE]), KITTI_DISTANCES), part))
    classes = ["under 8 m", "8 to 20 m", "over 20 m", "no vehicle"]
    said = "a tenth of the drives each for test and validation, drawn as TensorFlow Datasets does"
    return from_files(images, items, classes, said, prefix="training/image_2/")


def bin_of(value: float, thresholds: tuple[float, ...]) -> int:
    """The number of the last threshold below a value, compared in single precision as VTAB does.

    Example:
        >>> [bin_of(depth, CLEVR_DISTANCES) for depth in (7.9, 8.0, 8.2, 11.5)]
        [0, 0, 1, 5]
    """
    return max(number for number, low in enumerate(thresholds) if np.float32(low) < np.float32(value))


def _by_folder(files: Files, pattern: str, parts: str) -> Contents:
    matches = [match for name in sorted(files.names()) if (match := re.fullmatch(pattern, name))]
    labels = sorted_classes({match[1] for match in matches})
    items = [Item(match[0], labels[match[1]], "train") for match in matches]
    return from_files(files, items, list(labels), parts)


def _fifth(files: Files, pattern: str) -> Contents:
    contents = _by_folder(files, pattern, _FIFTH)
    return replace(contents, items=move(contents.items, "train", "test", len(contents.items) // 5))


def _clevr(found: Found, classes: Sequence[str], label: Callable[[list[float]], int]) -> Contents:
    """Training images, and the validation images as test: the labels of the real test images were never given out."""
    files = found.files["images"]
    items: list[Item] = []
    parts: dict[str, Part] = {"train": "train", "val": "test"}
    for folder, part in parts.items():
        path = f"scenes/CLEVR_{folder}_scenes.json"
        with documented(files.title, path):
            for scene in json.loads(text(files, path))["scenes"]:
                depths = [float(thing["pixel_coords"][2]) for thing in scene["objects"]]
                items.append(Item(f"{folder}/{scene['image_filename']}", label(depths), part))
    return from_files(files, items, classes, "the official validation part is test", prefix="images/")


def _kitti_parts(files: Files) -> list[Part]:
    """What each training image is for, by its drive.

    TensorFlow Datasets draws drives with NumPy's old generator, whose stream is fixed: these are the published parts.
    """
    with documented(files.title, "mapping/train_rand.txt"):
        lines = text(files, "mapping/train_mapping.txt").splitlines()
        drives = [lines[int(number) - 1].split()[1] for number in text(files, "mapping/train_rand.txt").split(",")]
    every = sorted(set(drives))
    count = max(1, len(every) // 10)
    generator = np.random.RandomState(123)
    test = set(generator.choice(every, count, replace=False).tolist())
    others = sorted(set(every) - test)
    val = set(generator.choice(others, min(count, len(others)), replace=False).tolist())
    return ["test" if drive in test else "val" if drive in val else "train" for drive in drives]
