"""The report of a benchmark: a page, Markdown, CSV and LaTeX, all from one plain document."""

from vprompt.experiments.report.aggregate import Aggregates, Spread, aggregate
from vprompt.experiments.report.page import csv_rows, latex, markdown, page
from vprompt.experiments.report.selection import Selection, selections

__all__ = ["Aggregates", "Selection", "Spread", "aggregate", "csv_rows", "latex", "markdown", "page", "selections"]
