"""The two layouts that benchmark tasks lie on disk in: lists beside images, read without decoding anything."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from laconic.data.benchmarks.lists import Entry, read_lines, read_object
from laconic.data.benchmarks.names import MAX_CLASSES, class_names, fit_names, read_names
from laconic.data.benchmarks.problem import Problem, differs, fatal
from laconic.data.benchmarks.table import BenchmarkTask, Suite, fold
from laconic.data.images import printable
from laconic.errors import DataError

FILES: dict[Suite, dict[str, str]] = {
    "vtab": {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"},
    "fgvc": {"train": "train.json", "val": "val.json", "test": "test.json"},
}
"""The list of each split."""

UNION = "train800val200.txt"
"""The list of train and val together that VTAB-1k has besides."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A task as its lists have it.

    Args:
        folder: Where they lie.
        kind: Which layout it is.
        splits: For each split whose list is there its images as (path relative to the folder, label).
        where: For each split where these stand: file and line.
        union: The images of `UNION`, if it is there.
        classes: The class with label `i` is `classes[i]`; all are different and printable.
        problems: What is wrong with the lists themselves.
    """

    folder: Path
    kind: Suite
    splits: Mapping[str, Sequence[tuple[str, int]]]
    where: Mapping[str, Sequence[str]]
    union: Sequence[tuple[str, int]] | None
    classes: tuple[str, ...]
    problems: tuple[Problem, ...]

    def by_class(self) -> dict[str, dict[str, list[str]]]:
        """For every split and class the files, as an image folder is listed."""
        found: dict[str, dict[str, list[str]]] = {split: {} for split in self.splits}
        for split, pairs in self.splits.items():
            for path, label in dict.fromkeys(pairs):
                found[split].setdefault(self.classes[label], []).append(path)
        return found


def recognise(folder: Path) -> Suite | None:
    """The layout of a folder: its list files tell, whatever else lies there.

    Example:
        >>> recognise(Path("nowhere")) is None
        True
    """
    if any((folder / name).is_file() for name in (FILES["vtab"]["train"], UNION)):
        return "vtab"
    # One JSON file beside class folders may be anything.
    if sum((folder / name).is_file() for name in FILES["fgvc"].values()) >= 2:
        return "fgvc"
    return None


def read_layout(folder: Path, task: BenchmarkTask | None, *, kind: Suite | None = None) -> Layout:
    """Reads the lists of a folder.

    Args:
        folder: Where the lists lie.
        task: The benchmark's task that this is said to be, if any.
        kind: The layout to expect where the folder does not tell.

    Raises:
        DataError: The folder has neither layout, and none is expected.
    """
    kind = recognise(folder) or kind or (task.suite if task is not None else None)
    if kind is None:
        raise DataError(
            f"{printable(str(folder))} has no lists of images; put {', '.join(FILES['vtab'].values())} or "
            f"{', '.join(FILES['fgvc'].values())} there."
        )
    problems: list[Problem] = []
    lists: dict[str, list[Entry]] = {}
    read = read_lines if kind == "vtab" else read_object
    for split, name in FILES[kind].items():
        if os.path.lexists(folder / name):
            lists[split], found = read(folder / name)
            problems += found
            if not lists[split] and not found:
                problems.append(fatal(name, f"{name} lists no image", remedy(task)))
        else:
            problems.append(fatal(name, f"{name} is missing", remedy(task)))
    union: list[Entry] | None = None
    if kind == "vtab" and os.path.lexists(folder / UNION):
        union, found = read_lines(folder / UNION)
        problems += found
    if kind == "fgvc":
        lists = _beside(folder, lists)
    return _labelled(folder, kind, task, lists, union, problems)


def remedy(task: BenchmarkTask | None) -> str:
    """What to do about lists or images that are not what they should be."""
    return "write the list, or get it anew" if task is None else f"get it anew: {task.source}"


def _labelled(
    folder: Path,
    kind: Suite,
    task: BenchmarkTask | None,
    lists: Mapping[str, list[Entry]],
    union: list[Entry] | None,
    problems: list[Problem],
) -> Layout:
    names, found = read_names(folder / "classes.txt", ids=kind == "fgvc")
    problems += found
    every = [entry for entries in (*lists.values(), union or []) for entry in entries]
    if kind == "fgvc":
        # Mapped once for all splits: a class that a split lacks must not move the others.
        ids = sorted({entry.label for entry in every}, key=_by_number)
        label_of = {name: label for label, name in enumerate(ids)}
        names, found = fit_names(ids, names)
    else:
        label_of, found = _labels(every, task, names)
        top = max(label_of.values(), default=-1)
        count = top + 1 if names is None or top >= len(names) else len(names)
        count = task.classes if task is not None and top < task.classes else count
        ids = [str(label) for label in range(count)]
        if names is not None and len(names) != count:
            found.append(differs("classes.txt", f"classes.txt names {len(names)} classes; there are {count}"))
    problems += found
    kept = {split: [entry for entry in entries if entry.label in label_of] for split, entries in lists.items()}
    return Layout(
        folder=folder,
        kind=kind,
        splits={split: [(entry.path, label_of[entry.label]) for entry in entries] for split, entries in kept.items()},
        where={split: [entry.where for entry in entries] for split, entries in kept.items()},
        union=None
        if union is None
        else [(entry.path, label_of[entry.label]) for entry in union if entry.label in label_of],
        classes=class_names(ids, names),
        problems=tuple(problems),
    )


def _labels(
    entries: Sequence[Entry], task: BenchmarkTask | None, names: Mapping[str, str] | None
) -> tuple[dict[str, int], list[Problem]]:
    """The label that each number stands for, and a finding for each line whose number cannot be a label."""
    limit = MAX_CLASSES
    if names:
        limit = max(len(names), task.classes if task is not None else 0)
    label_of: dict[str, int] = {}
    problems: list[Problem] = []
    for entry in entries:
        label = int(entry.label)
        if 0 <= label < limit:
            label_of[entry.label] = label
        else:
            known = f"the {limit} classes are 0 to {limit - 1}" if names else f"it must be 0 to {limit - 1}"
            wrong = f"{entry.where} gives {printable(entry.path)} the class {label}, but {known}"
            problems.append(
                fatal(entry.where, wrong, "correct the line, or classes.txt" if names else "correct the line")
            )
    return label_of, problems


def _by_number(name: str) -> tuple[int, int, str]:
    """Sorts ids that are numbers by value, before all others."""
    if name.isascii() and name.isdigit() and len(name) <= 18:
        return 0, int(name), name
    return 1, 0, name


def _beside(folder: Path, lists: Mapping[str, list[Entry]]) -> dict[str, list[Entry]]:
    """The entries with paths relative to the folder: some data sets list them relative to its folder of images."""
    try:
        inner = sorted(entry.name for entry in os.scandir(folder) if fold(entry.name) in ("images", "image", "imgs"))
    except OSError:
        inner = []
    sample = [entry.path for entries in lists.values() for entry in entries[:: max(1, len(entries) // 16)]]
    # The first of equals: the folder itself.
    base = max(["", *inner], key=lambda name: sum(os.path.exists(folder / name / path) for path in sample))
    if not base:
        return dict(lists)
    return {
        split: [entry._replace(path=f"{base}/{entry.path}") for entry in entries] for split, entries in lists.items()
    }
