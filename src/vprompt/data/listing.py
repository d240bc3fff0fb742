"""Labelled images as a source lists them, before any of them is opened; and class names that are one name."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vprompt.data.dataset import Files
from vprompt.utils.text import printable

UNSPLIT = "all"
"""The only split of images that are not cut into splits yet."""


class Item(NamedTuple):
    """One labelled image: its name (of a file, its path relative to the folder), and its class or cell in a table."""

    name: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Labelled images as a source lists them, before any of them is opened.

    Args:
        name: A short name of the task.
        source: What the user asked for.
        where: What messages call the place that the images are in.
        splits: The images of `train`, `val` and `test`, as far as they are there, or of `UNSPLIT`.
        files: The folder that names are paths in, or what reads an image by its name.
        rendered: Makes the pixels of images that are in no files, (N, H, W) or (N, H, W, 3), in the order of `splits`.
        classes: The classes in the order of their labels, where the source defines them; its splits are then taken as
            they are, and of images that do not fit into memory only the headers are checked. None for those of the
            training images, sorted.
        empty: For each split the classes that are listed without an image.
        notes: Sentences on what is there but has no part in the task.
        passed_over: Reason -> paths of what is there but was not taken for data.
        remarks: Sentences on how the data were read, where that is not plain.
        differences: See `Task`.
        label_names: Names of the columns that labels come from; none for folders.
        groups: Image -> what it belongs to, such as a patient; images of one group are on one side of a cut.
        places: Image -> where a table has it, for what is said of it.
        problems: What is wrong with images that are listed nowhere; refused or left out like bad files.
    """

    name: str
    source: str
    where: str
    splits: Mapping[str, Sequence[Item]]
    files: Path | Files | None = None
    rendered: Callable[[], NDArray[np.uint8]] | None = None
    classes: tuple[str, ...] | None = None
    empty: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    notes: Sequence[str] = ()
    passed_over: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    remarks: Sequence[str] = ()
    differences: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict[str, str])
    places: Mapping[str, str] = field(default_factory=dict[str, str])
    problems: Sequence[str] = ()


def class_key(name: str) -> str:
    """A class name without what nobody sees: composed Unicode, single blanks inside and none at the ends.

    Example:
        >>> class_key("e\\u0301le\\u0301phant ") == "\\u00e9l\\u00e9phant"
        True
    """
    return " ".join(unicodedata.normalize("NFC", printable(name)).split())


def with_one_spelling(listing: Listing, known: Sequence[str] | None = None) -> Listing:
    """The listing with names of classes that look alike made one, and a remark on each that was changed.

    Names are compared by `class_key`, and those that are not among the known ones also without regard to case, where
    that leaves no choice.

    Args:
        listing: From a source.
        known: The classes of a model, whose spelling counts; those of the training images when not given.
    """
    if listing.classes is not None or listing.rendered is not None:
        return listing
    labels = {
        split: {item.label for item in items} | set(listing.empty.get(split, ()))
        for split, items in listing.splits.items()
    }
    learned = labels.get("train", labels.get(UNSPLIT, set()))
    exact = {class_key(name): name for name in known or map(class_key, sorted(learned))}
    folded: dict[str, list[str]] = {}
    for key in exact:
        folded.setdefault(key.casefold(), []).append(key)
    remarks = [
        f"The names of the classes {' and '.join(twins)} differ in case only; they are taken as {len(twins)} classes."
        for twins in folded.values()
        if len(twins) > 1
    ]
    spelled: dict[str, str] = {}
    for raw in sorted(set[str]().union(*labels.values())):
        key = class_key(raw)
        twins = folded.get(key.casefold(), [])
        spelled[raw] = exact[key] if key in exact else exact[twins[0]] if len(twins) == 1 else key
    for raw, name in spelled.items():
        composed = unicodedata.normalize("NFC", printable(raw))
        # That all names are decomposed, as on a Mac, is nothing to talk about.
        if printable(raw) != name and (composed != name or list(spelled.values()).count(name) > 1):
            how = "from which it differs in case, blanks or Unicode form only"
            remarks.append(f"The class '{printable(raw)}' is taken as '{name}', {how}.")
    return replace(
        listing,
        splits={
            split: sorted((Item(name, spelled[label]) for name, label in items), key=lambda item: item.label)
            for split, items in listing.splits.items()
        },
        empty={
            split: sorted({spelled[name] for name in names} - {spelled[item.label] for item in listing.splits[split]})
            for split, names in listing.empty.items()
        },
        remarks=(*listing.remarks, *remarks),
    )
