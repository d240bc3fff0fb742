"""Names of classes: what `classes.txt` says, or their numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from laconic.data.benchmarks.lists import read_text
from laconic.data.benchmarks.problem import Problem, differs
from laconic.data.images import printable

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
