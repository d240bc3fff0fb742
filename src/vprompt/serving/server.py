"""HTTP server of the service: the address, its patience with clients, and how it stops."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import math
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vprompt.serving.app import create_app
from vprompt.serving.middleware import host_of
from vprompt.serving.service import Service
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable

IDLE_SECONDS = 5
"""Seconds that a connection may ask nothing: without a whole head, or after an answer."""

ACCEPTED_AT_ONCE = 32
"""Connections that are accepted before others are served; far more may wait for that in the system's queue."""

HEAD_PIECE = 1024
"""Bytes of a head that are read at once; it may have sixteen times as many."""

MOST_CONNECTIONS = 1024
"""Connections at once, where the system allows so many files."""


def bind(host: str, port: int, *, guarded: bool) -> socket.socket:
    """A socket bound to an address, not listening yet.

    Args:
        host: Name or number of an interface.
        port: 0 picks a free one.
        guarded: Whether clients must show a token; without one, only this machine may ask.

    Raises:
        VPromptError: If the address cannot be had, or others could ask without a token.
    """
    where = f"{host}:{port}"
    if not 0 <= port < 2**16:
        raise VPromptError(f"A port is a number from 0 to 65535, not {port}.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise VPromptError(f"There is no address {printable(where)!r}; check --host.") from error
    if not guarded and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise VPromptError(
            f"Other machines could ask at {host} and no token is set; give --token-file FILE or set VPROMPT_TOKEN."
        )
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere the option would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise VPromptError(f"The address {where} cannot be had ({error.strerror}); give another --port.") from error
    return listener


def most_connections() -> int:
    """Connections that may be open at once, so that files can be opened beside them."""
    try:
        import resource
    except ImportError:  # not on Windows
        return MOST_CONNECTIONS // 2
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if files < 0 else min(MOST_CONNECTIONS, max(files // 2, files - 128))


class _Protocol(H11Protocol):
    """A connection that knows since when it has asked nothing; where there are too many, the oldest such make room.

    Args:
        most: Connections at once.
    """

    connections: set[_Protocol]

    def __init__(self, most: int, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most = most
        self.host = ""
        self.since = time.monotonic()
        self.spread = random.uniform(0.6, 1.2)  # so that those who came at once do not go, and come again, at once

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way; uvicorn itself waits for the head of one for ever."""
        return self.cycle is None or self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.host = host_of({"client": self.client})
        if len(self.connections) <= self._most:
            return
        there = [one for one in self.connections if not one.transport.is_closing()]
        if len(there) > self._most:
            crowd = Counter(one.host for one in there).most_common(1)[0][0]
            waiting = [one for one in there if one.host == crowd and (one.is_idle or one.cycle.more_body)]
            # Several at once, as long as there are many: looking for them takes its time.
            for one in sorted(waiting, key=lambda one: one.since)[: max(1, self._most // 16)] or [self]:
                one.transport.abort()

    def data_received(self, data: bytes) -> None:
        while self.is_idle and data and not self.transport.is_closing():
            super().data_received(data[:HEAD_PIECE])  # so that what a head says is known before more is read
            data = data[HEAD_PIECE:]
        if not data or self.transport.is_closing():
            return
        chunked = any(name == b"transfer-encoding" for name, _ in self.headers)
        # A body in chunks of few bytes is much work and no image: it is not read, and ends as one that is too slow.
        if not chunked or data.count(b"\r\n") < 100 + len(data) // 100:
            super().data_received(data)

    def on_response_complete(self) -> None:
        self.since = time.monotonic()
        super().on_response_complete()


class Server(uvicorn.Server):
    """Uvicorn, which also closes connections that ask nothing, and says when it listens and when it stops.

    Args:
        service: What is asked; whoever made it closes it.
        token: As for `create_app`; without one, only what is addressed to this machine is answered.
        manage: As for `create_app`.
        listening: Called when requests can come.
    """

    def __init__(
        self,
        service: Service,
        *,
        token: str | None = None,
        manage: bool = False,
        listening: Callable[[], object] = lambda: None,
    ) -> None:
        self._service = service
        self._listening = listening
        config = uvicorn.Config(
            create_app(service, token=token, manage=manage, local=token is None),
            http=cast("type[asyncio.Protocol]", functools.partial(_Protocol, most_connections())),
            loop="asyncio",  # also where uvloop is installed
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=ACCEPTED_AT_ONCE,
            h11_max_incomplete_event_size=16 * HEAD_PIECE,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=math.ceil(service.limits.timeout),
        )
        super().__init__(config)

    def stop(self) -> None:
        """Asks it, from any thread, to stop: no new connections, answers to all requests that came."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(MOST_CONNECTIONS)
        self._listening()

    async def on_tick(self, counter: int) -> bool:
        """Ends connections, ten times a second, whose next request does not come whole, or that take no answer."""
        patience = min(IDLE_SECONDS, self._service.limits.timeout)
        for connection in list(cast("set[_Protocol]", self.server_state.connections)):
            if connection.is_idle and time.monotonic() - connection.since > patience * connection.spread:
                connection.transport.abort()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops."""
        self._service.stopping = True
        await super().shutdown(sockets)


def serve(server: Server, listener: socket.socket) -> None:
    """Serves until SIGTERM, or Ctrl-C, which ends in KeyboardInterrupt; either lets requests under way end.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        server.run(sockets=[listener])
        return
    # Uvicorn sends itself each signal again when it has stopped; SIGTERM is how services are asked to end.
    before = signal.signal(signal.SIGTERM, lambda number, frame: server.stop())
    try:
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)
