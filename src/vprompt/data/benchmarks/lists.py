"""Lists of images in the two layouts of benchmark tasks on disk, read without opening any image."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, cast

from vprompt.data.benchmarks.tasks import BenchmarkTask, Suite, fold
from vprompt.data.scan import visible_entries
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

FILES: dict[Suite, dict[str, str]] = {
    "vtab": {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"},
    "fgvc": {"train": "train.json", "val": "val.json", "test": "test.json"},
}
"""The list of each split."""

UNION = "train800val200.txt"
"""The list of train and val together that VTAB-1k has besides; nothing is read from it."""


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


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A task as its lists have it.

    Args:
        folder: Has the lists.
        kind: The layout.
        splits: For each split whose list is there its images as (path relative to the folder, label).
        where: For each split where these stand: file and line.
        classes: The class with label `i` is `classes[i]`; all are different and printable.
        problems: Findings in the lists themselves.
    """

    folder: Path
    kind: Suite
    splits: Mapping[str, Sequence[tuple[str, int]]]
    where: Mapping[str, Sequence[str]]
    classes: tuple[str, ...]
    problems: tuple[Problem, ...]


def recognise(folder: Path) -> Suite | None:
    """The layout of a folder: its list files tell, whatever else lies there.

    Example:
        >>> recognise(Path("nowhere")) is None
        True
    """
    if any((folder / name).is_file() for name in (FILES["vtab"]["train"], UNION)):
        return "vtab"
    # JSON beside class folders may be anything: one file, and files that do not begin as lists do.
    lists = [folder / name for name in FILES["fgvc"].values() if (folder / name).is_file()]
    if len(lists) >= 2 and (any(map(_begins_as_list, lists)) or not any(path.is_dir() for path in folder.iterdir())):
        return "fgvc"
    return None


def _begins_as_list(file: Path) -> bool:
    """Whether a file begins as an object from paths to classes does; one that cannot be read may well be one."""
    try:
        with file.open("rb") as opened:
            first = re.match(rb'(?:\xef\xbb\xbf)?\s*\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*["\d-]', opened.read(4096))
    except OSError:
        return True
    return first is not None and re.search(rb"/|\.\w{3,4}$", first[1]) is not None


def read_layout(folder: Path, task: BenchmarkTask | None) -> Layout:
    """Reads the lists of a folder.

    Args:
        folder: Has the lists.
        task: The benchmark's task that this should be, if any; its layout is expected where the folder does not tell.

    Raises:
        DataError: The folder has neither layout, and is not of the benchmark.
    """
    kind = recognise(folder) or (task.suite if task is not None else None)
    if kind is None:
        raise DataError(
            f"{printable(str(folder))} has no lists of images; put {', '.join(FILES['vtab'].values())} or "
            f"{', '.join(FILES['fgvc'].values())} there."
        )
    problems: list[Problem] = []
    lists: dict[str, list[Entry]] = {}
    for split, name in FILES[kind].items():
        if os.path.lexists(folder / name):
            lists[split], wrong = parse_list(folder / name, kind)
            problems += wrong
            if not lists[split] and not wrong:
                problems.append(fatal(name, f"{name} lists no image", remedy(task)))
        else:
            problems.append(fatal(name, f"{name} is missing", remedy(task)))
    if kind == "fgvc":
        lists = _beside(folder, lists)
    names, wrong = read_names(folder / "classes.txt", ids=kind == "fgvc")
    problems += wrong
    entries = [entry for listed in lists.values() for entry in listed]
    if kind == "fgvc":
        # Mapped once for all splits: a class that a split lacks must not move the others.
        ids = sorted({entry.label for entry in entries}, key=_by_number)
        label_of = {name: label for label, name in enumerate(ids)}
        names, wrong = fit_names(ids, names)
    else:
        ids, label_of, wrong = _numbered(entries, task, names)
    problems += wrong
    known = {split: [entry for entry in listed if entry.label in label_of] for split, listed in lists.items()}
    return Layout(
        folder=folder,
        kind=kind,
        splits={split: [(entry.path, label_of[entry.label]) for entry in listed] for split, listed in known.items()},
        where={split: [entry.where for entry in listed] for split, listed in known.items()},
        classes=class_names(ids, names),
        problems=tuple(problems),
    )


def remedy(task: BenchmarkTask | None) -> str:
    """The way out where lists or images are not what they should be."""
    return "write the list, or get it anew" if task is None else f"get it anew: {task.source}"


def _numbered(
    entries: Sequence[Entry], task: BenchmarkTask | None, names: Mapping[str, str] | None
) -> tuple[list[str], dict[str, int], list[Problem]]:
    """The ids of all classes, the label of each written number, and a finding for each line without a label."""
    limit = max(len(names), task.classes if task is not None else 0) if names else MAX_CLASSES
    label_of: dict[str, int] = {}
    problems: list[Problem] = []
    for entry in entries:
        label = int(entry.label)
        if 0 <= label < limit:
            label_of[entry.label] = label
        else:
            wrong = f"{entry.where} gives {printable(entry.path)} the class {label}, but they are 0 to {limit - 1}"
            problems.append(fatal(entry.where, wrong, "correct the line" + ", or classes.txt" * bool(names)))
    used = max(label_of.values(), default=-1) + 1
    count = used if names is None else max(used, len(names))
    count = task.classes if task is not None and used <= task.classes else count
    if names is not None and len(names) != count:
        problems.append(differs("classes.txt", f"classes.txt names {len(names)} classes; there are {count}"))
    return [str(label) for label in range(count)], label_of, problems


def _by_number(name: str) -> tuple[int, int, str]:
    """Sorts ids that are numbers by value, before all others."""
    if name.isascii() and name.isdigit() and len(name) <= 18:
        return 0, int(name), name
    return 1, 0, name


def _beside(folder: Path, lists: Mapping[str, list[Entry]]) -> dict[str, list[Entry]]:
    """The entries with paths relative to the folder: some data sets list them relative to its folder of images."""
    folders = visible_entries(folder)[0] if folder.is_dir() else []
    inner = [path.name for path in folders if fold(path.name) in ("images", "image", "imgs")]
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


class _WrongError(Exception):
    """A list that cannot be used; its arguments are those of `fatal`."""


def parse_list(file: Path, kind: Suite) -> tuple[list[Entry], list[Problem]]:
    """The entries of a list and what is wrong with it; what is wrong is left out.

    Of VTAB it is a text file. Labels are whole numbers in plain decimal writing. Paths may have spaces; Windows
    separators become slashes. Of FGVC it is a JSON object; a key that stands there twice gives two entries.
    """
    entries: list[Entry] = []
    problems: list[Problem] = []
    try:
        for found in _lines(file) if kind == "vtab" else _pairs(file):
            if isinstance(found, Problem):
                problems.append(found)
                continue
            cleaned, reason = clean(file.parent, found.path)
            if cleaned is not None:
                entries.append(found._replace(path=cleaned))
            else:
                wrong = f"{found.where} names {printable(found.path)!r}, which {reason}"
                problems.append(fatal(found.where, wrong, "list files inside the folder, by paths relative to it"))
    except _WrongError as error:
        problems.append(fatal(*error.args))
    return entries, problems


def _lines(file: Path) -> Iterator[Entry | Problem]:
    """The entry of each line that is not empty, or what is wrong with it."""
    for number, line in enumerate(_LINE_END.split(_text(file)), start=1):
        words, where = line.rsplit(maxsplit=1), f"{file.name}, line {number}"
        if len(words) == 2 and _LABEL.fullmatch(words[1]):
            yield Entry(words[0].strip(), str(int(words[1])), where)
        elif words:
            shown = printable(line.strip())
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            wrong = f"Line {number} of {file.name} does not end in a class number: {shown!r}"
            yield fatal(where, wrong, "write PATH LABEL, such as images/000123.jpg 7")


def _pairs(file: Path) -> Iterator[Entry | Problem]:
    """The entry of each pair of an object, also of keys that stand there twice, or what is wrong with it."""
    try:
        pairs: Any = json.loads(_bytes(file), object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        detail = " ".join(str(error).split())
        wrong = f"{file.name} is not valid JSON ({printable(detail)})"
        raise _WrongError(file.name, wrong, "write an object from image paths to class ids, or get it anew") from error
    if not isinstance(pairs, tuple):
        kind = "a list" if isinstance(pairs, list) else "a single value"
        raise _WrongError(file.name, f"{file.name} holds {kind}, not an object", 'write {"PATH": CLASS, ...}')
    for key, value in cast("tuple[tuple[str, Any], ...]", pairs):
        if isinstance(value, int | str) and not isinstance(value, bool) and str(value).strip():
            yield Entry(key, str(value).strip(), file.name)
        else:
            wrong = f"{file.name} gives {printable(key)} the class {json.dumps(value)[:40]}"
            yield fatal(file.name, f"{wrong}, which is neither a number nor a name", "write a whole number or a string")


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


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        problem = "is a folder" if file.is_dir() else f"cannot be read: {(error.strerror or str(error)).lower()}"
        raise _WrongError(file.name, f"{file.name} {problem}", "put a readable file in its place") from error


def _text(file: Path) -> str:
    """The text of a file, without byte order mark."""
    data = _bytes(file)
    if b"\0" in data:
        raise _WrongError(file.name, f"{file.name} is not UTF-8 text", "save it as UTF-8")
    # Names of files need not be UTF-8; escaped bytes find them again.
    return data.decode("utf-8-sig", errors="surrogateescape")


MAX_CLASSES = 100_000
"""A label above it is a slip of the pen: no data set has as many classes, and a head for them fits no memory."""


def read_names(file: Path, *, ids: bool) -> tuple[dict[str, str] | None, list[Problem]]:
    """The names in a `classes.txt` by class; None without that file.

    Line k (from 0) names class k. With `ids`, lines `ID NAME` name the class with that id, as CUB and NABirds have it.
    """
    if not file.exists():
        return None, []
    try:
        lines = [line.strip() for line in _text(file).rstrip().splitlines()]
    except _WrongError as error:
        return None, [fatal(*error.args)]
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
