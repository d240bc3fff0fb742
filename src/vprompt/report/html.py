"""Sections as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vprompt.report.document import Section, as_cell
from vprompt.report.plots import key, svg
from vprompt.utils.text import printable

FOLDER = Path(__file__).parent


def html_page(title: str, made: str, sections: Sequence[Section]) -> str:
    """An HTML page; every text is escaped.

    Args:
        title: Its heading.
        made: What it is and when it was made, in a line below.
        sections: Its content, linked from its top.
    """
    pages = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, finalize=_shown)
    pages.trim_blocks = pages.lstrip_blocks = True
    tools = {"as_cell": as_cell, "base64": _base64, "svg": svg, "key": key}
    # The style sheet is our own file, the only text that goes in as it is.
    style = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    template = pages.get_template("page.html")
    return template.render(title=title, made=made, sections=sections, style=style, **tools) + "\n"


def _shown(value: object) -> object:
    return printable(value, keep="\n") if isinstance(value, str) and not isinstance(value, Markup) else value


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
