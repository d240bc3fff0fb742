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
    """What is left to each adapter of its requests a second, and of those under way; for one thread.

    After a pause an adapter may be asked as often at once as in a second.

    Args:
        limits: Its `rate` and `in_flight`.
        clock: Seconds.

    Example:
        >>> quotas = Quotas(Limits(in_flight=("1",)))
        >>> with quotas.taken("birds"), quotas.taken("birds"):
        ...     pass
        Traceback (most recent call last):
        vprompt.serving.errors.RequestError: 1 request is under way to the adapter 'birds', which is its limit; ...
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates, self._most = limits.rates, limits.most_in_flight
        self._clock = clock
        self._under_way = Counter[str]()
        self._even: dict[str, float] = {}
        """When each adapter will have been asked no more often than its rate; none that is in the past."""

    def check(self, name: str) -> None:
        """Refuses a request that there is no room for.

        Raises:
            RequestError: "too_many", with the seconds after which to ask again.
        """
        most, rate = self._most.get(name, self._most.get("", math.inf)), self._rate(name)
        if (now := self._under_way[name]) >= most:
            what = "1 request is" if now == 1 else f"{now} requests are"
            what = f"{what} under way to the adapter {printable(name)!r}, which is its limit"
            raise RequestError("too_many", f"{what}; ask again in a moment.")
        # The last request of a burst comes when all but one second's worth of time is used up.
        wait = self._even.get(name, 0.0) - self._clock() - (max(1.0, rate) - 1) / rate
        if wait > 1e-9:
            what = f"The adapter {printable(name)!r} answers {rate:g} requests a second"
            raise RequestError("too_many", f"{what}; ask again in {wait:.3g} s.", retry_after=wait)

    @contextmanager
    def taken(self, name: str) -> Generator[None]:
        """Counts a request of an adapter, which is under way inside the block.

        Raises:
            RequestError: As `check`; it is not counted then.
        """
        self.check(name)
        now, rate = self._clock(), self._rate(name)
        if rate < math.inf:
            self._even = {other: then for other, then in self._even.items() if then > now}
            self._even[name] = max(now, self._even.get(name, now)) + 1 / rate
        self._under_way[name] += 1
        try:
            yield
        finally:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                del self._under_way[name]

    def _rate(self, name: str) -> float:
        return self._rates.get(name, self._rates.get("", math.inf))
