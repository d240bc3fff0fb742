"""Analyses as sections of a report, one module each: words, tables and one picture, from the plain document alone."""

from laconic.report.analysis.page import analysis_sections, read_analyses, refuse_others, write_analysis

__all__ = ["analysis_sections", "read_analyses", "refuse_others", "write_analysis"]
