"""Plots by matplotlib: points with error bars, curves and bars, as PNG files and as SVG for a page."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

from vprompt.report.colours import COLOURS
from vprompt.report.document import Bar, Chart, Charts, Curve, Dot
from vprompt.utils.io import write_bytes
from vprompt.utils.text import line

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_LETTERS = "●■▲◆▼✚✖"
"""The markers as text."""

PALE, GRID, SOFT = "#DDDDDD", "#EEEEEE", "#777777"

NAMES = 45
"""Characters of a name in a legend."""

NAMED, FIGURES = 40, 12
"""Rows of cells that have their names beside them, and that have figures in them, at most."""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.dpi": 150,
    "grid.color": GRID,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,
}
"""Style of matplotlib: faint lines, no frames, and no text from data as markup."""

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


def plot_accuracy(
    path: Path,
    models: Sequence[tuple[str, int, float]],
    *,
    title: str,
    intervals: Sequence[tuple[float, float]] | None = None,
) -> None:
    """Draws accuracy (0-1) against the prompts in all blocks, a marker for each model with its name, as PNG."""
    ends = intervals or [(accuracy, accuracy) for _, _, accuracy in models]
    curves = [
        Curve(
            name=name,
            dots=[Dot(x=prompts, y=100 * accuracy, error=(100 * (accuracy - low), 100 * (high - accuracy)))],
            style=style,
        )
        for style, ((name, prompts, accuracy), (low, high)) in enumerate(zip(models, ends, strict=True))
    ]
    legend = [
        (style, f"{line(name, NAMES)} ({100 * accuracy:.1f} %)") for style, (name, _, accuracy) in enumerate(models)
    ]
    chart = Chart(title=title, x="prompts in all blocks", y="test accuracy (%)", curves=curves)
    save_png(path, Charts([chart], legend))


def plot_kept(path: Path, before: Sequence[int], kept: Sequence[int], *, title: str) -> None:
    """Draws how many prompts each block had and how many it kept, as PNG."""
    bars = [Bar(before=b, retained=k) for b, k in zip(before, kept, strict=True)]
    title = f"{line(title, 40)} ({sum(kept)} of {sum(before)})"
    save_png(path, Charts([Chart(title=title, x="block", y="prompts", bars=bars)]))


def plot_answers(
    path: Path, images: NDArray[np.uint8], truths: Sequence[str], answers: Mapping[str, Sequence[str]]
) -> None:
    """Draws images (N, H, W, 3) in rows of four, each under its class and over what models take it for, as PNG."""
    rows = math.ceil(len(images) / 4)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 0.4 + rows * (1.9 + 0.2 * len(answers))), layout="constrained")
        names = ", and then ".join(line(name, NAMES) for name in answers)
        figure.suptitle(f"Test images under their classes; below, the answers of {names}", fontsize=9)
        grid = [*figure.subplots(rows, 4, squeeze=False).flat]
        for axes in grid:
            axes.set_axis_off()
        for number, (axes, image, truth) in enumerate(zip(grid, images, truths, strict=False)):
            axes.imshow(image, interpolation="nearest")
            axes.set_title(line(truth, 24), fontsize=9, loc="center")
            for place, given in enumerate(answers.values()):
                mark, style = ("✓", 2) if given[number] == truth else ("✗", 1)
                looks: dict[str, Any] = {"color": COLOURS[style], "fontsize": 8, "ha": "center", "va": "top"}
                below: dict[str, Any] = {"xytext": (0, -4 - 12 * place), "textcoords": "offset points"}
                axes.annotate(f"{mark} {line(given[number], 24)}", (0.5, 0), xycoords="axes fraction", **below, **looks)
        picture = png_of(figure)
    write_bytes(path, picture)


def save_png(path: Path, charts: Charts, *, title: str = "") -> None:
    """Writes charts as a PNG file."""
    write_bytes(path, png(charts, title=title))


def png_of(figure: Figure) -> bytes:
    """A figure of matplotlib as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def png(charts: Charts, *, title: str = "") -> bytes:
    """Charts as a PNG file: in rows of at most four, or below each other where rows have names; the legend below."""
    shown = charts.charts or [Chart(title="nothing to draw", x="", y="")]
    across = math.ceil(len(shown) / math.ceil(len(shown) / (1 if all(chart.rows for chart in shown) else 4)))
    grid = [shown[first : first + across] for first in range(0, len(shown), across)]
    heights = [max(1 + 0.4 * len(c.rows) if c.rows else 4.4 if len(grid) == 1 else 3.2 for c in row) for row in grid]
    width = (7.0, 11.0, 14.0, 16.0)[across - 1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(grid), across, squeeze=False, height_ratios=heights).flat
        for axes, chart in itertools.zip_longest(panels, shown):
            axes.set_axis_off() if chart is None else draw(axes, chart)
        if title:
            figure.suptitle(line(title, 110), x=0.01, ha="left", fontsize=11)
        looks = [(*_style(style), line(name, NAMES)) for style, name in charts.legend]
        handles = [Line2D([], [], ls="", ms=5, color=c, marker=m, label=name) for c, m, name in looks]
        hollow = any(dot.hollow for chart in shown for curve in chart.curves for dot in curve.dots)
        if hollow and charts.rings:
            handles.append(Line2D([], [], ls="", ms=5, color=SOFT, marker="o", fillstyle="none", label=charts.rings))
        if handles:
            legend_below(figure, handles)
        return png_of(figure)


def svg(chart: Chart) -> Markup:
    """A chart as SVG to stand in a page: text stays text, and the colours are the page's own."""
    stream = io.BytesIO()
    # The salt keeps ids apart from those of other pictures of the page, and the same from one time to the next.
    with mpl.rc_context({**STYLE, "svg.hashsalt": chart.alt}):
        # So narrow that a phone shows it unscaled; matplotlib's own layout would take as long as all the rest.
        named = bool(chart.cells) and len(chart.cells) <= NAMED
        figure = Figure(figsize=(4.6, 4.6) if chart.cells else (4.6, 3.2))
        left = 0.06 + 0.016 * max(map(len, chart.rows)) if chart.rows and not chart.cells else 0.18
        draw(figure.add_axes((0.31, 0.29, 0.67, 0.65) if named else (left, 0.15, 0.97 - left, 0.75)), chart)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    for element in list(root.iter()):
        _clean(element)
    look = "chart wide" if chart.cells else "chart"
    root.attrib = {"class": look, "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": chart.alt}
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


def jpeg(pixels: np.ndarray, most: int = 192) -> bytes:
    """Pixels (C, H, W) of 8 bits as a JPEG of at most so many on a side; of other than three channels the first."""
    channels = pixels[:3] if len(pixels) > 2 else pixels[[0, 0, 0]]
    picture, stream = Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0))), io.BytesIO()
    picture.thumbnail((most, most))
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def heated(pixels: np.ndarray, heat: np.ndarray) -> bytes:
    """Grey pixels (C, H, W) under a map (h, w) of what counts, bright where that is most, as a small JPEG."""
    low, high = float(heat.min()), float(heat.max())
    coloured = (255 * mpl.colormaps["inferno"]((heat - low) / ((high - low) or 1))[..., :3]).astype(np.uint8)
    above = np.asarray(Image.fromarray(coloured).resize(pixels.shape[:0:-1], Image.Resampling.BICUBIC), np.float32)
    mixed = 0.35 * pixels.mean(0, keepdims=True) + 0.65 * above.transpose(2, 0, 1)
    return jpeg(mixed.astype(np.uint8))


def described(chart: Chart) -> str:
    """A chart in words: its axes, and between what values each of its curves runs.

    Example:
        >>> dots = [Dot(x=0, y=1), Dot(x=5, y=2.5)]
        >>> described(Chart(title="", x="prompts", y="GMACs", curves=[Curve(name="folded", dots=dots)]))
        'GMACs against prompts: folded 1 to 2.5'
    """
    values = {s.name: [d.x if chart.rows else d.y for d in s.dots if math.isfinite(d.x + d.y)] for s in chart.curves}
    runs = [f"{name} {min(known):.4g} to {max(known):.4g}" for name, known in values.items() if known]
    axes = f"{chart.y} against {chart.x}" if chart.y else chart.x
    return f"{chart.title + ': ' if chart.title else ''}{axes}: {', '.join(runs)}"


def draw(axes: Axes, chart: Chart) -> None:
    """Draws a chart into axes."""
    axes.set(xlabel=chart.x, ylabel=chart.y, title=line(chart.title, 75 if axes.figure.axes == [axes] else 52))
    if chart.rule is not None:
        place, name = chart.rule
        axes.axvline(place, color=SOFT, linestyle="--", linewidth=1, zorder=1)
        above = axes.get_xaxis_transform()
        axes.text(place, 1.01, name, transform=above, ha="center", fontsize=8, color=SOFT)
    for height, name in chart.levels:
        axes.axhline(height, color=SOFT, linestyle="--", linewidth=1, zorder=1)
        beside = axes.get_yaxis_transform()
        axes.text(0.99, height, name, transform=beside, ha="right", va="bottom", fontsize=8, color=SOFT)
    for curve in chart.curves:
        _draw_curve(axes, curve, sideways=bool(chart.rows))
    if chart.bars:
        _draw_bars(axes, chart.bars)
    elif chart.cells:
        _draw_cells(axes, chart)
    elif chart.rows:
        axes.set_yticks(range(len(chart.rows)), chart.rows, fontsize=9)
        axes.set_ylim(len(chart.rows) - 0.4, -0.6)
        axes.grid(axis="x")
    else:
        _fit(axes, chart)


def _draw_curve(axes: Axes, curve: Curve, *, sideways: bool) -> None:
    colour, marker = _style(curve.style)
    for dot in curve.dots:
        if any(dot.sides):
            bars: dict[str, Any] = {"xerr" if sideways else "yerr": [[side] for side in dot.sides]}
            axes.errorbar(dot.x, dot.y, **bars, fmt="none", color=colour, elinewidth=1, capsize=3, zorder=2)
    if curve.line:
        axes.plot(*_places(curve.dots), curve.line, color=colour, lw=1.2, gid=_tip(curve.name))
    for hollow, fill in ((False, colour), (True, "white")):
        marks = curve.marks or hollow or len(curve.dots) == 1
        if marked := [dot for dot in curve.dots if marks and dot.hollow is hollow]:
            looks: dict[str, Any] = {"marker": marker, "markersize": 6 if len(marked) < 100 else 2.5}
            looks["markerfacecolor"] = fill
            axes.plot(*_places(marked), linestyle="", color=colour, gid=_tip(curve.name), zorder=3, **looks)


def _draw_cells(axes: Axes, chart: Chart) -> None:
    """A square whose cells are the stronger the larger they are: blue on the diagonal, orange beside it."""
    size, shown = len(chart.cells), np.empty((len(chart.cells), len(chart.cells), 4))
    shown[:], shown[np.diag_indices(size)] = to_rgba(COLOURS[1]), to_rgba(COLOURS[0])
    shown[..., 3] = 0.7 * np.cbrt(chart.cells)  # so that ink can be read on it
    axes.imshow(shown, interpolation="nearest")
    axes.grid(visible=False)
    if size <= NAMED:
        names, letters = [line(name, 13) for name in chart.rows], max(4, min(9, 160 / size))
        axes.set_xticks(range(size), names, rotation=90, fontsize=letters)
        axes.set_yticks(range(size), names, fontsize=letters)
    for row, column in itertools.product(range(size), repeat=2) if size <= FIGURES else ():
        if (share := chart.cells[row][column]) >= 0.005:
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)


def _places(dots: Sequence[Dot]) -> tuple[list[float], list[float]]:
    return [dot.x for dot in dots], [dot.y for dot in dots]


def _fit(axes: Axes, chart: Chart) -> None:
    dots = [dot for curve in chart.curves for dot in curve.dots if math.isfinite(dot.y)]
    heights = [height for height, _ in chart.levels]
    heights += [height for dot in dots for height in (dot.y - dot.sides[0], dot.y + dot.sides[1])]
    if not heights:
        return
    if not chart.zero:
        low, high = _limits(heights, least=1e-9 if chart.tight else 2.0)
        axes.set_ylim(low, high)
        most = high if chart.tight else min(high, 100)
        axes.set_yticks([value for value in axes.get_yticks() if low <= value <= most])
        axes.margins(x=0.1)
    elif min(heights) > 0 and max(heights) > 100 * min(heights):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
        axes.set_ylim(min(0.0, *heights), 1.04 * max(0.0, *heights) or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(tick))
    if chart.log and all(dot.x > 0 for dot in dots):
        low, high = _limits([math.log10(dot.x) for dot in dots], least=1.0)
        axes.set(xscale="log", xlim=(10**low, 10**high))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high - low > 3 else (1.0, 3.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        whole = all(dot.x == round(dot.x) for dot in dots)
        if len({dot.x for dot in dots}) == 1:
            axes.set_xlim(dots[0].x - 1, dots[0].x + 1)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole, steps=_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))


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


def legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend below all panels, in as many columns as the picture is wide enough for."""
    for columns in range(min(5, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _tip(text: str) -> str:
    return _TIP + line(text, 300)
