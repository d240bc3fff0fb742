"""The two layouts that benchmark tasks lie on disk in: lists beside images, read without decoding anything."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from vprompt.data.benchmarks.tasks import BenchmarkTask, Suite, fold
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

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


_LABEL = re.compile(r"[+-]?[0-9]{1,18}")

_LINE_END = re.compile(r"\r\n|\r|\n")

_DRIVE = re.compile(r"[A-Za-z]:")


class Entry(NamedTuple):
    """One image of a list: its path relative to the folder, its class as written, and where that stands."""

    path: str
    label: str
    where: str


def read_lines(file: Path) -> tuple[list[Entry], list[Problem]]:
    """The entries of a text file and what is wrong with it; lines that are wrong are left out.

    Labels are whole numbers in plain decimal writing. Paths may have spaces; Windows separators become slashes.
    """
    text, problem = read_text(file)
    if text is None:
        return [], [problem] if problem else []
    entries: list[Entry] = []
    problems: list[Problem] = []
    for number, line in enumerate(_LINE_END.split(text), start=1):
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        where = f"{file.name}, line {number}"
        if len(words) < 2 or not _LABEL.fullmatch(words[1]):
            shown = printable(line.strip())
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            wrong = f"Line {number} of {file.name} does not end in a class number: {shown!r}"
            problems.append(fatal(where, wrong, "write PATH LABEL, such as images/000123.jpg 7"))
            continue
        path, reason = clean(file.parent, words[0].strip())
        if path is None:
            problems.append(_bad_path(where, words[0].strip(), reason))
        else:
            entries.append(Entry(path, str(int(words[1])), where))
    return entries, problems


def read_object(file: Path) -> tuple[list[Entry], list[Problem]]:
    """The entries of a JSON file and what is wrong with it; a key that stands there twice gives two entries."""
    data, problem = _bytes(file)
    if data is None:
        return [], [problem] if problem else []
    try:
        # Pairs keep keys that stand there twice.
        pairs: Any = json.loads(data, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())
        wrong = f"{file.name} is not valid JSON ({printable(detail)})"
        return [], [fatal(file.name, wrong, "write an object from image paths to class ids, or get it anew")]
    if not isinstance(pairs, _Pairs):
        kind = "a list" if isinstance(pairs, list) else "a single value"
        wrong = f"{file.name} holds {kind}, not an object"
        return [], [fatal(file.name, wrong, 'write {"PATH": CLASS, ...}')]
    entries: list[Entry] = []
    problems: list[Problem] = []
    for key, value in pairs.items:
        path, reason = clean(file.parent, key)
        if path is None:
            problems.append(_bad_path(file.name, key, reason))
        elif isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            wrong = (
                f"{file.name} gives {printable(key)} the class {_shown(value)}, which is neither a number nor a name"
            )
            problems.append(fatal(file.name, wrong, "write a whole number or a string"))
        else:
            entries.append(Entry(path, str(value).strip(), file.name))
    return entries, problems


def clean(folder: Path, path: str) -> tuple[str | None, str]:
    """A listed path with slashes and without empty parts, or None and why it cannot be used.

    Example:
        >>> clean(Path("."), "images//a b.png"), clean(Path("."), "../b.png")[0]
        (('images/a b.png', ''), None)
    """
    if "\0" in path or not path.strip():
        return None, "is no path"
    if "\\" in path and not os.path.lexists(folder / path):
        path = path.replace("\\", "/")
    if path.startswith("/") or _DRIVE.match(path):
        return None, "is absolute"
    pure = PurePosixPath(path)
    if ".." in pure.parts:
        return None, "leaves the folder"
    return (str(pure), "") if pure.parts else (None, "is no path")


class _Pairs(NamedTuple):
    items: list[tuple[str, Any]]


def _shown(value: Any) -> str:
    if isinstance(value, _Pairs):
        return "{...}"
    text = json.dumps(value, default=lambda _: "...")
    return text if len(text) <= 40 else f"{text[:37]}..."


def _bad_path(where: str, path: str, reason: str) -> Problem:
    wrong = f"{where} names {printable(path)!r}, which {reason}"
    return fatal(where, wrong, "list files inside the folder, by paths relative to it")


def _bytes(file: Path) -> tuple[bytes | None, Problem | None]:
    try:
        return file.read_bytes(), None
    except OSError as error:
        problem = "is a folder" if file.is_dir() else f"cannot be read: {(error.strerror or str(error)).lower()}"
        return None, fatal(file.name, f"{file.name} {problem}", "put a readable file in its place")


def read_text(file: Path) -> tuple[str | None, Problem | None]:
    """The text of a file, without byte order mark, or what is wrong with it."""
    data, problem = _bytes(file)
    if data is None:
        return None, problem
    if b"\0" in data:
        return None, fatal(file.name, f"{file.name} is not UTF-8 text", "save it as UTF-8")
    # Names of files need not be UTF-8; escaped bytes find them again.
    return data.decode("utf-8-sig", errors="surrogateescape"), None


MAX_CLASSES = 100_000
"""A label above it is a slip of the pen: no data set has as many classes, and a head for them fits no memory."""


def read_names(file: Path, *, ids: bool) -> tuple[dict[str, str] | None, list[Problem]]:
    """The names in a `classes.txt` by class; None without that file.

    Line k (from 0) names class k. With `ids`, lines `ID NAME` name the class with that id, as CUB and NABirds have it.
    """
    if not file.exists():
        return None, []
    text, problem = read_text(file)
    if text is None:
        return None, [problem] if problem else []
    lines = [line.strip() for line in text.rstrip().splitlines()]
    pairs = [line.split(maxsplit=1) for line in lines]
    if ids and lines and all(len(pair) == 2 and pair[0].isdigit() for pair in pairs):
        return {pair[0]: pair[1] for pair in pairs}, []
    return {str(number): name for number, name in enumerate(lines)}, []


def class_names(ids: Sequence[str], names: Mapping[str, str] | None) -> tuple[str, ...]:
    """Printable names of the classes with these ids, all different; ids where there are no names.

    Example:
        >>> class_names(["0", "1", "2", "3"], {"0": "ant", "1": "bee", "2": "ant"})
        ('ant (0)', 'bee', 'ant (2)', '3')
    """
    called = [printable((names or {}).get(name) or name) for name in ids]
    often = Counter(called)
    unlike = [
        name if often[name] == 1 else f"{name} ({printable(number)})" for number, name in zip(ids, called, strict=True)
    ]
    return tuple(unlike) if len(set(unlike)) == len(ids) else tuple(printable(number) for number in ids)


def fit_names(ids: Sequence[str], names: Mapping[str, str] | None) -> tuple[Mapping[str, str] | None, list[Problem]]:
    """Names by the ids of FGVC, where any order of lines fits only if there are as many; otherwise none."""
    if names is None or all(names.get(name) for name in ids):
        return names, []
    if len(names) == len(ids) and set(names) == {str(number) for number in range(len(ids))}:
        return dict(zip(ids, names.values(), strict=True)), []
    sentence = f"classes.txt names {len(names)} classes, not the {len(ids)} in the lists, so that these go by their ids"
    return None, [differs("classes.txt", sentence)]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding.

    Args:
        severity: `"fatal"` if the task cannot be used as it is, `"differs"` if it can but is not the benchmark's.
        sentence: What is wrong, and for a fatal problem what to do.
        where: The file, and the line in it if it has lines.
    """

    severity: Literal["fatal", "differs"]
    sentence: str
    where: str


def fatal(where: str, wrong: str, remedy: str) -> Problem:
    """A finding that makes a task unusable."""
    return Problem(severity="fatal", sentence=f"{wrong}; {remedy}.", where=where)


def differs(where: str, sentence: str) -> Problem:
    """A finding that only makes it another task than the benchmark's."""
    return Problem(severity="differs", sentence=f"{sentence}.", where=where)


def some(names: Iterable[str], limit: int = 10) -> str:
    """Names for a sentence, not more than `limit`.

    Example:
        >>> some(["ant", "bee", "cat"], limit=2)
        'ant, bee and 1 more'
    """
    listed = list(names)
    shown = ", ".join(listed[:limit])
    return shown if len(listed) <= limit else f"{shown} and {len(listed) - limit} more"
