"""What a report is made of: sections of blocks that HTML and Markdown each write in their way; nothing is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vprompt.report.html import Markup


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table.

    Args:
        text: What it says.
        note: What is said about it, smaller.
        best: Whether it is the best of its column.
        muted: Whether it stands for something that is not there.
    """

    text: str
    note: str = ""
    best: bool = False
    muted: bool = False


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
        caption: Stands above.
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


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side; their numbers are also in a table."""

    svgs: Sequence[Markup]
    legend: Markup | None = None


@dataclass(frozen=True)
class Picture:
    """A picture as PNG, what it shows in words, and the name of the file beside the page that holds it as well."""

    png: bytes
    alt: str
    file: str


@dataclass(frozen=True)
class Fold:
    """Blocks that open on demand."""

    title: str
    blocks: Sequence[Block]


Block = Table | Paragraph | Warn | Bullets | Code | Pictures | Picture | Fold


@dataclass(frozen=True, kw_only=True)
class Section:
    """A title and what stands under it."""

    key: str
    title: str
    blocks: Sequence[Block]
