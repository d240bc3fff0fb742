"""What a reader makes of the original files: labelled images, and which of them are for what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from laconic.data.images import printable
from laconic.data.prepare.files import Files
from laconic.data.split import place
from laconic.errors import DataError

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")

SPLIT_SEED = 0
"""The one seed of all cuts: a name such as vtab:dtd stands for the same images everywhere."""


class Item(NamedTuple):
    """One image: its name in the original, its label, and what it is for."""

    name: str
    label: int
    part: Part


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All images of a task.

    Args:
        classes: The class with label `i` is `classes[i]`.
        items: In a fixed order.
        images: Gives the bytes of the named images as PNG, JPEG or whatever the original has, each once, in any order.
        parts: Where training, validation and test images come from.
        drawn: Whether laconic has drawn any part itself.
    """

    classes: tuple[str, ...]
    items: Sequence[Item]
    images: Callable[[Collection[str]], Iterator[tuple[str, bytes]]]
    parts: str
    drawn: bool = True


def from_files(
    files: Files, items: Sequence[Item], classes: Sequence[str], parts: str, *, prefix: str = ""
) -> Contents:
    """Contents whose items are files.

    Args:
        files: Has them.
        items: Their names are below `prefix`.
        classes: See `Contents`.
        parts: See `Contents`.
        prefix: The folder of `files` that the names begin in, with a slash at its end.

    Raises:
        DataError: A file is not there, or a label has no class.
    """
    there = set(files.names())
    missing = [item.name for item in items if prefix + item.name not in there]
    if missing:
        more = f" and {len(missing) - 1} others that its lists name" if len(missing) > 1 else ""
        raise DataError(
            f"{files.title} has no {printable(prefix + missing[0])}{more}; it is not whole, fetch it again."
        )

    def images(names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        wanted = [prefix + name for name in names]
        return ((name[len(prefix) :], data) for name, data in files.read_all(wanted))

    return Contents(classes=tuple(classes), items=items, images=images, parts=parts)


def move(items: Sequence[Item], source: Part, target: Part, count: int) -> list[Item]:
    """Gives `count` images of one part to another; classes keep their shares, and a hash of the names decides which.

    Example:
        >>> cut = move([Item(f"{n}", 0, "train") for n in range(10)], "train", "test", 2)
        >>> sum(item.part == "test" for item in cut)
        2
    """
    moved = {item.name for item in draw([item for item in items if item.part == source], count)}
    return [item._replace(part=target) if item.part == source and item.name in moved else item for item in items]


def keep(items: Sequence[Item], each: int, rest: Part) -> list[Item]:
    """Keeps `each` training images of every class, by a hash of their names, and gives the others to `rest`."""
    kept: dict[int, int] = {}
    parts: dict[str, Part] = {}
    for item in sorted(items, key=_place):
        kept[item.label] = kept.get(item.label, 0) + 1
        parts[item.name] = "train" if kept[item.label] <= each else rest
    return [item._replace(part=parts[item.name]) for item in items]


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
    """Draws VTAB-1k's few training and validation images and keeps all test images.

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


def sorted_classes(names: Collection[str]) -> Mapping[str, int]:
    """Labels by name: sorted, without regard to upper and lower case (as TensorFlow Datasets does).

    Example:
        >>> sorted_classes({"b", "A", "c"})
        {'A': 0, 'b': 1, 'c': 2}
    """
    return {name: label for label, name in enumerate(sorted(set(names), key=lambda name: (name.lower(), name)))}


def dense(names: Mapping[int, str]) -> list[str]:
    """Names by label as a list; a label without a name is called by its number.

    Example:
        >>> dense({2: "c", 0: "a"})
        ['a', '1', 'c']
    """
    return [names.get(label, str(label)) for label in range(max(names, default=-1) + 1)]


def _place(item: Item) -> bytes:
    return place(SPLIT_SEED, item.name)
