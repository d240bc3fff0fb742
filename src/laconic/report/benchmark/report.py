"""All sections of a report, in order."""

from __future__ import annotations

from laconic.report.benchmark import accuracy, blocks, cost, origin, search, summary, training
from laconic.report.benchmark.aggregate import Aggregates
from laconic.report.benchmark.study import Study
from laconic.report.document import Body, Code, Paragraph, Section, Table
from laconic.report.text import line


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
