"""Ctrl-C and SIGTERM as a request that a job honours at its next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt(*, enabled: bool = True) -> Generator[Callable[[], bool]]:
    """Inside, a first Ctrl-C or SIGTERM is only noted; a second one interrupts at once.

    Args:
        enabled: False leaves signals as they are, as does any thread but the main one.

    Yields:
        A function that tells whether a signal came.
    """
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        came.set()
        restore()

    for number in previous:
        signal.signal(number, note)
    try:
        yield came.is_set
    finally:
        restore()
