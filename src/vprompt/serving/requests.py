"""Bodies of requests: no longer than allowed, whatever their header says, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from vprompt.serving.errors import RequestError

T = TypeVar("T")

IMAGES = ("image/", "application/octet-stream")
"""How content types that are taken begin."""


def check_image_type(request: Request) -> None:
    """Refuses what is no image by its headers; a request without a content type passes.

    Raises:
        RequestError: If it is none.
    """
    content_type = request.headers.get("content-type", IMAGES[0]).strip().lower()
    if not content_type.startswith(IMAGES):
        raise RequestError(
            "not_an_image",
            "Send the image's bytes as the body with 'Content-Type: image/jpeg' (or other image types, or "
            f"application/octet-stream), not as {content_type[:100]!r}.",
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RequestError("not_an_image", "Send the image's bytes as they are, without a Content-Encoding.")


async def read_body(request: Request, *, max_bytes: int, timeout: float) -> bytes:
    """The whole body.

    Args:
        request: Whose body was not read yet.
        max_bytes: Refuse longer ones, by their header where it tells.
        timeout: Seconds for all of it.

    Raises:
        RequestError: If it is too long, too slow, or the client goes away.
    """
    too_long = RequestError("too_many_bytes", f"The body is too large; the limit is {max_bytes} bytes.")
    # The server has checked that these are digits, and not too many.
    if int(request.headers.get("content-length", "0")) > max_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_long
    except TimeoutError:
        raise RequestError("too_slow", f"The body did not come in within {timeout:g} seconds.") from None
    except ClientDisconnect:
        raise RequestError("client_gone", "The client closed the connection.") from None
    return bytes(body)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Awaits `work`, which is cancelled when the client goes away; the body must have been read.

    Raises:
        RequestError: If it went away.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RequestError("client_gone", "The client closed the connection.")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
