"""Worker processes on this machine, each of which keeps backbone and images between its jobs."""

from __future__ import annotations

import contextlib
import itertools
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

from vprompt.experiments.bench.engine import Assignment, Event

REPORT_EVERY_SECONDS = 0.5

CONTEXT = multiprocessing.get_context("spawn")
"""Start method of worker processes: with nothing of the driver's, such as threads, which do not survive a fork."""


class LocalEngine:
    """Runs jobs in processes of their own, so that one that dies takes nothing with it.

    Args:
        address: Of the store.
        workers: How many processes.
        rehearse: See `Worker`.
        threads: Of each worker.
        name: What workers are called in results, with `{}` for their numbers.
    """

    def __init__(
        self, address: str, *, workers: int = 1, rehearse: bool = False, threads: int = 1, name: str = "worker {}"
    ) -> None:
        self.address = address
        self.number = workers
        self.name = name
        self.rehearse = rehearse
        self.threads = threads
        self.workers: list[WorkerProcess] = []
        self._spawned = itertools.count()

    def free(self) -> int:
        """See `Engine`."""
        return self.number - sum(worker.assignment is not None for worker in self.workers)

    def submit(self, assignment: Assignment) -> str:
        """See `Engine`: an idle worker, best one that has the backbone and images; a process is started last."""
        idle = [worker for worker in self.workers if worker.assignment is None]
        worker = min(idle, key=lambda worker: worker.affinity != assignment.affinity, default=None)
        if worker is None:
            name = self.name.format(next(self._spawned))
            worker = WorkerProcess(name, self.address, rehearse=self.rehearse, threads=self.threads)
            self.workers.append(worker)
        worker.give(assignment)
        return worker.name

    def poll(self, seconds: float) -> list[Event]:
        """See `Engine`."""
        ready = wait([worker.connection for worker in self.workers], seconds)
        events = [event for worker in self.workers if worker.connection in ready for event in worker.read()]
        self.workers = [worker for worker in self.workers if not worker.ended]
        return events

    def stop(self) -> None:
        """See `Engine`."""
        for worker in self.workers:
            worker.stop()

    def close(self) -> None:
        """See `Engine`."""
        for worker in self.workers:
            worker.end()
        self.workers = []


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
        self.assignment: Assignment | None = None
        self.affinity = ""
        self.ended = False
        self.connection, theirs = CONTEXT.Pipe()
        self.process: SpawnProcess = CONTEXT.Process(target=_work, args=(theirs, address, name, rehearse, threads))
        self.process.start()
        theirs.close()

    def give(self, assignment: Assignment) -> None:
        """Sends it a job; it has none."""
        self.assignment, self.affinity = assignment, assignment.affinity
        with contextlib.suppress(OSError):  # it has died: reading from it will say so
            self.connection.send(dict(assignment.document))

    def read(self) -> list[Event]:
        """All that the worker has sent; the last event says that its job is lost where it has died meanwhile."""
        events: list[Event] = []
        try:
            while self.connection.poll():
                kind, answer = self.connection.recv()
                if self.assignment is not None:
                    events.append(Event(name=self.assignment.name, kind=kind, worker=self.name, answer=answer))
                if kind in ("done", "stopped"):
                    self.assignment = None
        except (EOFError, OSError):
            self.ended = True
            self.process.join()
            if self.assignment is not None:
                why = _why(self.process.exitcode)
                events.append(Event(name=self.assignment.name, kind="lost", worker=self.name, why=why))
        return events

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
    os.environ["OMP_NUM_THREADS"] = str(threads)  # torch and numpy read it when they are imported
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        threading.Thread(target=_follow_parent, daemon=True).start()
        try:
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
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is about to end


def _reporter(connection: Connection) -> Any:
    last = -math.inf

    def report(done: int, total: int, **figures: float) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_EVERY_SECONDS:
            last = time.monotonic()
            connection.send(("progress", {"done": done, "total": total, **figures}))

    return report


def _follow_parent() -> None:
    """Once the driver has died, whatever way, this worker saves its state and ends as well."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        os._exit(1)


def _why(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with status {code}"
