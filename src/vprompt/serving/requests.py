"""Bodies of requests: no longer than allowed, whatever their header says, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from torch import Tensor

from vprompt.data.images import NotAnImageError, TooManyPixelsError, UnusableImageError, read_pixels
from vprompt.data.preprocessing import Preprocessing
from vprompt.serving.errors import RequestError

T = TypeVar("T")

IMAGES = ("image/", "application/octet-stream")
"""How content types that are taken begin."""


def check_image_type(request: Request) -> None:
    """Refuses what is no image by its headers; a request without a content type passes.

    Raises:
        RequestError: If it is none.
    """
    kind = request.headers.get("content-type", IMAGES[0]).strip().lower()
    if not kind.startswith(IMAGES):
        raise RequestError(
            "not_an_image",
            "Send the image's bytes as the body with 'Content-Type: image/jpeg' (or other image types, or "
            f"application/octet-stream), not as {kind[:100]!r}.",
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
        for one in (task, gone):
            one.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


MAX_SCANS = 100
"""Scans of a JPEG file. Usual are 1 to 20; each costs a pass over all pixels, for as little as 75 bytes."""


def decoded(data: bytes, looks: Sequence[Preprocessing], *, max_pixels: int) -> Mapping[Preprocessing, Tensor]:
    """One image as each preprocessing wants it, normalised (3, H, W), just as `vprompt predict` reads it.

    Args:
        data: An image file.
        looks: What adapters want to see.
        max_pixels: Refuse more, by the header.

    Raises:
        RequestError: If it is no image, broken, or too large.
    """
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        raise RequestError("broken_image", f"The image has more than {MAX_SCANS} scans; save it again.")
    try:
        return {look: look.normalise(read_pixels(data, look, max_pixels=max_pixels)) for look in looks}
    except NotAnImageError as error:
        raise RequestError("not_an_image", f"What was sent {error}; send a JPEG, PNG or WebP file.") from error
    except TooManyPixelsError as error:
        raise RequestError("too_many_pixels", f"The image {error}; send a smaller one.") from error
    except UnusableImageError as error:
        raise RequestError("broken_image", f"The image {error}; send it again, whole.") from error
