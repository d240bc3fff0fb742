"""Ctrl-C and SIGTERM: at once while modules are imported, or as a request that a job honours at its next safe point."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""Exit status of a process that Ctrl-C ended."""


@contextmanager
def interrupted_imports() -> Generator[None]:
    """Inside, Ctrl-C in the midst of an import ends the process with a word; anywhere else it does what it always does.

    An import that a KeyboardInterrupt is raised in may swallow it, print it, or leave a module half made.
    """
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # somebody else's, or ignored
    ):
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        above = frame
        while above is not None:
            if above.f_code.co_filename == "<frozen importlib._bootstrap>":
                os.write(2, b"vprompt: Stopped.\n")
                os._exit(INTERRUPTED)
            above = above.f_back
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is end:
            signal.signal(signal.SIGINT, signal.default_int_handler)


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
