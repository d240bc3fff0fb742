"""The accuracies by task as a LaTeX table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vprompt.experiments.report.accuracy import Column, Said, best_methods, cell_of, layout, value_of
from vprompt.experiments.report.aggregate import Aggregates, aggregate_study
from vprompt.experiments.report.study import Study, read
from vprompt.report.document import Cell
from vprompt.utils.text import count

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


def latex(document: Mapping[str, Any]) -> str:
    """The accuracies of a study, and the published ones below, as LaTeX; arguments and errors as those of `page`.

    The tables need the packages booktabs and graphicx.
    """
    study = read(document)
    numbers = aggregate_study(study)
    parts = ["% \\usepackage[T1]{fontenc}", "% \\usepackage{booktabs,graphicx}"]
    said = Said(study)
    for caption, columns, over in layout(study):
        parts += ["", *_table(study, numbers, said, caption, columns, over)]
    if any(said.rows(columns) for _, columns, _ in layout(study)):
        parts += ["", "% Sources of the published rows", *(f"% {escaped(source)}" for source in said.sources)]
    return "\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX sets as it stands; letters beyond those of Latin scripts are written as their code points.

    Example:
        >>> escaped("100 % of a_b")
        '100 \\\\% of a\\\\_b'
    """
    return "".join(_SPECIAL.get(c) or (c if ord(c) < 0x180 else f"U+{ord(c):04X}") for c in text)


def _table(
    study: Study,
    numbers: Aggregates,
    said: Said,
    caption: str,
    columns: Sequence[Column],
    over: Sequence[tuple[str, int]],
) -> list[str]:
    best = [best_methods(study, numbers, column) for column in columns]
    rows = [
        _line(
            [
                escaped(method.label),
                *(
                    _cell(cell_of(value_of(numbers, method.key, column), best=method.key in winners))
                    for column, winners in zip(columns, best, strict=True)
                ),
            ]
        )
        for method in study.methods
    ]
    if shown := said.rows(columns):
        label = rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\emph{{{escaped(said.label)}}}}} \\"
        rows += [r"\midrule", label, *(_line([_cell(cell) for cell in row]) for row in shown)]
    heads = [_line(["", *(rf"\multicolumn{{{span}}}{{c}}{{{escaped(text)}}}" for text, span in over)])] if over else []
    seeds = count(len(study.seeds), "seed")
    words = f"{study.title}. {caption}, {numbers.metric}: mean ± sample standard deviation over {seeds}."
    if any(run.unconverged for run in study.runs):
        words += " †: a training had not converged."
    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(words)}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        *heads,
        _line(["Method", *(escaped(column.head) for column in columns)]),
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return escaped(cell)
    text = rf"\textbf{{{escaped(cell.text)}}}" if cell.best else escaped(cell.text)
    return rf"{text} {{\scriptsize ({escaped(cell.note)})}}" if cell.note else text


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
