"""Runs the cells of a plan: every job once, whatever asks for it, and again where its process died."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vprompt.experiments.bench.engine import Engine, Event, Task
from vprompt.experiments.bench.grid import Cell
from vprompt.experiments.bench.halving import Found, Outcome, steps
from vprompt.experiments.bench.jobs import Job, to_plain_data
from vprompt.experiments.bench.store import Store
from vprompt.utils.errors import VPromptError

KEPT = ("val_accuracy", "val_loss", "test_accuracy", "diverged", "seconds")
"""What is remembered of a result."""

BUSY_SECONDS = 5.0
"""After which a job is asked for again that another process has."""

STOP_SECONDS = 60.0


class BenchError(VPromptError):
    """A benchmark cannot go on."""


class Watch(Protocol):
    """Who is told what goes on."""

    def event(self, event: Event) -> None:
        """Something has happened to a job."""
        ...

    def settled(self, job: Job, found: Mapping[str, Any]) -> None:
        """A job is done, or has failed (`failed`) for good."""
        ...

    def tick(self) -> None:
        """Time has passed."""
        ...


class Silent:
    """Tells nobody."""

    def event(self, event: Event) -> None:
        """See `Watch`."""

    def settled(self, job: Job, found: Mapping[str, Any]) -> None:
        """See `Watch`."""

    def tick(self) -> None:
        """See `Watch`."""


class Counting(Silent):
    """Counts the jobs that are done."""

    def __init__(self) -> None:
        self.done = 0

    def settled(self, job: Job, found: Mapping[str, Any]) -> None:
        """See `Watch`."""
        self.done += 1


@dataclass(kw_only=True)
class _Going:
    """A cell that is not settled yet: what it does next, what it asked for, and what of that is open."""

    number: int
    steps: Generator[list[Job], Found, Outcome]
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
        self.watch = watch or Silent()
        self.outcomes: dict[int, Outcome] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, Job] = {}
        self._waiting: dict[str, list[_Going]] = {}
        self._ready: list[tuple[int, int, str]] = []  # number of the first cell that wants it, order, name
        self._later: list[tuple[float, int, str]] = []
        self._running: set[str] = set()
        self._lost = Counter[str]()
        self._searching = Counter(cell.task for cell in cells if cell.search is not None)
        self._trials: dict[str, set[str]] = {}
        self._there = store.finished()
        self._failed_before = set() if retry_failed else store.failures()

    def run(self) -> list[Outcome]:
        """Does all that is not done yet; returns what came of each cell.

        Raises:
            BenchError: If something is wrong that would make all jobs fail, such as a full disk.
            KeyboardInterrupt: On Ctrl-C, after the workers have saved their state.
        """
        for number, cell in enumerate(self.cells):
            going = _Going(number=number, steps=steps(cell))
            self._advance(going, None)
        try:
            while self._ready or self._running or self._later:
                self._submit()
                for event in self.engine.poll(0.2):
                    self._handle(event)
                self.watch.tick()
        except (KeyboardInterrupt, VPromptError):
            self._wind_up()
            raise
        return [self.outcomes[number] for number in range(len(self.cells))]

    def _advance(self, going: _Going, found: Found | None) -> None:
        """Lets a cell go on until it asks for something that is not there."""
        while True:
            try:
                asked = next(going.steps) if found is None else going.steps.send(found)
            except StopIteration as end:
                self.outcomes[going.number] = end.value
                self._forget(going)
                return
            going.asked = asked
            going.trials += [job.work for job in asked if job.until is not None]
            wanted = [job for job in asked if not self._known(job)]
            if wanted:
                going.open = {job.name for job in wanted}
                self._want(wanted, going)
                return
            found = {job.name: self.found[job.name] for job in asked}

    def _forget(self, going: _Going) -> None:
        """Removes the states of a task's trials once no search on it is left that might go on from them."""
        cell = self.cells[going.number]
        self._trials.setdefault(cell.task, set()).update(going.trials)
        self._searching[cell.task] -= cell.search is not None
        if not self._searching[cell.task]:
            for work in self._trials.pop(cell.task):
                self.store.forget(work)

    def _known(self, job: Job) -> bool:
        """Whether a job is done, now or by an earlier call; one whose result is damaged is not."""
        name = job.name
        if name not in self.found and name in self._there:
            self._there.discard(name)
            if (result := self.store.result(name)) is not None:
                self.found[name] = {key: result[key] for key in KEPT if key in result}
        if name not in self.found and name in self._failed_before:
            self._failed_before.discard(name)
            failure = self.store.failure(name)
            if failure is not None and not failure["again"]:
                self.found[name] = {"failed": failure["failure"], "again": False}
        return name in self.found

    def _want(self, jobs: Iterable[Job], going: _Going) -> None:
        for job in jobs:
            if job.name not in self._waiting:
                self.jobs[job.name] = job
                self._waiting[job.name] = []
                heapq.heappush(self._ready, (going.number, len(self.jobs), job.name))
            self._waiting[job.name].append(going)

    def _submit(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            _, number, name = heapq.heappop(self._later)
            heapq.heappush(self._ready, (number, 0, name))
        for _ in range(self.engine.free()):
            if not self._ready:
                return
            _, _, name = heapq.heappop(self._ready)
            job = self.jobs[name]
            settings = job.settings
            affinity = f"{settings.data}\0{settings.backbone}\0{settings.img_size}"
            self._running.add(name)
            self.engine.submit(Task(name=name, document=to_plain_data(job), affinity=affinity))

    def _handle(self, event: Event) -> None:
        name = event.name
        self.watch.event(event)
        if event.kind in ("started", "progress") or name not in self._running:
            return
        self._running.discard(name)
        if event.kind == "lost":
            self._lost[name] += 1
            if self._lost[name] > self.retries:
                sentence = f"Given up after {self._lost[name]} attempts: {event.why}."
                self.store.fail(name, {"name": name, "failure": sentence, "again": True})
                self._settle(name, {"failed": sentence, "again": True})
            else:
                self._again(name, 0.0)
        elif event.kind == "stopped" or event.answer["state"] == "busy":
            self._again(name, BUSY_SECONDS)
        elif event.answer["state"] == "failed":
            if event.answer["for_all"]:
                raise BenchError(f"{event.answer['failure']} The benchmark stops; start it again once that is mended.")
            self._settle(name, {"failed": event.answer["failure"], "again": event.answer["again"]})
        else:
            self._done(name)

    def _done(self, name: str) -> None:
        result = self.store.result(name)
        if result is None:
            self._handle_missing(name)
            return
        self._settle(name, {key: result[key] for key in KEPT if key in result})

    def _handle_missing(self, name: str) -> None:
        """A worker says that it has written a result that cannot be read here."""
        self._lost[name] += 1
        if self._lost[name] > self.retries:
            raise BenchError(
                f"The workers write results that this process cannot read at {self.store.address}; do all machines see "
                "the same folder there?"
            )
        self._again(name, 1.0)

    def _again(self, name: str, seconds: float) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, self._waiting[name][0].number, name))

    def _settle(self, name: str, found: dict[str, Any]) -> None:
        self.found[name] = found
        self.watch.settled(self.jobs[name], found)
        for going in self._waiting.pop(name):
            going.open.discard(name)
            if not going.open:
                self._advance(going, {job.name: self.found[job.name] for job in going.asked})

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
    there = store.finished()
    jobs, found = dict[str, Job](), dict[str, dict[str, Any] | None]()

    def find(job: Job) -> dict[str, Any]:
        name = job.name
        if name not in jobs:
            jobs[name] = job
            found[name] = store.result(name) if name in there else None
        return found[name] or {"val_accuracy": 0.0, "val_loss": 0.0}

    for cell in cells:
        _through(cell, find)
    return list(jobs.values()), {name: result is not None for name, result in found.items()}


def follow(cell: Cell, store: Store) -> tuple[Outcome | None, dict[str, Any]]:
    """What is known of a cell from the store alone: its outcome, None where something is missing; and its result."""

    def find(job: Job) -> dict[str, Any] | None:
        if (result := store.result(job.name)) is not None:
            return result
        failure = store.failure(job.name)
        return None if failure is None else {"failed": failure["failure"], "again": failure["again"]}

    outcome, found = _through(cell, find)
    return outcome, {} if outcome is None or outcome.run is None or outcome.failure else found[outcome.run.name]


def _through(cell: Cell, find: Callable[[Job], dict[str, Any] | None]) -> tuple[Outcome | None, dict[str, Any]]:
    """Takes a cell to its end with results that are there; its outcome, None where one is not, and the last results."""
    going, found = steps(cell), dict[str, dict[str, Any]]()
    try:
        asked = next(going)
        while True:
            found = {}
            for job in asked:
                if (result := find(job)) is None:
                    return None, {}
                found[job.name] = result
            asked = going.send(found)
    except StopIteration as end:
        return end.value, found
