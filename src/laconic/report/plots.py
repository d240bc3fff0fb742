"""Pictures, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from laconic.files import write_atomically

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model in a plot of accuracy against prompts: its name, all its prompts, its accuracy (0-1)."""

    name: str
    prompts: int
    accuracy: float


def plot_accuracy(path: Path, points: Sequence[Point], *, title: str) -> None:
    """Draws accuracy against the number of prompts in all blocks, a marker per model, as PNG."""
    figure, axes = _axes(6.4, 4.0)
    for number, point in enumerate(points):
        axes.scatter(
            point.prompts,
            100 * point.accuracy,
            s=70,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            label=f"{_short(point.name)} ({100 * point.accuracy:.1f} %)",
            zorder=3,
        )
    axes.set_xlabel("prompts in all blocks")
    axes.set_ylabel("test accuracy (%)")
    axes.margins(0.08)
    axes.set_title(_short(title, 70), loc="left", fontsize=11, parse_math=False)
    for text in axes.legend(frameon=False, fontsize=9, loc="best").get_texts():
        text.set_parse_math(False)
    _save(figure, path)


def plot_kept(path: Path, before: Sequence[int], kept: Sequence[int], *, title: str) -> None:
    """Draws how many prompts each block had and how many it kept, as PNG."""
    figure, axes = _axes(6.4, 3.4)
    blocks = range(len(kept))
    axes.bar(blocks, before, color="#DDDDDD", label=f"before ({sum(before)})", zorder=2)
    bars = axes.bar(blocks, kept, color=COLOURS[0], label=f"kept ({sum(kept)})", zorder=3)
    axes.bar_label(bars, fontsize=8 if len(kept) <= 12 else 5, padding=1)
    axes.set_xticks(list(blocks), [str(block) for block in blocks], fontsize=8 if len(kept) > 16 else 10)
    axes.set_ylim(0, max(1, *before) * 1.12)
    axes.set_xlabel("block")
    axes.set_ylabel("prompts")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(_short(title, 40), loc="left", fontsize=11, parse_math=False)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def _short(text: str, most: int = 45) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#EEEEEE", zorder=0)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda part: figure.savefig(part, format="png"))
