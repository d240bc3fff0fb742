"""What `laconic bench` and the analyses that train have in common: say what a plan does, run it, say what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from laconic.cli.commands import print_note
from laconic.errors import LaconicError
from laconic.report.text import count

if TYPE_CHECKING:
    from laconic.bench.run import Overview
    from laconic.bench.store import Store
    from laconic.bench.study import Outcome


def show_overview(found: Overview, address: str, workers: int) -> None:
    """Prints what a plan will do and how long it will take."""
    from laconic.bench.estimate import duration
    from laconic.data.images import printable

    plan = found.plan
    todo = [job for job in found.jobs if job.name not in found.done]
    trials = sum(job.until is not None for job in todo)
    cells = Counter(cell.method for cell in found.cells)
    searched = {cell.method for cell in found.cells if cell.search is not None}
    print_note(printable(f"{plan.name}: {plan.title}" if plan.title else plan.name))
    print_note(printable(f"{count(len(found.tasks), 'task')}: {', '.join(found.tasks)}"))
    methods = [f"{label} ({'searched, ' if label in searched else ''}{cells[label]})" for label in cells]
    print_note(printable(f"{count(len(cells), 'method')}: {', '.join(methods)}"))
    for task, why in found.left_out.items():
        print_note(printable(f"left out: {task}: {why}"))
    for task, why in found.missing.items():
        print_note(printable(f"its runs will fail: {task}: {why}"))
    parts = [f"{count(len(todo) - trials, 'run')} to do"]
    parts += [f"{count(trials, 'training')} to choose settings by"] if trials else []
    parts += [f"{len(found.done)} done already"] if found.done else []
    seconds = sum(found.seconds.values()) / workers
    parts += [f"about {duration(seconds)} on this machine with {count(workers, 'worker')}"] if found.seconds else []
    if plan.hours is not None:
        parts.append(f"the plan says {plan.hours:g} h{' on ' + plan.hours_on if plan.hours_on else ''}")
    print_note("; ".join(parts) + f". Results go to {address}.")


def overview_document(found: Overview) -> dict[str, Any]:
    """What a plan will do, as plain data."""
    return {
        "plan": found.plan.name,
        "tasks": list(found.tasks),
        "left_out": found.left_out,
        "missing": found.missing,
        "cells": len(found.cells),
        "runs": [
            {"name": job.name, "done": job.name in found.done, "seconds": found.seconds.get(job.name)}
            for job in found.jobs
        ],
        "seconds": sum(found.seconds.values()),
        "hours": found.plan.hours,
    }


def run_overview(
    found: Overview,
    store: Store,
    *,
    workers: int | None = None,
    kind: str = "local",
    cluster: str | None = None,
    retry_failed: bool = False,
) -> list[Outcome]:
    """Does what is not done of a plan, with a live table, and returns what came of each cell.

    Args:
        found: What there is to do.
        store: Where results go.
        workers: How many runs at once, instead of what the plan says.
        kind: See `laconic.bench.run.engine_of`.
        cluster: See `laconic.bench.run.engine_of`.
        retry_failed: See `laconic.bench.schedule.Schedule`.

    Raises:
        KeyboardInterrupt: On Ctrl-C, with a sentence on how to go on.
    """
    from laconic.bench.live import LiveTable
    from laconic.bench.run import engine_of, run_plan

    shown = workers or found.plan.workers.number or 1
    table = LiveTable(len(found.jobs), len(found.done), found.seconds, shown)
    try:
        with engine_of(found.plan, store.address, kind=kind, workers=workers, cluster=cluster) as engine, table:
            return run_plan(found, store, engine, watch=table, retry_failed=retry_failed)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(
            f"Stopped with {table.done} of {table.total} runs done; the same command goes on (in {store.address})."
        ) from error


def complain(document: Mapping[str, Any]) -> None:
    """Raises what is wrong with the results of a plan, where something is.

    Args:
        document: What `laconic.bench.run.summary` made of them.

    Raises:
        LaconicError: If images changed between runs, or a cell has no result.
    """
    if document["changed_images"]:
        raise LaconicError(
            f"The images of {', '.join(document['changed_images'])} changed between runs, so these cannot be "
            "compared; start again in another --out."
        )
    failed = [cell for cell in document["cells"] if cell["failure"]]
    if failed:
        first = failed[0]
        raise LaconicError(
            f"{len(failed)} of {len(document['cells'])} cells have no result, the first {first['method']} on "
            f"{first['task']}, seed {first['seed']}: {first['failure']}"
        )
