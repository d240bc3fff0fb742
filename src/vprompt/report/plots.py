"""Where to write the names of points so that none covers another, a marker or an error bar; plain geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from vprompt.utils.io import write_atomically

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""

# Right and left first: names are wide and low.
_ANGLES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240)

_DISTANCES = (1.0, 1.8, 2.8, 4.0, 5.5, 7.5)


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    frame: Box,
    *,
    gap: float,
) -> list[Box] | None:
    """Finds a free place for every label, as near its point as there is one, first come, first served.

    Args:
        points: What the labels belong to.
        sizes: Width and height of each label.
        taken: What no label may cover.
        frame: What no label may leave.
        gap: Distance to the point that looks right; up to several times that is tried.

    Returns:
        A box for each label; None where there is no room for all of them.

    Example:
        >>> place_labels([(5, 5), (5, 5)], [(4, 2), (4, 2)], [], (0, 0, 20, 10), gap=1)
        [(6.0, 4.0, 10.0, 6.0), (0.0, 4.0, 4.0, 6.0)]
    """
    found: list[Box] = []
    for point, size in zip(points, sizes, strict=True):
        places = (_beside(point, size, angle, gap * far) for far in _DISTANCES for angle in _ANGLES)
        busy = [*taken, *found]
        free = [box for box in places if _inside(box, frame) and not any(_overlap(box, other) for other in busy)]
        clear = [box for box in free if not _crosses(point, box, found)]
        box = next((box for box in clear if not _crosses(point, box, taken)), clear[0] if clear else None)
        if box is None:
            return None
        found.append(box)
    return found


def _beside(point: tuple[float, float], size: tuple[float, float], angle: float, distance: float) -> Box:
    """A box whose nearest edge or corner lies in a direction from a point."""
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = point[0] + distance * across, point[1] + distance * up
    left = x if across > 0.4 else x - size[0] if across < -0.4 else x - size[0] / 2
    bottom = y if up > 0.4 else y - size[1] if up < -0.4 else y - size[1] / 2
    return left, bottom, left + size[0], bottom + size[1]


def nearest(point: tuple[float, float], box: Box) -> tuple[float, float]:
    """The point of a box that is nearest to a point.

    Example:
        >>> nearest((0, 5), (2, 1, 4, 3))
        (2, 3)
    """
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _crosses(point: tuple[float, float], box: Box, others: Sequence[Box]) -> bool:
    """Whether the line from a point to its label would run over another box than those that the point is in."""
    x, y = nearest(point, box)
    steps = [(point[0] + t * (x - point[0]), point[1] + t * (y - point[1])) for t in (0.2, 0.4, 0.6, 0.8)]
    away = [other for other in others if not _overlap((*point, *point), other)]
    return any(_overlap((*step, *step), other) for step in steps for other in away)


def _inside(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


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
            label=f"{short(point.name)} ({100 * point.accuracy:.1f} %)",
            zorder=3,
        )
    axes.set_xlabel("prompts in all blocks")
    axes.set_ylabel("test accuracy (%)")
    axes.margins(0.08)
    axes.set_title(short(title, 70), loc="left", fontsize=11, parse_math=False)
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
    axes.set_title(short(title, 40), loc="left", fontsize=11, parse_math=False)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend below all panels, in as many columns as the picture is wide enough for; labels are plain text."""
    for columns in range(min(5, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One method in a plot of what accuracy costs.

    Args:
        name: Of the method.
        learned_params: Numbers that training changes.
        milliseconds: Per image; None where it was not measured.
        accuracy: Mean over the seeds, 0-1.
        std: Its standard deviation; None with one seed.
    """

    name: str
    learned_params: float
    milliseconds: float | None
    accuracy: float
    std: float | None


def plot_comparison(
    path: Path, trials: Sequence[Trial], *, title: str, bare_milliseconds: float | None = None, split: str = "test"
) -> None:
    """Draws accuracy against learned parameters and, beside it, against time per image, as PNG.

    Args:
        path: Where to.
        trials: One point each, with its name beside it, or in a legend where there is no room.
        title: Stands above.
        bare_milliseconds: Where the bare backbone's line stands.
        split: Which accuracy it is.
    """
    figure = Figure(figsize=(11.0, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    timed = [trial for trial in trials if trial.milliseconds is not None]
    times = [trial.milliseconds or 0.0 for trial in timed]
    styles = {trial.name: _style(number) for number, trial in enumerate(trials)}
    panels = (
        (left, [(t, float(t.learned_params)) for t in trials], "learned parameters"),
        (right, list(zip(timed, times, strict=True)), "time per image, folded (ms)"),
    )
    for axes, points, label in panels:
        dress(axes)
        axes.set_xlabel(label)
        for trial, x in points:
            colour, marker = styles[trial.name]
            error = None if trial.std is None else 100 * trial.std
            y = 100 * trial.accuracy
            axes.errorbar(x, y, yerr=error, fmt="none", ecolor=colour, elinewidth=1, capsize=3, zorder=2)
            axes.scatter(x, y, s=50, color=colour, marker=marker, label=short(trial.name, 24), zorder=3)
    left.set_ylabel(f"{split} accuracy (%)")
    ends = [100 * (trial.accuracy + side * (trial.std or 0)) for trial in trials for side in (-1, 1)]
    low, high = _limits(ends, least=2.0)
    left.set_ylim(low, high)
    left.set_yticks([tick for tick in left.get_yticks() if low <= tick <= min(high, 100)])
    _log_axis(left, [trial.learned_params for trial in trials])
    if bare_milliseconds is not None:
        right.axvline(bare_milliseconds, color="#777777", linestyle="--", linewidth=1, zorder=1)
        right.annotate(
            "bare backbone",
            (bare_milliseconds, 1.0),
            (0, 2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="#777777",
        )
        times = [*times, bare_milliseconds]
    if times:
        low, high = _limits(times, least=0.2 * max(times))
        right.set_xlim(max(low, 0.0), high)
    figure.suptitle(short(title, 110), x=0.01, ha="left", fontsize=11, parse_math=False)
    figure.draw_without_rendering()
    lines = {left: None, right: bare_milliseconds}
    found = [_place(axes, points, lines[axes]) for axes, points, _ in panels]
    if any(boxes is None for boxes in found):
        legend_below(figure, left.get_legend_handles_labels()[0])
    else:
        figure.set_layout_engine("none")  # what was measured must stay where it is
        for (axes, points, _), boxes in zip(panels, found, strict=True):
            _write(axes, points, boxes or [], [styles[trial.name][0] for trial, _ in points])
    _save(figure, path)


def _style(number: int) -> tuple[str, str]:
    """Colour and marker, a pair of its own for each of the first 49."""
    return COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def _limits(values: Sequence[float], *, least: float) -> tuple[float, float]:
    """Limits with some room around the values, `least` wide without it."""
    middle, width = (max(values) + min(values)) / 2, max(max(values) - min(values), least)
    return middle - 0.62 * width, middle + 0.62 * width


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with ticks that read as 20k and 3M, some of them whatever the range."""
    axes.set_xscale("log")
    low, high = _limits([math.log10(value) for value in values], least=1.0)
    axes.set_xlim(10**low, 10**high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high - low > 3 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _place(axes: Axes, points: Sequence[tuple[Trial, float]], line: float | None) -> list[Box] | None:
    """Where the names of a panel go, in pixels; a vertical line at the value `line` stays free."""
    pixel = axes.figure.dpi / 72
    centres: list[tuple[float, float]] = []
    taken: list[Box] = []
    if line is not None:
        x = axes.transData.transform((line, 0.0))[0]
        taken.append((x - pixel, axes.bbox.y0, x + pixel, axes.bbox.y1))
    sizes: list[tuple[float, float]] = []
    for trial, value in points:
        x, y = axes.transData.transform((value, 100 * trial.accuracy))
        reach = abs(axes.transData.transform((value, 100 * (trial.accuracy + (trial.std or 0))))[1] - y)
        centres.append((x, y))
        taken += [(x - 4 * pixel, y - 4 * pixel, x + 4 * pixel, y + 4 * pixel)]
        taken += [(x - 3 * pixel, y - reach - pixel, x + 3 * pixel, y + reach + pixel)]
        text = axes.text(0, 0, short(trial.name, 24), fontsize=9, parse_math=False)
        extent = text.get_window_extent()
        text.remove()
        sizes.append((extent.width + 2 * pixel, extent.height))
    return place_labels(centres, sizes, taken, (axes.bbox.x0, axes.bbox.y0, axes.bbox.x1, axes.bbox.y1), gap=7 * pixel)


def _write(axes: Axes, points: Sequence[tuple[Trial, float]], boxes: Sequence[Box], colours: Sequence[str]) -> None:
    """Writes names where `_place` found room, with a line to the point where that is far."""
    for (trial, value), box, colour in zip(points, boxes, colours, strict=True):
        x, y = axes.transData.transform((value, 100 * trial.accuracy))
        end = nearest((x, y), box)
        if math.dist((x, y), end) > 10 * axes.figure.dpi / 72:
            axes.plot([x, end[0]], [y, end[1]], transform=None, color=colour, linewidth=0.6, zorder=2)
        place = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        axes.text(*place, short(trial.name, 24), transform=None, ha="center", va="center", fontsize=9, parse_math=False)


def short(text: str, most: int = 45) -> str:
    """A text with an ellipsis where it is too long."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure, (axes,) = side_by_side(width, height, 1)
    return figure, axes


def side_by_side(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of that many inches, and axes beside each other in it."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    found: list[Axes] = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for axes in found:
        dress(axes)
    return figure, found


def dress(axes: Axes) -> None:
    """How all our axes look: no frame, faint lines to read values by."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#EEEEEE", zorder=0)


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda part: figure.savefig(part, format="png"))
