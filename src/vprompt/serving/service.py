"""The service: predictions of a bank's adapters for many clients at once, without a web framework."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vprompt.data.images import MAX_PIXELS, NotAnImageError, TooManyPixelsError, UnusableImageError, read_pixels
from vprompt.data.preprocessing import Preprocessing
from vprompt.serving.bank.bank import Bank, Entry
from vprompt.serving.batcher import Batcher, ClosedError, FullError, LateError, RefusedError
from vprompt.serving.errors import RequestError
from vprompt.serving.limits import Limits
from vprompt.serving.metrics import Metrics
from vprompt.serving.predict import most_probable
from vprompt.utils.errors import UnknownAdapterError, VPromptError
from vprompt.utils.text import printable

R = TypeVar("R")

MAX_SCANS = 100
"""Scans of a JPEG file. Usual are 1 to 20; each costs a pass over all pixels, for as little as 75 bytes."""

_LOG = logging.getLogger("vprompt.serving")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Prediction of an adapter for an image, in the words of `vprompt predict --json`.

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
    top: int


class Service:
    """Predictions of a bank's adapters for many clients; knows no web framework.

    Args:
        bank: Adapters may come and go while it is asked.
        limits: What it takes.

    Attributes:
        metrics: Counters of answers, seconds and batches.
        stopping: Set it to refuse new requests while those under way are answered.

    Raises:
        VPromptError: If the limits allow larger images than the library reads.
    """

    def __init__(self, bank: Bank, limits: Limits) -> None:
        if limits.max_pixels > MAX_PIXELS:
            raise VPromptError(f"max_pixels can be {MAX_PIXELS} at most, not {limits.max_pixels}.")
        self.bank = bank
        self.limits = limits
        self.metrics = Metrics()
        self.stopping = False
        self._under_way = 0
        self._decoding: Batcher[tuple[bytes, Sequence[Preprocessing]], Mapping[Preprocessing, Tensor]] = Batcher(
            lambda jobs: [decoded(*job, max_pixels=limits.max_pixels) for job in jobs],
            max_queue=limits.max_queue,
            threads=min(4, os.cpu_count() or 1),
        )
        self._asking: Batcher[_Ask, Answer] = Batcher(
            self._compute,
            max_batch=limits.max_batch,
            max_wait=limits.max_wait_ms / 1000,
            max_queue=limits.max_queue,
            observe=self.metrics.batches.observe,
        )
        self.metrics.queue.set_function(lambda: self._asking.waiting)
        self.metrics.under_way.set_function(lambda: self._under_way)

    @contextlib.contextmanager
    def place(self) -> Generator[None]:
        """A place among the requests that are under way; to be taken before a body is read.

        Raises:
            RequestError: If there is none, or the service stops.
        """
        if self.stopping:
            raise RequestError("stopping", "The service is stopping; ask another one, or later.")
        if self._under_way >= self.limits.max_queue:
            raise self._problem(FullError())
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
        except UnknownAdapterError as error:
            raise self._problem(error) from None

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
        answers: dict[str, Answer | RequestError] = {}
        entries: list[Entry] = []
        for name in adapters:
            try:
                entries.append(self.entry(name))
            except RequestError as problem:
                answers[name] = problem
        if entries:
            preprocessings = list(dict.fromkeys(entry.preprocessing for entry in entries))
            [images] = await self._results(self._decoding, [(image, preprocessings)], deadline)
            if isinstance(images, RequestError):
                raise images
            asks = [_Ask(images[entry.preprocessing], entry, top) for entry in entries]
            answers |= zip(
                [entry.name for entry in entries], await self._results(self._asking, asks, deadline), strict=True
            )
        return [answers[name] for name in adapters]

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
        except UnknownAdapterError as error:
            raise self._problem(error) from None

    def exposition(self) -> str:
        """The metrics as text."""
        return self.metrics.text({entry.name: entry.nbytes for entry in self.bank.entries})

    def close(self, timeout: float) -> bool:
        """Answers what waits and stops the threads; False where they did not come to an end in `timeout` seconds."""
        self.stopping = True
        until = time.monotonic() + timeout
        decoding = self._decoding.close(timeout)
        return self._asking.close(max(0.0, until - time.monotonic())) and decoding

    def _compute(self, asks: Sequence[_Ask]) -> list[Answer | Exception]:
        """An answer for each; runs in the thread of the bank."""
        images = {id(ask.image): ask.image for ask in asks}
        rows = {key: row for row, key in enumerate(images)}
        logits = self.bank(
            torch.stack([*images.values()]),
            [ask.entry.name for ask in asks],
            rows=[rows[id(ask.image)] for ask in asks],
            return_exceptions=True,
        )
        return [self._answer(ask, logits_C) for ask, logits_C in zip(asks, logits, strict=True)]

    def _answer(self, ask: _Ask, logits_C: Tensor | UnknownAdapterError) -> Answer | RequestError:
        entry, name = ask.entry, printable(ask.entry.name)
        if isinstance(logits_C, UnknownAdapterError):
            return self._problem(logits_C)
        # Another adapter under the same name has other classes.
        if self.bank.get(entry.name) != entry:
            return RequestError("busy", f"The adapter {name!r} was exchanged meanwhile; ask again.")
        logits_C = logits_C.cpu()
        if not bool(logits_C.isfinite().all()):
            return RequestError("failed", f"The adapter {name!r} gives no finite numbers.")
        [best] = most_probable(logits_C[None], ask.top)
        names = entry.classes
        top = tuple((str(index) if names is None else printable(names[index]), value) for index, value in best)
        return Answer(adapter=entry.name, class_index=best[0][0], class_name=top[0][0], probability=top[0][1], top=top)

    async def _results(self, batcher: Batcher[Any, R], items: Sequence[Any], deadline: float) -> list[R | RequestError]:
        """The result of each item, or why it has none; the items of a caller that is cancelled are taken back."""
        try:
            submitted = batcher.submit(items, deadline=deadline)
        except RefusedError as error:
            raise self._problem(error) from None
        futures = [asyncio.wrap_future(future) for future in submitted]
        try:
            await asyncio.wait(futures, timeout=max(0.0, deadline - time.monotonic()))
            return [self._result(future) for future in submitted]
        finally:
            for future in futures:
                # Also one that is done: nobody else asks for its exception.
                if not future.cancel() and not future.cancelled():
                    future.exception()

    def _result(self, future: Future[R]) -> R | RequestError:
        error = future.exception() if future.done() else LateError()
        return future.result() if error is None else self._problem(error)

    def _problem(self, error: BaseException) -> RequestError:
        """Message to a client about an error in a batcher or a computation."""
        limits = self.limits
        match error:
            case RequestError():
                return error
            case UnknownAdapterError():
                return RequestError("unknown_adapter", str(error))
            case FullError():
                sentence = f"{limits.max_queue} requests are under way, which is the limit; ask again in a moment."
                return RequestError("busy", sentence)
            case LateError():
                return RequestError("timeout", f"There was no answer in {limits.timeout:g} seconds; ask again later.")
            case ClosedError():
                return RequestError("stopping", "The service has stopped; ask another one, or later.")
            case _:
                _LOG.error("A prediction failed.", exc_info=error)
                return RequestError("failed", "The prediction failed; the service's log says why.")


def decoded(data: bytes, preprocessings: Sequence[Preprocessing], *, max_pixels: int) -> Mapping[Preprocessing, Tensor]:
    """One image by each preprocessing, normalised (3, H, W), just as `vprompt predict` reads it.

    Args:
        data: An image file.
        preprocessings: Those of the adapters that are asked.
        max_pixels: Refuse more, by the header.

    Raises:
        RequestError: If it is no image, broken, or too large.
    """
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        raise RequestError("broken_image", f"The image has more than {MAX_SCANS} scans; save it again.")
    try:
        return {each: each.normalise(read_pixels(data, each, max_pixels=max_pixels)) for each in preprocessings}
    except NotAnImageError as error:
        raise RequestError("not_an_image", f"What was sent {error}; send a JPEG, PNG or WebP file.") from error
    except TooManyPixelsError as error:
        raise RequestError("too_many_pixels", f"The image {error}; send a smaller one.") from error
    except UnusableImageError as error:
        raise RequestError("broken_image", f"The image {error}; send it again, whole.") from error


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
