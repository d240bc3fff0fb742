"""Scheduler: runs the cells of a plan, every job once, whatever asks for it, and again where its process died."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vprompt.experiments.bench.engine import Assignment, Engine, Event, Watch
from vprompt.experiments.bench.grid import Cell
from vprompt.experiments.bench.halving import Outcome, Results, steps
from vprompt.experiments.bench.jobs import Job, to_plain_data
from vprompt.experiments.bench.store import Store
from vprompt.experiments.folder import score_key
from vprompt.utils.errors import VPromptError

REMEMBERED = ("target", "val_loss", "diverged", "seconds")
"""Keys of a result that are remembered."""

BUSY_SECONDS = 5.0
"""After which a job is asked for again that another process has."""

STOP_SECONDS = 60.0


class BenchError(VPromptError):
    """A benchmark cannot go on."""


@dataclass(kw_only=True)
class _OpenCell:
    """A cell without its outcome: what it does next, what it asked for, and what of that is open."""

    number: int
    steps: Generator[list[Job], Results, Outcome]
    asked: list[Job] = field(default_factory=list[Job])
    open: set[str] = field(default_factory=set[str])
    trials: list[str] = field(default_factory=list[str])


class Schedule:
    """Takes cells from beginning to end.

    Args:
        cells: What is wanted.
        store: Where results are, and go.
        engine: What does the jobs.
        retries: How often a job starts again whose process died.
        retry_failed: Try again also what failed earlier and would fail likewise, such as a loss that became no number.
        watch: Who is told what goes on.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        store: Store,
        engine: Engine,
        *,
        retries: int = 2,
        retry_failed: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.cells = cells
        self.store = store
        self.engine = engine
        self.retries = retries
        self.watch = watch or Watch()
        self.results: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, Job] = {}
        self._waiting: dict[str, list[_OpenCell]] = {}
        self._ready: list[tuple[int, int, str]] = []  # number of the first cell that wants it, order, name
        self._later: list[tuple[float, int, str]] = []
        self._running: set[str] = set()
        self._lost = Counter[str]()
        self._searching = Counter(cell.task for cell in cells if cell.search is not None)
        self._trials: dict[str, set[str]] = {}
        self._finished_before = store.finished()
        self._failed_before = set() if retry_failed else store.failures()

    def run(self) -> None:
        """Does all that is not done yet; `follow` then tells what came of each cell.

        Raises:
            BenchError: If something is wrong that would make all jobs fail, such as a full disk.
            KeyboardInterrupt: On Ctrl-C, after the workers have saved their state.
        """
        for number, cell in enumerate(self.cells):
            self._advance(_OpenCell(number=number, steps=steps(cell)), None)
        try:
            while self._ready or self._running or self._later:
                self._submit()
                for event in self.engine.poll(0.2):
                    self._handle(event)
                self.watch.tick()
        except (KeyboardInterrupt, VPromptError):
            self._wind_up()
            raise

    def _advance(self, cell: _OpenCell, results: Results | None) -> None:
        """Lets a cell go on until it asks for something that is not there."""
        while True:
            try:
                cell.asked = next(cell.steps) if results is None else cell.steps.send(results)
            except StopIteration:
                self._delete_trials(cell)
                return
            cell.trials += [job.work for job in cell.asked if job.until is not None]
            wanted = [job for job in cell.asked if not self._known(job.name)]
            if wanted:
                cell.open = {job.name for job in wanted}
                for job in wanted:
                    if job.name not in self._waiting:
                        self.jobs[job.name] = job
                        self._waiting[job.name] = []
                        heapq.heappush(self._ready, (cell.number, len(self.jobs), job.name))
                    self._waiting[job.name].append(cell)
                return
            results = {job.name: self.results[job.name] for job in cell.asked}

    def _delete_trials(self, cell: _OpenCell) -> None:
        """Removes the states of a task's trials once no search on it is left that might go on from them."""
        task = self.cells[cell.number].task
        self._trials.setdefault(task, set()).update(cell.trials)
        self._searching[task] -= self.cells[cell.number].search is not None
        if not self._searching[task]:
            for work in self._trials.pop(task):
                self.store.delete_scratch(work)

    def _known(self, name: str) -> bool:
        """Whether a job is done, now or by an earlier call; one whose result is damaged is not."""
        if name not in self.results and name in self._finished_before:
            self._finished_before.discard(name)
            self._read_result(name)
        if name not in self.results and name in self._failed_before:
            self._failed_before.discard(name)
            failure = self.store.failure(name)
            if failure is not None and not failure["again"]:
                self.results[name] = {"failed": failure["failure"], "again": False}
        return name in self.results

    def _read_result(self, name: str) -> bool:
        """Whether there is a result; remembers what it says."""
        if (result := self.store.result(name)) is not None:
            remembered = {*REMEMBERED, score_key(result, "val"), score_key(result, "test")}
            self.results[name] = {key: value for key, value in result.items() if key in remembered}
        return result is not None

    def _submit(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            _, number, name = heapq.heappop(self._later)
            heapq.heappush(self._ready, (number, 0, name))
        for _ in range(min(self.engine.free(), len(self._ready))):
            _, _, name = heapq.heappop(self._ready)
            job = self.jobs[name]
            affinity = f"{job.settings.data}\0{job.settings.backbone}\0{job.settings.img_size}"
            self._running.add(name)
            worker = self.engine.submit(Assignment(name=name, document=to_plain_data(job), affinity=affinity))
            self.watch.event(Event(name=name, kind="started", worker=worker))

    def _handle(self, event: Event) -> None:
        name = event.name
        self.watch.event(event)
        if event.kind == "progress" or name not in self._running:
            return
        self._running.discard(name)
        if event.kind == "lost":
            if self._retry(name, 0.0):
                return
            sentence = f"Given up after {self._lost[name]} attempts: {event.why}."
            self.store.fail(name, {"name": name, "failure": sentence, "again": True})
            self._settle(name, {"failed": sentence, "again": True})
        elif event.kind == "stopped" or event.answer["state"] == "busy":
            self._again(name, BUSY_SECONDS)
        elif event.answer["state"] == "failed":
            if event.answer["for_all"]:
                raise BenchError(f"{event.answer['failure']} The benchmark stops; start it again once that is mended.")
            self._settle(name, {"failed": event.answer["failure"], "again": event.answer["again"]})
        elif self._read_result(name):
            self._settle(name, self.results[name])
        elif not self._retry(name, 1.0):
            raise BenchError(
                f"The workers write results that this process cannot read at {self.store.address}; do all machines see "
                "the same folder there?"
            )

    def _retry(self, name: str, seconds: float) -> bool:
        """Lets a lost job start again, unless that has been tried often enough."""
        self._lost[name] += 1
        if self._lost[name] > self.retries:
            return False
        self._again(name, seconds)
        return True

    def _again(self, name: str, seconds: float) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, self._waiting[name][0].number, name))

    def _settle(self, name: str, result: dict[str, Any]) -> None:
        self.results[name] = result
        self.watch.settled(self.jobs[name], result)
        for cell in self._waiting.pop(name):
            cell.open.discard(name)
            if not cell.open:
                self._advance(cell, {job.name: self.results[job.name] for job in cell.asked})

    def _wind_up(self) -> None:
        """Lets the workers save what they have, for a while; a second Ctrl-C does not wait."""
        self.engine.stop()
        end = time.monotonic() + STOP_SECONDS
        while self._running and time.monotonic() < end:
            for event in self.engine.poll(0.2):
                self.watch.event(event)
                if event.kind in ("done", "stopped", "lost"):
                    self._running.discard(event.name)
            self.watch.tick()


def preview(cells: Iterable[Cell], store: Store) -> tuple[list[Job], dict[str, bool]]:
    """All jobs that cells will ask for, as far as that can be told, and which of them are done.

    Where a search has not been decided, its first choices stand for those that will win.
    """
    finished = store.finished()
    jobs, results = dict[str, Job](), dict[str, dict[str, Any] | None]()

    def find(job: Job) -> dict[str, Any]:
        name = job.name
        if name not in jobs:
            jobs[name] = job
            results[name] = store.result(name) if name in finished else None
        return results[name] or {"val_accuracy": 0.0, "val_loss": 0.0}

    for cell in cells:
        _replay(cell, find)
    return list(jobs.values()), {name: result is not None for name, result in results.items()}


def follow(cell: Cell, store: Store) -> tuple[Outcome | None, dict[str, Any]]:
    """State of a cell from the store alone: its outcome, None where something is missing; and its result."""

    def find(job: Job) -> dict[str, Any] | None:
        if (result := store.result(job.name)) is not None:
            return result
        failure = store.failure(job.name)
        return None if failure is None else {"failed": failure["failure"], "again": failure["again"]}

    outcome, results = _replay(cell, find)
    return outcome, {} if outcome is None or outcome.run is None or outcome.failure else results[outcome.run.name]


def _replay(cell: Cell, find: Callable[[Job], dict[str, Any] | None]) -> tuple[Outcome | None, Results]:
    """Takes a cell to its end with results that are there; its outcome, None where one is not, and the last results."""
    going, results = steps(cell), dict[str, dict[str, Any]]()
    try:
        asked = next(going)
        while True:
            results = {}
            for job in asked:
                if (result := find(job)) is None:
                    return None, {}
                results[job.name] = result
            asked = going.send(results)
    except StopIteration as end:
        return end.value, results
