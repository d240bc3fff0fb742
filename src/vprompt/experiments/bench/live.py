"""Progress of a benchmark on standard error: a live table on a terminal, elsewhere a line for each run."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vprompt.experiments.bench.engine import Event, Watch
from vprompt.experiments.bench.jobs import Job
from vprompt.experiments.folder import score_key
from vprompt.utils.text import duration, printable

LAST = 6
"""Finished runs that are shown."""


class LiveTable(Watch):
    """Watch that draws; its `live` is open meanwhile.

    Args:
        total: Jobs in all, as far as can be told.
        done: Of them before this call.
        expected: Seconds of each job, where known.
        workers: How many jobs run at once.
    """

    def __init__(self, total: int, done: int, expected: Mapping[str, float], workers: int) -> None:
        self.total, self.done, self.failed = total, done, 0
        self.expected = expected
        self.workers = workers
        self.left = sum(expected.values())
        self.spent, self.planned_spent = 0.0, 0.0
        self.running: dict[str, dict[str, Any]] = {}
        self.last: deque[Text] = deque(maxlen=LAST)
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False, transient=True)

    def event(self, event: Event) -> None:
        """See `Watch`."""
        if event.kind in ("started", "progress"):
            row = self.running.setdefault(event.name, {"since": time.monotonic(), "worker": event.worker})
            row |= event.answer
            return
        row = self.running.pop(event.name, None)
        if row is not None and event.kind == "done":
            self.spent += time.monotonic() - row["since"]
            self.planned_spent += self.expected.get(event.name, 0.0)
        if event.kind == "lost":
            self._note(Text(f"{event.name}: {event.why}; it starts again", style="yellow"))

    def settled(self, job: Job, result: Mapping[str, Any]) -> None:
        """See `Watch`."""
        self.done += 1
        self.left -= self.expected.get(job.name, 0.0)
        self.total = max(self.total, self.done)
        if why := result.get("failed"):
            self.failed += 1
            self._note(Text(f"failed  {printable(job.name)}: {printable(str(why))}", style="red"))
            return
        figures = [
            f"{split} {100 * score:.1f} %"
            for split in ("test", "val")
            if (score := result.get(score_key(result, split))) is not None
        ]
        figures += ["diverged"] if result.get("diverged") else []
        figures += [duration(result["seconds"])] if result.get("seconds") is not None else []
        self._note(Text(f"done  {'  '.join(figures)}  {printable(job.name)}"))

    def tick(self) -> None:
        """See `Watch`."""
        if self.console.is_terminal:
            self.live.update(self._picture(), refresh=True)

    def _note(self, line: Text) -> None:
        if self.console.is_terminal:
            line.no_wrap, line.overflow = True, "ellipsis"
            self.last.append(line)
        else:
            print(f"[{self.done}/{self.total}] {line.plain}", file=sys.stderr, flush=True)  # noqa: T201

    def _picture(self) -> Group:
        head = Text(f"{self.done} of {self.total} runs done", style="bold")
        if self.failed:
            head.append(f", {self.failed} failed", style="red")
        if self.left > 0:
            scale = self.spent / self.planned_spent if self.planned_spent else 1.0
            head.append(f", about {duration(max(0.0, self.left) * scale / self.workers)} left")
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(no_wrap=True, justify="right")
        for name, row in self.running.items():
            share = f"{100 * row['done'] / row['total']:3.0f} %" if row.get("total") else "starts"
            since = duration(time.monotonic() - row["since"])
            figures = f"loss {row['loss']:.3g} " if "loss" in row else ""
            table.add_row(Text(f"> {printable(name)}", style="cyan"), Text(f"{figures}{share} {since}"))
        return Group(head, table, *self.last)
