"""Decoding: an image file as uint8 RGB pixels of the size that a backbone takes."""

from __future__ import annotations

import functools
import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from vprompt.data.preprocessing import WHITE, Preprocessing, View
from vprompt.data.threads import in_threads
from vprompt.data.tiff import Tiff, read_tiff, white_in
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

Source = str | os.PathLike[str] | bytes | BinaryIO

MAX_PIXELS = 100_000_000
"""Images with more pixels by their header are refused before they are decoded."""

_NPY = b"\x93NUMPY"

_PNG = b"\x89PNG\r\n\x1a\n"

SHALLOW = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".avif")
"""Endings of names of images that never have 16 bits."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")

_METADATA = (b"iCCP", b"zTXt", b"iTXt", b"tEXt")
"""Parts of a PNG file that the pixels do not need; Pillow reads none in which they unpack to more than a megabyte."""


AnyView = View | Callable[[Image.Image], Tensor] | None
"""The part of an image that is shown, or what makes a tensor of it."""


def decode(source: Source, preprocessing: Preprocessing, *, name: str | None = None, view: AnyView = None) -> Tensor:
    """Decodes one image, upright, as RGB, resized with antialiasing; of an animation, the first frame.

    Args:
        source: A path, the bytes of a file, or an open binary file.
        preprocessing: Gives size, resizing and interpolation; nothing is normalised here.
        name: What errors call the image; its path when not given.
        view: The crop to take, for training, or a function that makes a tensor of the whole image; what
            `preprocessing` says when not given.

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
    except MemoryError:
        return "needs more memory than there is"


def read_pixels(
    source: Source, preprocessing: Preprocessing, view: AnyView = None, *, max_pixels: int = MAX_PIXELS
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
    with opened(source, max_pixels, white=preprocessing.white, channels=preprocessing.shape[0]) as image:
        if isinstance(image, np.ndarray):
            return render(image, preprocessing, view)
        _draft(image, preprocessing, view)
        image.load()
        # Unreadable EXIF data say nothing about the pixels; what is in place is turned before it is written anew.
        with suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        return render(image, preprocessing, view)


def bits_used(source: Source) -> int:
    """The bits that the whole numbers in an image of up to 16 bits need; 0 where that is no question.

    It is none for 8 bits, floats, files that say what is white, and files that cannot be read.
    """
    try:
        with quiet_pillow(), _file_of(source) as file:
            if _is_numpy(file):
                samples = _numpy_samples(file, MAX_PIXELS)
                deep = samples.dtype.kind in "iu" and samples.dtype.itemsize > 1
                return int(samples.max()).bit_length() if deep else 0
            tiff = read_tiff(file)
            if tiff is not None and (white_in(tiff.tags) is not None or tiff.kind == "f"):
                return 0
            if tiff is not None and not tiff.known_to_pillow:
                _check_size(tiff.size, tiff.bands * tiff.bits / 24)
                return int(tiff.samples(file).max()).bit_length() if tiff.bits > 8 else 0
            with _open(file) as image:
                _check_size(image.size)
                if image.mode == "I" or image.mode.startswith("I;"):
                    return int(np.array(image).max()).bit_length()
                # Pillow gives the upper byte of colours alone.
                return 8 + int(np.array(image)[:, :, :3].max()).bit_length() if is_deep(image) else 0
    except Exception:
        return 0


@contextmanager
def opened(
    source: Source, max_pixels: int = MAX_PIXELS, *, white: int = WHITE, channels: int = 3
) -> Generator[Image.Image | NDArray[np.uint8]]:
    """An image whose header was read; what goes wrong with it, also in the block, is an `UnusableImageError`.

    One whose samples Pillow would cut to 8 bits, or does not know, is decoded already; a file of NumPy, or of TIFF with
    other channels than pictures have, to an array (H, W, C).
    """
    try:
        with quiet_pillow(), _file_of(source) as file:
            if _is_numpy(file):
                yield _bytes_of(_numpy_samples(file, max_pixels), white)
                return
            tiff = read_tiff(file)
            if tiff is not None and (channels not in (1, 3) or not tiff.known_to_pillow):
                yield _picture(tiff, file, white, max_pixels, channels)
                return
            with _open(file) as image:
                _check_size(image.size, max_pixels=max_pixels)
                yield image if white == WHITE or not is_deep(image) else _with_lower_bytes(image, file, white)
    except (MemoryError, DataError, UnusableImageError):
        raise
    # A damaged file can raise almost anything in a decoder: all of it means that this image cannot be used.
    except Exception as error:
        raise _unusable(error, max_pixels) from error


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    file.seek(0)
    try:
        return Image.open(file, formats=_formats())
    except UnidentifiedImageError:
        file.seek(4)
        if file.read(4) == b"ftyp" and file.read(4) in _HEIC:
            raise NotAnImageError("is a HEIC photo, which is not read here (convert it to JPEG)") from None
        raise


def _without_metadata(png: bytes) -> bytes:
    parts, place = [_PNG], len(_PNG)
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] not in _METADATA:
            parts.append(png[place:end])
        place = end
    return b"".join(parts)


def _check_size(size: tuple[int, int], weight: float = 1, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raises for more pixels, each `weight` times as large as one of 8-bit RGB, than are taken."""
    if size[0] * size[1] * max(weight, 1) > max_pixels:
        text = f"{size[0]} x {size[1]} pixels; the limit is {max_pixels / max(weight, 1) / 10**6:g} million"
        raise TooManyPixelsError(f"is too large ({text})")


def _picture(tiff: Tiff, file: BinaryIO, white: int, max_pixels: int, channels: int) -> Image.Image | NDArray[np.uint8]:
    """The picture in a TIFF file that Pillow does not read, in 8 bits; all its bands where these are no colours."""
    colours = tiff.colours if channels in (1, 3) else tiff.bands
    if not colours:
        raise UnusableImageError(f"holds {tiff.layout}, not the 1, 3 or 4 of a picture; save those to look at as RGB")
    _check_size(tiff.size, tiff.bands * tiff.bits / 24, max_pixels=max_pixels)
    samples = tiff.samples(file)[:, :, :colours]
    pixels = _bytes_of(samples, white_in(tiff.tags) or white)
    if channels not in (1, 3):
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if colours == 1 else pixels)
    image.getexif()[ExifTags.Base.Orientation] = tiff.tags.get(ExifTags.Base.Orientation, 1)
    return image


def _is_numpy(file: BinaryIO) -> bool:
    start = file.read(len(_NPY))
    file.seek(0)
    return start == _NPY


def _numpy_samples(file: BinaryIO, max_pixels: int) -> NDArray[Any]:
    """The array (H, W, C) in a file of NumPy."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) not in (2, 3) or 0 in shape:
        raise UnusableImageError(f"is an array {shape}, not (H, W) or (H, W, C)")
    _check_size((shape[1], shape[0]), math.prod(shape[2:]) * dtype.itemsize / 3, max_pixels=max_pixels)
    file.seek(0)
    return np.atleast_3d(np.load(file, allow_pickle=False))


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow takes only the upper bytes of colours of 16 bits."""
    if not isinstance(image, PngImagePlugin.PngImageFile) or image.mode not in ("RGB", "RGBA"):
        return False
    return image.tile[0].args == f"{image.mode};16B"  # not grey with alpha, of which Pillow makes colours


def _with_lower_bytes(image: Image.Image, file: BinaryIO, white: int) -> Image.Image:
    """A PNG of 16-bit colours from both bytes of each."""
    upper = np.asarray(image).astype(np.uint16)
    with _open(file) as again:
        again.tile = [again.tile[0]._replace(args=f"{again.mode};16L")]  # takes the other byte for the upper one
        turned = Image.fromarray(_bytes_of(upper << 8 | np.asarray(again), white))
    turned.getexif()[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    return turned


def render(image: Image.Image | NDArray[np.uint8], preprocessing: Preprocessing, view: AnyView = None) -> Tensor:
    """Turns a loaded image of any mode, or an array (H, W, C), into uint8 pixels (C, H, W), as `preprocessing` says.

    A view is cut out of the image resized to `size / 0.875`: its short side, or both with `"squash"`.
    """
    layers = _layers(image, preprocessing)
    if callable(view):
        return view(Image.merge("RGB", layers) if len(layers) == 3 else layers[0])
    height, width = preprocessing.scaled((layers[0].height, layers[0].width))
    whole = preprocessing.resize != "crop" and (view is None or view.zoom is not None)
    box = None if whole else _box(layers[0].size, preprocessing, view)
    method = Image.Resampling[preprocessing.interpolation.upper()]
    if view is not None and view.zoom is not None:
        colour = [round(255 * mean) for mean in preprocessing.mean]
        fills = [tuple(colour)] if len(layers) == 1 < len(colour) else colour
        resized = [seen(layer, preprocessing, view, method, fill) for layer, fill in zip(layers, fills, strict=True)]
    else:
        resized = [layer.resize((width, height), method, box=box) for layer in layers]
    if view is not None and view.mirrored:
        resized = [layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for layer in resized]
    return torch.from_numpy(np.array(np.dstack([np.asarray(layer) for layer in resized]).transpose(2, 0, 1), order="C"))


def seen(
    image: Image.Image, preprocessing: Preprocessing, view: View, method: Image.Resampling, fill: Any
) -> Image.Image:
    """What a zoomed view shows of an image or its mask, in the size of a preprocessing; `fill` is beside the image."""
    (width, height), (h, w), zoom = image.size, preprocessing.size, 4 ** (view.zoom or 0.0) / 2
    scaled = preprocessing.scaled((height, width))
    box_h, box_w = h * height / (scaled[0] * zoom), w * width / (scaled[1] * zoom)
    top, left = view.top * (height - box_h), view.left * (width - box_w)
    inside = max(left, 0.0), max(top, 0.0), min(left + box_w, width), min(top + box_h, height)
    x, y = (
        [round((end - start) * times) for end in ends]
        for start, times, ends in ((left, w / box_w, inside[::2]), (top, h / box_h, inside[1::2]))
    )
    canvas = Image.new(image.mode, (w, h), fill)
    canvas.paste(image.resize((max(1, x[1] - x[0]), max(1, y[1] - y[0])), method, box=inside), (x[0], y[0]))
    return canvas


def _layers(image: Image.Image | NDArray[np.uint8], preprocessing: Preprocessing) -> list[Image.Image]:
    """The channels of an image that a preprocessing is for, in one image or in one for each."""
    channels, own = preprocessing.shape[0], 0
    if isinstance(image, np.ndarray):
        own = image.shape[2]
        if own == channels:
            return [Image.fromarray(image[:, :, channel]) for channel in range(own)]
        image = Image.fromarray(image[:, :, 0] if own == 1 else image) if own in (1, 3, 4) else image
    if isinstance(image, Image.Image):
        own = len(image.getbands())
        if channels in (1, 3):
            rgb = to_rgb(image, preprocessing.white)
            return [rgb if channels == 3 else rgb.convert("L")]
        if channels == 4 and image.has_transparency_data:
            return [image.convert("RGBA")]
    raise ChannelsError(f"has {own} channel{'s' * (own > 1)}, not {channels}")


def render_arrays(images: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Turns images (N, H, W) or (N, H, W, 3) into uint8 pixels (N, 3, height, width), as `render` does each."""
    pixels = torch.empty((len(images), *preprocessing.shape), dtype=torch.uint8)
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


def _file_of(source: Source) -> BinaryIO:
    if isinstance(source, str | os.PathLike):
        about = os.stat(source)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError
        # A pipe or a device could block for ever.
        if not stat.S_ISREG(about.st_mode):
            raise UnusableImageError("is not a regular file")
        empty, file = about.st_size == 0, open(source, "rb")  # noqa: SIM115 - callers close it
    else:
        data = source if isinstance(source, bytes) else source.read()
        empty, file = len(data) == 0, io.BytesIO(data)
    if empty:
        raise UnusableImageError("is empty (0 bytes)")
    if file.read(len(_PNG)) == _PNG:
        with file:
            return io.BytesIO(_without_metadata(_PNG + file.read()))
    file.seek(0)
    return file


def _draft(image: Image.Image, preprocessing: Preprocessing, view: AnyView) -> None:
    """Lets JPEG decode at 1/2, 1/4 or 1/8, still at least twice as large as the result (as `Image.thumbnail` does)."""
    # Nearest picks single pixels, and which ones must not depend on the file's format.
    if image.format in ("JPEG", "MPO") and preprocessing.interpolation != "nearest" and preprocessing.resize != "keep":
        # Twice the side before the crop, for either orientation; 3 = 2 / 0.875 rounded up.
        whole = preprocessing.resize == "squash" and view is None
        side = (2 if whole else 3) * max(preprocessing.size)
        image.draft(None, (side, side))


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


class ChannelsError(UnusableImageError):
    """An image without the channels that a preprocessing is for."""


class NotAnImageError(UnusableImageError):
    """A file in no image format."""


class TooManyPixelsError(UnusableImageError):
    """An image whose header promises more pixels than are taken."""


def to_rgb(image: Image.Image, white: int = WHITE) -> Image.Image:
    """Converts to RGB: transparency on white, 16-bit integers up to white and floats 0-1 (or 0-255) to 0-255.

    Args:
        image: A loaded image of any mode.
        white: The value of white in 16-bit integers, unless the file says one.

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
        values = np.asarray(image)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            white = white_in(image.tag_v2) or white
        pixels, transparent = _bytes_of(values, white), image.info.get("transparency")
        if isinstance(transparent, int):
            pixels[values == transparent] = 255
        return Image.fromarray(pixels).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_bytes_of(np.asarray(image), white)).convert("RGB")
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


def _bytes_of(values: NDArray[Any], white: int) -> NDArray[np.uint8]:
    """Numbers as 0 to 255: whole ones from 0 to white, brighter ones as white, floats from 0 to 1 or to 255."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        # Written so that a NaN fails it too.
        if not (low >= 0 and high <= 255):
            raise UnusableImageError("has float pixels outside 0 to 1 and 0 to 255; save it with 8 bits")
        return _by_rows(values, lambda rows: np.rint(rows * 255 if high <= 1 else rows))
    if values.min() < 0 or values.max() > WHITE:
        raise UnusableImageError(f"has integer pixels outside 0 to {WHITE}; save it with 8 or 16 bits")
    # Rounds to the nearest byte, and gives 8-bit values back that were widened.
    return _by_rows(values, lambda rows: (np.minimum(rows, white).astype(np.int64) * 255 + white // 2) // white)


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
