"""Worker processes on this machine, each of which keeps backbone and images between its jobs."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from vprompt.experiments.bench.engine import Event, Task

REPORT_EVERY_SECONDS = 0.5

CONTEXT = multiprocessing.get_context("spawn")
"""How worker processes start: with nothing of the driver's, such as threads, which do not survive a fork."""


class LocalEngine:
    """Runs jobs in processes of their own, so that one that dies takes nothing with it.

    Args:
        address: Of the store.
        workers: How many processes.
        rehearse: See `Worker`.
        threads: Of each worker.
    """

    def __init__(self, address: str, *, workers: int = 1, rehearse: bool = False, threads: int = 1) -> None:
        self.address = address
        self.rehearse = rehearse
        self.threads = threads
        self.workers: list[WorkerProcess | None] = [None] * workers
        self._started: list[Event] = []

    def free(self) -> int:
        """See `Engine`."""
        return sum(worker is None or worker.task is None for worker in self.workers)

    def submit(self, task: Task) -> None:
        """See `Engine`."""
        number = self._best(task)
        worker = self.workers[number]
        if worker is None:
            worker = WorkerProcess(f"worker {number}", self.address, rehearse=self.rehearse, threads=self.threads)
        self.workers[number] = worker
        worker.give(task)
        self._started.append(Event(name=task.name, kind="started", worker=worker.name))

    def poll(self, seconds: float) -> list[Event]:
        """See `Engine`."""
        events, self._started = self._started, []
        there = {worker.connection: worker for worker in self.workers if worker is not None}
        if not there:
            time.sleep(seconds)
            return events
        for connection in wait(list(there), 0 if events else seconds):
            worker = there[connection]  # pyright: ignore[reportArgumentType]
            try:
                events += worker.read()
            except (EOFError, OSError):
                events += self._bury(worker)
        return events

    def stop(self) -> None:
        """See `Engine`."""
        for worker in self.workers:
            if worker is not None:
                worker.stop()

    def close(self) -> None:
        """See `Engine`."""
        for worker in self.workers:
            if worker is not None:
                worker.end()
        self.workers = [None] * len(self.workers)

    def _best(self, task: Task) -> int:
        """A free worker, best one that has the backbone and images of the job; a process is started last."""
        free = [n for n, worker in enumerate(self.workers) if worker is None or worker.task is None]

        def cost(number: int) -> int:
            worker = self.workers[number]
            return 2 if worker is None else 0 if worker.affinity == task.affinity else 1

        return min(free, key=cost)

    def _bury(self, worker: WorkerProcess) -> list[Event]:
        """After a worker died: another takes its place when there is something to do."""
        self.workers[self.workers.index(worker)] = None
        return worker.bury()


class WorkerProcess:
    """One worker process, and the job that it has.

    Args:
        name: What the worker is called in results.
        address: Of the store.
        rehearse: See `Worker`.
        threads: Of the process.
    """

    def __init__(self, name: str, address: str, *, rehearse: bool, threads: int) -> None:
        self.name = name
        self.task: Task | None = None
        self.affinity = ""
        self.connection, theirs = CONTEXT.Pipe()
        self.process: SpawnProcess = CONTEXT.Process(target=_work, args=(theirs, address, self.name, rehearse, threads))
        # A new process starts with the variables of its parent; torch reads this one when it is imported.
        with _variable("OMP_NUM_THREADS", str(threads)):
            self.process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        """Sends it a job; it has none."""
        self.task, self.affinity = task, task.affinity
        with contextlib.suppress(OSError):  # it has died: reading from it will say so
            self.connection.send(dict(task.document))

    def read(self) -> list[Event]:
        """What the worker has sent.

        Raises:
            EOFError: Or OSError, when it has died and nothing that it sent is left.
        """
        events: list[Event] = []
        while self.connection.poll():
            try:
                kind, answer = self.connection.recv()
            except (EOFError, OSError):
                if events:  # what it said before it died still counts
                    break
                raise
            if self.task is None:
                continue
            events.append(Event(name=self.task.name, kind=kind, worker=self.name, answer=answer))
            if kind in ("done", "stopped"):
                self.task = None
        return events

    def bury(self) -> list[Event]:
        """After it died: what has become of its job, if it had one."""
        self.process.join()
        if self.task is None:
            return []
        return [Event(name=self.task.name, kind="lost", worker=self.name, why=_why(self.process.exitcode))]

    def stop(self) -> None:
        """Asks it to save its state; a `stopped` event follows where it has a job."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGTERM)

    def end(self) -> None:
        """Ends it, within seconds."""
        self.connection.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(connection: Connection, address: str, name: str, rehearse: bool, threads: int) -> None:
    """The worker process: a job in, its answer out, until the driver closes the line or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the driver decides
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_follow_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        import torch

        from vprompt.experiments.bench.worker import Worker

        torch.set_num_threads(threads)
        worker = Worker(address, name, rehearse=rehearse)
        while True:
            document = connection.recv()
            try:
                answer: tuple[str, Mapping[str, Any]] = ("done", worker.do(document, _reporter(connection)))
            except KeyboardInterrupt:
                answer = ("stopped", {})
            connection.send(answer)


def _reporter(connection: Connection) -> Any:
    last = -math.inf

    def report(done: int, total: int, **figures: float) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_EVERY_SECONDS:
            last = time.monotonic()
            connection.send(("progress", {"done": done, "total": total, **figures}))

    return report


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _follow_parent() -> None:
    """Once the driver has died, whatever way, this worker saves its state and ends as well."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        os._exit(1)


@contextlib.contextmanager
def _variable(name: str, value: str) -> Any:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _why(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {code}"
