"""Sections as Markdown: all of their words and tables, and the pictures that are files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from vprompt.report import document as page
from vprompt.report.document import Block, Cell, Section, Table, as_cell
from vprompt.utils.text import escape, printable

_MARKUP = re.compile(
    r"""[\\`*\[\]{}<>&|~#$^@]                 # markup wherever it stands
    | (?<![^\W_])_+ | _+(?![^\W_])            # emphasis, but not inside a word
    | ^(?:[-+=]|[0-9]+[.)](?=\s|$))           # lists and underlined headings, at the beginning only
    | (?<=www)\. | :(?=//|[\w+-]+:) | (?<=mailto): | (?<=xmpp):   # addresses and names of emoji""",
    re.VERBOSE | re.IGNORECASE,
)
"""All that could change how a line is shown."""


def markdown_page(title: str, sections: Sequence[Section]) -> str:
    """A title and sections as Markdown."""
    parts = [f"# {escaped(title)}"]
    for section in sections:
        parts += _section(section)
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that is never markup, with as few escapes as that takes.

    Example:
        >>> escaped("85.2 ± 0.4 (n = 3) of <b> a_b: _c_ www.x.")
        '85.2 ± 0.4 (n = 3) of &#60;b&#62; a_b: \\\\_c\\\\_ www&#46;x.'
    """
    text, parts, end = text.strip(), list[str](), 0  # spaces in front would make it code
    for markup in _MARKUP.finditer(text):
        digits = markup[0].rstrip(".)") if markup[0][0].isdigit() else ""
        marks = markup[0].removeprefix(digits)
        parts += [printable(text[end : markup.start()]), digits, "\\-" if marks == "-" else escape(marks)]
        end = markup.end()
    return "".join([*parts, printable(text[end:])])


def _section(section: Section) -> list[str]:
    blocks = [text for block in section.blocks for text in _block(block)]
    return [*([f"## {escaped(section.title)}"] if section.title else []), *blocks] if blocks else []


def _block(block: Block) -> list[str]:
    match block:
        case Table():
            return _table(block)
        case page.Paragraph(text):
            return [escaped(text)]
        case page.Warn(text):
            return [f"> **Warning:** {escaped(text)}"]
        case page.Bullets(items):
            return ["\n".join(f"- {escaped(item)}" for item in items)]
        case page.Code(text):
            # Without a comment before it, indented code after a list would be part of the list's last item.
            return ["<!-- -->", "\n".join(f"    {printable(line)}" for line in text.split("\n"))]
        case page.Charts() | page.Gallery():
            return []
        case page.Picture(alt=alt, file=file):
            return [f"![{escaped(alt)}]({quote(file)})"]
        case page.Fold(blocks=blocks):
            return [text for inner in blocks for text in _block(inner)]


def _table(table: Table) -> list[str]:
    """A table for each body: Markdown has no rows that group others."""
    parts: list[str] = []
    for body in table.bodies:
        caption = f"{table.caption}: {body.label}" if body.label else table.caption
        lines = [
            [escaped(text) for text in table.head],
            ["---", *(["---" if table.words else "--:"] * (len(table.head) - 1))],
            *([_cell(as_cell(cell)) for cell in row] for row in body.rows),
        ]
        parts += [f"**{escaped(caption)}**"] if caption else []
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in lines))
    return parts


def _cell(cell: Cell) -> str:
    text = f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text)
    return f"{text} ({escaped(cell.note)})" if cell.note else text
