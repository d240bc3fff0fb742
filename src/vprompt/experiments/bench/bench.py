"""Benchmark: a plan from what it will do and how long that will take to what came of it."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import uuid
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import TensorDataset

from vprompt.backbones.factory import create_backbone
from vprompt.data.benchmarks.places import data_root
from vprompt.experiments.bench.collect import cells_in
from vprompt.experiments.bench.engine import Assignment, Engine, Event, Watch
from vprompt.experiments.bench.grid import Cell, cells_of, tasks_of
from vprompt.experiments.bench.jobs import Job
from vprompt.experiments.bench.local import LocalEngine
from vprompt.experiments.bench.plan import Plan
from vprompt.experiments.bench.ray import RayEngine
from vprompt.experiments.bench.scheduler import BenchError, Schedule, preview
from vprompt.experiments.bench.store import NamedPath, Store, open_store
from vprompt.experiments.bench.tasks import named_paths, split_sizes, why_missing
from vprompt.experiments.bench.worker import Worker
from vprompt.experiments.folder import score_key, target_of
from vprompt.experiments.preview import passes
from vprompt.methods.base import Method
from vprompt.methods.vpt import VPT
from vprompt.model.attach import attach
from vprompt.model.cost import gmacs
from vprompt.model.records import Precision, Recipe
from vprompt.tasks.columns import Columns
from vprompt.training.precision import emulated
from vprompt.training.settle import pace
from vprompt.utils.devices import device_named
from vprompt.utils.errors import DataError
from vprompt.utils.progress import silent

CALIBRATION_IMAGES = 64
"""In a step at most."""

JOB_SECONDS = 1.0
"""That a job takes besides."""


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Preview of a plan: what it will do, what of it is done.

    Args:
        plan: The plan.
        workers: How many runs at once.
        tasks: Its tasks, without optional ones that are not there.
        left_out: Optional tasks that are not there, and why.
        missing: Other tasks that are not there, and why: their runs will fail.
        paths: Its folders and files.
        cells: What it makes: a number for each task, method and seed.
        jobs: What is to be run for that, as far as can be told.
        done: Names of those that are done.
        seconds: Expected of each job that is not, on one worker of this machine; empty where it was not estimated.
        slow: A sentence where the machine emulates the precision that the plan asks for; nothing is estimated then.
    """

    plan: Plan
    workers: int
    tasks: Sequence[str]
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    paths: Mapping[str, NamedPath] = field(default_factory=dict[str, NamedPath])
    cells: Sequence[Cell]
    jobs: Sequence[Job]
    done: frozenset[str]
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    slow: str = ""


def overview(
    plan: Plan, store: Store, *, root: str | None = None, workers: int | None = None, estimate: bool = True
) -> Overview:
    """Looks at what a plan asks for, what of it is done, and how long the rest will take.

    Args:
        plan: The plan.
        store: Where its results are, or will be.
        root: Folder that holds the benchmarks' tasks; $VPROMPT_DATA or ./data when not given.
        workers: How many runs at once, instead of what the plan says; one by default.
        estimate: Measure this machine for that, about a second for each backbone.

    Raises:
        PlanError: If the plan cannot be meant.
    """
    root = os.path.abspath(data_root(root))  # whatever folder a worker is in
    number = workers or plan.workers.number or 1
    tasks, optional = tasks_of(plan)
    columns = {task: Columns.among({**plan.settings, **plan.task.get(task, {})}) for task in (*tasks, *optional)}
    left_out = {task: why for task in optional if (why := why_missing(task, root, columns[task]))}
    missing = {task: why for task in tasks if (why := why_missing(task, root, columns[task]))}
    tasks = [*tasks, *(task for task in optional if task not in left_out)]
    weights = [values.get("weights") for values in (plan.settings, *(method.settings for method in plan.methods))]
    paths = named_paths([*tasks, *filter(None, weights)], store.paths())
    cells = cells_of(plan, tasks, root=root, paths=paths)
    jobs, done = preview(cells, store)
    todo = [job for job in jobs if not done[job.name]]
    slow = next((words for job in todo if (words := emulated(job.settings.recipe.precision, device_named("auto")))), "")
    return Overview(
        plan=plan,
        workers=number,
        tasks=tasks,
        left_out=left_out,
        missing=missing,
        paths=paths,
        cells=cells,
        jobs=jobs,
        done=frozenset(name for name, is_done in done.items() if is_done),
        seconds={job.name: seconds_of(job, threads=_threads_of(number)) for job in todo if estimate and not slow},
        slow=slow,
    )


def gmacs_of(job: Job) -> float:
    """10^9 multiply-accumulates of a job: passes of its training, of what follows it, and of its evaluation."""
    settings = job.settings
    sizes = split_sizes(settings.data, settings.root, settings.columns)
    learned, seen = passes(settings, *sizes, until=job.until, trained=job.first is not None)
    forward = _gmacs(settings.backbone, settings.img_size, settings.method)
    return forward * (learned * (1 + settings.method.backward_cost) + seen)


@functools.cache
def _gmacs(backbone: str, img_size: int | None, method: Method) -> float:
    """Of one image's forward pass while training."""
    with torch.device("meta"):
        bare = create_backbone(backbone, pretrained=False, img_size=img_size)
        return gmacs(attach(bare, method, num_classes=1).copy(execution="prefix").eval())


@functools.cache
def rate(backbone: str, img_size: int | None, precision: Precision, threads: int) -> float:
    """10^9 multiply-accumulates that this machine does in a second of training this backbone, with random weights."""
    method, number = VPT(10), CALIBRATION_IMAGES
    model = attach(create_backbone(backbone, pretrained=False, img_size=img_size), method, num_classes=10)
    images = torch.randn(number, *model.preprocessing.shape)
    data = TensorDataset(images, torch.zeros(number, dtype=torch.int64))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        step = pace(model, data, Recipe(batch_size=number, precision=precision))
    finally:
        torch.set_num_threads(before)
    return _gmacs(backbone, img_size, method) * (1 + method.backward_cost) / step.seconds


def seconds_of(job: Job, *, threads: int) -> float:
    """Expected seconds of a job on one worker of this machine."""
    settings = job.settings
    speed = rate(settings.backbone, settings.img_size, settings.recipe.precision, threads)
    return JOB_SECONDS + gmacs_of(job) / speed


@contextlib.contextmanager
def engine_of(
    plan: Plan,
    address: str,
    *,
    kind: str = "local",
    workers: int | None = None,
    cluster: str | None = None,
    rehearse: bool = False,
) -> Generator[Engine]:
    """The workers that do a plan's jobs, ended afterwards.

    Args:
        plan: Says what a worker may use.
        address: Of the store.
        kind: `"local"` or `"ray"`.
        workers: How many, instead of what the plan says; one by default.
        cluster: Address of a Ray cluster; one on this machine when not given.
        rehearse: See `Worker`.
    """
    if kind == "ray":
        engine: Engine = RayEngine(address, plan.workers, workers=workers, cluster=cluster, rehearse=rehearse)
    else:
        number = workers or plan.workers.number or 1
        engine = LocalEngine(address, workers=number, rehearse=rehearse, threads=_threads_of(number))
    try:
        yield engine
    finally:
        engine.close()


def run_plan(
    planned: Overview, store: Store, engine: Engine, *, watch: Watch | None = None, retry_failed: bool = False
) -> None:
    """Does all of a plan that is not done.

    Raises:
        BenchError: If something is wrong that would make all jobs fail.
        BusyError: If another process is at work on another plan of the same name here.
        KeyboardInterrupt: On Ctrl-C; the same call goes on later.
    """
    if not planned.cells:
        raise BenchError(f"The plan {planned.plan.name} has no task that is there.")
    retries = planned.plan.workers.retries
    with store.planned(planned.plan.name, planned.plan.to_toml()):
        known = store.paths()
        for path, about in planned.paths.items():
            if known.get(path) != about:
                store.write_path(about)
        Schedule(planned.cells, store, engine, retries=retries, retry_failed=retry_failed, watch=watch).run()


def rehearse(planned: Overview, store: Store, **engine: Any) -> tuple[int, float]:
    """Schedules every run but leaves each empty, in a store below that is gone afterwards: how many, in what seconds.

    Args:
        planned: Says what there is to do.
        store: Where results would go.
        **engine: See `engine_of`.
    """
    place, started = open_store(f"{store.address}/.rehearsal-{uuid.uuid4().hex}"), time.monotonic()
    try:
        with engine_of(planned.plan, place.address, rehearse=True, **engine) as workers:
            run_plan(planned, place, workers)
        seconds = time.monotonic() - started
        return len(place.finished()), seconds
    finally:
        place.delete()


def _threads_of(workers: int) -> int:
    """Threads of one of several workers on this machine: the cores, or what OMP_NUM_THREADS says, shared out."""
    return max(1, torch.get_num_threads() // workers)


class InlineEngine:
    """Does jobs in this process, when it is asked for what has happened; see `Engine`.

    Args:
        address: Of the store.
        progress: Show the bars of each run.
    """

    def __init__(self, address: str, *, progress: bool = False) -> None:
        self.worker = Worker(address, "inline")
        self.progress = progress
        self._waiting: list[Assignment] = []
        self._stopped: list[Event] = []

    def free(self) -> int:
        """One, unless a job waits."""
        return 1 - len(self._waiting)

    def submit(self, assignment: Assignment) -> str:
        """Keeps the job until `poll`."""
        self._waiting.append(assignment)
        return self.worker.name

    def poll(self, seconds: float) -> list[Event]:
        """Does the job; the next call tells of one that Ctrl-C stopped, so that nobody waits for it."""
        events, self._stopped = self._stopped, []
        while self._waiting:
            assignment = self._waiting.pop()
            try:
                answer = self.worker.do(assignment.document, True if self.progress else silent)
            except KeyboardInterrupt:
                self._stopped = [Event(name=assignment.name, kind="stopped", worker=self.worker.name)]
                raise
            events.append(Event(name=assignment.name, kind="done", worker=self.worker.name, answer=answer))
        return events

    def stop(self) -> None:
        """Nothing is going on while others act."""

    def close(self) -> None:
        """Nothing is left to end."""


def run_here(
    plan: Plan,
    store: Store,
    *,
    root: str | None = None,
    progress: bool = False,
    watch: Watch | None = None,
    retry_failed: bool = False,
) -> list[dict[str, Any]]:
    """Does all of a plan that is not done, one run after the other in this process; see `run_plan`, `results_of`.

    Raises:
        DataError: If a task is not there.
    """
    planned = overview(plan, store, root=root, estimate=False)
    for why in planned.missing.values():
        raise DataError(why)
    engine = InlineEngine(store.address, progress=progress)
    run_plan(planned, store, engine, watch=watch, retry_failed=retry_failed)
    return results_of(planned, store)


def results_of(planned: Overview, store: Store) -> list[dict[str, Any]]:
    """What came of the cells of a plan that was run, see `cells_in`; where there is no result, `failure` says why."""
    cells = [cell for cell in cells_in(planned.plan, store) if cell["task"] in planned.tasks]
    for cell in cells:
        if cell["state"] == "missing":
            cell["failure"] = f"The result of {cell['method']}, seed {cell['seed']} has gone."
    return cells


def changed_images(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """Tasks among `cells_in` whose images changed between their runs."""
    results = [(cell["task"], cell["result"]) for cell in cells if cell["result"] is not None]
    kinds = dict.fromkeys((task, result["provenance"]["data"]["fingerprint"]) for task, result in results)
    return [task for task, many in Counter(task for task, _ in kinds).items() if many > 1]


def summary(planned: Overview, store: Store) -> dict[str, Any]:
    """Result of a plan as plain data: every cell with its score, or why there is none.

    `changed_images` names tasks whose images changed between their runs.
    """
    rows: list[dict[str, Any]] = []
    for cell in (cells := results_of(planned, store)):
        result = cell["result"] or {}
        row = {key: cell[key] for key in ("task", "method", "seed", "failure")}
        row |= {"chosen": (cell["search"] or {}).get("chosen"), "result": cell["name"]}
        rows.append(row | {(key := score_key(result, "test")): result.get(key), "target": target_of(result).name})
    about = {"plan": planned.plan.name, "results": store.address, "left_out": planned.left_out}
    return {**about, "changed_images": changed_images(cells), "cells": rows}
