"""Keeps Pillow from printing: what is wrong with an image is said once, by laconic."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

# Without a handler of its own, Pillow's log lines would reach standard error.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class _Silence:
    """Warning filters are shared by all threads: the first that enters sets them, the last that leaves restores."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.saved = warnings.catch_warnings()

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.saved = warnings.catch_warnings()
                self.saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.saved.__exit__(None, None, None)


_SILENCE = _Silence()


@contextmanager
def quiet_pillow() -> Generator[None]:
    """Ignores warnings from Pillow inside the block, also when many threads are in such a block at once."""
    _SILENCE.enter()
    try:
        yield
    finally:
        _SILENCE.leave()
