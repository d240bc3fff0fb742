"""Engine: workers that run jobs, somewhere. The scheduler knows no more of it than this, and tells a watch of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # it imports torch, which an actor that looks after a worker process does without
    from vprompt.experiments.bench.jobs import Job


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A job on its way to a worker.

    Args:
        name: Of the job.
        document: What `jobs.to_plain_data` made of it, for `Worker.do`.
        affinity: Jobs with the same one need the same backbone and images, which a worker keeps.
    """

    name: str
    document: Mapping[str, Any]
    affinity: str = ""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a job.

    Args:
        name: Of the job.
        kind: `"started"`, `"progress"`, `"done"` (the worker's answer is in `answer`), `"lost"` when its process died,
            or `"stopped"` when it was told to.
        worker: Who has it.
        answer: What `Worker.do` returned; for progress, `done`, `total` and figures.
        why: Of a lost job.
    """

    name: str
    kind: Literal["started", "progress", "done", "lost", "stopped"]
    worker: str = ""
    answer: Mapping[str, Any] = field(default_factory=dict[str, Any])
    why: str = ""


class Engine(Protocol):
    """Workers, on this machine or others."""

    def free(self) -> int:
        """Number of jobs that could start now."""
        ...

    def submit(self, assignment: Assignment) -> str:
        """Gives a job to a free worker and returns the worker's name."""
        ...

    def poll(self, seconds: float) -> Sequence[Event]:
        """Events since the last call; waits at most so long for something."""
        ...

    def stop(self) -> None:
        """Asks the workers to save their state and to stop; they answer with `stopped` events."""
        ...

    def close(self) -> None:
        """Ends all workers."""
        ...


class Watch:
    """Told what goes on; this one does nothing with it."""

    def event(self, event: Event) -> None:
        """Something has happened to a job."""

    def settled(self, job: Job, result: Mapping[str, Any]) -> None:
        """A job is done, or has failed (`failed`) for good."""

    def tick(self) -> None:
        """Time has passed."""
