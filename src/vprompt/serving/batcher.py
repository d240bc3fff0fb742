"""Batching of what many clients ask: a queue with a limit, and threads that empty it in batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vprompt.serving.errors import RequestError

T = TypeVar("T")

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[T, R]):
    item: T
    deadline: float
    submitted: float
    future: Future[R] = field(default_factory=Future)


class Batcher(Generic[T, R]):
    """Hands items to `compute` in batches, from threads of its own, and each result or error to whom it belongs.

    Clients take turns, item by item, so that one who asks much waits for itself and not for others.

    Where a batch fails as a whole it is halved until only the item that fails is alone; the others get their results.

    Args:
        compute: Gets 1 to `max_batch` items, returns for each a result or an exception, in order.
        max_batch: Items in a batch.
        max_wait: Seconds that an item waits for others to share its batch with.
        max_queue: Items that may wait.
        threads: How many batches are computed at once.
        observe: Told the size of every batch that is computed.

    Example:
        >>> batcher = Batcher(lambda items: [item * item for item in items], max_batch=8)
        >>> [future.result() for future in batcher.submit([2, 3])]
        [4, 9]
        >>> batcher.close(timeout=1)
        True
    """

    def __init__(
        self,
        compute: Callable[[Sequence[T]], Sequence[R | Exception]],
        *,
        max_batch: int = 1,
        max_wait: float = 0.0,
        max_queue: int = 128,
        threads: int = 1,
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._compute = compute
        self._max_batch, self._max_wait, self._max_queue = max_batch, max_wait, max_queue
        self._observe = observe
        self._queues: dict[str, deque[_Waiting[T, R]]] = {}
        """By client, none of them empty; the first is the next to take from."""
        self._changed = threading.Condition()
        self._closed = False
        # Daemons: a computation that never ends must not keep the process from ending.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Number of items that wait."""
        return sum(map(len, list(self._queues.values())))

    def submit(self, items: Sequence[T], *, deadline: float = float("inf"), client: str = "") -> list[Future[R]]:
        """Queues items, all or none; cancelling a future takes its item out.

        Args:
            items: What to compute.
            deadline: In the time of `time.monotonic`; an item whose turn comes later ends in "timeout".
            client: Who asks.

        Raises:
            RequestError: "busy", if they do not fit in the queue; "stopping", after `close`.
        """
        now = time.monotonic()
        with self._changed:
            if self._closed:
                raise _stopped()
            if self.waiting + len(items) > self._max_queue:
                kept = {key: deque(w for w in queue if not w.future.cancelled()) for key, queue in self._queues.items()}
                self._queues = {key: queue for key, queue in kept.items() if queue}
            if self.waiting + len(items) > self._max_queue:
                raise RequestError(
                    "busy", f"{self._max_queue} requests wait, which is the limit; ask again in a moment."
                )
            added = [_Waiting[T, R](item, deadline, now) for item in items]
            if added:
                self._queues.setdefault(client, deque()).extend(added)
            self._changed.notify_all()
        return [waiting.future for waiting in added]

    def close(self, timeout: float) -> bool:
        """Takes no more items, computes what waits, and tells whether that was done in `timeout` seconds.

        What still waits then is given up with the error "stopping"; a batch that is being computed is left to itself.
        """
        until = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        with self._changed:
            left = [waiting for queue in self._queues.values() for waiting in queue]
            self._queues.clear()
        for waiting in left:
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(_stopped())
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                self._settle(batch)
                # Nothing of a batch must live on while the thread waits for the next.
                del batch

    def _next(self) -> list[_Waiting[T, R]] | None:
        """The next batch, without those whose client has gone or whose time is over; None at the end."""
        with self._changed:
            while not self._queues:
                if self._closed:
                    return None
                self._changed.wait()
            until = min(queue[0].submitted for queue in self._queues.values()) + self._max_wait
            while 0 < self.waiting < self._max_batch and not self._closed:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            taken: list[_Waiting[T, R]] = []
            late: list[_Waiting[T, R]] = []
            now = time.monotonic()
            while self._queues and len(taken) < self._max_batch:
                client, queue = next(iter(self._queues.items()))
                waiting = queue.popleft()
                del self._queues[client]
                if queue:
                    self._queues[client] = queue
                if waiting.future.set_running_or_notify_cancel():
                    (taken if now < waiting.deadline else late).append(waiting)
        for waiting in late:
            waiting.future.set_exception(
                RequestError("timeout", "It was not this request's turn in time; ask again later.")
            )
        return taken

    def _settle(self, batch: Sequence[_Waiting[T, R]]) -> None:
        self._observe(len(batch))
        try:
            results = self._compute([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results came for {len(batch)} items")
        except Exception as error:
            # No more of it: its traceback holds on to the failed computation, which may have failed for want of memory.
            results = [error] if len(batch) == 1 else []
        if not results:
            half = len(batch) // 2
            self._settle(batch[:half])
            self._settle(batch[half:])
        for waiting, result in zip(batch, results, strict=False):
            if isinstance(result, Exception):
                waiting.future.set_exception(result)
            else:
                waiting.future.set_result(result)


def _stopped() -> RequestError:
    return RequestError("stopping", "The service has stopped; ask another one, or later.")
