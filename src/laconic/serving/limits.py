"""What the service takes, and how long it waits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from laconic.data.images import MAX_PIXELS
from laconic.errors import LaconicError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the service; none can be switched off.

    Args:
        max_batch: Asks (an image and an adapter) computed together.
        max_wait_ms: How long the first ask of a batch waits for others.
        max_queue: Requests under way at once, and asks that wait to be computed; more are refused at once.
        max_bytes: Size of an image file.
        max_pixels: Width times height by the image's header; at most `laconic.data.images.MAX_PIXELS`.
        timeout: Seconds for a request to come in, and again for its answer; also what a stop waits for those under way.

    Raises:
        LaconicError: If a number cannot be.

    Example:
        >>> Limits(max_batch=0)
        Traceback (most recent call last):
        laconic.errors.LaconicError: max_batch must be at least 1, not 0.
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
                raise LaconicError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.max_pixels > MAX_PIXELS:
            raise LaconicError(f"max_pixels can be {MAX_PIXELS} at most, not {self.max_pixels}.")
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise LaconicError(f"timeout must be a number of seconds above 0, not {self.timeout}.")
        if not (0 <= self.max_wait_ms <= 1000 * self.timeout):
            raise LaconicError(f"max_wait_ms must be from 0 to the timeout, not {self.max_wait_ms}.")
