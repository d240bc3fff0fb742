"""ASGI middleware around every request: host and token, limits on its body, counting, and errors as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging

from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vprompt.serving.errors import RequestError
from vprompt.serving.schema import Failure, Fault
from vprompt.serving.service import Service
from vprompt.utils.text import printable

OPEN = ("/health",)
"""Paths that need no token."""

COUNTED = "/v1/predict"
"""Requests below this path are counted and timed."""

MAX_OTHER_BYTES = 64 * 1024
"""Size of a body that is no image."""

LINGER_SECONDS = 1.0
"""Seconds that a client that is refused may go on sending: closing at once would cost it the answer."""

RETRY_SECONDS = 1
"""`Retry-After` for those whom the service had no time for."""

BEARER = HTTPBearer(auto_error=False)
"""Reads a token from a request; also how openapi.json names it."""

_LOG = logging.getLogger("vprompt.serving")


class Gate:
    """ASGI middleware around the application.

    Args:
        app: What it guards.
        service: Its limits are kept, and its requests counted.
        token: What clients must show, or None.
        local: Refuse requests that are addressed to another host than this machine by its own names. A web page that
            has its host's name resolved to 127.0.0.1 could otherwise ask and read the answers.
    """

    def __init__(self, app: ASGIApp, *, service: Service, token: str | None, local: bool) -> None:
        self._app = app
        self._service = service
        self._token = token
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits, metrics = self._service.limits, self._service.metrics
        if not scope["path"].startswith(COUNTED):
            await self._answer(scope, _Exchange(scope, receive, send, MAX_OTHER_BYTES, limits.timeout))
            return
        exchange = _Exchange(scope, receive, send, limits.max_bytes, limits.timeout)
        with metrics.seconds.time():
            await self._answer(scope, exchange)
        for adapter, status in scope.get("state", {}).get("answers") or [("", exchange.status)]:
            metrics.answers.labels(adapter, status).inc()

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            await self._check(Request(scope))
            await self._app(scope, exchange.receive, exchange.send)
            return
        except RequestError as error:
            problem = error
        except asyncio.CancelledError:
            # The server's patience with requests under way is over.
            problem = RequestError("stopping", "The service stopped before the answer was there; ask another one.")
        except Exception:
            _LOG.exception("A request failed.")
            problem = RequestError("failed", "The request failed; the service's log says why.")
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


def as_response(problem: RequestError) -> JSONResponse:
    """A problem as an HTTP response."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_SECONDS)}}.get(problem.status)
    return JSONResponse(Failure(error=Fault.of(problem)).model_dump(), status_code=problem.status, headers=headers)


class _Exchange:
    """One request and its response between server and application.

    A body is no longer than allowed, whatever its header says, and comes in time; what is not read of it when the
    response ends is thrown away for a while.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_bytes: int, timeout: float) -> None:
        self._receive, self._send = receive, send
        self._max_bytes, self._timeout = max_bytes, timeout
        self._deadline = asyncio.get_running_loop().time() + timeout
        headers = Headers(scope=scope)
        # The server has checked that these are digits, and not too many.
        self._size = int(headers.get("content-length", "0"))
        self._came = 0
        self._unread = "transfer-encoding" in headers or self._size > 0
        self.status = 0

    async def receive(self) -> Message:
        if not self._unread:
            return await self._receive()
        too_long = RequestError("too_many_bytes", f"The body is too large; the limit is {self._max_bytes} bytes.")
        if self._size > self._max_bytes:
            raise too_long
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._next()
        except TimeoutError:
            raise RequestError("too_slow", f"The body did not come in within {self._timeout:g} seconds.") from None
        if message["type"] == "http.disconnect":
            raise RequestError("client_gone", "The client closed the connection.")
        self._came += len(message.get("body", b""))
        if self._came > self._max_bytes:
            raise too_long
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._unread:
                MutableHeaders(scope=message)["Connection"] = "close"
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
