"""`laconic bench`."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from laconic.cli.commands import UsageError, print_json, print_note, print_table
from laconic.cli.plans import complain, overview_document, run_overview, show_overview

if TYPE_CHECKING:
    from laconic.bench.run import Overview
    from laconic.bench.store import Store


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Run a plan (tasks x methods x settings x seeds): say what and how long, run it, go on where it was stopped."""

    plan: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PLAN]")] = None
    """TOML file, or the name of a plan that comes with laconic; these are listed when left out."""
    out: Annotated[str | None, tyro.conf.arg(metavar="RUNS")] = None
    """Folder, or any address that fsspec knows (s3://bucket/runs), for the results; runs/NAME-OF-THE-PLAN when left
    out. Plans that share it share their results."""
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; $LACONIC_DATA or ./data when left out."""
    dry_run: bool = False
    """Only say what would be run and how long that would take."""
    rehearse: bool = False
    """Schedule every run but leave each empty, into a folder of its own that is then removed: do plan, folder and
    workers work together?"""
    engine: Literal["local", "ray"] = "local"
    """local: worker processes on this machine. ray: a Ray cluster (pip install laconic[ray])."""
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
        from laconic.bench.plan import load_plan
        from laconic.bench.run import overview, summary, threads_of
        from laconic.bench.store import open_store
        from laconic.data.benchmarks import data_root

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

        from laconic.bench.run import engine_of, rehearsal, run_plan
        from laconic.bench.schedule import Counting

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
        from laconic.bench.plan import parse_plan, shipped_plans

        plans = [parse_plan(text, name=name) for name, text in shipped_plans().items()]
        if self.json:
            print_json([{"name": plan.name, "title": plan.title, "hours": plan.hours} for plan in plans])
            return
        rows = [[plan.name, plan.title, "-" if plan.hours is None else f"{plan.hours:g}"] for plan in plans]
        print_table("Plans that come with laconic", ["plan", "what", "hours"], rows, whole_first=True)
        print_note("Run one by its name, or your own TOML file: laconic bench NAME --dry-run")


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
    print_note(f"Next: laconic report {document['results']}")


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}" if values else "-"
