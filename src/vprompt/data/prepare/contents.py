"""Contents of a task: labelled images from the original files, and how they are divided into parts."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vprompt.data.prepare.archives import leaves, reading
from vprompt.data.split import place
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

Part = Literal["train", "val", "test"]

PARTS: tuple[Part, ...] = ("train", "val", "test")

SPLIT_SEED = 0
"""The one seed of all cuts: a name such as vtab:dtd stands for the same images everywhere."""


class Item(NamedTuple):
    """One image: its name in the original, its label, and the part that it belongs to."""

    name: str
    label: int
    part: Part


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All images of a task.

    Args:
        classes: The class with label `i` is `classes[i]`.
        items: In a fixed order.
        read: Gives the bytes of the image of that name as PNG, JPEG or whatever the original has; fastest where names
            are read in their own order.
        parts: Origin of training, validation and test images.
        drawn: True if vprompt has drawn any part itself.
    """

    classes: tuple[str, ...]
    items: Sequence[Item]
    read: Callable[[str], bytes]
    parts: str
    drawn: bool = True


def from_files(folder: Path, items: Sequence[Item], classes: Iterable[Any], parts: str) -> Contents:
    """Contents whose items are files, named by their paths in a folder.

    Raises:
        DataError: A file is not there, or is outside the folder.
    """
    missing = [item.name for item in items if leaves(item.name) or not (folder / item.name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} others that its lists name" if len(missing) > 1 else ""
        raise DataError(f"The original has no {printable(missing[0])}{more}; it is not whole, fetch it again.")
    return Contents(
        classes=tuple(str(name) for name in classes),
        items=items,
        read=lambda name: (folder / name).read_bytes(),
        parts=parts,
    )


def from_arrays(
    labels: Mapping[Part, Any],
    images: Mapping[Any, Any],
    classes: Iterable[str],
    parts: str,
    *,
    files: Mapping[Any, Path] | None = None,
    scale: int = 1,
) -> Contents:
    """Contents whose items are rows of arrays, named `PART/ROW`.

    Args:
        labels: The label of each row, by part.
        images: Arrays of bytes (N, H, W) or (N, H, W, 3), by part; only one row is read at a time.
        classes: See `Contents`.
        parts: See `Contents`.
        files: Where the images of a part come from, for messages.
        scale: Factor of the pixels.

    Raises:
        DataError: A part has another number of images than of labels.
    """
    titles: dict[Any, str] = {part: printable(files[part].name) if files else f"The {part} part" for part in labels}
    for part, title in titles.items():
        if len(images[part]) != len(labels[part]):
            wrong = f"has another number of images ({len(images[part])}) than of labels ({len(labels[part])})"
            raise DataError(f"{title} {wrong}; fetch both again.")
    items = [Item(f"{part}/{row:06d}", int(label), part) for part in labels for row, label in enumerate(labels[part])]

    def read(name: str) -> bytes:
        part, _, row = name.partition("/")
        with reading(titles[part]):
            return to_png(images[part][int(row)] * np.uint8(scale))

    return Contents(classes=tuple(classes), items=items, read=read, parts=parts)


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (H, W) or (H, W, 3) as the bytes of a PNG file."""
    buffer = io.BytesIO()
    # Small images: what stronger compression saves is not worth its time.
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def dense(names: Mapping[int, str]) -> list[str]:
    """Names by label as a list; a label without a name is called by its number.

    Example:
        >>> dense({2: "c", 0: "a"})
        ['a', '1', 'c']
    """
    return [names.get(label, str(label)) for label in range(max(names, default=-1) + 1)]


def move(contents: Contents, source: Part, target: Part, count: int) -> Contents:
    """Gives `count` images of one part to another; classes keep their shares, and a hash of the names decides which."""
    moved = {item.name for item in draw([item for item in contents.items if item.part == source], count)}
    items = [item._replace(part=target) if item.name in moved else item for item in contents.items]
    return replace(contents, items=items)


def retain(contents: Contents, each: int, rest: Part) -> Contents:
    """Retains `each` training images of every class, by a hash of their names, and gives the others to `rest`."""
    retained: Counter[int] = Counter()
    parts: dict[str, Part] = {}
    for item in sorted(contents.items, key=_place):
        retained[item.label] += 1
        parts[item.name] = "train" if retained[item.label] <= each else rest
    return replace(contents, items=[item._replace(part=parts[item.name]) for item in contents.items])


def draw(items: Sequence[Item], count: int) -> list[Item]:
    """Draws images so that classes keep their shares as well as whole images allow; shuffled, always the same.

    Args:
        items: What to draw from.
        count: How many, at most all.

    Example:
        >>> drawn = draw([Item(f"{n}", n % 4 == 0, "train") for n in range(100)], 20)
        >>> len(drawn), sum(item.label for item in drawn)
        (20, 5)
    """
    classes: dict[int, list[Item]] = {}
    for item in sorted(items, key=_place):
        classes.setdefault(item.label, []).append(item)
    # No division by zero: without items there is no class either.
    exact = {label: len(members) * count / len(items) for label, members in classes.items()}
    taken = {label: int(share) for label, share in exact.items()}
    # Of equal remainders, the class whose next image comes first: no label is preferred by its number.
    order = sorted(
        (label for label in classes if taken[label] < len(classes[label])),
        key=lambda label: (round(taken[label] - exact[label], 9), _place(classes[label][taken[label]])),
    )
    for label in order[: count - sum(taken.values())]:
        taken[label] += 1
    drawn = [item for label, members in classes.items() for item in members[: taken[label]]]
    return sorted(drawn, key=_place)


def vtab_1k(contents: Contents, *, train: int = 800, val: int = 200) -> Contents:
    """Draws VTAB-1k's few training and validation images and retains all test images.

    Validation images come from the validation part where there is one, else from the training part.

    Raises:
        DataError: There are too few.
    """
    parts = {part: [item for item in contents.items if item.part == part] for part in PARTS}
    chosen = draw(parts["train"], min(train, len(parts["train"])))
    if not parts["val"]:
        names = {item.name for item in chosen}
        parts["val"] = [item for item in parts["train"] if item.name not in names]
    for part, items, count in (("training", chosen, train), ("validation", parts["val"], val)):
        if len(items) < count:
            raise DataError(
                f"There are only {len(items)} {part} images where VTAB-1k takes {count}; fetch all of them."
            )
    drawn = [item._replace(part="val") for item in draw(parts["val"], val)]
    rule = f"a hash of the names draws {train} images for training and {val} for validation, classes by their shares"
    return replace(
        contents, items=[*chosen, *drawn, *parts["test"]], parts=f"{contents.parts}; of these, {rule}", drawn=True
    )


def _place(item: Item) -> bytes:
    return place(SPLIT_SEED, item.name)
