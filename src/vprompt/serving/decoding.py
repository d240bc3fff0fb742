"""Decoding of images for the service: their work is bounded, and large ones go to processes of their own.

A small file can be much work: a JPEG of 300 kB may hold a hundred passes over 50 million pixels. So an image's work is
told by its header. A little is done in a thread; more in a process that the system gives less time than the service,
and stops by the seconds and the bytes it takes. So small images never wait for large ones, nor for a lock they hold.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection, Pipe

import numpy as np
import torch
from torch import Tensor

from vprompt.data.images import (
    ChannelsError,
    NotAnImageError,
    TooManyPixelsError,
    UnusableImageError,
    opened,
    read_pixels,
)
from vprompt.data.preprocessing import Preprocessing
from vprompt.model.windows import number_of
from vprompt.serving.body import HOW_TO_SEND
from vprompt.serving.errors import RequestError

MAX_SCANS = 100
"""Scans of a JPEG file. Usual are 1 to 20; each costs a pass over all pixels, for as little as 75 bytes."""

MAX_PASSES = 10
"""Scans of a JPEG file of as many pixels as are allowed; a smaller one may have more, for the same work."""

MAX_MARKERS = 2000
"""Segments of a JPEG file."""

MAX_SECONDS = 5
"""Processor time for decoding an image."""

BYTES_A_PIXEL = 12
"""Memory for decoding an image; most take 4 to 9."""

MAX_WINDOWS = 100
"""Windows in which an image is seen whose pixels have labels."""

LANES = (3_000_000, 40_000_000, sys.maxsize)
"""Most work of an image in each lane; a pass over a pixel of a JPEG, some 5 ns, is 1. The first is in this process."""

THREAD_BYTES = 2**20
"""Most bytes of a file that is opened in this process, for headers can be long as well."""

PASSES = {"JPEG": 1, "MPO": 1, "BMP": 1, "PPM": 1, "PNG": 3, "GIF": 3, "WEBP": 6}
"""Passes over the pixels that formats cost."""

OTHER_PASSES = 20
"""Those of all other formats, which are decoded in a process always: their headers do not tell enough."""

Images = Mapping[Preprocessing, Tensor | Exception]
"""One image by each preprocessing, or why it cannot be had by that."""

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


def scans(data: bytes) -> int:
    """Scans of a JPEG file by its markers, 0 for any other file; nothing is decoded.

    Raises:
        RequestError: If it has too many markers to be looked at.

    Example:
        >>> scans(bytes.fromhex("ffd8 ffc00002 ffda0002 12ff00ffd034 ffda0002 12 ffd9 ffda0002"))
        2
    """
    count, at = 0, 2
    if not data.startswith(b"\xff\xd8"):
        return 0
    for _ in range(MAX_MARKERS):
        found = _MARKER.search(data, at)
        if found is None or (kind := found[1][0]) == 0xD9:
            return count
        count += kind == 0xDA
        bare = kind in (0x01, 0xD8)
        at = found.end() + (0 if bare else int.from_bytes(data[found.end() : found.end() + 2], "big"))
    raise RequestError("broken_image", f"The image has more than {MAX_MARKERS} segments; save it again.")


def decoded(
    data: bytes, preprocessings: Sequence[Preprocessing], max_pixels: int, most: int = sys.maxsize
) -> Images | int:
    """One image by each preprocessing, normalised (3, H, W), just as `vprompt predict` reads it.

    Args:
        data: An image file.
        preprocessings: Those of the adapters that are asked.
        max_pixels: Refuse more, by the header.
        most: Most work.

    Returns:
        The images; or how much work they are, where that is more than `most`, and nothing was decoded.

    Raises:
        RequestError: If the image is no image, broken, too large, or too much work.
    """
    images: dict[Preprocessing, Tensor | Exception] = {}
    passes = scans(data)
    if passes > MAX_SCANS:
        raise RequestError("broken_image", f"The image has more than {MAX_SCANS} scans; save it again.")
    try:
        with opened(data, max_pixels, channels=preprocessings[0].shape[0]) as image:
            height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
            size, format = height * width, getattr(image, "format", None) or ""
        del image  # and its memory
        if passes > 1 and passes * size > MAX_PASSES * max_pixels:
            raise RequestError(
                "too_much_work", f"{passes} scans over {size / 1e6:.1f} million pixels are too much; save it again."
            )
        _check_windows(preprocessings, (height, width))
        work = size * len(preprocessings) * max(passes, PASSES.get(format, OTHER_PASSES))
        work = work if format in PASSES else max(work, LANES[0] + 1)
        if work > most:
            return work
        for each in preprocessings:
            try:
                images[each] = each.normalise(read_pixels(data, each, max_pixels=max_pixels))
            except ChannelsError as error:
                images[each] = RequestError("broken_image", f"The image {error}; send one that the adapter is for.")
            except (UnusableImageError, MemoryError):
                raise
            except Exception as error:  # of this preprocessing, not of the image
                images[each] = RuntimeError(str(error))  # which can go to another process
    except NotAnImageError as error:
        raise RequestError("not_an_image", f"What was sent {error}; {HOW_TO_SEND}") from error
    except TooManyPixelsError as error:
        raise RequestError("too_many_pixels", f"The image {error}; send a smaller one.") from error
    except UnusableImageError as error:
        raise RequestError("broken_image", f"The image {error}; send it again, whole.") from error
    except MemoryError as error:
        raise RequestError("too_many_pixels", "The image takes too much memory; send a smaller one.") from error
    return images


def _check_windows(preprocessings: Sequence[Preprocessing], size: tuple[int, int]) -> None:
    """Raises a RequestError for an image of a size that would be seen in too many windows."""
    for each in preprocessings:
        windows = [number_of(*sides) for sides in zip(each.scaled(size), each.size, strict=True)]
        if math.prod(windows) > MAX_WINDOWS:
            raise RequestError(
                "too_many_pixels", f"The image would be seen in over {MAX_WINDOWS} windows; send a smaller one."
            )


def decode(lane: int, data: bytes, preprocessings: Sequence[Preprocessing], max_pixels: int) -> Images | int:
    """As `decoded`, within the work of a lane; on Linux in a process of its own in all lanes but the first.

    Raises:
        RequestError: As there; or it took too much time or memory.
    """
    if lane == 0 and (len(data) > THREAD_BYTES or data[:2] in (b"II", b"MM")):  # a TIFF file is opened elsewhere
        return LANES[0] + 1
    job = data, preprocessings, max_pixels, LANES[lane]
    if lane == 0 or sys.platform != "linux":
        return decoded(*job)
    memory = BYTES_A_PIXEL * min(LANES[lane], max_pixels)
    try:
        ours, theirs = Pipe()
        with theirs:
            start()
            limits = MAX_SECONDS, memory
            process = get_context("forkserver").Process(target=_limited, args=(theirs, limits, job), daemon=True)
            process.start()
    except (OSError, EOFError):
        raise RequestError("busy", "The image was not decoded; ask again in a moment.") from None
    with ours:
        try:
            outcome = ours.recv()
        except (OSError, EOFError):
            most = f"{MAX_SECONDS} s or {memory / 2**20:.0f} MiB"
            outcome = RequestError("too_much_work", f"To decode the image takes more than {most}; send a smaller one.")
    process.join()
    if isinstance(outcome, RequestError):
        raise outcome
    return outcome


def start() -> None:
    """Starts the process that forks those that decode, which takes it some seconds; else the first image does."""
    if sys.platform == "linux":
        get_context("forkserver").set_forkserver_preload(["__main__", __name__])
        with contextlib.suppress(OSError):  # it is tried again for each image
            forkserver.ensure_running()


def _limited(
    connection: Connection, limits: tuple[int, int], job: tuple[bytes, Sequence[Preprocessing], int, int]
) -> None:
    """Decodes for whoever is at the other end, in as many seconds and bytes at most."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service
    os.nice(10)
    torch.set_num_threads(1)  # more would take memory
    with open("/proc/self/statm", encoding="ascii") as file:
        own = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (own + limits[1] + 2**26, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (limits[0], resource.RLIM_INFINITY))
    with contextlib.suppress(BaseException):
        try:
            outcome = decoded(*job)
        except RequestError as error:
            outcome = error
        connection.send_bytes(pickle.dumps(outcome))  # as `send`, but torch's own way would be by shared memory
