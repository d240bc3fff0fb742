"""One file that lists images with their classes: lines `PATH LABEL`, or a JSON object from paths to class ids."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from laconic.data.benchmarks.problem import Problem, fatal
from laconic.data.images import printable

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
