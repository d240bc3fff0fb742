"""Any colour mode of Pillow as 8-bit RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class UnusableImageError(ValueError):
    """An image that opens but cannot be used; the message completes the sentence `FILE ...`."""


class NotAnImageError(UnusableImageError):
    """A file of no format that pictures come in."""


class TooManyPixelsError(UnusableImageError):
    """An image whose header promises more pixels than are taken."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts to RGB: transparency on white, 16-bit integers 0-65535 and floats 0-1 (or 0-255) to 0-255.

    Args:
        image: A loaded image of any mode.

    Returns:
        An image of mode RGB and the same size.

    Raises:
        UnusableImageError: The pixels are on a scale that cannot be told.

    Example:
        >>> to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;"):
        return Image.fromarray(_bytes_of_integers(image)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_bytes_of_floats(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _bytes_of_integers(image: Image.Image) -> NDArray[np.uint8]:
    values = np.array(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnusableImageError("has integer pixels outside 0 to 65535; save it with 8 or 16 bits")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    # 65535 = 255 * 257: rounds to the nearest byte, and gives 8-bit values back that were widened.
    return ((values + 128) // 257).astype(np.uint8)


def _bytes_of_floats(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    # Written so that a NaN fails it too.
    if not (low >= 0 and high <= 255):
        raise UnusableImageError("has float pixels outside 0 to 1 and 0 to 255; save it with 8 bits")
    return np.rint(values * 255 if high <= 1 else values).astype(np.uint8)
