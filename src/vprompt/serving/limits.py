"""Limits of the service."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vprompt.utils.errors import VPromptError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the service; none can be switched off.

    Raises:
        VPromptError: If a number cannot be.

    Example:
        >>> Limits(max_batch=0)
        Traceback (most recent call last):
        vprompt.utils.errors.VPromptError: max_batch must be at least 1, not 0.
    """

    max_batch: int = 32
    """Asks (an image and an adapter) computed together."""
    max_wait_ms: float = 5.0
    """Milliseconds that the first ask of a batch waits for others."""
    max_queue: int = 128
    """Asks of requests whose images are there; more are refused, but to clients with less than their share."""
    max_bytes: int = 10 * 2**20
    """Size of an image file."""
    max_pixels: int = 50_000_000
    """Width times height of an image, by its header."""
    timeout: float = 30.0
    """Seconds for a request to come in, as many for its answer; a stop waits as long for those under way."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise VPromptError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise VPromptError(f"timeout must be a number of seconds above 0, not {self.timeout}.")
        if not (0 <= self.max_wait_ms <= 1000 * self.timeout):
            raise VPromptError(f"max_wait_ms must be from 0 to the timeout, not {self.max_wait_ms}.")
