"""Quotas of adapters: how often each may be asked, and how many of its requests may be under way."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager

from vprompt.serving.errors import RequestError
from vprompt.serving.limits import Limits
from vprompt.utils.text import printable


class Quotas:
    """Counts of the requests of each adapter, for one thread; after a pause it may be asked a second's worth at once.

    Args:
        limits: Its `rate` and `in_flight`.
        clock: Seconds.

    Example:
        >>> quotas = Quotas(Limits(in_flight=("1",)))
        >>> with quotas.taken("birds"), quotas.taken("birds"):
        ...     pass
        Traceback (most recent call last):
        vprompt.serving.errors.RequestError: 1 request is under way to the adapter 'birds', its limit; ask ...
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates, self._most, self._clock = limits.rates, limits.most_in_flight, clock
        self._under_way = Counter[str]()
        self._even: dict[str, float] = {}
        """When each adapter will have been asked no more often than its rate; none that is in the past."""

    def check(self, name: str) -> None:
        """Refuses a request that there is no room for, by a `RequestError` "too_many"."""
        if (now := self._under_way[name]) >= self._most.get(name, self._most.get("", math.inf)):
            what = "1 request is" if now == 1 else f"{now} requests are"
            what = f"{what} under way to the adapter {printable(name)!r}, its limit"
            raise RequestError("too_many", f"{what}; ask again in a moment.")
        rate = self._rate(name)
        burst = (max(1.0, rate) - 1) / rate if rate < math.inf else 0.0
        if (wait := self._even.get(name, 0.0) - self._clock() - burst) > 1e-9:
            what = f"The adapter {printable(name)!r} answers {rate:g} requests a second"
            raise RequestError("too_many", f"{what}; ask again in {wait:.3g} s.", retry_after=wait)

    @contextmanager
    def taken(self, name: str) -> Generator[None]:
        """Counts a request of an adapter, which is under way inside the block; or refuses it as `check` does."""
        self.check(name)
        now, rate = self._clock(), self._rate(name)
        self._even = {other: then for other, then in self._even.items() if then > now}
        if rate < math.inf:
            self._even[name] = max(now, self._even.get(name, now)) + 1 / rate
        self._under_way[name] += 1
        try:
            yield
        finally:
            self._under_way -= Counter([name])

    def _rate(self, name: str) -> float:
        return self._rates.get(name, self._rates.get("", math.inf))
