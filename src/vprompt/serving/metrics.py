"""Counters of the service, as text for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the latency histogram."""

SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Upper bounds of the histogram of batch sizes."""


class Metrics:
    """Counters of one service; safe to use from all threads.

    The label `adapter` only ever has names of adapters that are there, or "": nobody can make series by asking for
    names that do not exist, and those of an adapter that is removed go with it.

    Attributes:
        answers: One for each adapter that was asked, or one of a request that came to none ("").
        seconds: Time of each request.
        batches: Size of each batch.
        pulled: What became of adapters that are loaded when they are asked for.
        queue: Asks that wait.
        under_way: Requests that are not answered yet.

    Example:
        >>> metrics = Metrics()
        >>> metrics.answers.labels("birds", 200).inc()
        >>> print(metrics.text({"birds": 512}).splitlines()[2])
        vprompt_requests_total{adapter="birds",status="200"} 1.0
    """

    def __init__(self) -> None:
        disable_created_metrics()  # when each series began would be series of their own in this format
        registry = self._registry = CollectorRegistry()
        self._exposing = threading.Lock()
        self.answers = Counter(
            "vprompt_requests_total",
            "Answers of POST /v1/predict by adapter and HTTP status.",
            ("adapter", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "vprompt_request_seconds",
            "From a request's head to the end of its answer.",
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "vprompt_batch_size", "Asks (an image and an adapter) computed together.", buckets=SIZES, registry=registry
        )
        self.pulled = Counter(
            "vprompt_pulled_adapters_total",
            "Of --adapters: asked for and there (hit) or not (miss), given up (eviction), not to be had (failure).",
            ("event",),
            registry=registry,
        )
        self.queue = Gauge("vprompt_queue_length", "Asks that wait to be computed.", registry=registry)
        self.under_way = Gauge("vprompt_under_way", "Predictions that are not answered yet.", registry=registry)
        self._nbytes = Gauge(
            "vprompt_adapter_bytes", "Memory of an adapter beside the backbone.", ("adapter",), registry=registry
        )

    def text(self, nbytes: Mapping[str, int]) -> str:
        """The exposition, version 0.0.4, with the size of each adapter that is there."""
        with self._exposing:
            self._nbytes.clear()
            for adapter, size in nbytes.items():
                self._nbytes.labels(adapter).set(size)
            series = {tuple(sample.labels.values()) for metric in self.answers.collect() for sample in metric.samples}
            for adapter, status in series:
                if adapter and adapter not in nbytes:
                    self.answers.remove(adapter, status)
            return generate_latest(self._registry).decode()
