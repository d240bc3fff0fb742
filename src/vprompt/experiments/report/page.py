"""The report of a study as an HTML page and as Markdown, its runs as CSV and its accuracies as LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vprompt.experiments.report import accuracy, blocks, cost, provenance, search, summary, training
from vprompt.experiments.report.runs import runs_table
from vprompt.experiments.report.study import Study, read
from vprompt.report.csv import csv_table
from vprompt.report.document import Code, Paragraph, Section, simple_table
from vprompt.report.html import html_page
from vprompt.report.latex import escaped, latex_table
from vprompt.report.markdown import markdown_page
from vprompt.utils.text import count


def page(document: Mapping[str, Any], more: Sequence[Section] = ()) -> str:
    """The report of a study as an HTML page.

    Args:
        document: The study; see `vprompt.experiments.report.study.read`.
        more: Sections that follow its own.
    """
    study = read(document)
    made = f", made {study.made}" if study.made else ""
    return html_page(study.title, f"Report of the study {study.name}{made}", [*sections(study), *more])


def markdown(document: Mapping[str, Any], more: Sequence[Section] = ()) -> str:
    """The report of a study as Markdown; arguments as those of `page`."""
    study = read(document)
    return markdown_page(study.title, [*sections(study), *more])


def csv_rows(document: Mapping[str, Any]) -> str:
    """Every run of a study as a line of CSV; arguments as those of `page`."""
    table = runs_table(read(document))
    return csv_table(table) if table.head else ""


def latex(document: Mapping[str, Any]) -> str:
    """The accuracies of a study, and the published ones below, as LaTeX; arguments as those of `page`.

    The tables need the packages booktabs and graphicx.
    """
    study = read(document)
    publications = accuracy.Publications(study)
    tables = accuracy.tables(study, publications)
    words = f"{study.metric}: mean ± sample standard deviation over {count(len(study.seeds), 'seed')}."
    if any(run.unconverged for run in study.runs):
        words += " †: a training had not converged."
    parts = ["% \\usepackage[T1]{fontenc}\n% \\usepackage{booktabs,graphicx}"]
    parts += [latex_table(table, caption=f"{study.title}. {table.caption}, {words}") for table in tables]
    if any(body.published for table in tables for body in table.bodies):
        sources = [f"% {escaped(source)}" for source in publications.sources]
        parts.append("\n".join(["% Sources of the published rows", *sources]))
    return "\n\n".join(parts) + "\n"


def sections(study: Study) -> list[Section]:
    """The sections of the report of a study; those without anything to show are left out."""
    parts = [
        summary.section(study),
        accuracy.section(study),
        cost.section(study),
        blocks.section(study),
        training.curves_section(study),
        search.section(study),
        training.time_section(study),
        provenance.section(study),
        _failures(study),
        Section(key="plan", title="Plan", blocks=[Code(study.plan)]) if study.plan else None,
    ]
    return [section for section in parts if section is not None]


def _failures(study: Study) -> Section:
    rows = [[run.title, run.failure] for run in study.runs if run.state == "failed"]
    table = simple_table("Runs that failed, and why", ["Run", "Why"], rows, words=True)
    return Section(key="failures", title="Failures", blocks=[table if rows else Paragraph("No run failed.")])
