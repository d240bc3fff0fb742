"""Taking the parts from list files that somebody else has given out, instead of drawing them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from laconic.data.images import printable
from laconic.data.prepare.contents import Contents, Item, Part
from laconic.errors import DataError

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
