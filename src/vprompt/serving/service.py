"""The service: predictions of a bank's adapters for many clients at once, without a web framework."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from vprompt.data.images import MAX_PIXELS
from vprompt.data.masks import upright_size
from vprompt.data.preprocessing import Preprocessing
from vprompt.serving.bank.bank import Bank, Entry
from vprompt.serving.bank.banks import Banks
from vprompt.serving.batcher import Batcher
from vprompt.serving.decoding import LANES, Images, decode
from vprompt.serving.errors import RequestError, problem_of
from vprompt.serving.limits import Limits
from vprompt.serving.metrics import Metrics
from vprompt.serving.quotas import Quotas
from vprompt.serving.store import Store
from vprompt.tasks.segmentation import resized
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable

R = TypeVar("R")


Answer = dict[str, Any]
"""The name of an `adapter`, and what it says of an image in the words of `vprompt predict --json`."""


@dataclass(frozen=True)
class _Ask:
    image: Tensor
    entry: Entry
    top: int
    size: tuple[int, int] | None
    """Of the mask, where pixels have labels."""


class Service:
    """Predictions of adapters for many clients; knows no web framework.

    Args:
        bank: Adapters, of one backbone or of several; they may come and go while it is asked.
        limits: What it takes.
        metrics: Counters, where something else counts in them as well.
        store: Loads adapters that the bank does not hold when they are asked for.

    Attributes:
        metrics: Counters of answers, seconds and batches.
        stopping: Set it to refuse new requests while those under way are answered.

    Raises:
        VPromptError: If the limits allow larger images than the library reads.
    """

    def __init__(
        self, bank: Bank | Banks, limits: Limits, *, metrics: Metrics | None = None, store: Store | None = None
    ) -> None:
        if limits.max_pixels > MAX_PIXELS:
            raise VPromptError(f"max_pixels can be {MAX_PIXELS} at most, not {limits.max_pixels}.")
        self.bank = Banks(bank) if isinstance(bank, Bank) else bank
        self.limits = limits
        self.metrics = Metrics() if metrics is None else metrics
        self.store = store
        self.quotas = Quotas(limits)
        self.stopping = False
        self._places = Counter[str]()
        # Large images wait for few others: they must not take all places.
        self._lanes = [
            Batcher[tuple[bytes, Sequence[Preprocessing]], Images | int](
                lambda jobs, lane=lane: [decode(lane, *job, limits.max_pixels) for job in jobs],
                max_queue=max(1, limits.max_queue // 4) if lane else 2 * limits.max_queue,
                threads=1 if lane else min(4, os.cpu_count() or 1),
            )
            for lane in range(len(LANES))
        ]
        self._asking: Batcher[_Ask, Answer] = Batcher(
            self._compute,
            max_batch=limits.max_batch,
            max_wait=limits.max_wait_ms / 1000,
            max_queue=2 * limits.max_queue,
            observe=self.metrics.batches.observe,
        )
        self.metrics.queue.set_function(lambda: self._asking.waiting)

    def check(self, client: str, adapters: Sequence[str]) -> None:
        """Refuses a request that has no place, also before it is read.

        A service that is full still takes, up to twice its limit, requests of clients that have less than their share.

        Args:
            client: Who asks.
            adapters: Which are asked.

        Raises:
            RequestError: If there is no place for it.
        """
        most, asks = self.limits.max_queue, len(adapters)
        taken = self._places.total() + asks
        share = max(1, most // len({*self._places, client}))
        if taken > 2 * most or (taken > most and self._places[client] + asks > share):
            raise RequestError("busy", f"{most} requests are under way, which is the limit; ask again in a moment.")

    @contextlib.contextmanager
    def place(self, client: str, adapters: Sequence[str]) -> Generator[None]:
        """Places among the requests that are computed; to be taken once a body is read, for some never come whole.

        Raises:
            RequestError: If there is none.
        """
        self.check(client, adapters)
        self._places[client] += len(adapters)
        try:
            yield
        finally:
            self._places[client] -= len(adapters)
            self._places += Counter()  # without those that have none

    async def predict(
        self, image: bytes, adapters: Sequence[str], *, top: int = 3, client: str = ""
    ) -> list[Answer | RequestError]:
        """Asks several adapters about one image, which is decoded once; each answers or fails alone.

        Args:
            image: An image file.
            adapters: Names, none twice.
            top: How many classes or tags to name.
            client: Who asks; clients take turns.

        Raises:
            RequestError: If the image is at fault, or the service has no time.
        """
        deadline = time.monotonic() + self.limits.timeout
        answers: dict[str, Answer | RequestError] = {}
        with contextlib.ExitStack() as until_answered:
            found = await self._found(adapters, until_answered, deadline, client)
            answers |= {name: problem for name, problem in found.items() if isinstance(problem, RequestError)}
            if entries := [entry for entry in found.values() if not isinstance(entry, RequestError)]:
                preprocessings = list(dict.fromkeys(entry.preprocessing for entry in entries))
                images = await self._decoded(image, preprocessings, deadline, client)
                asks: list[_Ask] = []
                dense = any(entry.target.dense for entry in entries)
                size = await asyncio.to_thread(upright_size, image) if dense else None
                for entry in entries:
                    pixels = images[entry.preprocessing]
                    if isinstance(pixels, Exception):
                        answers[entry.name] = problem_of(pixels)
                    else:
                        asks.append(_Ask(pixels, entry, top, size if entry.target.dense else None))
                results = await self._results(self._asking, asks, deadline, client)
                answers |= zip([ask.entry.name for ask in asks], results, strict=True)
        return [answers[name] for name in adapters]

    def check_adapter(self, name: str) -> None:
        """Refuses an adapter that is not there, or may not be asked now, by a `VPromptError`."""
        if self.store is None or name in self.bank:
            self.bank[name]  # or the error that says which there are
        else:
            self.store.check(name)
        self.quotas.check(name)

    async def _found(
        self, names: Sequence[str], until: contextlib.ExitStack, deadline: float, client: str
    ) -> dict[str, Entry | RequestError]:
        """The adapters, kept in memory and counted as under way until the stack is closed; or why not."""
        found: dict[str, Entry | RequestError] = {}
        loading: dict[str, asyncio.Future[Entry]] = {}
        for name in names:
            try:
                self.check_adapter(name)
                until.enter_context(self.quotas.taken(name))
                if self.store is None:
                    found[name] = self.bank[name]
                else:
                    until.enter_context(self.store.held(name))
                    loading[name] = asyncio.wrap_future(self.store.ask(name, client))
                    loading[name].add_done_callback(asyncio.Future[Entry].exception)  # also where nobody waits any more
            except VPromptError as error:
                found[name] = problem_of(error)
        if loading:
            # None is cancelled after that: others may wait for the same.
            await asyncio.wait(loading.values(), timeout=max(0.0, deadline - time.monotonic()))
        return found | {name: self._result(future) for name, future in loading.items()}

    async def _decoded(
        self, image: bytes, preprocessings: Sequence[Preprocessing], deadline: float, client: str
    ) -> Images:
        """The image, from the first lane that takes so much work; the last takes all."""
        work = 0
        for most, lane in zip(LANES, self._lanes, strict=True):
            if work <= most:
                [images] = await self._results(lane, [(image, preprocessings)], deadline, client)
                if isinstance(images, RequestError):
                    raise images
                if not isinstance(images, int):
                    return images
                work = images
        raise AssertionError  # the last lane takes any work

    def close(self, timeout: float) -> bool:
        """Answers what waits and stops the threads; False where they did not come to an end in `timeout` seconds."""
        self.stopping = True
        until = time.monotonic() + timeout
        batchers = [*self._lanes, self._asking, *([] if self.store is None else [self.store.loading])]
        ended = [batcher.close(max(0.0, until - time.monotonic())) for batcher in batchers]
        return all(ended)

    def _compute(self, asks: Sequence[_Ask]) -> list[Answer | Exception]:
        """An answer for each; runs in the thread of the banks."""
        logits = self.bank([ask.image for ask in asks], [ask.entry.name for ask in asks])
        return [self._answer(ask, logits_C) for ask, logits_C in zip(asks, logits, strict=True)]

    def _answer(self, ask: _Ask, logits_C: Tensor | Exception) -> Answer | RequestError:
        entry, name = ask.entry, printable(ask.entry.name)
        if isinstance(logits_C, Exception):
            return problem_of(logits_C)
        # Another adapter under the same name has other classes.
        if self.bank.get(entry.name) != entry:
            return RequestError("busy", f"The adapter {name!r} was exchanged meanwhile; ask again.")
        logits_C = logits_C.cpu() if ask.size is None else resized(logits_C[None].float(), ask.size)[0].cpu()
        if not bool(logits_C.isfinite().all()):
            return RequestError("failed", f"The adapter {name!r} gives no finite numbers.")
        target = entry.target
        [said] = target.answers(target.activate(logits_C[None].float()), ask.top)
        if target.grouped:  # classes, unlike other outputs, may be called anything
            top = [(printable(class_name), share) for class_name, share in said["top"]]
            said |= {"class_index": int(logits_C.argmax()), "class_name": top[0][0], "top": top}
        return {"adapter": entry.name, **said}

    async def _results(
        self, batcher: Batcher[Any, R], items: Sequence[Any], deadline: float, client: str
    ) -> list[R | RequestError]:
        """The result of each item, or why it has none; the items of a caller that is cancelled are taken back."""
        futures = [asyncio.wrap_future(future) for future in batcher.submit(items, deadline=deadline, client=client)]
        try:
            if futures:
                await asyncio.wait(futures, timeout=max(0.0, deadline - time.monotonic()))
            return [self._result(future) for future in futures]
        finally:
            for future in futures:
                # Also one that is done: nobody else asks for its exception.
                if not future.cancel() and not future.cancelled():
                    future.exception()

    def _result(self, future: asyncio.Future[R]) -> R | RequestError:
        if not future.done():
            return RequestError("timeout", f"There was no answer in {self.limits.timeout:g} seconds; ask again later.")
        error = future.exception()
        return future.result() if error is None else problem_of(error)
