"""Workers on a Ray cluster: an actor for each, which looks after a worker process like those of the local engine."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import platform
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vprompt.experiments.bench.engine import Assignment, Event
from vprompt.experiments.bench.local import LocalEngine
from vprompt.utils.errors import VPromptError
from vprompt.utils.version import __version__

if TYPE_CHECKING:
    from vprompt.experiments.bench.plan import Workers

PING_SECONDS = 1.0
"""After which an actor answers a ping, with how far its job is."""

GROW_EVERY_SECONDS = 5.0
"""Whether machines have joined the cluster is asked so often."""

UNFIT_SECONDS = 60.0
"""For which a cluster may lack any machine that is large enough; one may be on its way."""

FULL_SECONDS = 600.0
"""For which others may use all of a cluster."""

END_SECONDS = 15.0

CONNECT_SECONDS = 10.0

OBJECT_STORE_BYTES = 100 * 2**20
"""Of a cluster on this machine; only jobs and their answers go through it."""

VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns on machines without a GPU
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # it prints errors of the cluster, whatever it was told, to standard output
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
"""Without which Ray talks to others than us; it reads them when it is imported."""


class ClusterError(VPromptError):
    """A Ray cluster cannot be used."""


@dataclass(eq=False, kw_only=True)
class _Seat:
    """An actor as the driver sees it: its last process, if it has had one, and whether that is in the pool."""

    name: str
    actor: Any
    process: str = ""
    host: str = ""
    ready: bool = False
    affinity: str = ""


class RayEngine:
    """Runs jobs on a Ray cluster.

    Every worker is an actor that holds the resources and has a process of its own for the jobs, so that one that dies
    takes nothing with it. Ray starts an actor again that was lost. All of them end with this process.

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
        self.ray = import_ray()
        self.connected_here = not self.ray.is_initialized()
        if self.connected_here:
            connect(self.ray, cluster, needs, self.number)
        nodes = self._nodes()
        gpus = needs.gpus if needs.gpus is not None else float(any(node.get("GPU", 0) for node in nodes))
        self.needs = {"CPU": needs.cpus, "GPU": gpus, "memory": (needs.memory_gb or 0) * 1e9}
        self.pool = self.ray.util.ActorPool([])
        self.seats: list[_Seat] = []
        self._running: dict[str, _Seat] = {}  # by the names of their jobs
        self._pings: dict[Any, _Seat] = {}  # one open question to each actor
        self._next_growth = 0.0
        self._without_since = time.monotonic()
        if cluster is None and self.connected_here and not room(nodes, self.needs):
            self.close()
            raise ClusterError(self._unfit(nodes))

    def free(self) -> int:
        """See `Engine`."""
        return sum(seat.ready for seat in self.seats) - len(self._running)

    def submit(self, assignment: Assignment) -> str:
        """See `Engine`: a free worker, best one that has the backbone and images."""

        def give(seat: _Seat, assignment: Assignment) -> Any:
            self._running[assignment.name] = seat
            seat.affinity = assignment.affinity
            return seat.actor.do.remote(assignment)

        # The pool takes the one that was put in last.
        for seat in sorted(self._take_idle(), key=lambda seat: seat.affinity == assignment.affinity):
            self.pool.push(seat)
        self.pool.submit(give, assignment)
        return self._running[assignment.name].name

    def poll(self, seconds: float) -> list[Event]:
        """See `Engine`.

        Raises:
            ClusterError: If the cluster has no room for a single worker for long.
        """
        self._grow()
        events = self._answers(0 if self._running else seconds)
        while self._running:
            try:
                event: Event = self.pool.get_next_unordered(timeout=0 if events else seconds)
            except TimeoutError:
                break
            except self.ray.exceptions.RayActorError as error:
                event = self._lost(error)
            del self._running[event.name]
            events.append(event)
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

    def _grow(self) -> None:
        """Spawns workers where the cluster has room for more; says so when there is none for a single one."""
        now = time.monotonic()
        if now < self._next_growth:
            return
        self._next_growth = now + GROW_EVERY_SECONDS
        nodes = self._nodes()
        options = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs["GPU"], "memory": self.needs["memory"] or None}
        # Methods run side by side: one waits for the end of a job while others are asked how far it is, or stop it.
        kind = self.ray.remote(Overseer).options(**options, max_concurrency=4, max_restarts=-1)
        threads = max(1, int(self.needs["CPU"]))
        for number in range(len(self.seats), self.number or room(nodes, self.needs)):
            name = f"worker {number}"
            seat = _Seat(name=name, actor=kind.remote(self.address, name, os.getcwd(), self.rehearse, threads))
            self.seats.append(seat)
            self._ping(seat, 0.0)
        if any(seat.ready for seat in self.seats):
            self._without_since = now
        elif now - self._without_since > (FULL_SECONDS if room(nodes, self.needs) else UNFIT_SECONDS):
            raise ClusterError(self._unfit(nodes))

    def _ping(self, seat: _Seat, seconds: float) -> None:
        self._pings[seat.actor.ping.options(max_task_retries=-1).remote(seconds)] = seat

    def _answers(self, seconds: float) -> list[Event]:
        """Events of the jobs; workers that are there now, or again, join the pool."""
        if not self._pings:
            time.sleep(seconds)
            return []
        answers, _ = self.ray.wait(list(self._pings), num_returns=1 if seconds else len(self._pings), timeout=seconds)
        events: list[Event] = []
        for answer in answers:
            seat = self._pings.pop(answer)
            try:
                about = self.ray.get(answer)
            except self.ray.exceptions.RayError as error:
                raise ClusterError(
                    f"No worker can start on the Ray cluster ({last_line(error)}); does every machine of it have the "
                    "same vprompt and Python as this one?"
                ) from error
            if about["version"] != __version__:
                raise ClusterError(
                    f"{about['host']} has vprompt {about['version']} and this machine {__version__}; install the same "
                    "everywhere."
                )
            if not seat.ready and about["process"] == seat.process:
                self.ray.kill(seat.actor, no_restart=False)  # only the network failed; its job is another's now
            elif not seat.ready:
                seat.process, seat.host, seat.ready = about["process"], about["host"], True
                self.pool.push(seat)
            progress: Event | None = about["progress"]
            if progress is not None and self._running.get(progress.name) is seat:
                events.append(progress)
            self._ping(seat, PING_SECONDS)
        return events

    def _lost(self, error: Any) -> Event:
        """After an actor died, or was cut off: it leaves the pool until it answers from a new process."""
        name, seat = next(row for row in self._running.items() if row[1].actor._actor_id.hex() == error.actor_id)
        seat.ready = False
        for idle in self._take_idle():
            if idle is not seat:
                self.pool.push(idle)
        why = f"its Ray worker on {seat.host} was ended or cannot be reached"
        return Event(name=name, kind="lost", worker=seat.name, why=why)

    def _take_idle(self) -> list[_Seat]:
        return list(iter(self.pool.pop_idle, None))

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _unfit(self, nodes: Sequence[Mapping[str, float]]) -> str:
        have = "; ".join(sorted({described(node) for node in nodes})) or "nothing"
        return (
            "No machine of the Ray cluster has free what the plan wants for each worker "
            f"({described(self.needs)}); they have {have} in all."
        )


class Overseer:
    """Actor of a Ray cluster: a local engine with one worker process.

    Args:
        address: Of the store.
        name: Of the worker.
        folder: Where relative paths begin, if this machine has it.
        rehearse: See `Worker`.
        threads: Of the process.
    """

    def __init__(self, address: str, name: str, folder: str, rehearse: bool, threads: int) -> None:
        name = f"{name} on {platform.node()}"
        self.engine = LocalEngine(address, name=name, rehearse=rehearse, threads=threads)
        self.process = uuid.uuid4().hex
        self.progress: Event | None = None
        with contextlib.suppress(OSError):
            os.chdir(folder)
        atexit.register(self.end)  # before Python itself waits for the process, however long its job takes

    def ping(self, seconds: float) -> dict[str, Any]:
        """Who this is and how far its job is, after some seconds."""
        time.sleep(seconds)
        about = {"process": self.process, "host": platform.node(), "version": __version__}
        return {**about, "progress": self.progress}

    def do(self, assignment: Assignment) -> Event:
        """Has the process do a job, and returns what became of it."""
        try:
            self.engine.submit(assignment)
        except OSError as error:
            return Event(name=assignment.name, kind="lost", why=f"no process could be started ({error.strerror})")
        while True:
            for event in self.engine.poll(60.0):
                if event.kind != "progress":
                    return event
                self.progress = event

    def stop(self) -> None:
        """Asks the process to save its state and to stop with its job."""
        self.engine.stop()

    def end(self) -> None:
        """Ends the process."""
        self.engine.stop()
        self.engine.close()


def room(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """Number of workers that fit on machines with these resources, were nothing else there.

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


def import_ray() -> Any:
    """Ray, which then talks to nobody but us.

    Raises:
        ClusterError: If it is not installed.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ClusterError(f"This needs Ray ({error}): pip install 'vprompt[ray]'") from error
    return ray


def connect(ray: Any, cluster: str | None, needs: Workers, number: int | None) -> None:
    """Joins a cluster, or starts one on this machine that is as large as the workers asked for by number; or raises."""
    quiet: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    try:
        if cluster is not None:
            host, _, port = cluster.removeprefix("ray://").rpartition(":")
            if host and port.isdigit():  # Ray itself tries for minutes where nobody answers
                socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
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
        raise ClusterError(f"{what} ({last_line(error)}).") from error


def last_line(error: Exception) -> str:
    """The last line of what an error says, where Ray has the words of whom it failed by, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].rstrip(".")
