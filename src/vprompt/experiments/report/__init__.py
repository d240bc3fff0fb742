"""The report of a benchmark: a page, Markdown, CSV and LaTeX, all from one plain document."""

from vprompt.experiments.report.aggregate import Aggregates, Spread, aggregate
from vprompt.experiments.report.page import csv_rows, latex, markdown, page
from vprompt.experiments.report.selection import selections
from vprompt.experiments.report.study import read

__all__ = ["Aggregates", "Spread", "aggregate", "csv_rows", "latex", "markdown", "page", "read", "selections"]
