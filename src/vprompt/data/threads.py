"""A function over many items in a few threads: Pillow and file reads let other threads run."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

Item = TypeVar("Item")

Result = TypeVar("Result")

MAX_WORKERS = 8


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yields `function(item)` in the order of `items`, with only a few of them under way at a time.

    The threads live as long as the iteration, so that processes forked later inherit none. They have ended when the
    last result is given: waiting for them in a finaliser, of a generator that `zip` left, would swallow a Ctrl-C.

    Example:
        >>> list(in_threads(abs, [-1, 2, -3]))
        [1, 2, 3]
    """
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while len(waiting) > 1:
            yield waiting.popleft().result()
        last = [future.result() for future in waiting]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    yield from last


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items, the next of which a thread computes while one is used.

    Example:
        >>> list(ahead(iter([1, 2, 3])))
        [1, 2, 3]
    """
    end = object()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, end)
        while (item := following.result()) is not end:
            following = pool.submit(next, items, end)
            yield cast("Item", item)
