"""Benchmarks: a plan (tasks, methods, settings, seeds) becomes runs, and these become results that can be trusted."""
