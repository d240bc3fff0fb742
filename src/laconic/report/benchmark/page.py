"""A report as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laconic.report.benchmark.aggregate import aggregate_study
from laconic.report.benchmark.document import (
    Block,
    Body,
    Bullets,
    Cell,
    Code,
    Fold,
    Paragraph,
    Pictures,
    Section,
    Table,
    Warn,
)
from laconic.report.benchmark.markup import Markup, join, tag
from laconic.report.benchmark.report import sections
from laconic.report.benchmark.study import Study, read

STYLE = Path(__file__).with_name("page.css")

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(document: Mapping[str, Any]) -> str:
    """The report of a study as an HTML page.

    Args:
        document: The study; see `laconic.report.benchmark.study.read`.

    Raises:
        DataError: If the study contradicts itself.
    """
    study = read(document)
    found = sections(study, aggregate_study(study))
    # The style sheet is our own file, the only text that goes in as it is.
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", study.title),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    links = [tag("a", section.title, href=f"#{section.key}") for section in found]
    body = tag(
        "body",
        tag("header", tag("h1", study.title), tag("p", _made(study), class_="made")),
        tag("nav", *links, aria_label="Contents"),
        tag("main", *map(_section, found)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, "\n", body, lang="en") + "\n"


def _made(study: Study) -> str:
    made = f", made {study.made}" if study.made else ""
    return f"Report of the study {study.name}{made}"


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
