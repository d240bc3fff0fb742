"""Engine that does jobs in this process, one after the other, with bars on standard error."""

from __future__ import annotations

from vprompt.experiments.bench.engine import Assignment, Event
from vprompt.experiments.bench.worker import Worker
from vprompt.utils.progress import silent


class InlineEngine:
    """Runs a job where it is asked for what has happened; see `Engine`.

    Args:
        address: Of the store.
        progress: Show the bars of each run.
    """

    def __init__(self, address: str, *, progress: bool = False) -> None:
        self.worker = Worker(address, "inline")
        self.progress = progress
        self._waiting: list[Assignment] = []

    def free(self) -> int:
        """One, unless a job waits."""
        return 1 - len(self._waiting)

    def submit(self, assignment: Assignment) -> str:
        """Keeps the job until `poll`."""
        self._waiting.append(assignment)
        return self.worker.name

    def poll(self, seconds: float) -> list[Event]:
        """Does the job."""
        events: list[Event] = []
        while self._waiting:
            assignment = self._waiting.pop()
            answer = self.worker.do(assignment.document, True if self.progress else silent)
            events.append(Event(name=assignment.name, kind="done", worker=self.worker.name, answer=answer))
        return events

    def stop(self) -> None:
        """Nothing is going on while others act."""

    def close(self) -> None:
        """Nothing is left to end."""
