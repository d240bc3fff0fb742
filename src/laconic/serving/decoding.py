"""The bytes of a request as images that adapters can be asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from laconic.data.images import read_pixels
from laconic.data.modes import NotAnImageError, TooManyPixelsError, UnusableImageError
from laconic.preprocessing import Preprocessing
from laconic.serving.problems import RequestError

MAX_SCANS = 100
"""Scans of a JPEG file. Usual are 1 to 20; each costs a pass over all pixels, for as little as 75 bytes."""


def decoded(data: bytes, looks: Sequence[Preprocessing], *, max_pixels: int) -> Mapping[Preprocessing, Tensor]:
    """One image as each preprocessing wants it, normalised (3, H, W), just as `laconic predict` reads it.

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
