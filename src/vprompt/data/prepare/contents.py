"""What a reader makes of the original files: labelled images, and which of them are for what."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from vprompt.data.prepare.archives import Files
from vprompt.data.split import place
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

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
        drawn: Whether vprompt has drawn any part itself.
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


def rows(files: Files, name: str, columns: int) -> list[list[str]]:
    """The lines of a text file, cut at spaces into `columns`; what is left over stays in the last.

    Raises:
        DataError: It is missing, is no UTF-8 text, or has a shorter line.
    """
    return cells(text(files, name), name, files.title, columns)


def cells(content: str, name: str, title: str, columns: int) -> list[list[str]]:
    """Like `rows`, of a text that has been read."""
    cut = [line.split(maxsplit=columns - 1) for line in content.splitlines() if line.strip()]
    for number, row in enumerate(cut, start=1):
        if len(row) < columns:
            raise DataError(f"Line {number} of {printable(name)} in {title} does not have {columns} columns.")
    return cut


def text(files: Files, name: str) -> str:
    """A text file.

    Raises:
        DataError: It is missing or is no UTF-8 text.
    """
    if name not in files.names():
        raise DataError(f"{files.title} has no {printable(name)}; it is not whole, fetch it again.")
    with documented(files.title, name):
        return files.read(name).decode("utf-8")


@contextmanager
def documented(title: str, name: str) -> Generator[None]:
    """Turns what reading a file raises that is not as its documentation says into a sentence that names it."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{printable(name)} in {title} is not in the documented format ({printable(detail)}); fetch it again."
        ) from error


VTAB_FILES: Mapping[str, Part] = {"train800.txt": "train", "val200.txt": "val", "test.txt": "test"}

FGVC_FILES: Mapping[str, Part] = {"train.json": "train", "val.json": "val", "test.json": "test"}


def listed(contents: Contents, folder: Path, files: Mapping[str, Part]) -> Contents:
    """The images that published lists name, in the parts that they give them.

    Labels stay those of the original: the lists may number the classes in another way, but must tell them apart alike.

    Args:
        contents: All images of the task.
        folder: Has the list files.
        files: Their names, and the part that each is for.

    Raises:
        DataError: A list is missing or wrong, or names what the original does not have.
    """
    originals = {item.name: item for item in contents.items}
    by_file: dict[str, str | None] = {}
    for name in originals:
        # A bare file name will do where only one image has it.
        bare = PurePosixPath(name).name
        by_file[bare] = None if bare in by_file else name
    items: dict[str, Item] = {}
    numbers: dict[str, int] = {}
    for file, part in files.items():
        for name, number in _entries(folder / file):
            item = originals.get(name) or originals.get(by_file.get(name) or "")
            if item is None:
                raise DataError(
                    f"{printable(str(folder / file))} names {printable(name)}, which the original does not have; "
                    "lists of images that were renamed can only be used with those images."
                )
            if item.name in items:
                raise DataError(f"The lists in {printable(str(folder))} name {printable(name)} twice; correct them.")
            if numbers.setdefault(number, item.label) != item.label:
                raise DataError(
                    f"{printable(str(folder / file))} gives {printable(name)} a class that the original does not; "
                    "the lists belong to something else."
                )
            items[item.name] = item._replace(part=part)
    empty = next((file for file, part in files.items() if all(item.part != part for item in items.values())), None)
    if empty is not None:
        raise DataError(f"The list {printable(str(folder / empty))} names no image; correct it.")
    if len(set(numbers.values())) != len(numbers):
        raise DataError(f"The lists in {printable(str(folder))} have two numbers for one class; correct them.")
    return replace(
        contents, items=list(items.values()), parts=f"the lists {', '.join(files)} that were given", drawn=False
    )


def _entries(path: Path) -> list[tuple[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"The list {printable(str(path))} does not exist; put it there, or leave --lists away."
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"The list {printable(str(path))} is not UTF-8 text; save it as that.") from None
    if path.suffix == ".json":
        try:
            document: Any = json.loads(text)
            return [(str(name), str(number)) for name, number in document.items()]
        except (ValueError, AttributeError):
            raise DataError(f"The list {printable(str(path))} is not an object of image paths and classes.") from None
    lines = [line.rsplit(maxsplit=1) for line in text.splitlines() if line.strip()]
    short = next((number for number, cells in enumerate(lines, start=1) if len(cells) < 2), None)
    if short is not None:
        raise DataError(f"Line {short} of {printable(str(path))} does not end in a class number; correct it.")
    return [(cells[0], cells[1]) for cells in lines]
