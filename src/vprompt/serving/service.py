"""What the service takes, and how long it waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vprompt.data.images import MAX_PIXELS
from vprompt.data.preprocessing import Preprocessing
from vprompt.serving.bank.bank import Bank, Entry
from vprompt.serving.batcher import Batcher, ClosedError, FullError, LateError
from vprompt.serving.errors import RequestError
from vprompt.serving.metrics import Metrics
from vprompt.serving.predict import most_probable
from vprompt.serving.requests import decoded
from vprompt.utils.errors import UnknownAdapterError, VPromptError
from vprompt.utils.text import printable


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the service; none can be switched off.

    Args:
        max_batch: Asks (an image and an adapter) computed together.
        max_wait_ms: How long the first ask of a batch waits for others.
        max_queue: Requests under way at once, and asks that wait to be computed; more are refused at once.
        max_bytes: Size of an image file.
        max_pixels: Width times height by the image's header; at most `vprompt.data.images.MAX_PIXELS`.
        timeout: Seconds for a request to come in, and again for its answer; also what a stop waits for those under way.

    Raises:
        VPromptError: If a number cannot be.

    Example:
        >>> Limits(max_batch=0)
        Traceback (most recent call last):
        vprompt.utils.errors.VPromptError: max_batch must be at least 1, not 0.
    """

    max_batch: int = 32
    max_wait_ms: float = 5.0
    max_queue: int = 128
    max_bytes: int = 10 * 2**20
    max_pixels: int = 50_000_000
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise VPromptError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.max_pixels > MAX_PIXELS:
            raise VPromptError(f"max_pixels can be {MAX_PIXELS} at most, not {self.max_pixels}.")
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise VPromptError(f"timeout must be a number of seconds above 0, not {self.timeout}.")
        if not (0 <= self.max_wait_ms <= 1000 * self.timeout):
            raise VPromptError(f"max_wait_ms must be from 0 to the timeout, not {self.max_wait_ms}.")


R = TypeVar("R")

_LOG = logging.getLogger("vprompt.serving")

_MAX_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an adapter says of an image, in the words of `vprompt predict --json`.

    Args:
        adapter: Its name.
        class_index: Number of the most probable class.
        class_name: Its name; its number where the adapter has no names.
        probability: 0 to 1.
        top: The most probable classes with their probabilities, falling.
    """

    adapter: str
    class_index: int
    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class _Ask:
    image: Tensor
    entry: Entry


class Service:
    """Predictions of a bank's adapters for many clients; knows no web framework.

    Args:
        bank: Adapters may come and go while it is asked.
        limits: What it takes.

    Attributes:
        metrics: What was counted.
        stopping: Set it to refuse new requests while those under way are answered.
    """

    def __init__(self, bank: Bank, limits: Limits) -> None:
        self.bank = bank
        self.limits = limits
        self.metrics = Metrics()
        self.stopping = False
        self._under_way = 0
        self._decoding: Batcher[tuple[bytes, Sequence[Preprocessing]], Mapping[Preprocessing, Tensor]] = Batcher(
            lambda jobs: [decoded(data, looks, max_pixels=limits.max_pixels) for data, looks in jobs],
            max_queue=limits.max_queue,
            threads=min(4, os.cpu_count() or 1),
        )
        self._asking: Batcher[_Ask, Tensor] = Batcher(
            self._compute,
            max_batch=limits.max_batch,
            max_wait=limits.max_wait_ms / 1000,
            max_queue=limits.max_queue,
            observe=self.metrics.batch,
        )

    @contextlib.contextmanager
    def place(self) -> Generator[None]:
        """A place among the requests that are under way; to be taken before a body is read.

        Raises:
            RequestError: If there is none, or the service stops.
        """
        if self.stopping:
            raise RequestError("stopping", "The service is stopping; ask another one, or later.")
        if self._under_way >= self.limits.max_queue:
            raise _busy(self.limits)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def entry(self, name: str) -> Entry:
        """The adapter of that name.

        Raises:
            RequestError: If there is none.
        """
        try:
            return self.bank[name]
        except UnknownAdapterError:
            raise self._unknown(name) from None

    async def predict(self, image: bytes, adapters: Sequence[str], *, top: int = 3) -> list[Answer | RequestError]:
        """Asks several adapters about one image, which is decoded once; each answers or fails alone.

        Args:
            image: An image file.
            adapters: Names, none twice.
            top: How many classes to name.

        Raises:
            RequestError: If the image is at fault, or the service has no time.
        """
        deadline = time.monotonic() + self.limits.timeout
        found = [self._entry_or_problem(name) for name in adapters]
        entries = [entry for entry in found if isinstance(entry, Entry)]
        if not entries:
            return [one for one in found if isinstance(one, RequestError)]
        looks = list(dict.fromkeys(entry.preprocessing for entry in entries))
        [images] = await self._settled(self._decoding, [(image, looks)], deadline)
        if isinstance(images, RequestError):
            raise images
        asks = [_Ask(images[entry.preprocessing], entry) for entry in entries]
        answers = iter(await self._settled(self._asking, asks, deadline))
        return [one if isinstance(one, RequestError) else _answer(one, next(answers), top) for one in found]

    async def add(self, name: str, folder: Path) -> Entry:
        """Adds an adapter from a folder on this machine.

        Raises:
            RequestError: If it cannot be.
        """
        try:
            check_name(name)
        except VPromptError as error:
            raise RequestError("invalid", str(error)) from error
        try:
            return await asyncio.to_thread(self.bank.add, name, folder)
        except VPromptError as error:
            raise RequestError("refused", str(error)) from error

    def remove(self, name: str) -> None:
        """Removes an adapter; asks for it that wait are told that it is gone.

        Raises:
            RequestError: If there is none.
        """
        try:
            self.bank.remove(name)
        except UnknownAdapterError:
            raise self._unknown(name) from None

    def exposition(self) -> str:
        """The metrics as text."""
        sizes: dict[str, int] = {}
        for name in self.bank:
            with contextlib.suppress(UnknownAdapterError):  # it may go meanwhile
                sizes[name] = self.bank[name].nbytes
        return self.metrics.text(waiting=self._asking.waiting, under_way=self._under_way, nbytes=sizes)

    def close(self, timeout: float) -> bool:
        """Answers what waits and stops the threads; False where they did not come to an end in `timeout` seconds."""
        self.stopping = True
        until = time.monotonic() + timeout
        decoding = self._decoding.close(timeout)
        return self._asking.close(max(0.0, until - time.monotonic())) and decoding

    def _compute(self, asks: Sequence[_Ask]) -> list[Tensor | Exception]:
        """Logits for each; runs in the thread of the bank."""
        images = {id(ask.image): ask.image for ask in asks}
        rows = {key: row for row, key in enumerate(images)}
        found = self.bank(
            torch.stack([*images.values()]),
            [ask.entry.name for ask in asks],
            rows=[rows[id(ask.image)] for ask in asks],
            return_exceptions=True,
        )
        return [self._checked(ask, one) for ask, one in zip(asks, found, strict=True)]

    def _checked(self, ask: _Ask, logits_C: Tensor | VPromptError) -> Tensor | Exception:
        """What came, unless the adapter is no longer the one that was asked for: its classes would be wrong."""
        if isinstance(logits_C, UnknownAdapterError):
            return self._unknown(ask.entry.name)
        if isinstance(logits_C, VPromptError):
            return logits_C
        if self._entry_or_problem(ask.entry.name) != ask.entry:
            return RequestError(
                "busy", f"The adapter {printable(ask.entry.name)!r} was exchanged meanwhile; ask again."
            )
        logits_C = logits_C.cpu()
        if not bool(logits_C.isfinite().all()):
            return RequestError("failed", f"The adapter {printable(ask.entry.name)!r} gives no finite numbers.")
        return logits_C

    async def _settled(self, batcher: Batcher[Any, R], items: Sequence[Any], deadline: float) -> list[R | RequestError]:
        """What became of each item; those of a caller that is cancelled are taken back."""
        try:
            submitted = batcher.submit(items, deadline=deadline)
        except FullError:
            raise _busy(self.limits) from None
        except ClosedError:
            raise RequestError("stopping", "The service has stopped; ask another one, or later.") from None
        futures = [asyncio.wrap_future(future) for future in submitted]
        try:
            await asyncio.wait(futures, timeout=max(0.0, deadline - time.monotonic()))
            return [self._outcome(one) for one in submitted]
        finally:
            for future in futures:
                # Also one that is done: nobody else asks for its exception.
                if not future.cancel() and not future.cancelled():
                    future.exception()

    def _outcome(self, future: Future[R]) -> R | RequestError:
        if not future.done():
            return self._late()
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, RequestError):
            return error
        if isinstance(error, LateError):
            return self._late()
        if isinstance(error, ClosedError):
            return RequestError("stopping", "The service has stopped; ask another one, or later.")
        _LOG.error("A prediction failed.", exc_info=error)
        return RequestError("failed", "The prediction failed; the service's log says why.")

    def _late(self) -> RequestError:
        return RequestError("timeout", f"There was no answer in {self.limits.timeout:g} seconds; ask again later.")

    def _entry_or_problem(self, name: str) -> Entry | RequestError:
        try:
            return self.entry(name)
        except RequestError as problem:
            return problem

    def _unknown(self, name: str) -> RequestError:
        known = [*self.bank]
        there = ", ".join(known[:_MAX_NAMED]) + (", ..." if len(known) > _MAX_NAMED else "")
        asked = printable(name[:100])
        return RequestError("unknown_adapter", f"There is no adapter {asked!r}; there is {there or 'none'}.")


def check_name(name: str) -> str:
    """The name, if an address can hold it as it is.

    Raises:
        VPromptError: If not.
    """
    plain = all(c.isalnum() or c in "._-" for c in name)
    if not name or not plain or name.startswith(".") or len(name) > 100:
        raise VPromptError(
            f"An adapter cannot be served as {printable(name[:100])!r}: take up to 100 letters, digits, '.', '_' and "
            "'-', no '.' first (name=FOLDER on the command line)."
        )
    return name


def _answer(entry: Entry, logits_C: Tensor | RequestError, top: int) -> Answer | RequestError:
    if isinstance(logits_C, RequestError):
        return logits_C
    [ranked] = most_probable(logits_C[None], top)
    names = entry.classes
    named = tuple((str(index) if names is None else printable(names[index]), value) for index, value in ranked)
    index, probability = ranked[0]
    return Answer(adapter=entry.name, class_index=index, class_name=named[0][0], probability=probability, top=named)


def _busy(limits: Limits) -> RequestError:
    return RequestError(
        "busy", f"{limits.max_queue} requests are under way, which is the limit; ask again in a moment."
    )
