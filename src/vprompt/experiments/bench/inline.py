"""Engine that does jobs in this process, one after the other, with bars on standard error."""

from __future__ import annotations

from collections.abc import Sequence

from vprompt.experiments.bench.engine import Event, Task
from vprompt.experiments.bench.worker import Worker
from vprompt.utils.progress import silent


class InlineEngine:
    """Runs jobs where it is asked for what has happened; see `Engine`.

    Args:
        address: Of the store.
        progress: Show the bars of each run.
    """

    def __init__(self, address: str, *, progress: bool = False) -> None:
        self.worker = Worker(address, "inline")
        self.progress = progress
        self._task: Task | None = None
        self._told = False

    def free(self) -> int:
        """One, unless a job waits."""
        return int(self._task is None)

    def submit(self, task: Task) -> None:
        """Keeps the job until `poll`."""
        self._task, self._told = task, False

    def poll(self, seconds: float) -> Sequence[Event]:
        """First tells that a job has started, then does it."""
        if (task := self._task) is None:
            return []
        if not self._told:
            self._told = True
            return [Event(name=task.name, kind="started", worker=self.worker.name)]
        self._task = None
        answer = self.worker.do(task.document, True if self.progress else silent)
        return [Event(name=task.name, kind="done", worker=self.worker.name, answer=answer)]

    def stop(self) -> None:
        """Nothing is going on while others act."""

    def close(self) -> None:
        """Nothing is left to end."""
