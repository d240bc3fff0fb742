"""Runs on disk, benchmarks over many of them, comparisons and the demo."""
