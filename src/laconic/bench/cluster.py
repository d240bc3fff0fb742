"""Workers on a Ray cluster: one of this machine's own, or any that an address leads to."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

from laconic.bench.engine import Event, Task
from laconic.bench.plan import Workers
from laconic.bench.schedule import BenchError

LOOK_EVERY_SECONDS = 0.5
"""How often progress is fetched, and how soon a worker learns that it is to stop."""
START_SECONDS = 120.0
"""Within which some worker must have started."""


class RayEngine:
    """Runs jobs in Ray actors, each of which keeps backbone and images between its jobs.

    Args:
        address: Of the store; every node must see it.
        wanted: What each worker may use.
        workers: How many, instead of what the plan says; as many as there is room for when neither says it.
        cluster: Address of a running cluster; one on this machine, ended with this process, when not given.
        rehearse: See `laconic.bench.worker.Worker`.

    Raises:
        BenchError: If Ray is not installed, the cluster cannot be reached, or no node has room for one worker.
    """

    def __init__(
        self,
        address: str,
        wanted: Workers,
        *,
        workers: int | None = None,
        cluster: str | None = None,
        rehearse: bool = False,
    ) -> None:
        self._ray = _ray()
        self.address = address
        self.rehearse = rehearse
        self.wanted = wanted
        self._connect(cluster, workers or wanted.number)
        self.gpus = self._gpus()
        self.number = workers or wanted.number or self._room()
        self._board = self._ray.remote(num_cpus=0)(_Board).remote()
        self._workers: dict[int, _Remote] = {}
        self._started: list[Event] = []
        self._looked = -math.inf
        self._created = time.monotonic()
        self._alive = False

    def free(self) -> int:
        """See `Engine`."""
        return self.number - sum(worker.task is not None for worker in self._workers.values())

    def submit(self, task: Task) -> None:
        """See `Engine`."""
        number = self._best(task)
        if number not in self._workers:
            self._workers[number] = _Remote(self._actor(number), f"ray worker {number}")
        worker = self._workers[number]
        worker.task, worker.affinity = task, task.affinity
        worker.answer = worker.actor.do.remote(task.name, dict(task.document))
        self._started.append(Event(name=task.name, kind="started", worker=worker.name))

    def poll(self, seconds: float) -> list[Event]:
        """See `Engine`."""
        events, self._started = self._started, []
        busy = {worker.answer: number for number, worker in self._workers.items() if worker.task is not None}
        if not busy:
            time.sleep(0 if events else seconds)
            return events
        ready, waiting = self._ray.wait(list(busy), num_returns=1, timeout=0 if events else seconds)
        if ready and waiting:
            ready += self._ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
        for answer in ready:
            events.append(self._answer(busy[answer]))
        self._alive = self._alive or bool(ready)
        return [*events, *self._progress()]

    def stop(self) -> None:
        """See `Engine`."""
        with contextlib.suppress(Exception):
            self._ray.get(self._board.stop.remote(), timeout=10)

    def close(self) -> None:
        """See `Engine`."""
        for worker in self._workers.values():
            with contextlib.suppress(Exception):
                self._ray.kill(worker.actor)
        self._workers = {}
        self._ray.shutdown()

    def _connect(self, cluster: str | None, number: int | None) -> None:
        """Joins a cluster, or starts one with room for as many workers as are asked for."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if cluster is None:
            cores = len(os.sched_getaffinity(0))
            quiet |= {
                "include_dashboard": False,
                "num_cpus": max(cores, math.ceil((number or 1) * self.wanted.cpus)),
            }
        try:
            self._ray.init(address=cluster or "local", **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = (
                "A Ray cluster cannot be started here" if cluster is None else f"There is no Ray cluster at {cluster}"
            )
            raise BenchError(f"{where} ({str(error).splitlines()[0]}).") from error

    def _gpus(self) -> float:
        if self.wanted.gpus is not None:
            return self.wanted.gpus
        return 1.0 if self._ray.cluster_resources().get("GPU", 0) else 0.0

    def _room(self) -> int:
        """How many workers all nodes have room for together."""
        number = sum(self._fitting(node["Resources"]) for node in self._ray.nodes() if node["Alive"])
        if number < 1:
            parts = [f"{self.wanted.cpus:g} cores"] + ([f"{self.gpus:g} GPUs"] if self.gpus else [])
            parts += [f"{self.wanted.memory_gb:g} GB of memory"] if self.wanted.memory_gb else []
            raise BenchError(f"No node of the Ray cluster has room for a worker with {', '.join(parts)}.")
        return number

    def _fitting(self, there: Mapping[str, float]) -> int:
        """How many workers one node has room for."""
        memory = (self.wanted.memory_gb or 0) * 1e9
        wants = {"CPU": self.wanted.cpus, "GPU": self.gpus, "memory": memory}
        return min((int(there.get(name, 0) / size) for name, size in wants.items() if size), default=1)

    def _actor(self, number: int) -> Any:
        threads = max(1, int(self.wanted.cpus))
        options: dict[str, Any] = {"num_cpus": self.wanted.cpus, "num_gpus": self.gpus, "max_restarts": 0}
        if self.wanted.memory_gb:
            options["memory"] = int(self.wanted.memory_gb * 1e9)
        options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        kind = self._ray.remote(**options)(_Actor)
        return kind.remote(self.address, f"ray worker {number}", self.rehearse, threads, self._board)

    def _best(self, task: Task) -> int:
        """A free worker, best one that has the backbone and images of the job; an actor is started last."""
        free = [n for n in range(self.number) if n not in self._workers or self._workers[n].task is None]

        def cost(number: int) -> int:
            worker = self._workers.get(number)
            return 2 if worker is None else 0 if worker.affinity == task.affinity else 1

        return min(free, key=cost)

    def _answer(self, number: int) -> Event:
        """What came of the job of a worker; one that has died is replaced when there is something to do."""
        worker = self._workers[number]
        assert worker.task is not None
        name, worker.task = worker.task.name, None
        try:
            answer = self._ray.get(worker.answer)
        except self._ray.exceptions.RayError as error:
            del self._workers[number]
            with contextlib.suppress(Exception):
                self._ray.kill(worker.actor)
            return Event(name=name, kind="lost", worker=worker.name, why=_why(error))
        kind = "stopped" if answer["state"] == "stopped" else "done"
        return Event(name=name, kind=kind, worker=worker.name, answer=answer)

    def _progress(self) -> list[Event]:
        """What the workers have pinned to the board; and whether the cluster lets any of them start at all."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_SECONDS:
            return []
        self._looked = now
        try:
            notes: dict[str, dict[str, float]] = self._ray.get(self._board.take.remote(), timeout=5)
        except self._ray.exceptions.RayError:
            notes = {}
        self._alive = self._alive or bool(notes)
        if not self._alive and now - self._created > START_SECONDS:
            self._room()
            raise BenchError(
                f"No worker has started within {START_SECONDS:.0f} s: the Ray cluster has no room left; are other jobs "
                "running there?"
            )
        return [Event(name=name, kind="progress", answer=note) for name, note in notes.items()]


class _Remote:
    """An actor, and the job that it has."""

    def __init__(self, actor: Any, name: str) -> None:
        self.actor, self.name = actor, name
        self.task: Task | None = None
        self.affinity = ""
        self.answer: Any = None


class _Board:
    """Where workers pin how far they are, and look whether they are to stop; an actor of its own."""

    def __init__(self) -> None:
        self.notes: dict[str, dict[str, float]] = {}
        self.stopping = False

    def pin(self, name: str, note: dict[str, float]) -> None:
        self.notes[name] = note

    def take(self) -> dict[str, dict[str, float]]:
        notes, self.notes = self.notes, {}
        return notes

    def stop(self) -> None:
        self.stopping = True

    def is_stopping(self) -> bool:
        return self.stopping


class _Actor:
    """A worker in a process of Ray's; its methods run in the main thread, where signals arrive."""

    def __init__(self, address: str, name: str, rehearse: bool, threads: int, board: Any) -> None:
        import torch

        from laconic.bench.worker import Worker

        torch.set_num_threads(threads)
        self.worker = Worker(address, name, rehearse=rehearse)
        self.board = board
        self.busy = False
        signal.signal(signal.SIGTERM, self._interrupt)
        threading.Thread(target=self._look_out, daemon=True).start()

    def do(self, name: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """See `Worker.do`; a job that was told to stop has the state `stopped`."""
        last = -math.inf
        self.board.pin.remote(name, {})

        def report(done: int, total: int, **figures: float) -> None:
            nonlocal last
            if time.monotonic() - last > LOOK_EVERY_SECONDS:
                last = time.monotonic()
                self.board.pin.remote(name, {"done": done, "total": total, **figures})

        self.busy = True
        try:
            return self.worker.do(document, report)
        except KeyboardInterrupt:
            return {"state": "stopped"}
        finally:
            self.busy = False

    def _interrupt(self, number: int, frame: object) -> None:
        if self.busy:
            raise KeyboardInterrupt

    def _look_out(self) -> None:
        """Passes on to this process's main thread that all are to stop; training then saves its state first."""
        ray = _ray()
        with contextlib.suppress(Exception):  # the board goes when the driver does, and Ray ends this process then
            while not ray.get(self.board.is_stopping.remote()):
                time.sleep(LOOK_EVERY_SECONDS)
            os.kill(os.getpid(), signal.SIGTERM)


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise BenchError("The engine ray needs the package of that name: pip install 'laconic[ray]'.") from error


def _why(error: Exception) -> str:
    words = " ".join(str(error).split())
    if "SIGKILL" in words or "exit code" in words.lower() or "died" in words or "OOM" in words or "memory" in words:
        hint = "; its machine may have run out of memory" if "OOM" in words or "memory" in words else ""
        return f"its worker process died{hint}"
    return f"Ray lost its worker ({type(error).__name__})"
