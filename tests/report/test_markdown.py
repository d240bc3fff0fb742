"""Markdown in which text from data stays text."""

import re

import pytest
from markdown_it import MarkdownIt

from vprompt.report.csv import csv_table
from vprompt.report.document import Body, Bullets, Cell, Code, Fold, Paragraph, Section, Table, Warn, simple_table
from vprompt.report.html import html_page
from vprompt.report.markdown import escaped, markdown_page
from vprompt.utils.text import printable

LIVE = "<img src=x onerror=alert(1)>"
HOSTILE = [
    LIVE,
    "x\n" + LIVE,
    "    " + LIVE,
    "\t" + LIVE,
    "a\r\n\r\n" + LIVE,
    "`" + LIVE + "`",
    "```\n" + LIVE,
    "| " + LIVE,
    "\\" + LIVE,
    "\\|" + LIVE,
    "# " + LIVE,
    "- " + LIVE,
    "<!-- " + LIVE,
    "]: " + LIVE,
    "[a](javascript:alert)" + LIVE,
    "\u2028" + LIVE,
]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("9 methods (a, b): 85.2 ± 0.4 of vit_tiny.in21k.", "9 methods (a, b): 85.2 ± 0.4 of vit_tiny.in21k."),
        ("vtab:eurosat, test.txt; 30 % kept", "vtab:eurosat, test.txt; 30 % kept"),
        ("85.2", "85.2"),
        ("1. a", "1&#46; a"),
        ("12) a", "12\\) a"),
        ("- a", "\\- a"),
        ("_a_ __b__", "\\_a\\_ \\_\\_b\\_\\_"),
        ("see http://x.y or WWW.x.y", "see http&#58;//x.y or WWW&#46;x.y"),
        ("mailto:a@b.c :tada:", "mailto&#58;a&#64;b.c &#58;tada:"),
        ("![x](y) <b> a|b `c` $d$ ~~e~~ *f* &amp;", None),
    ],
)
def test_markdown_escapes_what_is_markup_and_nothing_else(text, shown):
    found = escaped(text)
    if shown is not None:
        assert found == shown
    else:
        assert not re.search(r"(?<!\\)[\[\]`|$~*]|<|&(?!(lt|gt|amp|#\d+);)", found)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_is_markup_wherever_it_stands(text):
    """By another program's reading of the page."""
    table = Table(
        caption=text, head=[text, text], bodies=[Body(rows=[[text, Cell(text=text, note=text, best=True)]], label=text)]
    )
    blocks = [Bullets([text, text]), Code(text), Paragraph(text), Bullets([text]), Warn(text), table, Bullets([text])]
    blocks += [Fold(text, [Bullets([text]), Code(text)]), Bullets([text]), Code(f"a\n\n{text}")]
    page = markdown_page(
        text, [Section(key="a", title=text, blocks=blocks), Section(key="b", title="", blocks=[Code(text)])]
    )
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(page)
    assert not re.search("<img|<a |<script", shown)
    assert shown.count("onerror=alert(1)") == page.count("onerror=alert(1)") > 12
    assert len(re.findall("<pre><code>", shown)) == 4
    html = html_page(text, text, [Section(key="a", title=text, blocks=blocks)])
    assert LIVE not in html
    assert "\u2028" not in html + page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photo\u202egnp.exe", "photo\\u202egnp.exe"),
        ("\u2066a\u2069\u061c\u200e\u200f", "\\u2066a\\u2069\\u061c\\u200e\\u200f"),
        ("a\u200bb\ufeff\u00ad\u2060", "a\\u200bb\\ufeff\\xad\\u2060"),
        ("flag\U000e0067", "flag\\U000e0067"),
        ("a\n\r\t\x1b[2J\x7f\x9b", "a\\n\\r\\t\\x1b[2J\\x7f\\x9b"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\udcff", "\\udcff"),
        ("a\u200db", "a\\u200db"),
        ("\U0001f468\u200d\U0001f469", None),
        ("\u0645\u06cc\u200c\u062e", None),
        ("\u0915\u094d\u200d\u0937 e\u0301 \u05d0\u05d1 \u732b\u3000\xa0\u2764\ufe0f", None),
        ("", None),
    ],
)
def test_what_is_shown_neither_moves_nor_hides_anything(text, shown):
    assert printable(text) == (text if shown is None else shown)
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("text", ["=cmd|'/c calc'!A0", "+1+1", "@SUM(A1)", "-cmd", "\t=1", " =1", "\uff1d1", "\r=1"])
def test_no_cell_is_a_formula(text):
    head, row = csv_table(simple_table("", [text], [[text]])).splitlines()
    assert head == row
    assert head.strip('"')[0] in "'\\"
