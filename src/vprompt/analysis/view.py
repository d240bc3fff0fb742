"""What the report needs of an analysis, and which module has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from matplotlib.figure import Figure

from vprompt.report.document import Block

NAMES = ("cost", "latency", "sweep", "scores", "blocks", "rank", "schedule", "e2vpt")
"""Analyses in the order in which they are shown."""

Result = Mapping[str, Any]
"""The plain data that an analysis returned, as its JSON file has it."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How one kind of analysis is shown.

    Args:
        title: Of its section.
        answer: The result in one or two sentences, figures first.
        tables: Its numbers, all of them readable without the picture.
        figure: Its picture.
        alt: What the picture shows, in words.
    """

    title: str
    answer: Callable[[Result], str]
    tables: Callable[[Result], Sequence[Block]]
    figure: Callable[[Result], Figure]
    alt: Callable[[Result], str]


def view_of(name: str) -> View:
    """The view of an analysis: `VIEW` of the module of its name."""
    return import_module(f"vprompt.analysis.{name}.report").VIEW
