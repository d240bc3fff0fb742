"""Pictures as SVG that stays text: points with error bars, lines, bars; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vprompt.report.html import Markup, short, tag
from vprompt.utils.text import line

WIDTH, HEIGHT = 360.0, 250.0
"""Narrow enough to be shown unscaled on a phone."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 350.0, 24.0, 208.0

_MARKERS = (
    "M4 0A4 4 0 1 1 -4 0A4 4 0 1 1 4 0Z",
    "M-3.6 -3.6H3.6V3.6H-3.6Z",
    "M0 -4.8L4.4 3.4H-4.4Z",
    "M0 -5L5 0L0 5L-5 0Z",
    "M0 4.8L4.4 -3.4H-4.4Z",
    "M-1.6 -4.6H1.6V-1.6H4.6V1.6H1.6V4.6H-1.6V1.6H-4.6V-1.6H-1.6Z",
    "M-4.2 -2L-2 -4.2L0 -2.2L2 -4.2L4.2 -2L2.2 0L4.2 2L2 4.2L0 2.2L-2 4.2L-4.2 2L-2.2 0Z",
)

COLOURS = 7


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point of a picture: its name, place, the reach of its error bar, and which colour and marker it has."""

    name: str
    x: float
    y: float
    reach: float | None = None
    style: int = 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve; where it goes on after a join, a ring marks the place."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    dashed: bool = False
    join: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bar:
    """How many there were and are, and the spread of the latter."""

    before: float
    kept: float
    std: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """From values to places along one side; `start` is the place of `low`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (_log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        if not self.log:
            return nice_ticks(self.low, self.high)
        low, high = _log(self.low), _log(self.high)
        steps = (1.0,) if high - low > 3 else (1.0, 3.0) if high - low > 1.5 else (1.0, 2.0, 5.0)
        every = max(1, math.ceil((high - low) / 6))
        powers = range(math.floor(low), math.ceil(high) + 1, every)
        return [m * 10.0**p for p in powers for m in steps if self.low <= m * 10.0**p <= self.high]


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values between two.

    Example:
        >>> nice_ticks(0, 23)
        [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def scatter(title: str, dots: Sequence[Dot], *, x: str, y: str, log: bool = False, detail: str = "") -> Markup:
    """Points with error bars.

    Args:
        title: Stands above, and is read aloud with `detail`.
        dots: At least one.
        x: What the horizontal axis shows.
        y: What the vertical axis shows.
        log: Whether the horizontal axis is logarithmic, where all values are above 0.
        detail: More for who cannot see it.
    """
    log = log and all(dot.x > 0 for dot in dots)
    xs = _axis([dot.x for dot in dots], _LEFT, _RIGHT, log=log)
    ys = _axis([dot.y + side * (dot.reach or 0.0) for dot in dots for side in (-1, 1)], _BOTTOM, _TOP, least=2.0)
    marks: list[Markup] = []
    for dot in dots:
        px, py = xs(dot.x), ys(dot.y)
        if dot.reach:
            top, bottom = ys(dot.y + dot.reach), ys(dot.y - dot.reach)
            path = f"M{short(px)} {short(top)}V{short(bottom)}" + "".join(
                f"M{short(px - 3)} {short(end)}h6" for end in (top, bottom)
            )
            marks.append(tag("path", d=path, class_=f"line s{dot.style % COLOURS}"))
        marks.append(marker(dot.style, px, py, dot.name))
    return _picture(title, detail or title, xs, ys, marks, x, y)


def curves(title: str, lines: Sequence[Line], *, x: str, y: str, detail: str = "") -> Markup:
    """Curves; the vertical axis is logarithmic where the values span more than two powers of ten."""
    points = [point for curve in lines for point in curve.points]
    heights = [point[1] for point in points]
    log = min(heights) > 0 and max(heights) > 100 * min(heights)
    xs = _axis([point[0] for point in points], _LEFT, _RIGHT, room=0.0)
    ys = _axis(heights if log else [0.0, *heights], _BOTTOM, _TOP, log=log, room=0.04)
    marks: list[Markup] = []
    for curve in lines:
        places = [(xs(px), ys(py)) for px, py in curve.points]
        kind = f"curve s{curve.style % COLOURS}" + (" dashed" if curve.dashed else "")
        name = tag("title", curve.name)
        if len(places) == 1:
            marks.append(marker(curve.style, *places[0], curve.name))
            continue
        text = " ".join(f"{short(px)},{short(py)}" for px, py in places)
        marks.append(tag("polyline", name, points=text, class_=kind))
        if curve.join is not None:
            ring = next(
                (place for place, point in zip(places, curve.points, strict=True) if point[0] > curve.join), None
            )
            if ring is not None:
                marks.append(tag("circle", cx=ring[0], cy=ring[1], r=3.0, class_=f"ring s{curve.style % COLOURS}"))
    whole = [(value, tick(value)) for value in xs.ticks() if value == round(value)]
    return _picture(title, detail or title, xs, ys, marks, x, y, whole)


def bars(title: str, blocks: Sequence[Bar], *, x: str, y: str, style: int = 0, detail: str = "") -> Markup:
    """For every block what there was, pale, and what is left, with its spread."""
    xs = _Axis(low=-0.6, high=len(blocks) - 0.4, start=_LEFT, end=_RIGHT)
    most = max(1.0, *(max(bar.before, bar.kept + (bar.std or 0.0)) for bar in blocks))
    ys = _Axis(low=0.0, high=1.08 * most, start=_BOTTOM, end=_TOP)
    half = 0.4 * (xs(1) - xs(0))
    marks: list[Markup] = []
    for number, bar in enumerate(blocks):
        for value, kind in ((bar.before, "pale"), (bar.kept, f"fill s{style % COLOURS}")):
            box = {"x": xs(number) - half, "y": ys(value), "width": 2 * half, "height": _BOTTOM - ys(value)}
            name = f"block {number}: {bar.kept:.1f} of {bar.before:.1f}"
            marks.append(tag("rect", tag("title", name), class_=kind, **box))
        if bar.std:
            low, high = ys(max(0.0, bar.kept - bar.std)), ys(bar.kept + bar.std)
            marks.append(tag("path", d=f"M{short(xs(number))} {short(low)}V{short(high)}", class_="line ink"))
    every = max(1, math.ceil(len(blocks) / 12))
    labels = [(float(number), str(number)) for number in range(0, len(blocks), every)]
    return _picture(title, detail or title, xs, ys, marks, x, y, labels)


def marker(style: int, x: float, y: float, name: str | None = None) -> Markup:
    """The mark of a style at a place; every pair of colour and shape differs for the first 49."""
    shape = _MARKERS[(style + style // COLOURS) % len(_MARKERS)]
    return tag(
        "path",
        None if name is None else tag("title", name),
        d=shape,
        transform=f"translate({short(x)} {short(y)})",
        class_=f"fill s{style % COLOURS}",
    )


def legend(names: Sequence[tuple[int, str]]) -> Markup:
    """Markers and names, as a list that wraps."""
    items = [
        tag("li", tag("svg", marker(style, 6, 6), viewbox="0 0 12 12", width=12, height=12, aria_hidden="true"), name)
        for style, name in names
    ]
    return tag("ul", *items, class_="legend")


def _picture(
    title: str,
    detail: str,
    xs: _Axis,
    ys: _Axis,
    marks: Sequence[Markup],
    x: str,
    y: str,
    labels: Sequence[tuple[float, str]] | None = None,
) -> Markup:
    """Title, axes and what is drawn between them."""
    grid: list[Markup] = []
    for value in ys.ticks():
        grid.append(tag("path", d=f"M{short(_LEFT)} {short(ys(value))}H{short(_RIGHT)}", class_="grid"))
        grid.append(tag("text", tick(value), x=_LEFT - 5, y=ys(value) + 3.5, class_="tick end"))
    for value, text in labels or [(value, tick(value)) for value in xs.ticks()]:
        grid.append(tag("text", text, x=xs(value), y=_BOTTOM + 15, class_="tick mid"))
    return tag(
        "svg",
        tag("title", detail),
        tag("text", line(title, 52), x=2.0, y=12.0, class_="name"),
        *grid,
        tag("path", d=f"M{short(_LEFT)} {short(_BOTTOM)}H{short(_RIGHT)}", class_="axis"),
        *marks,
        tag("text", x, x=(_LEFT + _RIGHT) / 2, y=HEIGHT - 9, class_="label mid"),
        tag("text", y, transform=f"translate(10 {short((_TOP + _BOTTOM) / 2)}) rotate(-90)", class_="label mid"),
        viewbox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        role="img",
        aria_label=detail,
        class_="chart",
    )


def tick(value: float) -> str:
    """A value on an axis.

    Example:
        >>> tick(20000.0), tick(0.25), tick(3e6), tick(0.0)
        ('20k', '0.25', '3M', '0')
    """
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.6g}" if abs(value) > 1e-12 else "0"


def _axis(
    values: Sequence[float], start: float, end: float, *, log: bool = False, least: float = 0.0, room: float = 0.08
) -> _Axis:
    """An axis with some room around the values, wide enough where they are all the same."""
    low, high = min(values), max(values)
    if log:
        low, high = _log(low), _log(high)
        least = 1.0
    width = max(high - low, least, 1e-6 * max(abs(low), abs(high)))
    if width <= 1e-9:
        width = 1.0
    if high - low < width:
        middle = (low + high) / 2
        low, high = middle - width / 2, middle + width / 2
    low, high = low - room * width, high + room * width
    if log:
        low, high = 10.0**low, 10.0**high
    return _Axis(low=low, high=high, start=start, end=end, log=log)


def _log(value: float) -> float:
    return math.log10(max(value, 1e-15))
