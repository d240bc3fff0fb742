"""Benchmarks: a plan (tasks, methods, settings, seeds) becomes runs, and these become results that can be trusted."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vprompt.experiments.bench.plan import Plan as Plan
    from vprompt.experiments.bench.plan import load_plan as load_plan
    from vprompt.experiments.bench.plan import parse_plan as parse_plan
    from vprompt.experiments.bench.store import open_store as open_store


# Plans import torch, for which an actor that only looks after a worker process has no use.
_HOMES = {"Plan": "plan", "load_plan": "plan", "open_store": "store", "parse_plan": "plan"}

__all__ = ["Plan", "load_plan", "open_store", "parse_plan"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"vprompt.experiments.bench.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vprompt.experiments.bench' has no attribute {name!r}")
