"""Reports as plain values: sections of blocks that HTML, Markdown and LaTeX write in their way; nothing is escaped."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vprompt.utils.statistics import front


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table.

    Args:
        text: Its content.
        note: A remark about it, smaller.
        best: Whether it is the best of its column.
        muted: Whether it stands for something that is not there.
        share: 0-1, how long the bar behind it is; None without one.
    """

    text: str
    note: str = ""
    best: bool = False
    muted: bool = False
    share: float | None = None


def as_cell(value: Cell | str) -> Cell:
    """A cell of a table, which a plain text may stand for."""
    return Cell(text=value) if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class Body:
    """Rows of a table that belong together, under a line that says what they are."""

    rows: Sequence[Sequence[Cell | str]]
    label: str = ""
    published: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A caption, heads, and rows; the first cell of a row names it.

    Args:
        caption: Stands above; may be empty.
        head: Of every column.
        bodies: The rows.
        over: Heads above the heads, and how many columns each is over.
        words: Whether cells are words rather than numbers.
    """

    caption: str
    head: Sequence[str]
    bodies: Sequence[Body]
    over: Sequence[tuple[str, int]] = ()
    words: bool = False

    @property
    def texts(self) -> list[list[str]]:
        """All rows as plain text, without notes.

        Example:
            >>> simple_table("Files", ["Name", "Size"], [["a", "3"]]).texts
            [['a', '3']]
        """
        return [[as_cell(cell).text for cell in row] for body in self.bodies for row in body.rows]


def simple_table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, words: bool = False
) -> Table:
    """A table of one body."""
    return Table(caption=caption, head=head, bodies=[Body(rows=rows)], words=words)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of text."""

    text: str


@dataclass(frozen=True)
class Warn:
    """A sentence that must not be missed."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Text that keeps its lines."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point of a chart.

    Args:
        x: Its place.
        y: Its height; NaN is a gap.
        error: Length of its error bar to both sides, or below and above it.
        hollow: Whether it has a marker that is hollow.
    """

    x: float
    y: float
    error: float | tuple[float, float] | None = None
    hollow: bool = False

    @property
    def sides(self) -> tuple[float, float]:
        """Lengths of its error bar below and above; 0 without one."""
        return self.error if isinstance(self.error, tuple) else (self.error or 0.0, self.error or 0.0)


def points(places: Iterable[tuple[float, float]]) -> list[Dot]:
    """Points of a chart that are no more than their places."""
    return [Dot(x=x, y=y) for x, y in places]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of a chart that belong together.

    Args:
        name: What is said where it is hovered.
        dots: The points, in their order.
        style: Number of its colour and marker.
        line: What joins neighbours, as matplotlib writes it; nothing if empty.
        marks: Whether points have markers.
    """

    name: str
    dots: Sequence[Dot]
    style: int = 0
    line: str = ""
    marks: bool = True


FRONT = 6
"""Number of the style of a front: black."""


def pareto(curves: Sequence[Curve]) -> list[Curve]:
    """A line through the best that any cost buys, where points are methods: nothing left of it is as high."""
    best = front((dot.x, dot.y) for curve in curves for dot in curve.dots)
    corners = [(x, y) for (_, y), (x, _) in itertools.pairwise(best)]
    steps = [place for pair in itertools.zip_longest(best, corners) for place in pair if place is not None]
    return [Curve(name="Pareto front", dots=points(steps), style=FRONT, line="--", marks=False)] if corners else []


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar of a chart: how many there were, how many are left, and the standard deviation of the latter."""

    before: float
    retained: float
    std: float | None = None
    style: int = 0


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A small picture of points, or of bars by block.

    Args:
        title: Stands above.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        alt: For who cannot see it.
        rule: Where a vertical line stands, and what it stands for.
        levels: Where horizontal lines stand, and what they stand for.
        curves: Its content; or
        bars: Its content.
        rows: Names of the whole numbers of the vertical axis, from 0 at its top on; errors are then horizontal.
        cells: Shares (K, K) that are shown as a square, both of whose axes are then the rows; or
        log: Whether the horizontal axis is logarithmic, where all are above 0.
        zero: Whether the vertical axis begins at 0, or is logarithmic where values span over two powers of ten.
        tight: Whether the vertical axis ends where values do, however near they are, and need not be in percent.
    """

    title: str
    x: str
    y: str
    alt: str = ""
    rule: tuple[float, str] | None = None
    levels: Sequence[tuple[float, str]] = ()
    curves: Sequence[Curve] = ()
    bars: Sequence[Bar] = ()
    rows: Sequence[str] = ()
    cells: Sequence[Sequence[float]] = ()
    log: bool = False
    zero: bool = False
    tight: bool = False


@dataclass(frozen=True)
class Charts:
    """Charts side by side, and a legend of numbers of styles and their names; their values are also in a table.

    Args:
        charts: In order.
        legend: Below them.
        rings: What hollow markers mean, for the legend.
    """

    charts: Sequence[Chart]
    legend: Sequence[tuple[int, str]] = ()
    rings: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture as PNG, what it shows in words, and the name of the file beside the page that holds it as well."""

    png: bytes
    alt: str
    file: str


@dataclass(frozen=True)
class Gallery:
    """Small pictures as JPEG, and the lines below each, side by side; only a page shows them."""

    photos: Sequence[tuple[bytes, Sequence[str]]]


@dataclass(frozen=True)
class Fold:
    """Blocks that open on demand."""

    title: str
    blocks: Sequence[Block]


Block = Table | Paragraph | Warn | Bullets | Code | Charts | Picture | Gallery | Fold


@dataclass(frozen=True, kw_only=True)
class Section:
    """A title, which may be empty, and the blocks under it."""

    key: str
    title: str
    blocks: Sequence[Block]
