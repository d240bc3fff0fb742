"""Tables as LaTeX; they need the packages booktabs and graphicx."""

from __future__ import annotations

from collections.abc import Sequence

from vprompt.report.document import Body, Cell, Table, as_cell
from vprompt.utils.text import printable

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
    "–": "--",
    "†": r"$^\dagger$",
    "…": r"\dots{}",
    "²": r"\textsuperscript{2}",
    **{character: f"\\{character}" for character in "$&#_%"},
}


def latex_table(table: Table, *, caption: str) -> str:
    """A table as LaTeX under a caption of its own, as wide as the text."""
    spans = [rf"\multicolumn{{{span}}}{{c}}{{{escaped(text)}}}" for text, span in table.over]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(caption)}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}",
        r"\toprule",
        *([_line(["", *spans])] if spans else []),
        _line([escaped(text) for text in table.head]),
        *(line for body in table.bodies for line in _body(body, len(table.head))),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text that LaTeX sets as it stands; letters beyond those of Latin scripts are written as their code points.

    Example:
        >>> escaped("100 % of a_b")
        '100 \\\\% of a\\\\_b'
    """
    return "".join(_SPECIAL.get(c) or (c if ord(c) < 0x180 else f"U+{ord(c):04X}") for c in printable(text))


def _body(body: Body, columns: int) -> list[str]:
    label = rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{escaped(body.label)}}}}} \\"
    rows = [_line([_cell(as_cell(cell)) for cell in row]) for row in body.rows]
    return [r"\midrule", *([label] if body.label else []), *rows]


def _cell(cell: Cell) -> str:
    text = rf"\textbf{{{escaped(cell.text)}}}" if cell.best else escaped(cell.text)
    return rf"{text} {{\scriptsize ({escaped(cell.note)})}}" if cell.note else text


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
