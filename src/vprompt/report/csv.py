"""Tables as CSV, for a spreadsheet."""

from __future__ import annotations

import csv
import io
import re

from vprompt.report.document import Table
from vprompt.utils.text import line

_FORMULA = re.compile(r"[=+@'＝＋＠－]|-(?!\d+(\.\d+)?(e[+-]?\d+)?$)")
"""How formulas begin; a minus sign before a number is none."""


def csv_table(table: Table) -> str:
    """The head and the rows of a table; text that a spreadsheet would take for a formula has an apostrophe before it.

    Example:
        >>> from vprompt.report.document import simple_table
        >>> csv_table(simple_table("", ["a", "b"], [["=1", "-2.5"]]))
        "a,b\\n'=1,-2.5\\n"
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([_cell(line(text, 600)) for text in row] for row in [table.head, *table.texts])
    return out.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) else text
