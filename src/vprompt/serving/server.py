"""HTTP server of the service: the address, its patience with clients, and how it stops."""

from __future__ import annotations

import ipaddress
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn

from vprompt.serving.app import create_app
from vprompt.serving.service import Service
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable

KEEP_ALIVE_SECONDS = 5
"""Seconds that a connection stays open after an answer."""


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
        self._idle: dict[object, tuple[object, float]] = {}
        config = uvicorn.Config(
            create_app(service, token=token, manage=manage, local=token is None),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(service.limits.timeout),
        )
        super().__init__(config)

    def stop(self) -> None:
        """Asks it, from any thread, to stop: no new connections, answers to all requests that came."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening."""
        await super().startup(sockets)
        self._listening()

    async def on_tick(self, counter: int) -> bool:
        """Ends connections, ten times a second, whose next request does not come whole, or that take no answer.

        Uvicorn waits for a head for ever. A connection is idle while its last request (`cycle`) is the same and done.
        """
        now, idle = time.monotonic(), dict[object, tuple[object, float]]()
        for connection in list[Any](self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                continue
            last, since = self._idle.get(connection, (None, now))
            idle[connection] = (cycle, since if last is cycle else now)
            if now - idle[connection][1] > self._service.limits.timeout:
                connection.transport.abort()
        self._idle = idle
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
