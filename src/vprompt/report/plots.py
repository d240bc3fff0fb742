"""Plots by matplotlib: points with error bars, curves and bars, as PNG files and as SVG for a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vprompt.report.document import Bar, Chart, Curve, Dot
from vprompt.utils.io import write_atomically
from vprompt.utils.text import line

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_LETTERS = "●■▲◆▼✚✖"
"""The markers as text."""

PALE, GRID, SOFT = "#DDDDDD", "#EEEEEE", "#777777"

_VARIABLES = {
    **{colour.lower(): f"var(--c{number})" for number, colour in enumerate(COLOURS)},
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
    PALE.lower(): "var(--line)",
    GRID.lower(): "var(--line)",
    SOFT.lower(): "var(--soft)",
}
"""The colours of a picture as those of the page's style sheet, which has others for a dark screen and for paper."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model in a plot of accuracy against prompts: its name, all its prompts, its accuracy (0-1)."""

    name: str
    prompts: int
    accuracy: float


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


def plot_accuracy(path: Path, points: Sequence[Point], *, title: str) -> None:
    """Draws accuracy against the number of prompts in all blocks, a marker per model, as PNG."""
    figure, (axes,) = side_by_side(6.4, 4.0, 1)
    label(axes, title, "prompts in all blocks", "test accuracy (%)")
    for number, point in enumerate(points):
        name = f"{short(point.name)} ({100 * point.accuracy:.1f} %)"
        draw_dot(axes, Dot(name=name, x=point.prompts, y=100 * point.accuracy, style=number), size=70)
    axes.margins(0.08)
    for text in axes.legend(frameon=False, fontsize=9, loc="best").get_texts():
        text.set_parse_math(False)
    _save(figure, path)


def plot_kept(path: Path, before: Sequence[int], kept: Sequence[int], *, title: str) -> None:
    """Draws how many prompts each block had and how many it kept, as PNG."""
    figure, (axes,) = side_by_side(6.4, 3.4, 1)
    label(axes, short(title, 40), "block", "prompts")
    had, has = draw_bars(axes, [Bar(before=b, retained=k) for b, k in zip(before, kept, strict=True)])
    axes.bar_label(has, fontsize=8 if len(kept) <= 12 else 5, padding=1)
    labels = [f"before ({sum(before)})", f"kept ({sum(kept)})"]
    axes.legend([had, has], labels, frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def plot_comparison(
    path: Path, trials: Sequence[Trial], *, title: str, bare_milliseconds: float | None = None, split: str = "test"
) -> None:
    """Draws accuracy against learned parameters and, beside it, against time per image, as PNG.

    Args:
        path: Where to.
        trials: One point each, with its name in a legend below.
        title: Stands above.
        bare_milliseconds: Where the bare backbone's line stands.
        split: Which accuracy it is.
    """
    figure, (left, right) = side_by_side(11.0, 4.6, 2)
    right.sharey(left)
    left.set(xlabel="learned parameters", ylabel=f"{split} accuracy (%)")
    right.set(xlabel="time per image, folded (ms)")
    for style, trial in enumerate(trials):
        y, error = 100 * trial.accuracy, None if trial.std is None else 100 * trial.std
        for axes, x in ((left, trial.learned_params), (right, trial.milliseconds)):
            if x is not None:
                draw_dot(axes, Dot(name=short(trial.name, 24), x=x, y=y, error=error, style=style))
    fit_percent(left, [100 * (trial.accuracy + side * (trial.std or 0)) for trial in trials for side in (-1, 1)])
    log_axis(left, [trial.learned_params for trial in trials])
    times = [trial.milliseconds for trial in trials if trial.milliseconds is not None]
    if bare_milliseconds is not None:
        right.axvline(bare_milliseconds, color=SOFT, linestyle="--", linewidth=1, zorder=1)
        above = right.get_xaxis_transform()
        right.text(bare_milliseconds, 1.01, "bare backbone", transform=above, ha="center", fontsize=8, color=SOFT)
        times.append(bare_milliseconds)
    if times:
        low, high = _limits(times, least=0.2 * max(times))
        right.set_xlim(max(low, 0.0), high)
    figure.suptitle(short(title, 110), x=0.01, ha="left", fontsize=11, parse_math=False)
    legend_below(figure, left.get_legend_handles_labels()[0])
    _save(figure, path)


def draw_dot(axes: Axes, dot: Dot, *, size: float = 50) -> None:
    """Draws a point with its error bar."""
    colour, marker = _style(dot.style)
    axes.errorbar(dot.x, dot.y, yerr=dot.error, fmt="none", ecolor=colour, elinewidth=1, capsize=3, zorder=2)
    axes.scatter(dot.x, dot.y, s=size, color=colour, marker=marker, label=dot.name, gid=_tip(dot.name), zorder=3)


def draw_dots(axes: Axes, dots: Sequence[Dot], *, log: bool = False) -> None:
    """Draws at least one point and fits the axes; the horizontal one is logarithmic if `log` and all are above 0."""
    for dot in dots:
        draw_dot(axes, dot, size=35)
    fit_percent(axes, [dot.y + side * (dot.error or 0.0) for dot in dots for side in (-1, 1)])
    if log and all(dot.x > 0 for dot in dots):
        log_axis(axes, [dot.x for dot in dots])
    else:
        axes.margins(x=0.08)
        _plain_ticks(axes.xaxis)


def draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draws curves over whole numbers; the vertical axis is logarithmic where values span over two powers of ten."""
    for curve in curves:
        colour, marker = _style(curve.style)
        xs, ys = zip(*curve.points, strict=True)
        only = marker if len(xs) == 1 else ""
        axes.plot(xs, ys, "--" if curve.dashed else "-", marker=only, color=colour, lw=1.1, gid=_tip(curve.name))
        after = [] if curve.join is None else [point for point in curve.points if point[0] > curve.join]
        if after and not only:
            axes.plot(*after[0], "o", markersize=5, markerfacecolor="white", markeredgecolor=colour)
    heights = [y for curve in curves for _, y in curve.points]
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    _plain_ticks(axes.yaxis)
    if min(heights) > 0 and max(heights) > 100 * min(heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(tick))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(min(0.0, *heights), 1.04 * max(0.0, *heights) or 1.0)


def draw_bars(axes: Axes, bars: Sequence[Bar]) -> tuple[BarContainer, BarContainer]:
    """Draws for every block how many there were, pale, and how many are left, with their standard deviation."""
    blocks = range(len(bars))
    before = axes.bar(blocks, [bar.before for bar in bars], color=PALE, zorder=2)
    retained = axes.bar(blocks, [bar.retained for bar in bars], color=[_style(bar.style)[0] for bar in bars], zorder=3)
    for block, (bar, patch) in enumerate(zip(bars, retained, strict=True)):
        patch.set_gid(_tip(f"block {block}: {bar.retained:.1f} of {bar.before:.1f}"))
        if bar.std:
            low, high = max(0.0, bar.retained - bar.std), bar.retained + bar.std
            axes.plot([block, block], [low, high], color="black", lw=1, zorder=4)
    every = math.ceil(len(bars) / 12)
    axes.set_xticks(list(blocks)[::every], [str(block) for block in blocks[::every]])
    most = max(max(bar.before, bar.retained + (bar.std or 0.0)) for bar in bars)
    axes.set_ylim(0, 1.12 * max(1.0, most))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    return before, retained


def tick(value: float, _: int | None = None) -> str:
    """A value on an axis.

    Example:
        >>> tick(20000.0), tick(0.25), tick(3e6), tick(0.0)
        ('20k', '0.25', '3M', '0')
    """
    for least, size, unit in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.4g}{unit}"
    return f"{value:.6g}" if abs(value) > 1e-12 else "0"


def fit_percent(axes: Axes, values: Sequence[float]) -> None:
    """Fits the vertical axis to values in percent, at least two points wide, without a tick above 100."""
    low, high = _limits(values, least=2.0)
    axes.set_ylim(low, high)
    axes.set_yticks([value for value in axes.get_yticks() if low <= value <= min(high, 100)])
    axes.yaxis.set_major_formatter(FuncFormatter(tick))


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """Makes the horizontal axis logarithmic with ticks that read as 20k and 3M, some of them whatever the range."""
    axes.set_xscale("log")
    low, high = _limits([math.log10(value) for value in values], least=1.0)
    axes.set_xlim(10**low, 10**high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high - low > 3 else (1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain_ticks(axis: Axis) -> None:
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(tick))


def _limits(values: Sequence[float], *, least: float) -> tuple[float, float]:
    """Limits with some room around the values, `least` wide without it."""
    middle, width = (max(values) + min(values)) / 2, max(max(values) - min(values), least)
    return middle - 0.62 * width, middle + 0.62 * width


def _style(number: int) -> tuple[str, str]:
    """Colour and marker, a pair of its own for each of the first 49."""
    return COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def key(style: int) -> tuple[int, str]:
    """The number of a style's colour, and its marker as text."""
    colour, marker = _style(style)
    return COLOURS.index(colour), _LETTERS[MARKERS.index(marker)]


def short(text: str, most: int = 45) -> str:
    """A text with an ellipsis where it is too long."""
    return text if len(text) <= most else text[: most - 1] + "…"


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend below all panels, in as many columns as the picture is wide enough for; labels are plain text."""
    for columns in range(min(5, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def side_by_side(width: float, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of that many inches, and axes beside each other in it."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels: list[Axes] = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for axes in panels:
        dress(axes)
    return figure, panels


def dress(axes: Axes) -> None:
    """How all our axes look: no frame, faint lines to read values by."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, zorder=0)


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Writes the title and the names of the axes."""
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(short(title, 52), loc="left", fontsize=11, parse_math=False)


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda part: figure.savefig(part, format="png"))


def svg(chart: Chart) -> Markup:
    """A chart as SVG to stand in a page: text stays text, and the colours are the page's own."""
    # So narrow that a phone shows it unscaled; matplotlib's own layout would take as long as all the rest.
    figure = Figure(figsize=(4.6, 3.2))
    axes = figure.add_axes((0.15, 0.15, 0.83, 0.75))
    dress(axes)
    label(axes, chart.title, chart.x, chart.y)
    if chart.dots:
        draw_dots(axes, chart.dots, log=chart.log)
    if chart.curves:
        draw_curves(axes, chart.curves)
    if chart.bars:
        draw_bars(axes, chart.bars)
    return to_svg(figure, chart.alt)


def to_svg(figure: Figure, alt: str) -> Markup:
    """A figure as SVG; its artists whose group id begins with `tip:` say the rest of it where they are hovered."""
    stream = io.BytesIO()
    # The salt keeps ids apart from those of other pictures of the page, and the same from one time to the next.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        parent.text, parent.tail = (parent.text if parent.tag in ("text", "tspan") else None), None
        for child in [child for child in parent if child.tag.rpartition("}")[2] in ("metadata", "style", "clipPath")]:
            parent.remove(child)
        parent.attrib = _attributes(parent)
        if (tip := parent.attrib.get("id", "")).startswith("tip:"):
            title = ElementTree.Element("title")
            title.text = tip.removeprefix("tip:")
            parent.insert(0, title)
        if parent.tag == "g":
            parent.attrib.pop("id", None)
    root.attrib = {"class": "chart", "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _tip(text: str) -> str:
    return f"tip:{line(text, 300)}"


def _attributes(element: ElementTree.Element) -> dict[str, str]:
    """Attributes without namespaces, clipping and needless digits, in the colours of the page."""
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items() if name != "clip-path"}
    for name in {"d", "x", "y", "transform"} & attributes.keys():
        attributes[name] = re.sub(r"\d+\.\d{2,}", lambda digits: f"{float(digits[0]):.1f}", attributes[name])
    if "style" in attributes:
        attributes["style"] = re.sub(r"#[0-9a-f]{6}", lambda c: _VARIABLES.get(c[0], c[0]), attributes["style"])
    return attributes
