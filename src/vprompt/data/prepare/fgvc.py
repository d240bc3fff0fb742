"""Readers of the five fine-grained tasks (FGVC); class numbers count from 0 over all parts."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from vprompt.data.prepare import vtab_images
from vprompt.data.prepare.archives import Originals, reading
from vprompt.data.prepare.contents import Contents, Item, Part, dense, from_files, move
from vprompt.data.prepare.vtab_images import rows, torchvision_items

_TENTH = "the official parts; a hash draws 10 % of each class of the training part for validation"


def birds(originals: Originals) -> Contents:
    """200 kinds of birds (CUB), or 555 kinds of North American birds, males, females and young apart (NABirds).

    Both collections come with the same lists: numbers, paths, classes and parts.
    """
    folder = originals["images"]
    names, classes, training = (
        dict(rows(folder / f"{name}.txt", 2)) for name in ("classes", "image_class_labels", "train_test_split")
    )
    with reading("image_class_labels.txt or train_test_split.txt"):
        ids = sorted(set(classes.values()), key=int)
        labels = {number: label for label, number in enumerate(ids)}
        items = [
            Item(path, labels[classes[image]], "train" if int(training[image]) else "test")
            for image, path in rows(folder / "images.txt", 2)
        ]
        shown = [names[number] for number in ids]
    return _tenth(from_files(folder / "images", items, shown, _TENTH))


def flowers(originals: Originals) -> Contents:
    """102 kinds of flowers: the official parts."""
    return replace(vtab_images.flowers(originals), drawn=False)


def dogs(originals: Originals) -> Contents:
    """120 breeds of dogs."""
    matlab: Any = importlib.import_module("scipy.io")
    items: list[Item] = []
    names: dict[int, str] = {}
    parts: tuple[Part, ...] = ("train", "test")
    for part in parts:
        path = originals["lists"] / f"{part}_list.mat"
        with reading(path.name):
            listed = matlab.loadmat(path, squeeze_me=True)
            for name, number in zip(np.atleast_1d(listed["file_list"]), np.atleast_1d(listed["labels"]), strict=True):
                label = int(number) - 1
                items.append(Item(str(name), label, part))
                # Folders are called after a WordNet number and the breed: n02085620-Chihuahua.
                names[label] = str(name).split("/")[0].split("-", 1)[1]
    return _tenth(from_files(originals["images"] / "Images", items, dense(names), _TENTH))


def cars(originals: Originals) -> Contents:
    """196 models of cars."""
    root = originals.arranged(
        {
            "stanford_cars/devkit": originals["lists"],
            "stanford_cars/cars_test_annos_withlabels.mat": originals["test_lists"],
            "stanford_cars/cars_train": originals["train"] / "cars_train",
            "stanford_cars/cars_test": originals["test"] / "cars_test",
        }
    )
    parts: dict[Part, Any] = {part: datasets.StanfordCars(root, part, loader=Path) for part in ("train", "test")}
    base = root / "stanford_cars"
    return _tenth(from_files(base, torchvision_items(parts, base), parts["train"].classes, _TENTH))


def _tenth(contents: Contents) -> Contents:
    training = sum(item.part == "train" for item in contents.items)
    # Rounded up, as the published lists are.
    return move(contents, "train", "val", -(-training // 10))
