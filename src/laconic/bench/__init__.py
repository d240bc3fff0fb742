"""Benchmarks: a plan (tasks, methods, settings, seeds) becomes runs, and these become results that can be trusted."""

from laconic.bench.plan import Plan, load_plan, parse_plan
from laconic.bench.store import open_store

__all__ = ["Plan", "load_plan", "open_store", "parse_plan"]
