"""What the service counts, as text for Prometheus."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the latency histogram."""

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Upper bounds of the histogram of batch sizes."""


class Histogram:
    """Counts of observations by upper bound.

    Example:
        >>> sizes = Histogram((1.0, 8.0))
        >>> for size in (1, 3, 99): sizes.observe(size)
        >>> list(sizes.lines("size"))[:3]
        ['size_bucket{le="1"} 1', 'size_bucket{le="8"} 2', 'size_bucket{le="+Inf"} 3']
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterable[str]:
        """Its samples."""
        total = 0
        for bound, count in zip((*(f"{bound:g}" for bound in self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum!r}"
        yield f"{name}_count {total}"


class Metrics:
    """Counters of one service; safe to use from all threads.

    The label `adapter` only ever has names of adapters that are there, or "": nobody can make series by asking for
    names that do not exist, and those of an adapter that is removed go with it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds = Histogram(SECONDS)
        self._batches = Histogram(SIZES)

    def count(self, adapter: str, status: int) -> None:
        """Counts the answer of one adapter, or that of a request that came to none ("")."""
        with self._lock:
            self._requests[adapter, status] += 1

    def took(self, seconds: float) -> None:
        """Counts a request's time."""
        with self._lock:
            self._seconds.observe(seconds)

    def batch(self, size: int) -> None:
        """Counts a batch."""
        with self._lock:
            self._batches.observe(size)

    def text(self, *, waiting: int, under_way: int, nbytes: Mapping[str, int]) -> str:
        """The exposition, version 0.0.4.

        Args:
            waiting: Asks that wait to be computed.
            under_way: Requests that are not answered yet.
            nbytes: Size of each adapter that is there.
        """
        with self._lock:
            for gone in [key for key in self._requests if key[0] and key[0] not in nbytes]:
                del self._requests[gone]
            requests = [
                f'vprompt_requests_total{{adapter="{escaped(adapter)}",status="{status}"}} {count}'
                for (adapter, status), count in sorted(self._requests.items())
            ]
            seconds = [*self._seconds.lines("vprompt_request_seconds")]
            batches = [*self._batches.lines("vprompt_batch_size")]
        sizes = [f'vprompt_adapter_bytes{{adapter="{escaped(name)}"}} {size}' for name, size in nbytes.items()]
        families = [
            ("requests_total", "counter", "Answers of POST /v1/predict by adapter and HTTP status.", requests),
            ("request_seconds", "histogram", "From a request's head to the end of its answer.", seconds),
            ("batch_size", "histogram", "Asks (an image and an adapter) computed together.", batches),
            ("queue_length", "gauge", "Asks that wait to be computed.", [f"vprompt_queue_length {waiting}"]),
            ("under_way", "gauge", "Predictions that are not answered yet.", [f"vprompt_under_way {under_way}"]),
            ("adapter_bytes", "gauge", "Memory of an adapter beside the backbone.", sizes),
        ]
        lines: list[str] = []
        for name, kind, about, samples in families:
            lines += [f"# HELP vprompt_{name} {about}", f"# TYPE vprompt_{name} {kind}", *samples]
        return "\n".join(lines) + "\n"


def escaped(value: str) -> str:
    r"""A label's value as the format wants it.

    Example:
        >>> print(escaped('a "b"\n'))
        a \"b\"\n
    """
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
