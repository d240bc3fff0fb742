"""Collection of results, of a plan or of the runs in a folder, as plain data for a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vprompt.experiments.bench.grid import cells_of, tasks_of
from vprompt.experiments.bench.halving import Outcome
from vprompt.experiments.bench.plan import Plan, parse_plan
from vprompt.experiments.bench.scheduler import follow
from vprompt.experiments.bench.store import Store, open_store
from vprompt.experiments.bench.tasks import about_task
from vprompt.experiments.folder import RESULT, Result, fits, score_key
from vprompt.experiments.settings import place_settings, upgraded
from vprompt.methods.registry import METHODS
from vprompt.model.cost import bare_gmacs
from vprompt.utils.errors import VPromptError
from vprompt.utils.io import read_json

Document = dict[str, Any]

_ELSEWHERE = frozenset({"data", "method", "prompts", "condense", "seed"})
"""Settings that a label has already, or that the task or seed say."""

_OLD, _NEW = "laconic", "vprompt"
"""The name of the package in older results, and today."""


def study_of(address: str, *, plan: str | None = None) -> Document:
    """The document of a report, from results alone.

    Args:
        address: Results of `vprompt bench`; or a folder with results of `fit`, `condense` or `compare` somewhere in it.
        plan: Which, where several were run there.

    Returns:
        `name`, `title`, `description`, `source`, `departures`, `plan` (its text), `hours_planned`, `tasks`, `methods`,
        `seeds`, `backbone`, `cells` (each with `state` and `result`), `made`.

    Raises:
        VPromptError: If there is nothing there, or several plans and none is named.
    """
    store = open_store(address)
    plans = store.plans()
    if plan is not None and plan not in plans:
        there = f"it has {', '.join(plans)}" if plans else "there is none"
        raise VPromptError(f"No plan called {plan} was run in {address}; {there}.")
    if len(plans) > 1 and plan is None:
        raise VPromptError(f"Several plans were run in {address}: {', '.join(plans)}; say which by --plan.")
    if plans:
        name = plan or next(iter(plans))
        return _of_plan(parse_plan(plans[name], name=name), store)
    return _of_folder(address, store)


def cells_in(plan: Plan, store: Store) -> list[Document]:
    """The cells of a plan, with what a store has of each.

    Returns:
        For each `task`, `method`, `seed`, `state` (`"finished"`, `"failed"` or `"missing"`), `failure`, `result`,
        `search` and `name` of the run; without optional tasks of which nothing is there.

    Raises:
        PlanError: If the plan cannot be meant.
    """
    tasks, optional = tasks_of(plan)
    cells: list[Document] = []
    for cell in cells_of(plan, [*tasks, *optional], paths=store.paths()):
        outcome, result = follow(cell, store)
        known, current = outcome or Outcome(), _current(result) if result else None
        state = "missing" if outcome is None else "failed" if known.failure else "finished"
        about = {"search": known.search, "failure": known.failure, "name": known.run and known.run.name}
        cells.append(_cell(cell.task, cell.method, cell.seed, state, current, **about))
    # An optional task of which nothing is there was left out.
    seen = {cell["task"] for cell in cells if cell["state"] != "missing"} | set(tasks)
    return [cell for cell in cells if cell["task"] in seen]


def _cell(task: str, method: str, seed: int, state: str, result: Document | None, **more: Any) -> Document:
    cell = {"task": task, "method": method, "seed": seed, "state": state, "result": result}
    return {**cell, "failure": None, "search": None, **more}


def _current(result: Document) -> Document:
    """A result of any version as this one would write it: the names of the package, and flat settings."""

    def renamed(name: Any) -> Any:
        return _NEW + name.removeprefix(_OLD) if isinstance(name, str) and name.startswith(f"{_OLD}_") else name

    settings, provenance = upgraded(result["settings"]), dict(result["provenance"])
    if "backbone" in settings:
        settings["backbone"] = renamed(settings["backbone"])
    if isinstance(versions := provenance.get("versions"), Mapping):
        provenance["versions"] = {_NEW if package == _OLD else package: versions[package] for package in versions}
    return {**result, "backbone": renamed(result["backbone"]), "settings": settings, "provenance": provenance}


def _of_plan(plan: Plan, store: Store) -> Document:
    return _document(
        cells_in(plan, store),
        name=plan.name,
        title=plan.title,
        description=" ".join(plan.description.split()),
        source=plan.source,
        departures=list(plan.departures),
        plan=plan.text,
        hours_planned=plan.hours,
        methods=[
            {"label": method.label, "method": method.settings.get("method", "vpt-deep")} for method in plan.methods
        ],
        seeds=list(plan.seeds),
    )


def _of_folder(address: str, store: Store) -> Document:
    """Runs without a plan: those of a store, or every result.json below a folder."""
    results = [result for name in sorted(store.finished()) if (result := store.result(name)) is not None]
    results = [each for each in results if each.get("until") is None and each.get(score_key(each, "test")) is not None]
    results, unread = [result for result in results if fits(result, Result)], list[str]()
    if not results and "://" not in address:
        results, unread = _below(Path(address))
    if not results:
        damaged = f" that can be read ({len(unread)} cannot)" if unread else ""
        raise VPromptError(f"There are no results in {address}{damaged}; give the folder that they were written to.")
    cells = [
        _cell(result["provenance"]["data"]["source"], label, result["seed"], "finished", result)
        for label, result in _labelled([_current(result) for result in results])
    ]
    labels = dict.fromkeys((cell["method"], cell["result"]["method"]) for cell in cells)
    return _document(
        cells,
        name=Path(address).name or "runs",
        methods=[{"label": label, "method": method} for label, method in labels],
        seeds=sorted({cell["seed"] for cell in cells}),
        unread=unread,
    )


def _document(cells: Sequence[Document], *, name: str, title: str = "", **about: Any) -> Document:
    """The whole document, from its cells and what only a plan knows."""
    plan = {"name": name, "title": title or name, "description": "", "source": "", "plan": "", "hours_planned": None}
    finished = [cell for cell in reversed(cells) if cell["result"] is not None]
    first = {cell["task"]: cell["result"] for cell in finished}
    tasks = [_task(task, first.get(task)) for task in dict.fromkeys(cell["task"] for cell in cells)]
    backbones = {cell["result"]["backbone"]: cell["result"] for cell in finished}
    made = datetime.now(UTC).isoformat(timespec="seconds")
    # Where images lay is no part of what was run, and nobody else's business.
    places = place_settings()
    for result in (cell["result"] for cell in finished):
        result["settings"] = {key: value for key, value in result["settings"].items() if key not in places}
    return {**plan, **about, "tasks": tasks, "backbone": _backbone(backbones), "cells": cells, "made": made}


def _task(spec: str, result: Mapping[str, Any] | None) -> Document:
    data = {} if result is None else result["provenance"]["data"]
    about = about_task(spec)
    comparable = about["benchmark"] is not None and result is not None and not data.get("differences")
    facts = {key: data.get(key) for key in ("differences", "classes", "images")}
    return {**about, "task": spec, "comparable": comparable, **facts}


def _backbone(results: Mapping[str, Document]) -> Document:
    """The backbone that all have, from a result of each."""
    if len(results) != 1:
        name = f"several ({', '.join(sorted(results))})" if results else None
        return {"name": name, "parameters": None, "bare_gmacs": None}
    [result] = results.values()
    name, size = result["backbone"], result["settings"].get("img_size")
    try:
        bare = bare_gmacs(name, size if type(size) is int else None)
    except VPromptError:
        bare = None
    return {"name": name, "parameters": result.get("backbone_params"), "bare_gmacs": bare}


def _label(result: Mapping[str, Any]) -> str:
    """Label of a run without a plan: its method, its prompts, and what became of them."""
    settings = result["settings"]
    parts, method = [result["method"]], str(settings.get("method"))
    if "prompts" in settings and method in METHODS and "prompts" in METHODS.get(method).options:
        parts.append(f"{settings['prompts']} prompts")
    retained = settings.get("condense")
    if isinstance(retained, int | float):
        parts.append(f"condensed to {100 * retained:g} %")
    elif retained is not None:
        parts.append("condensed as far as it goes")
    if settings.get("prune") is not None:
        parts.append("pruned")
    return ", ".join(parts)


def _labelled(results: Sequence[Document]) -> list[tuple[str, Document]]:
    """Results and what their methods are called: by more of their settings where two would be called the same."""
    alike: dict[str, list[Document]] = {}
    for result in results:
        alike.setdefault(_label(result), []).append(result)
    labelled, elsewhere = list[tuple[str, Document]](), _ELSEWHERE | place_settings()
    for label, runs in alike.items():
        settings = [{k: v for k, v in run["settings"].items() if k not in elsewhere} for run in runs]
        keys = dict.fromkeys(key for mapping in settings for key in mapping)
        differ = [key for key in keys if len({repr(mapping.get(key)) for mapping in settings}) > 1]
        collide = max(Counter(map(_place, runs)).values()) > 1
        shown = [key for key in differ if collide or key == "backbone"]
        seen = Counter[tuple[str, Any, str]]()
        for run, mapping in zip(runs, settings, strict=True):
            name = ", ".join([label, *(f"{key.replace('_', ' ')} {_value(mapping.get(key))}" for key in shown)])
            seen[*_place(run), name] += 1
            again = seen[*_place(run), name]
            labelled.append((f"{name}, run {again}" if again > 1 else name, run))
    return labelled


def _place(result: Mapping[str, Any]) -> tuple[str, Any]:
    return result["provenance"]["data"]["source"], result["seed"]


def _value(value: Any) -> str:
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _below(folder: Path) -> tuple[list[Document], list[str]]:
    """Every result.json below a folder, called by its own folder, and those that are none."""
    results: list[Document] = []
    unread: list[str] = []
    for path in sorted(folder.rglob(RESULT)):
        if path.parent != folder and (path.parent.parent / RESULT).exists():
            continue  # a stage of the run above, which says so itself
        document = {}
        with suppress(VPromptError):
            document = read_json(path)
        if fits(document, Result):
            results.append({**document, "name": str(path.parent.relative_to(folder))})
        else:
            unread.append(str(path.relative_to(folder)))
    return results, unread
