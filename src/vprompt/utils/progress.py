"""Bars on standard error for anything that may take longer than two seconds."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

from vprompt.utils.text import duration, title_of


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


def tell(sentences: Sequence[str]) -> None:
    """Writes sentences on standard error, each on a line of its own; on a terminal, no word is broken."""
    width = max(20, shutil.get_terminal_size().columns) if sys.stderr.isatty() else sys.maxsize
    wrapper = textwrap.TextWrapper(
        width,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=width < sys.maxsize,
    )
    for sentence in sentences:
        sys.stderr.write(f"{wrapper.fill(sentence)}\n")
    sys.stderr.flush()


QUIET_SECONDS = 30.0
"""A log hears of a job at least this often."""

BAR = 12
"""Characters of a bar, for which terminals of less than 50 columns have no room."""


@contextmanager
def bar(label: str, *, enabled: bool = True, unit: str = "", keep: bool = False) -> Generator[Report]:
    """A progress bar on standard error: share done, time left, and as many figures as there is room for.

    In a log file nothing moves: there is a line for every epoch (but for no more than each twentieth of the job), one
    every 30 seconds, and one at the end. A notebook shows a bar of text.

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

    console = Console(stderr=True)
    if console.is_jupyter or not console.is_terminal:
        lines = _Lines(label, unit, moving=console.is_jupyter)
        yield lines.report
        lines.close()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    room = console.width >= 50
    columns = [
        TextColumn("{task.description}", markup=False),
        *([BarColumn(bar_width=BAR)] if room else []),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[figures]}", style="cyan"),
    ]
    with Progress(*columns, console=console, transient=not keep) as shown:
        label = textwrap.shorten(label, max(8, console.width - len(" 100% 0:00:00 ")), placeholder="")
        row = shown.add_task(label, total=None, figures="")
        last: dict[str, float] = {}
        fixed = len(f"{label} 100% 0:00:00 ") + room * len(f"{BAR * '-'} left ")

        def report(done: int, total: int, **figures: float) -> None:
            last.update(figures)
            text = "left " * (room and done < total) + figures_text(last, unit, most=console.width - fixed)
            shown.update(row, completed=done, total=total, figures=text)

        yield report


class _Lines:
    """Progress where no cursor moves: lines of a log, or (`moving`) one line of a notebook that is written anew."""

    def __init__(self, label: str, unit: str, *, moving: bool) -> None:
        self.label, self.unit, self.moving = label, unit, moving
        self.figures: dict[str, float] = {}
        self.started = self.told = time.monotonic()
        self.told_share = 0.0
        self.first: int | None = None
        self.now = (0, 0)

    def report(self, done: int, total: int, **figures: float) -> None:
        """See `Report`."""
        share, epoch = done / max(total, 1), self.figures.get("epoch")
        if self.first is None:
            self.first = done
        if self.moving:
            self.figures |= figures
            if time.monotonic() - self.told > 0.2 or done == total:
                self._tell(done, total)
            return
        # The first report of an epoch comes after all those of the one before.
        ended = epoch is not None and figures.get("epoch", epoch) > epoch and share - self.told_share > 0.05
        if ended or time.monotonic() - self.told > QUIET_SECONDS:
            self._tell(*self.now)
        self.figures |= figures
        self.now = (done, total)

    def close(self) -> None:
        """Ends the line of a notebook; says in a log what was done."""
        if self.moving:
            self._write("\n")
        elif self.figures:
            self._write(f"{self.label}: {figures_text(self.figures, self.unit)}\n")

    def _tell(self, done: int, total: int) -> None:
        self.told, self.told_share = time.monotonic(), done / max(total, 1)
        speed = (done - (self.first or 0)) / max(self.told - self.started, 1e-9)
        left = f", {duration((total - done) / speed)} left" if speed > 0 else ""
        drawn = f"{'━' * round(BAR * self.told_share):·<{BAR}} " * self.moving
        room = 79 - len(self.label) - len(drawn) - 24 if self.moving else None
        figures = figures_text(self.figures, self.unit, most=room)
        text = f"{self.label}: {drawn}{100 * self.told_share:.0f}%{left} {figures}".rstrip()
        self._write(f"\r{text:<79}" if self.moving else f"{text}\n")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def figures_text(figures: dict[str, float], unit: str = "", most: int | None = None) -> str:
    """Figures in few characters; of those for which there is no room, none.

    Example:
        >>> figures_text({"loss": 0.51234, "accuracy": 0.875, "rate": 1234.0}, "img")
        'loss 0.512 acc 87.5% 1234 img/s'
        >>> figures_text({"loss": 0.51234, "accuracy": 0.875, "rate": 1234.0}, "img", most=25)
        'loss 0.512 acc 87.5%'
        >>> figures_text({"error": 0.51, "val_r2": 0.875})
        'error 0.51 val r2 87.5%'
    """
    parts: list[str] = []
    for name, value in figures.items():
        if name == "cached" and "epoch" in figures:
            continue  # that was before
        if name == "rate":
            parts.append(f"{value:.0f} {unit}/s")
        elif name == "epoch":
            parts.append(f"epoch {value:.0f}")
        elif "accuracy" in name or name.startswith("val_"):  # a share
            shown = title_of(name).replace("accuracy", "acc")
            parts.append(f"{shown} {100 * value:.1f}%")
        else:
            parts.append(f"{name} {value:.3g}")
    while most is not None and parts and len(" ".join(parts)) > most:
        parts.pop()
    return " ".join(parts)
