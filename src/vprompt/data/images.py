"""Decoding: an image file as uint8 RGB pixels of the size that a backbone takes."""

from __future__ import annotations

import functools
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from vprompt.data.preprocessing import Preprocessing, View
from vprompt.data.threads import in_threads
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

Source = str | os.PathLike[str] | bytes | BinaryIO

MAX_PIXELS = 100_000_000
"""Images with more pixels by their header are refused before they are decoded."""

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    source: Source, preprocessing: Preprocessing, *, name: str | None = None, view: View | None = None
) -> Tensor:
    """Decodes one image, upright, as RGB, resized with antialiasing; of an animation, the first frame.

    Args:
        source: A path, the bytes of a file, or an open binary file.
        preprocessing: Gives size, resizing and interpolation; nothing is normalised here.
        name: What errors call the image; its path when not given.
        view: The crop to take, for training; what `preprocessing` says when not given.

    Returns:
        uint8 pixels (3, H, W).

    Raises:
        DataError: The image is missing, unreadable, damaged or larger than `MAX_PIXELS`.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("L", (50, 30), 7).save(buffer, "PNG")
        >>> plain = Preprocessing(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> decode(buffer.getvalue(), plain).shape
        torch.Size([3, 8, 8])
    """
    try:
        return read_pixels(source, preprocessing, view)
    except UnusableImageError as error:
        if name is None:
            name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the image"
        raise DataError(refusal(name, str(error))) from error


def refusal(name: str, problem: str) -> str:
    """The sentence that refuses an image; `problem` completes the sentence `FILE ...`."""
    return f"{printable(name)} {problem}; replace it or leave it out."


def try_decode(source: Source, preprocessing: Preprocessing | None) -> Tensor | str | None:
    """Like `decode`, but returns what is wrong (it completes the sentence `FILE ...`) instead of raising.

    Without a preprocessing only the header is read, and there are no pixels.
    """
    try:
        if preprocessing is not None:
            return read_pixels(source, preprocessing)
        with opened(source):
            return None
    except UnusableImageError as error:
        return str(error)


def read_pixels(
    source: Source, preprocessing: Preprocessing, view: View | None = None, *, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Like `decode`, for callers that distinguish what can be wrong with an image.

    Args:
        source: As for `decode`.
        preprocessing: As for `decode`.
        view: As for `decode`.
        max_pixels: Refuse more by the header, at most `MAX_PIXELS`.

    Raises:
        NotAnImageError: It is in no image format.
        TooManyPixelsError: Its header promises more than `max_pixels`.
        UnusableImageError: It is missing, empty or damaged. All messages complete the sentence `FILE ...`.
    """
    with opened(source, max_pixels) as image:
        _draft(image, preprocessing, view)
        image.load()
        return render(_upright(image), preprocessing, view)


@contextmanager
def opened(source: Source, max_pixels: int = MAX_PIXELS) -> Generator[Image.Image]:
    """An image whose header was read; what goes wrong with it, also in the block, is an `UnusableImageError`."""
    try:
        with quiet_pillow(), Image.open(_file_of(source), formats=_formats()) as image:
            width, height = image.size
            if width * height > max_pixels:
                size = f"{width} x {height} pixels; the limit is {max_pixels / 10**6:g} million"
                raise TooManyPixelsError(f"is too large ({size})")
            yield image
    except (MemoryError, DataError, UnusableImageError):
        raise
    # A damaged file can raise almost anything in a decoder: all of it means that this image cannot be used.
    except Exception as error:
        raise _unusable(error, max_pixels) from error


def render(image: Image.Image, preprocessing: Preprocessing, view: View | None = None) -> Tensor:
    """Turns a loaded image of any mode into uint8 pixels (3, H, W), resized as `preprocessing` says.

    A view is cut out of the image resized to `size / 0.875`: its short side, or both with `"squash"`.
    """
    if preprocessing.interpolation not in _FILTERS:
        known = ", ".join(_FILTERS)
        raise DataError(f"The interpolation {preprocessing.interpolation!r} is not known; use one of {known}.")
    height, width = preprocessing.size
    whole = preprocessing.resize == "squash" and view is None
    box = None if whole else _box(image.size, preprocessing, view)
    resized = to_rgb(image).resize((width, height), _FILTERS[preprocessing.interpolation], box=box)
    if view is not None and view.mirrored:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(np.asarray(resized).transpose(2, 0, 1), order="C"))


def render_arrays(images: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Turns images (N, H, W) or (N, H, W, 3) into uint8 pixels (N, 3, height, width), as `render` does each."""
    pixels = torch.empty((len(images), 3, *preprocessing.size), dtype=torch.uint8)
    rendered = in_threads(lambda image: render(Image.fromarray(image), preprocessing), images)
    for row, image in enumerate(rendered):
        pixels[row] = image
    return pixels


@functools.cache
def _formats() -> tuple[str, ...]:
    """Image formats only: Pillow would otherwise also start Ghostscript and read fonts."""
    Image.init()
    wanted = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
    return tuple(name for name in wanted if name in Image.OPEN)


def _file_of(source: Source) -> str | io.BytesIO:
    if isinstance(source, str | os.PathLike):
        about = os.stat(source)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError
        # A pipe or a device could block for ever.
        if not stat.S_ISREG(about.st_mode):
            raise UnusableImageError("is not a regular file")
        empty, file = about.st_size == 0, os.fspath(source)
    else:
        data = source if isinstance(source, bytes) else source.read()
        empty, file = len(data) == 0, io.BytesIO(data)
    if empty:
        raise UnusableImageError("is empty (0 bytes)")
    return file


def _draft(image: Image.Image, preprocessing: Preprocessing, view: View | None) -> None:
    """Lets JPEG decode at 1/2, 1/4 or 1/8, still at least twice as large as the result (as `Image.thumbnail` does)."""
    # Nearest picks single pixels, and which ones must not depend on the file's format.
    if image.format in ("JPEG", "MPO") and preprocessing.interpolation != "nearest":
        # Twice the side before the crop, for either orientation; 3 = 2 / 0.875 rounded up.
        whole = preprocessing.resize == "squash" and view is None
        side = (2 if whole else 3) * max(preprocessing.size)
        image.draft(None, (side, side))


def _upright(image: Image.Image) -> Image.Image:
    # `ImageOps.exif_transpose` also rewrites the EXIF data, and fails where that is damaged.
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # unreadable EXIF data say nothing about the pixels
        return image
    return image if turn is None else image.transpose(turn)


def _box(
    image_size: tuple[int, int], preprocessing: Preprocessing, view: View | None
) -> tuple[float, float, float, float]:
    """The box of the image (left, top, right, bottom) that shows, once resized, a view or the centre.

    Resizing this box only is the same as resizing all and cropping, and cannot blow up a very long image.
    """
    (width, height), size = image_size, preprocessing.size
    full_h, full_w = round(size[0] / 0.875), round(size[1] / 0.875)
    if preprocessing.resize == "crop":
        if full_w * height >= full_h * width:
            full_h = max(full_h, full_w * height // width)
        else:
            full_w = max(full_w, full_h * width // height)
    if view is None:
        top, left = round((full_h - size[0]) / 2), round((full_w - size[1]) / 2)
    else:
        top, left = int(view.top * (full_h - size[0] + 1)), int(view.left * (full_w - size[1] + 1))
    x, y = width / full_w, height / full_h
    return left * x, top * y, min((left + size[1]) * x, width), min((top + size[0]) * y, height)


def _unusable(error: Exception, max_pixels: int) -> UnusableImageError:
    match error:
        case UnidentifiedImageError():
            return NotAnImageError("is not an image, or its header is damaged")
        case Image.DecompressionBombError():
            return TooManyPixelsError(f"is too large (the limit is {max_pixels / 10**6:g} million pixels)")
        case FileNotFoundError():
            return UnusableImageError("does not exist")
        case IsADirectoryError():
            return UnusableImageError("is a folder, not an image")
        case OSError() if error.strerror:
            return UnusableImageError(f"cannot be read: {error.strerror.lower()}")
        case _:
            return UnusableImageError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}")


class UnusableImageError(ValueError):
    """An image that opens but cannot be used; the message completes the sentence `FILE ...`."""


class NotAnImageError(UnusableImageError):
    """A file in no image format."""


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
        return _on_white(image)
    return image.convert("RGB")


ROWS_AT_ONCE = 2**20
"""Pixels of the rows that are converted at once, for what is made on the way takes much more memory than the image."""


def _on_white(image: Image.Image) -> Image.Image:
    rgb = Image.new("RGB", image.size)
    rows = max(1, ROWS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        rgba = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), (0, top))
    return rgb


def _by_rows(values: NDArray[Any], convert: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.uint8]:
    bytes_HW = np.empty(values.shape, np.uint8)
    rows = max(1, ROWS_AT_ONCE // values.shape[1])
    for top in range(0, len(values), rows):
        bytes_HW[top : top + rows] = convert(values[top : top + rows])
    return bytes_HW


def _bytes_of_integers(image: Image.Image) -> NDArray[np.uint8]:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise UnusableImageError("has integer pixels outside 0 to 65535; save it with 8 or 16 bits")
    # 65535 = 255 * 257: rounds to the nearest byte, and gives 8-bit values back that were widened.
    pixels = _by_rows(values, lambda rows: (rows.astype(np.int64) + 128) // 257)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = 255
    return pixels


def _bytes_of_floats(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = float(values.min()), float(values.max())
    # Written so that a NaN fails it too.
    if not (low >= 0 and high <= 255):
        raise UnusableImageError("has float pixels outside 0 to 1 and 0 to 255; save it with 8 bits")
    return _by_rows(values, lambda rows: np.rint(rows * 255 if high <= 1 else rows))


# Without a handler of its own, Pillow's log lines would reach standard error.
logging.getLogger("PIL").addHandler(logging.NullHandler())


_QUIET, _LOCK = list[warnings.catch_warnings](), threading.Lock()
"""Blocks under way, as all threads have the same warning filters. The first sets, the last restores."""


@contextmanager
def quiet_pillow() -> Generator[None]:
    """Ignores warnings from Pillow inside the block, also when many threads are in such a block at once."""
    with _LOCK:
        saved = _QUIET[0] if _QUIET else warnings.catch_warnings()
        if not _QUIET:
            saved.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        _QUIET.append(saved)
    try:
        yield
    finally:
        with _LOCK:
            _QUIET.pop()
            if not _QUIET:
                saved.__exit__(None, None, None)
