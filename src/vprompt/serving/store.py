"""Adapters that are loaded when they are asked for, from a folder or the Hub, within a bound on memory."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Future
from pathlib import Path

from vprompt.model import hub
from vprompt.model.load import HUB
from vprompt.model.tensors import CONFIG_FILE, TENSORS_FILE
from vprompt.serving.bank.bank import Entry, unknown
from vprompt.serving.bank.banks import Banks
from vprompt.serving.batcher import Batcher
from vprompt.serving.errors import RequestError
from vprompt.serving.limits import Limits
from vprompt.serving.metrics import Metrics
from vprompt.serving.watch import ENGINE_FILE, State, Watch, adapter_in, check_name, state_of
from vprompt.utils.errors import AdapterError, UnknownAdapterError, VPromptError
from vprompt.utils.text import printable

LOADS_AT_ONCE = 4
"""Adapters that are fetched at once; they are put on their backbone one after the other."""

REFUSED_SECONDS = 10.0
"""Seconds for which a name that could not be loaded is refused without another look."""

MOST_REFUSED = 1000

ROOM_SECONDS = 2.0
"""Seconds that an adapter waits for another to be given up that is in use."""

_LOG = logging.getLogger("vprompt.serving")


class Store(Watch):
    """Adapters that are loaded when they are asked for; of those that nobody uses, the least recently used go.

    They must be of a backbone that is there. Adapters that the banks hold otherwise stay, and are not counted. What
    changes in the folder is loaded again; an adapter from the Hub stays as it was when it was loaded.

    Args:
        banks: Take the adapters in.
        place: A folder of adapters, or `hf:USER` for those of a user or an organisation on the Hub.
        limits: Its `max_adapters` and `max_adapter_bytes` are kept.
        metrics: Told of hits, misses, evictions and failures.

    Raises:
        VPromptError: If the place is none, or there is no backbone, and no adapter in the folder to make it for.
    """

    def __init__(self, banks: Banks, place: str, limits: Limits, metrics: Metrics) -> None:
        self._user = place.removeprefix(HUB) if place.startswith(HUB) else None
        self._limits, self._events = limits, metrics.pulled
        self._bytes: dict[str, int] = {}
        """Of those that are loaded, the least recently used first."""
        self._leaving, self._uses = set[str](), Counter[str]()
        self._changed = threading.Condition()  # of the three above; never held for long
        self._adding = threading.Lock()
        self._under_way: dict[str, Future[Entry]] = {}
        self._refused: dict[str, tuple[float, RequestError]] = {}
        super().__init__(banks, Path(place))
        self.loading = Batcher[str, Entry](
            lambda names: [self._load(name) for name in names], threads=LOADS_AT_ONCE, max_queue=limits.max_queue
        )
        if self._user is not None and not hub.is_hub_id(f"{self._user}/any"):
            raise VPromptError(f"{self._shown} is nobody on the Hub; give --adapters hf:USER.")
        if self._user is None and not self._folder.is_dir():
            raise VPromptError(f"{self._shown} is no folder; check --adapters.")
        if not banks.banks:
            names = sorted(path.name.removesuffix(ENGINE_FILE) for path in self._folder.glob("[!.]*"))
            first = next((name for name in names if adapter_in(self._folder, name) is not None), None)
            if first is None:
                raise VPromptError(f"{self._shown} does not tell which backbone is meant: name an adapter of it, too.")
            self._put(check_name(first), *self._fetched(first), known=False)

    @contextlib.contextmanager
    def held(self, name: str) -> Generator[None]:
        """Inside the block an adapter that is loaded, or will be, is not given up for another."""
        with self._changed:
            self._uses[name] += 1
            if name in self._bytes:
                self._bytes[name] = self._bytes.pop(name)  # the last one
        try:
            yield
        finally:
            with self._changed:
                self._uses -= Counter([name])
                self._changed.notify_all()

    def ask(self, name: str, client: str) -> Future[Entry]:
        """An adapter that is held, now or later; all who ask for it share one load. For one thread; clients take turns.

        Raises:
            RequestError: "busy", if too many are to be loaded already.
        """
        with self._changed:
            entry = None if name in self._leaving else self._banks.get(name)
        if entry is None or name in self._bytes:
            self._events.labels("miss" if entry is None else "hit").inc()
        if entry is not None:
            future = Future[Entry]()
            future.set_result(entry)
        elif (future := self._under_way.get(name)) is None:
            [future] = self.loading.submit([name], client=client)
            self._under_way[name] = future
            future.add_done_callback(lambda _: self._under_way.pop(name, None))
        return future

    def check(self, name: str) -> None:
        """Refuses, by a `VPromptError`, a name that there is nothing for, or that could not be loaded a moment ago."""
        until, problem = self._refused.get(check_name(name), (0.0, None))
        if problem is not None and time.monotonic() < until:
            raise RequestError(problem.code, str(problem))  # a new one: each raise adds to what an exception holds
        there = adapter_in(self._folder, name) if self._user is None else hub.is_hub_id(f"{self._user}/{name}")
        if name not in self._banks and not there:
            raise unknown(name, [entry.name for entry in self._banks.entries])

    def _load(self, name: str) -> Entry:
        try:
            self.check(name)
            source, state = self._fetched(name)
            with self._adding:
                if (entry := self._banks.get(name)) is None:
                    self._make_room(name, 1)
                    entry = self._put(name, source, state)
            return entry
        except RequestError:
            raise
        except Exception as error:
            self._events.labels("failure").inc()
            _LOG.warning("The adapter %r cannot be loaded: %s", name, printable(str(error)))
            code, problem = "refused", "cannot be loaded; the service's log says why"
            if isinstance(error, UnknownAdapterError):
                code, problem = "unknown_adapter", "is not there"
            refused = time.monotonic() + REFUSED_SECONDS, RequestError(code, f"The adapter {name!r} {problem}.")
            self._refused = {**dict([*self._refused.items()][-MOST_REFUSED:]), name: refused}
            raise refused[1] from error

    def _fetched(self, name: str) -> tuple[str | Path, State]:
        """Where the files of an adapter are on this machine, and their state."""
        most = self._limits.max_adapter_bytes
        if self._user is not None:
            folder = hub.fetch(f"{self._user}/{name}", [CONFIG_FILE, TENSORS_FILE], max_bytes=most)
            return f"{HUB}{self._user}/{name}@{folder.name}", ()
        source = adapter_in(self._folder, name)
        if source is None:
            raise unknown(name, [])
        state = state_of(source)
        if max(size for _, _, size, _ in state) > most:
            raise AdapterError(f"a file of it is larger than {most} bytes (--max-adapter-bytes)")
        return source, state

    def _put(self, name: str, source: str | Path, state: State, *, known: bool = True) -> Entry:
        """Takes an adapter in; others go until there is memory for it, or else it does itself."""
        entry = self._banks.add(name, source, replace=True, known=known)
        self._last[name] = self._done[name] = state
        with self._changed:
            self._bytes[name] = entry.nbytes
        try:
            if entry.nbytes > self._limits.max_adapter_bytes:
                raise AdapterError(f"it takes {entry.nbytes} bytes in memory (--max-adapter-bytes)")
            self._make_room(name, 0)
        except VPromptError:
            self._give_up(name)
            raise
        _LOG.info("The adapter %r was loaded.", name)
        return entry

    def _make_room(self, name: str, more: int) -> None:
        """Gives adapters up until there is room for so many more, waiting for those that are in use."""
        deadline, most = time.monotonic() + ROOM_SECONDS, self._limits
        while True:
            with self._changed:
                # What --manage has removed takes none.
                self._bytes = {other: size for other, size in self._bytes.items() if other in self._banks}
                fits = len(self._bytes) + more <= most.max_adapters
                if fits and sum(self._bytes.values()) <= most.max_adapter_bytes:
                    return
                idle = next((other for other in self._bytes if not self._uses[other] and other != name), None)
                if idle is None:
                    if not self._uses[name] or not self._changed.wait(deadline - time.monotonic()):
                        raise RequestError("busy", "All adapters that have room are in use; ask again in a moment.")
                    continue
                self._leaving.add(idle)  # at once: who asks for it from now on waits until it is loaded again
            self._give_up(idle)
            self._events.labels("eviction").inc()

    def _give_up(self, name: str) -> None:
        with self._changed:
            self._leaving.add(name)
            self._bytes.pop(name, None)
        for seen in (self._done, self._last):  # until it is loaded again
            seen.pop(name, None)
        with contextlib.suppress(UnknownAdapterError):  # --manage has removed it
            self._banks.remove(name)
        with self._changed:
            self._leaving.discard(name)
        _LOG.info("The adapter %r was given up.", name)

    def _found(self) -> dict[str, State]:
        if self._user is not None:  # on the Hub nobody looks again
            return {name: self._done[name] for name in [*self._bytes]}
        adapters = {name: adapter_in(self._folder, name) for name in [*self._bytes]}
        return self._states({name: path for name, path in adapters.items() if path is not None})

    def _add(self, name: str) -> None:
        with self._adding:
            if name in self._bytes:
                self._put(name, *self._fetched(name))

    def _remove(self, name: str) -> None:
        with self._adding:
            if name in self._bytes and adapter_in(self._folder, name) is None:
                self._give_up(name)
