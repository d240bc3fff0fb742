"""Sections as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from vprompt.report.document import (
    Block,
    Body,
    Bullets,
    Cell,
    Code,
    Fold,
    Paragraph,
    Picture,
    Pictures,
    Section,
    Table,
    Warn,
)
from vprompt.utils.text import number

STYLE = Path(__file__).with_name("page.css")

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def html_page(title: str, made: str, sections: Sequence[Section]) -> str:
    """An HTML page.

    Args:
        title: Its heading.
        made: What it is and when it was made, in a line below.
        sections: What stands in it, linked from its top.
    """
    # The style sheet is our own file, the only text that goes in as it is.
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    links = [tag("a", section.title, href=f"#{section.key}") for section in sections]
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", made, class_="made")),
        tag("nav", *links, aria_label="Contents"),
        tag("main", *map(_section, sections)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, "\n", body, lang="en") + "\n"


def _section(section: Section) -> Markup:
    return tag("section", tag("h2", section.title), *map(_block, section.blocks), id=section.key)


def _block(block: Block) -> Markup:
    match block:
        case Table():
            return _table(block)
        case Paragraph(text):
            return tag("p", text)
        case Warn(text):
            return tag("p", text, class_="warn", role="note")
        case Bullets(items):
            return tag("ul", *(tag("li", item) for item in items), class_="said")
        case Code(text):
            return tag("pre", tag("code", text), tabindex="0")
        case Pictures(svgs, legend):
            return join(legend, tag("div", *svgs, class_="charts"))
        case Picture(png, alt):
            source = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
            return tag("img", src=source, alt=alt, class_="plot")
        case Fold(title, blocks):
            return tag("details", tag("summary", title), *map(_block, blocks))


def _table(table: Table) -> Markup:
    over = [tag("th", text, colspan=float(span), scope="colgroup", class_="over") for text, span in table.over]
    head = tag(
        "thead",
        tag("tr", tag("th"), *over) if over else None,
        tag("tr", *(tag("th", text, scope="col") for text in table.head)),
        "\n",
    )
    bodies = [_body(body, len(table.head)) for body in table.bodies]
    inside = tag("table", tag("caption", table.caption), head, *bodies, class_="words" if table.words else None)
    return tag("div", inside, class_="scroll", tabindex="0", role="region", aria_label=table.caption)


def _body(body: Body, columns: int) -> Markup:
    label = (
        tag("tr", tag("th", body.label, colspan=float(columns), scope="rowgroup", class_="label"))
        if body.label
        else None
    )
    rows = [_row(row) for row in body.rows]
    return tag("tbody", label, *rows, class_="published" if body.published else None)


def _row(row: Sequence[Cell | str]) -> Markup:
    cells = [cell if isinstance(cell, Cell) else Cell(text=cell) for cell in row]
    return join(tag("tr", *(_cell(cell, first=not number) for number, cell in enumerate(cells))), "\n")


def _cell(cell: Cell, *, first: bool) -> Markup:
    note = tag("span", cell.note, class_="note") if cell.note else None
    if first:
        return tag("th", cell.text, note, scope="row")
    return tag("td", cell.text, note, class_="best" if cell.best else "muted" if cell.muted else None)


class Markup(str):
    """Text that is markup already; only `tag` and `join` make it."""

    __slots__ = ()


Child = Markup | str | None


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """An element.

    Args:
        name: Of the element.
        children: Markup as it is, text escaped, None left out.
        attributes: Underscores become hyphens and one at the end goes (`class_`); None is left out, `""` has no value.

    Example:
        >>> tag("p", "a < b", tag("br"), title='"')
        '<p title="&quot;">a &lt; b<br></p>'
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    inside = join(*children)
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{inside}</{name}>")


def join(*children: Child) -> Markup:
    """Markup as it is and text escaped, one after the other."""
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children if c is not None))


_VOID = frozenset(("br", "meta", "hr", "img"))


def _attribute(key: str, value: str | float) -> str:
    name = key.rstrip("_").replace("_", "-")
    name = "viewBox" if name == "viewbox" else name
    if isinstance(value, str):
        return f' {name}="{html.escape(value)}"' if value else f" {name}"
    return f' {name}="{short(value)}"'


def short(value: float) -> str:
    """A coordinate with one decimal at most."""
    text = f"{number(value) or 0.0:.1f}"
    return text.removesuffix(".0")
