"""Bodies of requests: an image as it is, in a form, or in JSON."""

from __future__ import annotations

import base64
import json
from email.message import Message

from vprompt.serving.errors import RequestError

HOW_TO_SEND = (
    "send a JPEG, PNG or WebP file as the body (Content-Type: image/jpeg), in a form (curl -F image=@photo.jpg), or "
    'as JSON {"image": BASE64}.'
)


def image_in(body: bytes, content_type: str, max_bytes: int) -> bytes:
    """The image file in a body: the body itself, the file in a form, or in JSON.

    Args:
        body: As it came.
        content_type: Whatever is neither `multipart/form-data` nor `application/json` is the image as it is.
        max_bytes: Size of an image file.

    Raises:
        RequestError: If there is none, or more than one, or it is too large.

    Example:
        >>> image_in(b'{"image": "aGVsbG8="}', "application/json", 9)
        b'hello'
    """
    header = Message()
    header["Content-Type"] = content_type
    match header.get_content_type():
        case "multipart/form-data":
            image = _in_form(body, str(header.get_param("boundary", "")))
        case "application/json":
            image = _in_json(body)
        case _:
            image = body
    if len(image) > max_bytes:
        raise RequestError("too_many_bytes", f"The image is too large; the limit is {max_bytes} bytes.")
    return image


def _in_form(body: bytes, boundary: str) -> bytes:
    line = b"--" + boundary.encode("latin-1", "replace")
    parts = (b"\r\n" + body).split(b"\r\n" + line, 20)[1:] if boundary else []
    files: list[bytes] = []
    for part in parts:
        head, _, content = part.partition(b"\r\n\r\n")
        if b"filename" in head.lower() or b"content-type: image/" in head.lower() or b'name="image"' in head:
            files.append(content)
    # What ends a form stands behind its last part; without it the rest is missing.
    whole = bool(parts) and parts[-1].startswith(b"--") and all(part.startswith(b"\r\n") for part in parts[:-1])
    if len(files) != 1 or not whole:
        raise RequestError("invalid", "The form must hold one file, whole: curl -F image=@photo.jpg URL.")
    return files[0]


def _in_json(body: bytes) -> bytes:
    try:
        text = json.loads(body)["image"]
        text = text.partition(";base64,")[2] if text.startswith("data:") else text
        text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RequestError("invalid", 'The JSON must be {"image": "the file in base64"}.') from None
