"""The report of a benchmark: a page, Markdown, CSV and LaTeX, all from one plain document."""

from laconic.report.benchmark.aggregate import Aggregates, Spread, aggregate
from laconic.report.benchmark.latex import latex
from laconic.report.benchmark.markdown import markdown
from laconic.report.benchmark.page import page
from laconic.report.benchmark.spreadsheet import csv_rows

__all__ = ["Aggregates", "Spread", "aggregate", "csv_rows", "latex", "markdown", "page"]
