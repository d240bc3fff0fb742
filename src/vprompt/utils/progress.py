"""Bars on standard error for anything that may take longer than two seconds."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol


class Report(Protocol):
    """A function that a job calls to report its progress."""

    def __call__(self, done: int, total: int, **figures: float) -> None:
        """`done` of `total` steps; figures such as loss=..., accuracy=... are shown beside the bar."""
        ...


def silent(done: int, total: int, **figures: float) -> None:
    """Reports to nobody."""


def part(report: Report, number: int, parts: int) -> Report:
    """The report of one of several equal parts of a job, the first with number 0.

    Example:
        >>> part(lambda done, total: print(done, "of", total), 1, 3)(5, 10)
        15 of 30
    """

    def whole(done: int, total: int, **figures: float) -> None:
        report(number * total + done, parts * total, **figures)

    return whole


@contextmanager
def bar(label: str, *, enabled: bool = True, unit: str = "", keep: bool = False) -> Generator[Report]:
    """A progress bar on standard error: share done, figures, rate and time left.

    On something that is no terminal (a log file) nothing moves; one line says at the end what was done.

    Args:
        label: The name of the job.
        enabled: False for no output at all.
        unit: Word behind the rate; no rate when empty.
        keep: Leave the finished bar on the screen.
    """
    if not enabled:
        yield silent
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=None if console.width < 60 else 24),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}", style="cyan"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=not keep) as shown:
        row = shown.add_task(label, total=None, figures="")
        last: dict[str, float] = {}

        def report(done: int, total: int, **figures: float) -> None:
            last.update(figures)
            shown.update(row, completed=done, total=total, figures=figures_text(last, unit))

        yield report
    if not console.is_terminal and last:
        print(f"{label}: {figures_text(last, unit)}", file=sys.stderr)  # noqa: T201 - this module's purpose


def figures_text(figures: dict[str, float], unit: str = "") -> str:
    """Figures in few characters.

    Example:
        >>> figures_text({"loss": 0.51234, "accuracy": 0.875, "rate": 1234.0}, "img")
        'loss 0.512 acc 87.5% 1234 img/s'
    """
    parts: list[str] = []
    for name, value in figures.items():
        if name == "rate":
            parts.append(f"{value:.0f} {unit}/s")
        elif name == "epoch":
            parts.append(f"epoch {value:.0f}")
        elif "accuracy" in name:
            parts.append(f"{name.replace('accuracy', 'acc').replace('_', ' ')} {100 * value:.1f}%")
        else:
            parts.append(f"{name} {value:.3g}")
    return " ".join(parts)
