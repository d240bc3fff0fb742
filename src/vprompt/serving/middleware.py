"""ASGI middleware around every request: host and token, limits on its body, counting, logging, and errors as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import math
import random
import re
import time
import uuid

from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vprompt.serving.errors import RequestError, problem_of
from vprompt.serving.log import ACCESS, REQUEST_ID
from vprompt.serving.schema import Failure, Fault
from vprompt.serving.service import Service
from vprompt.utils.text import printable

OPEN = ("/health",)
"""Paths that need no token."""

COUNTED = "/v1/predict"
"""Requests below this path are counted and timed."""

MAX_OTHER_BYTES = 64 * 1024
"""Size of a body that is no image, and of what is around an image in base64."""

GRACE_SECONDS = 5.0
"""Seconds in which a body may come as it likes; from then on it comes at `LEAST_RATE`, on the whole."""

LEAST_RATE = 4096
"""Bytes a second."""

WRAPPING = ("multipart/", "application/json")
"""Beginnings of content types whose bodies are larger than the image in them."""

LINGER_SECONDS = 1.0
"""Seconds that a client that is refused may go on sending: closing at once would cost it the answer."""

RETRY_SECONDS = 1
"""`Retry-After` for those whom the service had no time for."""

BEARER = HTTPBearer(auto_error=False)
"""Reads a token from a request; also how openapi.json names it."""


class Gate:
    """ASGI middleware around the application.

    Args:
        app: What it guards.
        service: Its limits are kept, and its requests counted.
        token: What clients must show, or None.
        local: Refuse requests that are addressed to another host than this machine by its own names. A web page that
            has its host's name resolved to 127.0.0.1 could otherwise ask and read the answers.

    Attributes:
        service: As given.
        bodies: Bytes that came of all bodies under way, the oldest first.
    """

    def __init__(self, app: ASGIApp, *, service: Service, token: str | None, local: bool) -> None:
        self._app = app
        self._token = token
        self._local = local
        self.service = service
        self.bodies: dict[_Exchange, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, exchange = time.perf_counter(), _Exchange(self, scope, receive, send)
        REQUEST_ID.set(exchange.number)
        try:
            await self._answer(scope, exchange)
        finally:
            self.bodies.pop(exchange, None)
        seconds = time.perf_counter() - began
        answers = scope.get("state", {}).get("answers") or [("", exchange.status)]
        if exchange.counted:
            self.service.metrics.seconds.observe(seconds)
            for adapter, status in answers:
                self.service.metrics.answers.labels(adapter, status).inc()
        access = {
            "client": host_of(scope),
            "method": scope["method"],
            "path": printable(scope["path"][:200]),
            "status": exchange.status,
            "seconds": round(seconds, 4),
            "bytes": exchange.came,
            "adapters": [adapter for adapter, _ in answers if adapter],
        }
        ACCESS.info("%(method)s %(path)s %(status)s", access, extra={"fields": access})

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            await self._check(Request(scope))
            await self._app(scope, exchange.receive, exchange.send)
            return
        except asyncio.CancelledError:
            # The server's patience with requests under way is over.
            problem = RequestError("stopping", "The service stopped before the answer was there; ask another one.")
        except Exception as error:
            problem = problem_of(error)
        if exchange.status == 0:
            await as_response(problem)(scope, exchange.receive, exchange.send)

    async def _check(self, request: Request) -> None:
        host = request.headers.get("host", "localhost")
        if self._local and not is_local(host):
            raise RequestError("wrong_host", f"This service is not called {printable(host[:100])!r}.")
        if self._token is None or request.scope["path"] in OPEN:
            return
        given = await BEARER(request)
        # Bytes, for compare_digest takes no other text than ASCII.
        if given is None or not hmac.compare_digest(given.credentials.strip().encode(), self._token.encode()):
            raise RequestError(
                "bad_token", "This needs the header 'Authorization: Bearer TOKEN' with the service's token."
            )


def is_local(host: str) -> bool:
    """Whether a Host header names this machine as only it is called by itself.

    Starlette's TrustedHostMiddleware takes a list of names; loopback addresses are 2^24.

    Example:
        >>> [is_local(host) for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "example.org", "10.0.0.1:8000")]
        [True, True, True, False, False]
    """
    name = host.lower().partition("]")[0].lstrip("[") if host.startswith("[") else host.lower().partition(":")[0]
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_of(scope: Scope) -> str:
    """The address of a client; of IPv6 the network, for one client may have all of that."""
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))


def as_response(problem: RequestError) -> JSONResponse:
    """A problem as an HTTP response."""
    later = {"Retry-After": str(max(RETRY_SECONDS, math.ceil(problem.retry_after)))}
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: later, 503: later}.get(problem.status)
    return JSONResponse(Failure(error=Fault.of(problem)).model_dump(), status_code=problem.status, headers=headers)


class _Exchange:
    """One request and its response between server and application.

    A body is no longer than allowed, whatever its header says, and comes in time and at a rate; what is not read of it
    when the response ends is thrown away for a while. If all bodies that are coming take too much memory together, the
    oldest is given up.

    Args:
        gate: Its service's limits are kept.
        scope: Of the request.
        receive: Of the server.
        send: Of the server.

    Attributes:
        number: The request's id: the client's, if it can stand in a header and a log, or a new one.
        counted: Whether it is for a prediction.
        status: HTTP status of the answer, 0 before.
        came: Bytes that came.
    """

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._bodies, self._limits = gate.bodies, gate.service.limits
        self._began = asyncio.get_running_loop().time()
        self._grace = GRACE_SECONDS * random.uniform(0.6, 1.2)  # those who came at once are not sent away at once
        self._patience = asyncio.timeout(None)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.number = given if re.fullmatch(r"[A-Za-z0-9_.:/+=-]{1,128}", given) else uuid.uuid4().hex
        self.counted = scope["path"].startswith(COUNTED)
        self._max_bytes = self._limits.max_bytes if self.counted else MAX_OTHER_BYTES
        if self.counted and headers.get("content-type", "").lower().startswith(WRAPPING):
            self._max_bytes = 4 * self._max_bytes // 3 + MAX_OTHER_BYTES
        # The server has checked that these are digits, and not too many.
        self._size = int(headers.get("content-length", "0"))
        self._unread = "transfer-encoding" in headers or self._size > 0
        self.came = 0
        self.status = 0

    async def receive(self) -> Message:
        if not self._unread:
            return await self._receive()
        too_long = RequestError("too_many_bytes", f"The body is too large; the limit is {self._max_bytes} bytes.")
        if self._size > self._max_bytes:
            raise too_long
        deadline = self._began + min(self._limits.timeout, self._grace + self.came / LEAST_RATE)
        self._patience = asyncio.timeout_at(deadline)
        try:
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError
            async with self._patience:
                message = await self._next()
        except TimeoutError:
            sentence = (
                f"The body did not come in within {self._limits.timeout:g} seconds, or too slowly; send it again."
            )
            raise RequestError("too_slow", sentence) from None
        if message["type"] == "http.disconnect":
            raise RequestError("client_gone", "The client closed the connection.")
        self.came += len(message.get("body", b""))
        if self.came > self._max_bytes:
            raise too_long
        self._bodies[self] = self.came
        if not self._unread:
            del self._bodies[self]
        elif sum(self._bodies.values()) > self._limits.max_queue * self._limits.max_bytes:
            next(iter(self._bodies)).give_up()
        return message

    def give_up(self) -> None:
        """Waits no longer for the rest of the body."""
        self._began = -math.inf
        self._bodies.pop(self, None)
        with contextlib.suppress(RuntimeError):  # it is not being waited for
            self._patience.reschedule(0)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._bodies.pop(self, None)
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.number
            if self._unread:
                headers["Connection"] = "close"
        elif self._unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    while self._unread:
                        await self._next()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._unread = False
        return message
