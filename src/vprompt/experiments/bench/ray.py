"""Workers on a Ray cluster: an actor for each, which looks after a worker process like those of the local engine."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import platform
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vprompt.experiments.bench.engine import Event, Task
from vprompt.experiments.bench.local import WorkerProcess
from vprompt.utils.errors import VPromptError
from vprompt.utils.version import __version__

if TYPE_CHECKING:
    from vprompt.experiments.bench.plan import Workers


LISTEN_SECONDS = 10.0
"""After which an actor answers even when nothing has happened."""

LOOK_EVERY_SECONDS = 5.0
"""For machines that have joined the cluster."""

UNFIT_SECONDS = 60.0
"""For which a cluster may lack any machine that is large enough; one may be on its way."""

FULL_SECONDS = 600.0
"""For which others may use all of a cluster."""

END_SECONDS = 15.0

KNOCK_SECONDS = 10.0

BIRTHS = 5
"""So many actors in a row may die before they are ready."""

OBJECT_STORE_BYTES = 100 * 2**20
"""Of a cluster on this machine; only jobs and their answers go through it."""


class ClusterError(VPromptError):
    """A Ray cluster cannot be used."""


class RayEngine:
    """Runs jobs on a Ray cluster.

    Every worker is an actor that holds the resources and has a process of its own for the jobs, so that one that dies
    takes nothing with it. All of them end with this process.

    Args:
        address: Of the store; all machines must see the same there.
        needs: What each worker may use.
        workers: How many, instead of what `needs` says; as many as the cluster has room for when neither says.
        cluster: Address of a running cluster; one of its own on this machine when not given.
        rehearse: See `Worker`.

    Raises:
        ClusterError: If Ray is not installed, there is no cluster, or no machine of it can be large enough.
    """

    def __init__(
        self,
        address: str,
        needs: Workers,
        *,
        workers: int | None = None,
        cluster: str | None = None,
        rehearse: bool = False,
    ) -> None:
        self.address = address
        self.rehearse = rehearse
        self.number = workers or needs.number
        self.ray = _ray()
        self.connected_here = not self.ray.is_initialized()
        if self.connected_here:
            _connect(self.ray, cluster, needs, self.number)
        nodes = self._nodes()
        gpus = needs.gpus if needs.gpus is not None else float(any(node.get("GPU", 0) for node in nodes))
        self.needs = {"CPU": needs.cpus, "GPU": gpus, "memory": (needs.memory_gb or 0) * 1e9}
        self.seats: list[_Seat] = []
        self.hired = 0
        self.stillborn = 0
        self._events: list[Event] = []
        self._next_look = 0.0
        self._without_since = time.monotonic()
        if cluster is None and self.connected_here and not room(nodes, self.needs):
            self.close()
            raise ClusterError(self._unfit(nodes))

    def free(self) -> int:
        """See `Engine`."""
        return sum(seat.ready and seat.task is None for seat in self.seats)

    def submit(self, task: Task) -> None:
        """See `Engine`."""
        free = [seat for seat in self.seats if seat.ready and seat.task is None]
        seat = min(free, key=lambda seat: seat.affinity != task.affinity)
        seat.task, seat.affinity = task, task.affinity
        seat.actor.give.remote(task)
        self._events.append(Event(name=task.name, kind="started", worker=seat.name))

    def poll(self, seconds: float) -> list[Event]:
        """See `Engine`.

        Raises:
            ClusterError: If the cluster has no room for a single worker for long.
        """
        self._staff()
        events, self._events = self._events, []
        calls = {seat.call: seat for seat in self.seats}
        if not calls:
            time.sleep(seconds)
            return events
        heard, _ = self.ray.wait(list(calls), timeout=0 if events else seconds)
        if heard:
            heard, _ = self.ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in heard:
            events += self._hear(calls[call])
        return events

    def stop(self) -> None:
        """See `Engine`."""
        for seat in self.seats:
            seat.actor.stop.remote()

    def close(self) -> None:
        """See `Engine`."""
        ends = [seat.actor.end.remote() for seat in self.seats if seat.ready]
        if ends:
            self.ray.wait(ends, num_returns=len(ends), timeout=END_SECONDS)
        for seat in self.seats:
            self.ray.kill(seat.actor)
        self.seats = []
        if self.connected_here:
            self.ray.shutdown()

    def _staff(self) -> None:
        """Hires workers where the cluster has room for more; says so when there is none for a single one."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY_SECONDS
        nodes = self._nodes()
        for _ in range((self.number or room(nodes, self.needs)) - len(self.seats)):
            self._hire()
        if any(seat.ready for seat in self.seats):
            self._without_since = now
        elif not room(nodes, self.needs) and now - self._without_since > UNFIT_SECONDS:
            raise ClusterError(self._unfit(nodes))
        elif now - self._without_since > FULL_SECONDS:
            raise ClusterError(
                f"For {FULL_SECONDS / 60:.0f} minutes the Ray cluster had no room for a worker "
                f"({described(self.needs)}); start again once others have finished there."
            )

    def _hire(self) -> None:
        name = f"worker {self.hired}"
        self.hired += 1
        options = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs["GPU"], "memory": self.needs["memory"] or None}
        threads = max(1, int(self.needs["CPU"]))
        # Methods run side by side: one waits for what the process says while another gives it a job or stops it.
        kind = self.ray.remote(Overseer).options(**options, max_concurrency=4, max_restarts=0)
        actor = kind.remote(self.address, name, os.getcwd(), self.rehearse, threads)
        self.seats.append(_Seat(name=name, actor=actor, call=actor.hello.remote()))

    def _hear(self, seat: _Seat) -> list[Event]:
        """What an actor has answered; it is asked again, or buried."""
        try:
            answer = self.ray.get(seat.call)
        except self.ray.exceptions.RayError as error:
            return self._bury(seat, error)
        seat.call = seat.actor.listen.remote(LISTEN_SECONDS)
        if not seat.ready:
            if answer["version"] != __version__:
                raise ClusterError(
                    f"{answer['host']} has vprompt {answer['version']} and this machine {__version__}; install "
                    "the same everywhere."
                )
            seat.ready, seat.host, self.stillborn = True, answer["host"], 0
            return []
        if any(event.kind in ("done", "stopped", "lost") for event in answer):
            seat.task = None
        return answer

    def _bury(self, seat: _Seat, error: Exception) -> list[Event]:
        """After an actor died, or was cut off: another takes its place, where there is room."""
        self.seats.remove(seat)
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.kill(seat.actor)
        self._next_look = 0.0
        self.stillborn += not seat.ready
        if self.stillborn >= BIRTHS or (not seat.ready and _cannot_start(error)):
            raise ClusterError(
                f"No worker can start on the Ray cluster ({_last_line(error)}); does every machine of it have the same "
                "vprompt and Python as this one?"
            )
        if seat.task is None:
            return []
        why = f"its Ray worker on {seat.host} was ended"
        if self._cut_off(error):
            why = f"the machine {seat.host} left the cluster or cannot be reached"
        return [Event(name=seat.task.name, kind="lost", worker=seat.name, why=why)]

    def _cut_off(self, error: Exception) -> bool:
        unavailable = isinstance(error, self.ray.exceptions.ActorUnavailableError)
        return unavailable or re.search(r"\bnode (has died|died|was)\b", str(error)) is not None

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _unfit(self, nodes: Sequence[Mapping[str, float]]) -> str:
        have = "; ".join(sorted({described(node) for node in nodes})) or "nothing"
        return (
            f"No machine of the Ray cluster has what the plan wants for each worker ({described(self.needs)}); they "
            f"have {have}."
        )


@dataclass(eq=False, kw_only=True)
class _Seat:
    """An actor as the driver sees it.

    Args:
        name: Of the worker.
        actor: Its handle.
        call: What was asked of it last and will be answered: first whether it is there, then what happens.
        ready: Whether it is there.
        host: The machine that it is on.
        task: The job that it has.
        affinity: Of its last job.
    """

    name: str
    actor: Any
    call: Any
    ready: bool = False
    host: str = ""
    task: Task | None = None
    affinity: str = ""


class Overseer:
    """What runs on the cluster: keeps one worker process, and passes on what it is told and what happens.

    Args:
        address: Of the store.
        name: Of the worker.
        folder: Where relative paths begin, if this machine has it.
        rehearse: See `Worker`.
        threads: Of the process.
    """

    def __init__(self, address: str, name: str, folder: str, rehearse: bool, threads: int) -> None:
        self.name = f"{name} on {platform.node()}"
        self.address = address
        self.rehearse = rehearse
        self.threads = threads
        self.process: WorkerProcess | None = None
        self.there = threading.Event()
        with contextlib.suppress(OSError):
            os.chdir(folder)
        atexit.register(self.end)  # before Python itself waits for the process, however long its job takes

    def hello(self) -> dict[str, str]:
        """Who this is."""
        return {"host": platform.node(), "version": __version__}

    def give(self, task: Task) -> None:
        """Gives the process a job; it has none."""
        if self.process is None:
            self.process = WorkerProcess(self.name, self.address, rehearse=self.rehearse, threads=self.threads)
        self.process.give(task)
        self.there.set()

    def listen(self, seconds: float) -> list[Event]:
        """What has happened to the job; waits at most so long for something."""
        self.there.wait(seconds)
        process = self.process
        if process is None or not process.connection.poll(seconds):
            return []
        try:
            return process.read()
        except (EOFError, OSError):
            self.process = None
            self.there.clear()
            return process.bury()

    def stop(self) -> None:
        """Asks the process to save its state and to stop with its job."""
        if self.process is not None:
            self.process.stop()

    def end(self) -> None:
        """Ends the process."""
        process, self.process = self.process, None
        if process is not None:
            process.stop()
            process.end()


def room(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """How many workers fit on machines with these resources, were nothing else there.

    Example:
        >>> room([{"CPU": 8, "GPU": 1}, {"CPU": 5}], {"CPU": 2, "GPU": 0}), room([{"CPU": 8}], {"CPU": 1, "GPU": 1})
        (6, 0)
    """
    wanted = {name: value for name, value in needs.items() if value}
    if not wanted:  # nothing limits them
        wanted = {"CPU": 1.0}
    # A hair more, so that ten times 0.1 is 1.
    return sum(min(math.floor(node.get(name, 0) / value + 1e-9) for name, value in wanted.items()) for node in nodes)


def described(resources: Mapping[str, float]) -> str:
    """Resources in words.

    Example:
        >>> described({"CPU": 2.0, "GPU": 1, "memory": 8e9})
        '2 cpus, 1 gpus, 8 GB of memory'
    """
    parts = [f"{resources[name]:g} {name.lower()}s" for name in ("CPU", "GPU") if resources.get(name)]
    parts += [f"{resources['memory'] / 1e9:.3g} GB of memory"] if resources.get("memory") else []
    return ", ".join(parts) or "nothing"


VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns on machines without a GPU
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # it prints errors of the cluster, whatever it was told, to standard output
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
"""Without which Ray talks to others than us; it reads them when it is imported."""


def _ray() -> Any:
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ClusterError(f"The engine ray needs Ray ({error}): pip install 'vprompt[ray]'") from error
    return ray


def _connect(ray: Any, cluster: str | None, needs: Workers, number: int | None) -> None:
    """Joins a cluster, or starts one on this machine that is as large as the workers asked for by number."""
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    try:
        if cluster is not None:
            _knock(cluster)
            ray.init(address=cluster, **quiet)
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cpus = max(cores, math.ceil((number or 0) * needs.cpus))
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet
        )
    except Exception as error:  # Ray has no kind of its own for what goes wrong here
        ray.shutdown()
        what = "No Ray cluster can be started on this machine" if cluster is None else f"No Ray cluster at {cluster}"
        raise ClusterError(f"{what} ({_last_line(error)}).") from error


def _knock(cluster: str) -> None:
    """Ray itself tries for minutes where nobody answers."""
    host, _, port = cluster.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def _cannot_start(error: Exception) -> bool:
    """Whether the constructor of an actor failed, as it would again."""
    return "creation" in str(error) or "__init__" in str(error)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")
