"""A benchmark's report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vprompt.experiments.report import accuracy, blocks, cost, search, summary, training
from vprompt.experiments.report import provenance as origin
from vprompt.experiments.report.aggregate import Aggregates, aggregate_study
from vprompt.experiments.report.study import Study, read
from vprompt.report.document import Body, Code, Paragraph, Section, Table
from vprompt.report.html import html_page
from vprompt.report.markdown import markdown_page
from vprompt.utils.text import line


def markdown(document: Mapping[str, Any], more: Sequence[Section] = ()) -> str:
    """The report of a study as Markdown; arguments and errors as those of `page`."""
    study = read(document)
    return markdown_page(study.title, [*sections(study, aggregate_study(study)), *more])


def page(document: Mapping[str, Any], more: Sequence[Section] = ()) -> str:
    """The report of a study as an HTML page.

    Args:
        document: The study; see `vprompt.experiments.report.study.read`.
        more: Sections that follow its own.

    Raises:
        DataError: If the study contradicts itself.
    """
    study = read(document)
    made = f", made {study.made}" if study.made else ""
    found = [*sections(study, aggregate_study(study)), *more]
    return html_page(study.title, f"Report of the study {study.name}{made}", found)


def sections(study: Study, numbers: Aggregates) -> list[Section]:
    """What there is to say of a study; sections without anything to show are left out."""
    found = [
        summary.section(study, numbers),
        accuracy.section(study, numbers),
        cost.section(study, numbers),
        blocks.section(study),
        training.curves_section(study),
        search.section(study),
        training.time_section(study),
        origin.section(study),
        _failures(study),
        Section(key="plan", title="Plan", blocks=[Code(study.plan)]) if study.plan else None,
    ]
    return [section for section in found if section is not None]


def _failures(study: Study) -> Section:
    failed = [run for run in study.runs if run.state == "failed"]
    rows = [[f"{run.task.title}, {run.method.label}, seed {line(run.seed, 20)}", run.failure] for run in failed]
    table = Table(caption="Runs that failed, and why", head=["Run", "Why"], bodies=[Body(rows=rows)], words=True)
    return Section(key="failures", title="Failures", blocks=[table if rows else Paragraph("No run failed.")])
