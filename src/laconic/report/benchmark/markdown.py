"""A benchmark's report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from laconic.report.benchmark.aggregate import aggregate_study
from laconic.report.benchmark.report import sections
from laconic.report.benchmark.study import read
from laconic.report.document import Section
from laconic.report.markdown import markdown_page


def markdown(document: Mapping[str, Any], more: Sequence[Section] = ()) -> str:
    """The report of a study as Markdown; arguments and errors as those of `page`."""
    study = read(document)
    return markdown_page(study.title, [*sections(study, aggregate_study(study)), *more])
