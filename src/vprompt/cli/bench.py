"""The command `vprompt bench`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vprompt.cli.console import UsageError, goes_on, print_json, print_note, print_table
from vprompt.cli.options import Json, Root
from vprompt.experiments.folder import score_key, target_of
from vprompt.utils.distributed import number_of_processes
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import tell
from vprompt.utils.statistics import seeds_of
from vprompt.utils.text import count, duration, percent, printable, spread

if TYPE_CHECKING:
    from vprompt.experiments.bench.bench import Overview
    from vprompt.experiments.bench.store import Store


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Run a plan (tasks x methods x settings x seeds): say what and how long, run it, go on where it was stopped."""

    plan: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PLAN]")] = None
    """TOML file, or the name of a plan that comes with vprompt; these are listed when left out."""
    out: Annotated[str | None, tyro.conf.arg(metavar="RUNS")] = None
    """Folder, or any address that fsspec knows (s3://bucket/runs), for the results; runs/NAME-OF-THE-PLAN when left
    out. Plans that share it share their results."""
    root: Root = None
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
    """Number of runs at once, instead of the plan's."""
    retry_failed: bool = False
    """Try again also what failed for good, such as a loss that became no number."""
    json: Json = False

    def run(self) -> None:
        """Shows, runs, says what came of it."""
        if self.plan is None:
            self._list()
            return
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"There must be at least one worker, not {self.workers}.")
        if number_of_processes() > 1:
            raise UsageError("A benchmark starts its own workers; start it without torchrun.")
        from vprompt.experiments.bench.bench import overview, rehearse, summary
        from vprompt.experiments.bench.plan import load_plan
        from vprompt.experiments.bench.store import open_store

        plan = load_plan(self.plan)
        if not self.rehearse:
            tell([f"Reckoning how long {printable(plan.name)} takes, from a few steps of training."])
        store = open_store(self.out or str(Path("runs") / plan.name))
        planned = overview(plan, store, root=self.root, workers=self.workers, estimate=not self.rehearse)
        if not (self.json and self.dry_run):
            show_overview(planned, store.address)
        if self.dry_run:
            if self.json:
                print_json(overview_document(planned))
            return
        engine: dict[str, Any] = {"kind": self.engine, "workers": self.workers, "cluster": self.address}
        if self.rehearse:
            runs, seconds = rehearse(planned, store, **engine)
            rate = runs / seconds
            if self.json:
                print_json({"runs": runs, "seconds": round(seconds, 3), "runs_per_second": round(rate, 1)})
            else:
                print_note(f"{runs} empty runs went through in {seconds:.1f} s ({rate:.0f} a second); nothing is left.")
            return
        run_overview(planned, store, retry_failed=self.retry_failed, **engine)
        document = summary(planned, store)
        if self.json:
            print_json(document)
        else:
            show_results(document, planned.tasks)
        complain(document)

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


def show_results(document: dict[str, Any], tasks: Sequence[str]) -> None:
    """Prints mean and spread of every method's score: on each task where they are few, else over all that it has."""
    accuracies: dict[str, dict[str, list[float | None]]] = {}
    for cell in document["cells"]:
        of_method = accuracies.setdefault(cell["method"], {task: [] for task in tasks})
        of_method[cell["task"]].append(cell[score_key(cell, "test")])
    few = len(tasks) <= FEW_TASKS
    rows: list[list[str]] = []
    for method, of_method in accuracies.items():
        seeds = [seeds_of(values) for values in of_method.values()]
        if few:
            rows.append([method, *(spread(task.mean, task.std) for task in seeds)])
        else:
            means = [task.mean for task in seeds if task.mean is not None]
            mean = statistics.mean(means) if len(means) == len(tasks) else None
            rows.append([method, f"{len(means)} of {len(tasks)}", percent(mean)])
    names = [task.split(":", 1)[-1].rstrip("/").rsplit("/", 1)[-1] for task in tasks]
    columns = names if few else ["tasks", "mean of all"]
    scores = {target_of(cell).title for cell in document["cells"] if not cell["failure"]}
    title = f"Test {'score' if len(scores) > 1 else (scores or {'accuracy'}).pop()} (%)" + (
        ", mean ± sample standard deviation over seeds" if few else ", mean over tasks"
    )
    print_table(title, ["method", *columns], rows, whole_first=True)
    print_note(f"Next: vprompt report {document['results']}")


def show_overview(planned: Overview, address: str) -> None:
    """Prints what a plan will do and how long it will take."""
    plan = planned.plan
    todo = [job for job in planned.jobs if job.name not in planned.done]
    trials = sum(job.until is not None for job in todo)
    cells = Counter(cell.method for cell in planned.cells)
    searched = {cell.method for cell in planned.cells if cell.search is not None}
    print_note(printable(f"{plan.name}: {plan.title}" if plan.title else plan.name))
    print_note(printable(f"{count(len(planned.tasks), 'task')}: {', '.join(planned.tasks)}"))
    methods = [f"{label} ({'searched, ' if label in searched else ''}{cells[label]})" for label in cells]
    print_note(printable(f"{count(len(cells), 'method')}: {', '.join(methods)}"))
    for departure in plan.departures:
        print_note(printable(f"other than the paper: {departure}"))
    if planned.slow:
        print_note(planned.slow)
    for task, why in planned.left_out.items():
        print_note(printable(f"left out: {task}: {why}"))
    for task, why in planned.missing.items():
        print_note(printable(f"its runs will fail: {task}: {why}"))
    parts = [f"{count(len(todo) - trials, 'run')} to do"]
    parts += [f"{count(trials, 'training')} to choose settings by"] if trials else []
    parts += [f"{len(planned.done)} done already"] if planned.done else []
    seconds = sum(planned.seconds.values()) / planned.workers
    parts += (
        [f"about {duration(seconds)} on this machine with {count(planned.workers, 'worker')}"]
        if planned.seconds
        else []
    )
    if plan.hours is not None:
        parts.append(f"the plan says {plan.hours:g} h{' on ' + plan.hours_on if plan.hours_on else ''}")
    print_note("; ".join(parts) + f". Results go to {address}.")


def overview_document(planned: Overview) -> dict[str, Any]:
    """An overview as plain data."""
    return {
        "plan": planned.plan.name,
        "tasks": list(planned.tasks),
        "left_out": planned.left_out,
        "missing": planned.missing,
        "cells": len(planned.cells),
        "runs": [
            {"name": job.name, "done": job.name in planned.done, "seconds": planned.seconds.get(job.name)}
            for job in planned.jobs
        ],
        "seconds": sum(planned.seconds.values()),
        "hours": planned.plan.hours,
    }


def run_overview(planned: Overview, store: Store, *, retry_failed: bool = False, **engine: Any) -> None:
    """Does what is not done of a plan, with a live table.

    Args:
        planned: Says what there is to do.
        store: Where results go.
        retry_failed: See `vprompt.experiments.bench.scheduler.Schedule`.
        **engine: See `vprompt.experiments.bench.bench.engine_of`.

    Raises:
        KeyboardInterrupt: On Ctrl-C, with a sentence on how to go on.
    """
    from vprompt.experiments.bench.bench import engine_of, run_plan
    from vprompt.experiments.bench.live import LiveTable

    table = LiveTable(len(planned.jobs), len(planned.done), planned.seconds, planned.workers)
    where = f"the same command goes on (in {store.address})"
    with (
        goes_on(lambda: f"Stopped with {table.done} of {table.total} runs done; {where}."),
        engine_of(planned.plan, store.address, **engine) as workers,
        table.live,
    ):
        run_plan(planned, store, workers, watch=table, retry_failed=retry_failed)


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
