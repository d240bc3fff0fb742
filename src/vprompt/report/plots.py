"""Plots by matplotlib: points with error bars, curves and bars, as PNG files and as SVG for a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vprompt.report.document import Bar, Chart, Charts, Curve, Dot
from vprompt.utils.io import write_atomically
from vprompt.utils.text import line, printable

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


_TIP = "tip:"
"""Begins the group id of what has a text where it is hovered."""

_STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model in a plot of accuracy against prompts: its name, all its prompts, its accuracy (0-1)."""

    name: str
    prompts: int
    accuracy: float


def plot_accuracy(path: Path, points: Sequence[Point], *, title: str) -> None:
    """Draws accuracy against the number of prompts in all blocks, a marker per model, as PNG."""
    dots = [Dot(name=p.name, x=p.prompts, y=100 * p.accuracy, style=style) for style, p in enumerate(points)]
    legend = [(dot.style, f"{short(dot.name)} ({dot.y:.1f} %)") for dot in dots]
    chart = Chart(title=title, x="prompts in all blocks", y="test accuracy (%)", dots=dots)
    save_png(path, Charts([chart], legend))


def plot_kept(path: Path, before: Sequence[int], kept: Sequence[int], *, title: str) -> None:
    """Draws how many prompts each block had and how many it kept, as PNG."""
    bars = [Bar(before=b, retained=k) for b, k in zip(before, kept, strict=True)]
    title = f"{short(title, 40)} ({sum(kept)} of {sum(before)})"
    save_png(path, Charts([Chart(title=title, x="block", y="prompts", bars=bars)]))


def save_png(path: Path, charts: Charts, *, title: str = "") -> None:
    """Writes charts side by side as a PNG file, with their legend below and a title above."""
    columns = len(charts.charts)
    figure, panels = side_by_side(6.4 if columns == 1 else 5.5 * columns, 4.4, columns)
    for axes, chart in zip(panels, charts.charts, strict=True):
        draw(axes, chart)
    if title:
        figure.suptitle(short(title, 110), x=0.01, ha="left", fontsize=11, parse_math=False)
    if charts.legend:
        styles = [(*_style(style), short(name)) for style, name in charts.legend]
        legend_below(figure, [Line2D([], [], ls="", ms=5, color=c, marker=m, label=name) for c, m, name in styles])
    write_atomically(path, lambda part: figure.savefig(part, format="png"))


def svg(chart: Chart) -> Markup:
    """A chart as SVG to stand in a page: text stays text, and the colours are the page's own."""
    # So narrow that a phone shows it unscaled; matplotlib's own layout would take as long as all the rest.
    figure = Figure(figsize=(4.6, 3.2))
    axes = figure.add_axes((0.15, 0.15, 0.82, 0.75))
    dress(axes)
    draw(axes, chart)
    stream = io.BytesIO()
    # The salt keeps ids apart from those of other pictures of the page, and the same from one time to the next.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.alt}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    for element in list(root.iter()):
        _clean(element)
    root.attrib = {"class": "chart", "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": chart.alt}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _clean(element: ElementTree.Element) -> None:
    """Leaves what a page needs of an element of matplotlib's: no namespaces, clipping or needless digits."""
    element.tag = element.tag.rpartition("}")[2]
    element.text, element.tail = (element.text if element.tag in ("text", "tspan") else None), None
    for child in list(element):
        if child.tag.rpartition("}")[2] in ("metadata", "style", "clipPath"):
            element.remove(child)
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items() if name != "clip-path"}
    for name in {"d", "x", "y", "transform"} & attributes.keys():
        attributes[name] = re.sub(r"\d+\.\d{2,}", lambda digits: f"{float(digits[0]):.1f}", attributes[name])
    if "style" in attributes:
        attributes["style"] = re.sub(r"#[0-9a-f]{6}", lambda c: _VARIABLES.get(c[0], c[0]), attributes["style"])
    if element.tag == "g" and (name := attributes.pop("id", "")).startswith(_TIP):
        title = ElementTree.Element("title")
        title.text = name.removeprefix(_TIP)
        element.insert(0, title)
    element.attrib = attributes


def draw(axes: Axes, chart: Chart) -> None:
    """Draws a chart into axes."""
    plain: dict[str, Any] = {"parse_math": False}
    axes.set_xlabel(chart.x, **plain)
    axes.set_ylabel(chart.y, **plain)
    axes.set_title(short(chart.title, 52), loc="left", fontsize=11, **plain)
    if chart.rule is not None:
        place, name = chart.rule
        axes.axvline(place, color=SOFT, linestyle="--", linewidth=1, zorder=1)
        above = axes.get_xaxis_transform()
        axes.text(place, 1.01, name, transform=above, ha="center", fontsize=8, color=SOFT, **plain)
    if chart.dots:
        _draw_dots(axes, chart.dots, log=chart.log)
    if chart.curves:
        _draw_curves(axes, chart.curves)
    if chart.bars:
        _draw_bars(axes, chart.bars)


def _draw_dots(axes: Axes, dots: Sequence[Dot], *, log: bool) -> None:
    for dot in dots:
        colour, marker = _style(dot.style)
        axes.errorbar(dot.x, dot.y, yerr=dot.error, fmt="none", color=colour, elinewidth=1, capsize=3, zorder=2)
        axes.scatter(dot.x, dot.y, s=40, color=colour, marker=marker, gid=_tip(dot.name), zorder=3)
    low, high = _limits([dot.y + side * (dot.error or 0.0) for dot in dots for side in (-1, 1)], least=2.0)
    axes.set_ylim(low, high)
    axes.set_yticks([value for value in axes.get_yticks() if low <= value <= min(high, 100)])
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    if log and all(dot.x > 0 for dot in dots):
        low, high = _limits([math.log10(dot.x) for dot in dots], least=1.0)
        axes.set(xscale="log", xlim=(10**low, 10**high))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high - low > 3 else (1.0, 3.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))


def _draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """The vertical axis is logarithmic where values span over two powers of ten."""
    for curve in curves:
        colour, marker = _style(curve.style)
        xs, ys = zip(*curve.points, strict=True)
        only = marker if len(xs) == 1 else ""
        axes.plot(xs, ys, "--" if curve.dashed else "-", marker=only, color=colour, lw=1.1, gid=_tip(curve.name))
        after = [] if curve.join is None else [point for point in curve.points if point[0] > curve.join]
        if after and not only:
            axes.plot(*after[0], "o", markersize=5, color=colour, markerfacecolor="white")
    heights = [y for curve in curves for _, y in curve.points]
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=_STEPS))
    if min(heights) > 0 and max(heights) > 100 * min(heights):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        axes.set_ylim(min(0.0, *heights), 1.04 * max(0.0, *heights) or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(tick))


def _draw_bars(axes: Axes, bars: Sequence[Bar]) -> None:
    """Pale bars for how many there were, and before them how many are left: with a deviation, or in figures."""
    blocks = range(len(bars))
    axes.bar(blocks, [bar.before for bar in bars], color=PALE, zorder=2)
    retained = axes.bar(blocks, [bar.retained for bar in bars], color=[_style(bar.style)[0] for bar in bars], zorder=3)
    for block, (bar, patch) in enumerate(zip(bars, retained, strict=True)):
        patch.set_gid(_tip(f"block {block}: {bar.retained:.1f} of {bar.before:.1f}"))
        if bar.std:
            low, high = max(0.0, bar.retained - bar.std), bar.retained + bar.std
            axes.plot([block, block], [low, high], color="black", lw=1, zorder=4)
    if all(bar.std is None for bar in bars):
        axes.bar_label(retained, [tick(bar.retained) for bar in bars], padding=1, fontsize=8 if len(bars) <= 12 else 5)
    axes.set_xticks(blocks[:: math.ceil(len(bars) / 12)])
    axes.set_ylim(0, 1.12 * max(1.0, *(max(bar.before, bar.retained + (bar.std or 0.0)) for bar in bars)))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, steps=_STEPS))


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
    text = printable(text)
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
    """Removes the frame of axes and draws faint lines to read values by."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, zorder=0)


def _tip(text: str) -> str:
    return _TIP + line(text, 300)
