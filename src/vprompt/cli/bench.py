"""`vprompt bench`."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vprompt.cli.console import UsageError, print_json, print_note, print_table
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import count

if TYPE_CHECKING:
    from vprompt.experiments.bench.bench import Overview
    from vprompt.experiments.bench.halving import Outcome
    from vprompt.experiments.bench.store import Store


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Run a plan (tasks x methods x settings x seeds): say what and how long, run it, go on where it was stopped."""

    plan: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PLAN]")] = None
    """TOML file, or the name of a plan that comes with vprompt; these are listed when left out."""
    out: Annotated[str | None, tyro.conf.arg(metavar="RUNS")] = None
    """Folder, or any address that fsspec knows (s3://bucket/runs), for the results; runs/NAME-OF-THE-PLAN when left
    out. Plans that share it share their results."""
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out."""
    dry_run: bool = False
    """Only say what would be run and how long that would take."""
    rehearse: bool = False
    """Schedule every run but leave each empty, into a folder of its own that is then removed: do plan, folder and
    workers work together?"""
    engine: Literal["local", "ray"] = "local"
    """local: worker processes on this machine. ray: a Ray cluster (pip install vprompt[ray])."""
    address: str | None = None
    """Address of a running Ray cluster; one on this machine when left out."""
    workers: int | None = None
    """How many runs at once, instead of what the plan says."""
    retry_failed: bool = False
    """Try again also what failed for good, such as a loss that became no number."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        """Shows, runs, says what came of it."""
        if self.plan is None:
            self._list()
            return
        if self.plan == "" or self.out == "":
            raise UsageError("An empty name is no file; give a plan, and a folder for --out.")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"There must be at least one worker, not {self.workers}.")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError("A benchmark starts its own workers; start it without torchrun.")
        from vprompt.data.benchmarks.places import data_root
        from vprompt.experiments.bench.bench import overview, summary, threads_of
        from vprompt.experiments.bench.plan import load_plan
        from vprompt.experiments.bench.store import open_store

        plan = load_plan(self.plan)
        store = open_store(self.out or str(Path("runs") / plan.name))
        root = os.path.abspath(data_root(self.root))  # whatever folder a worker is in
        workers = self.workers or plan.workers.number or 1
        threads = threads_of(workers)
        found = overview(plan, store, root=root, threads=threads, estimate=not self.rehearse)
        if not (self.json and self.dry_run):
            show_overview(found, store.address, workers)
        if self.dry_run:
            if self.json:
                print_json(overview_document(found))
            return
        if self.rehearse:
            self._rehearse(found, store)
            return
        outcomes = run_overview(
            found,
            store,
            workers=self.workers,
            kind=self.engine,
            cluster=self.address,
            retry_failed=self.retry_failed,
        )
        document = summary(found, outcomes, store)
        if self.json:
            print_json(document)
        else:
            show_results(document, found)
        complain(document)

    def _rehearse(self, found: Overview, store: Store) -> None:
        import time

        from vprompt.experiments.bench.bench import engine_of, rehearsal, run_plan
        from vprompt.experiments.bench.scheduler import Counting

        counting = Counting()
        with rehearsal(store) as place:
            started = time.monotonic()
            with engine_of(
                found.plan,
                place.address,
                kind=self.engine,
                workers=self.workers,
                cluster=self.address,
                rehearse=True,
            ) as engine:
                run_plan(found, place, engine, watch=counting)
            seconds = time.monotonic() - started
        rate = counting.done / seconds
        if self.json:
            print_json({"runs": counting.done, "seconds": round(seconds, 3), "runs_per_second": round(rate, 1)})
        else:
            print_note(
                f"{counting.done} empty runs went through in {seconds:.1f} s ({rate:.0f} a second); nothing is left."
            )

    def _list(self) -> None:
        from vprompt.experiments.bench.plan import parse_plan, shipped_plans

        plans = [parse_plan(text, name=name) for name, text in shipped_plans().items()]
        if self.json:
            print_json([{"name": plan.name, "title": plan.title, "hours": plan.hours} for plan in plans])
            return
        rows = [[plan.name, plan.title, "-" if plan.hours is None else f"{plan.hours:g}"] for plan in plans]
        print_table("Plans that come with vprompt", ["plan", "what", "hours"], rows, whole_first=True)
        print_note("Run one by its name, or your own TOML file: vprompt bench NAME --dry-run")


FEW_TASKS = 3
"""Have room beside each other in a terminal."""


def show_results(document: dict[str, Any], found: Overview) -> None:
    """Prints mean and spread of every method: on each task where they are few, else over all that it has."""
    methods = list(dict.fromkeys(cell["method"] for cell in document["cells"]))
    few = len(found.tasks) <= FEW_TASKS

    def values(method: str, task: str) -> list[float]:
        return [
            100 * cell["test_accuracy"]
            for cell in document["cells"]
            if (cell["task"], cell["method"]) == (task, method) and cell["test_accuracy"] is not None
        ]

    rows: list[list[str]] = []
    for method in methods:
        mine = [values(method, task) for task in found.tasks]
        if few:
            rows.append([method, *map(_spread, mine)])
        else:
            there = [statistics.mean(one) for one in mine if one]
            whole = len(there) == len(found.tasks)
            rows.append([method, f"{len(there)} of {len(mine)}", f"{statistics.mean(there):.1f}" if whole else "-"])
    names = [task.split(":", 1)[-1].rstrip("/").rsplit("/", 1)[-1] for task in found.tasks]
    columns = names if few else ["tasks", "mean of all"]
    title = "Test accuracy (%)" + (", mean ± sample standard deviation over seeds" if few else ", mean over tasks")
    print_table(title, ["method", *columns], rows, whole_first=True)
    print_note(f"Next: vprompt report {document['results']}")


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}" if values else "-"


def show_overview(found: Overview, address: str, workers: int) -> None:
    """Prints what a plan will do and how long it will take."""
    from vprompt.utils.text import duration, printable

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
        kind: See `vprompt.experiments.bench.bench.engine_of`.
        cluster: See `vprompt.experiments.bench.bench.engine_of`.
        retry_failed: See `vprompt.experiments.bench.scheduler.Schedule`.

    Raises:
        KeyboardInterrupt: On Ctrl-C, with a sentence on how to go on.
    """
    from vprompt.experiments.bench.bench import engine_of, run_plan
    from vprompt.experiments.bench.live import LiveTable

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
        document: What `vprompt.experiments.bench.bench.summary` made of them.

    Raises:
        VPromptError: If images changed between runs, or a cell has no result.
    """
    if document["changed_images"]:
        raise VPromptError(
            f"The images of {', '.join(document['changed_images'])} changed between runs, so these cannot be "
            "compared; start again in another --out."
        )
    failed = [cell for cell in document["cells"] if cell["failure"]]
    if failed:
        first = failed[0]
        raise VPromptError(
            f"{len(failed)} of {len(document['cells'])} cells have no result, the first {first['method']} on "
            f"{first['task']}, seed {first['seed']}: {first['failure']}"
        )
