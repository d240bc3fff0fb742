"""The results of a plan, or of whatever runs lie in a folder, as plain data for a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from laconic.analysis.cost import cost
from laconic.bench.cells import cells_of, tasks_of
from laconic.bench.plan import Plan, parse_plan
from laconic.bench.schedule import follow
from laconic.bench.store import Store, open_store
from laconic.bench.tasks import about_task
from laconic.errors import LaconicError

Document = dict[str, Any]


def study_of(address: str, *, plan: str | None = None) -> Document:
    """Everything that a report says, from results alone.

    Args:
        address: Results of `laconic bench`; or a folder with results of `fit`, `condense` or `compare` somewhere in it.
        plan: Which, where several were run there.

    Returns:
        `name`, `title`, `description`, `source`, `plan` (its text), `hours_planned`, `tasks`, `methods`, `seeds`,
        `backbone`, `cells` (each with `state` and `result`), `made`.

    Raises:
        LaconicError: If there is nothing there, or several plans and none is named.
    """
    store = open_store(address)
    plans = store.plans()
    if plan is not None and plan not in plans:
        there = f"it has {', '.join(plans)}" if plans else "there is none"
        raise LaconicError(f"No plan called {plan} was run in {address}; {there}.")
    if len(plans) > 1 and plan is None:
        raise LaconicError(f"Several plans were run in {address}: {', '.join(plans)}; say which by --plan.")
    if plans:
        name = plan or next(iter(plans))
        return _of_plan(parse_plan(plans[name], name=name), store)
    return _of_folder(address, store)


def _of_plan(plan: Plan, store: Store) -> Document:
    tasks, optional = tasks_of(plan)
    cells: list[Document] = []
    for cell in cells_of(plan, [*tasks, *optional]):
        outcome, result = follow(cell, store)
        state = "missing" if outcome is None else "failed" if outcome.failure else "finished"
        cells.append(
            {
                "task": cell.task,
                "method": cell.method,
                "seed": cell.seed,
                "state": state,
                "failure": None if outcome is None else outcome.failure,
                "result": result or None,
                "search": None if outcome is None else outcome.search,
            }
        )
    # An optional task of which nothing is there was left out.
    seen = {cell["task"] for cell in cells if cell["state"] != "missing"} | set(tasks)
    cells = [cell for cell in cells if cell["task"] in seen]
    return _document(
        cells,
        name=plan.name,
        title=plan.title or plan.name,
        description=" ".join(plan.description.split()),
        source=plan.source,
        plan=plan.text,
        hours_planned=plan.hours,
        methods=[
            {"label": method.label, "method": method.settings.get("method", "vpt-deep")} for method in plan.methods
        ],
        seeds=list(plan.seeds),
    )


def _of_folder(address: str, store: Store) -> Document:
    """Runs without a plan: those of a store, or every result.json below a folder."""
    results = [found for name in sorted(store.finished()) if (found := store.result(name)) is not None]
    results = [found for found in results if found.get("until") is None and found.get("test_accuracy") is not None]
    if not results and "://" not in address:
        results = [found for path in sorted(Path(address).rglob("result.json")) if (found := _read(path)) is not None]
    if not results:
        raise LaconicError(f"There are no results in {address}; give the folder that `laconic bench` wrote to.")
    cells: list[Document] = []
    for result in results:
        cell = {"task": result["provenance"]["data"]["source"], "method": _label(result), "seed": result["seed"]}
        cells.append({**cell, "state": "finished", "failure": None, "result": result, "search": None})
    name = Path(address).name or "runs"
    labels = dict.fromkeys((cell["method"], cell["result"]["method"]) for cell in cells)
    return _document(
        cells,
        name=name,
        title=name,
        description="",
        source="",
        plan="",
        hours_planned=None,
        methods=[{"label": label, "method": method} for label, method in labels],
        seeds=sorted({cell["seed"] for cell in cells}),
    )


def _document(cells: Sequence[Document], **about: Any) -> Document:
    first: dict[str, Document] = {}
    for cell in cells:
        if cell["result"] is not None:
            first.setdefault(cell["task"], cell["result"])
    tasks = [_task(task, first.get(task)) for task in dict.fromkeys(cell["task"] for cell in cells)]
    some = next(iter(first.values()), None)
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return {**about, "tasks": tasks, "backbone": _backbone(some), "cells": list(cells), "made": made}


def _task(spec: str, result: Mapping[str, Any] | None) -> Document:
    data = {} if result is None else result["provenance"]["data"]
    differences = list(data.get("differences", []))
    about = about_task(spec)
    return {
        **about,
        "task": spec,
        "comparable": about["benchmark"] is not None and result is not None and not differences,
        "differences": differences,
        "classes": list(data.get("classes", [])),
        "images": dict(data.get("images", {})),
    }


def _backbone(result: Mapping[str, Any] | None) -> Document:
    if result is None:
        return {"name": None, "parameters": None, "bare_gmacs": None}
    name, settings = result["backbone"], result["settings"]
    try:
        bare = cost(name, [0], img_size=settings.get("img_size"))[0].published_gmacs
    except LaconicError:
        bare = None
    return {"name": name, "parameters": result.get("backbone_params"), "bare_gmacs": bare}


def _label(result: Mapping[str, Any]) -> str:
    """What a run without a plan is called: its method, its prompts, and what became of them."""
    settings = result["settings"]
    parts = [str(result["method"])]
    if "prompts" in settings and settings.get("method") in ("vpt-deep", "vpt-shallow", "e2vpt"):
        parts.append(f"{settings['prompts']} prompts")
    kept = settings.get("condense", settings.get("ratio"))
    if kept is not None:
        parts.append(f"condensed to {100 * kept:g} %")
    if settings.get("prune") is not None:
        parts.append("pruned")
    return ", ".join(parts)


def _read(path: Path) -> Document | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    needed = ("provenance", "method", "seed", "settings", "backbone")
    return document if isinstance(document, dict) and all(key in document for key in needed) else None
