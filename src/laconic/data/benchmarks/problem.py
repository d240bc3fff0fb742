"""What is wrong with the files of a task, or differs from the benchmark's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


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
