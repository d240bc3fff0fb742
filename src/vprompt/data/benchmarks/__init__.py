"""Benchmark tasks: the table of VTAB-1k and FGVC, and reading, checking and finding them on disk."""
