"""Limits of the service."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import tyro

from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the service; sizes and times cannot be switched off.

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

    rate: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="[NAME=]NUMBER")] = ()
    """Requests a second to the adapter NAME, without NAME to each other one; more are told when to ask again."""
    in_flight: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="[NAME=]NUMBER")] = ()
    """Requests to the adapter NAME, without NAME to each other one, that may be under way at once."""
    max_adapters: int = 64
    """Adapters of --adapters that are in memory; the least recently used goes for a new one."""
    max_adapter_bytes: int = 2**30
    """Bytes of them together beside the backbones, and of each one's file."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_bytes", "max_pixels", "max_adapters", "max_adapter_bytes"):
            if getattr(self, name) < 1:
                raise VPromptError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise VPromptError(f"timeout must be a number of seconds above 0, not {self.timeout}.")
        if not (0 <= self.max_wait_ms <= 1000 * self.timeout):
            raise VPromptError(f"max_wait_ms must be from 0 to the timeout, not {self.max_wait_ms}.")
        if not all(0 < number < math.inf for number in (*self.rates.values(), *self.most_in_flight.values())):
            raise VPromptError("rate and in_flight must be above 0; leave them out for no limit.")

    @cached_property
    def rates(self) -> dict[str, float]:
        """Requests a second by adapter; by "" of each that is not named."""
        return _by_name("rate", self.rate)

    @cached_property
    def most_in_flight(self) -> dict[str, float]:
        """Requests under way by adapter; by "" of each that is not named."""
        return _by_name("in_flight", self.in_flight)


def _by_name(option: str, texts: Sequence[str]) -> dict[str, float]:
    try:
        return {name: float(number) for name, _, number in (text.rpartition("=") for text in texts)}
    except ValueError as error:
        raise VPromptError(f"{option} takes NUMBER or NAME=NUMBER, not {printable(' '.join(texts))!r}.") from error
