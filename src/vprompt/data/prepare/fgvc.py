"""Readers of the five fine-grained tasks (FGVC); class numbers count from 0 over all parts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from vprompt.data.prepare.archives import Files, Found
from vprompt.data.prepare.contents import Contents, Item, Part, dense, documented, from_files, move, rows
from vprompt.data.prepare.vtab_arrays import load_matlab
from vprompt.data.prepare.vtab_images import oxford_flowers102

_TENTH = "the official parts; a hash draws 10 % of each class of the training part for validation"


def cub(found: Found) -> Contents:
    """200 kinds of birds."""
    return _birds(found.files["images"])


def nabirds(found: Found) -> Contents:
    """555 kinds of North American birds, males, females and young apart."""
    return _birds(found.files["images"])


def flowers(found: Found) -> Contents:
    """102 kinds of flowers: the official parts."""
    contents = oxford_flowers102(found)
    items = [item._replace(name=f"jpg/{item.name}") for item in contents.items]
    return replace(from_files(found.files["images"], items, contents.classes, contents.parts), drawn=False)


def dogs(found: Found) -> Contents:
    """120 breeds of dogs."""
    lists, images = found.files["lists"], found.files["images"]
    items: list[Item] = []
    names: dict[int, str] = {}
    parts: dict[str, Part] = {"train_list.mat": "train", "test_list.mat": "test"}
    for path, part in parts.items():
        listed = load_matlab(lists.read(path), path)
        with documented(lists.title, path):
            for name, number in zip(np.atleast_1d(listed["file_list"]), np.atleast_1d(listed["labels"]), strict=True):
                label = int(number) - 1
                items.append(Item(str(name), label, part))
                # Folders are called after a WordNet number and the breed: n02085620-Chihuahua.
                names[label] = str(name).split("/")[0].split("-", 1)[1]
    return _tenth(from_files(images, items, dense(names), _TENTH, prefix="Images/"))


def cars(found: Found) -> Contents:
    """196 models of cars."""
    with documented("the source", "cars_meta.mat"):
        meta = load_matlab(found.files["lists"].read("cars_meta.mat"), "cars_meta.mat")
        classes = [str(name) for name in np.atleast_1d(meta["class_names"])]
    train = load_matlab(found.files["lists"].read("cars_train_annos.mat"), "cars_train_annos.mat")
    test = load_matlab(found.paths["test_lists"], "cars_test_annos_withlabels.mat")
    with documented("the source", "cars_train_annos.mat or cars_test_annos_withlabels.mat"):
        train_items = _cars(train, "train")
        test_items = _cars(test, "test")
    one = from_files(found.files["train"], train_items, classes, _TENTH)
    two = from_files(found.files["test"], test_items, classes, _TENTH)

    def images(names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for part in (one, two):
            yield from part.images(names)

    both = replace(
        one,
        items=[*train_items, *test_items],
        images=images,
    )
    return _tenth(both)


def _birds(files: Files) -> Contents:
    """The lists that both collections of birds come with: numbers, paths, classes and parts."""
    names = dict(rows(files, "classes.txt", 2))
    classes = dict(rows(files, "image_class_labels.txt", 2))
    training = dict(rows(files, "train_test_split.txt", 2))
    with documented(files.title, "image_class_labels.txt or train_test_split.txt"):
        ids = sorted(set(classes.values()), key=int)
        labels = {number: label for label, number in enumerate(ids)}
        items = [
            Item(path, labels[classes[image]], "train" if int(training[image]) else "test")
            for image, path in rows(files, "images.txt", 2)
        ]
        shown = [names[number] for number in ids]
    return _tenth(from_files(files, items, shown, _TENTH, prefix="images/"))


def _cars(listed: dict[str, Any], part: Part) -> list[Item]:
    annotations = np.atleast_1d(listed["annotations"])
    return [Item(f"cars_{part}/{one['fname']}", int(one["class"]) - 1, part) for one in annotations]


def _tenth(contents: Contents) -> Contents:
    training = sum(item.part == "train" for item in contents.items)
    # Rounded up, as the published lists are.
    return replace(contents, items=move(contents.items, "train", "val", -(-training // 10)))
