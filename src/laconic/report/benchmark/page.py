"""A benchmark's report as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from laconic.report.benchmark.aggregate import aggregate_study
from laconic.report.benchmark.report import sections
from laconic.report.benchmark.study import read
from laconic.report.document import Section
from laconic.report.html import html_page


def page(document: Mapping[str, Any], more: Sequence[Section] = ()) -> str:
    """The report of a study as an HTML page.

    Args:
        document: The study; see `laconic.report.benchmark.study.read`.
        more: Sections that follow its own.

    Raises:
        DataError: If the study contradicts itself.
    """
    study = read(document)
    made = f", made {study.made}" if study.made else ""
    found = [*sections(study, aggregate_study(study)), *more]
    return html_page(study.title, f"Report of the study {study.name}{made}", found)
