"""Decoding of images for the service: their work is bounded, and large ones go to processes of their own.

A small file can be much work: a JPEG of 300 kB may hold a hundred passes over 50 million pixels. So an image's work is
told by its header. A little is done in a thread; more in a process that the system gives less time than the service,
and stops by the seconds and the bytes it takes. So small images never wait for large ones, nor for a lock they hold.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vprompt.data.images import NotAnImageError, TooManyPixelsError, UnusableImageError, opened, read_pixels
from vprompt.data.preprocessing import Preprocessing
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

LANES = (3_000_000, 40_000_000, sys.maxsize)
"""Most work of an image in each lane; a pass over a pixel of a JPEG, some 5 ns, is 1. The first is in this process."""

THREAD_BYTES = 2**20
"""Most bytes of a file that is opened in this process, for headers can be long as well."""

PASSES = {"JPEG": 1, "MPO": 1, "BMP": 1, "PPM": 1, "PNG": 3, "GIF": 3, "WEBP": 6}
"""Passes over the pixels that formats cost."""

OTHER_PASSES = 20
"""Those of all other formats, which are decoded in a process always: their headers do not tell enough."""

Pixels = list[NDArray[np.uint8] | str]

Images = Mapping[Preprocessing, Tensor | Exception]
"""One image by each preprocessing, or why it cannot be had by that."""

_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


class MoreWorkError(Exception):
    """An image that is for another lane; its argument says how much work it is."""


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


def decoded(data: bytes, preprocessings: Sequence[Preprocessing], *, max_pixels: int) -> Images:
    """One image by each preprocessing, normalised (3, H, W), just as `vprompt predict` reads it; see `pixels_of`."""
    return _normalised(pixels_of(data, preprocessings, max_pixels), preprocessings)


def _normalised(pixels: Pixels, preprocessings: Sequence[Preprocessing]) -> Images:
    images: dict[Preprocessing, Tensor | Exception] = {}
    for each, one in zip(preprocessings, pixels, strict=True):
        try:
            images[each] = RuntimeError(one) if isinstance(one, str) else each.normalise(torch.from_numpy(one))
        except Exception as error:  # of this preprocessing alone
            images[each] = error
    return images


def pixels_of(data: bytes, preprocessings: Sequence[Preprocessing], max_pixels: int, most: int = sys.maxsize) -> Pixels:
    """Pixels of one image, uint8 (3, H, W), by each preprocessing, or what is wrong with the preprocessing.

    Args:
        data: An image file.
        preprocessings: Those of the adapters that are asked.
        max_pixels: Refuse more, by the header.
        most: Most work.

    Raises:
        RequestError: If the image is no image, broken, too large, or too much work.
        MoreWorkError: If it is more work than `most`.
    """
    pixels: Pixels = []
    passes = scans(data)
    if passes > MAX_SCANS:
        raise RequestError("broken_image", f"The image has more than {MAX_SCANS} scans; save it again.")
    try:
        with opened(data, max_pixels) as image:
            size, format = image.size[0] * image.size[1], image.format or ""
        del image  # and its memory
        if passes > 1 and passes * size > MAX_PASSES * max_pixels:
            raise RequestError(
                "too_much_work", f"{passes} scans over {size / 1e6:.1f} million pixels are too much; save it again."
            )
        work = size * len(preprocessings) * max(passes, PASSES.get(format, OTHER_PASSES))
        work = work if format in PASSES else max(work, LANES[0] + 1)
        if work > most:
            raise MoreWorkError(work)
        for each in preprocessings:
            try:
                pixels.append(read_pixels(data, each, max_pixels=max_pixels).numpy())
            except (UnusableImageError, MemoryError):
                raise
            except Exception as error:  # of this preprocessing, not of the image
                pixels.append(str(error))
    except NotAnImageError as error:
        raise RequestError("not_an_image", f"What was sent {error}; {HOW_TO_SEND}") from error
    except TooManyPixelsError as error:
        raise RequestError("too_many_pixels", f"The image {error}; send a smaller one.") from error
    except UnusableImageError as error:
        raise RequestError("broken_image", f"The image {error}; send it again, whole.") from error
    except MemoryError as error:
        raise RequestError("too_many_pixels", "The image takes too much memory; send a smaller one.") from error
    return pixels


class Decoders:
    """The lanes in which images are decoded, each one image at a time but the first; safe to use from all threads.

    Args:
        max_pixels: Refuse more, by the header.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._process: subprocess.Popen[bytes] | None = None
        self._ends: list[Connection] = []
        self._changing = threading.Lock()

    def decode(self, lane: int, data: bytes, preprocessings: Sequence[Preprocessing]) -> Images:
        """As `decoded`.

        Raises:
            MoreWorkError: If it is more work than the lane allows.
            RequestError: As there; or it took too much time or memory.
        """
        if lane == 0 and (len(data) > THREAD_BYTES or data[:2] in (b"II", b"MM")):  # a TIFF file is opened elsewhere
            raise MoreWorkError(LANES[0] + 1)
        job = data, preprocessings, self._max_pixels, LANES[lane]
        pixels = self._elsewhere(lane, job) if lane and sys.platform == "linux" else pixels_of(*job)
        return _normalised(pixels, preprocessings)

    def _elsewhere(self, lane: int, job: object) -> Pixels:
        self.start()
        try:
            end = self._ends[lane - 1]
            end.send(job)
            outcome = end.recv()
        except (OSError, EOFError, IndexError):
            self.close()
            raise RequestError("busy", "The image was not decoded; ask again in a moment.") from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def start(self) -> None:
        """Starts the processes, which takes them some seconds; otherwise the first image that needs them does."""
        with self._changing:
            if sys.platform != "linux" or (self._process is not None and self._process.poll() is None):
                return
            self._stop()
            pairs = [Pipe() for _ in LANES[1:]]
            numbers = [theirs.fileno() for _, theirs in pairs]
            memory = [BYTES_A_PIXEL * min(most, self._max_pixels) for most in LANES[1:]]
            run = "from vprompt.serving.decoding import main; main()"
            command = [sys.executable, "-c", run, *map(str, [*numbers, *memory])]
            # A session of its own: Ctrl-C is for the service, which ends it by closing its connections.
            self._process = subprocess.Popen(
                command, pass_fds=numbers, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
            self._ends = [ours for ours, _ in pairs]
            for _, theirs in pairs:
                theirs.close()

    def close(self) -> None:
        """Ends the processes."""
        with self._changing:
            self._stop()

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for end in self._ends:
            end.close()
        self._process, self._ends = None, []


def _work(connection: Connection, memory: int) -> None:
    """Decodes for whoever is at the other end; each image in a fork of this process, which the system limits."""
    import resource

    most = f"{MAX_SECONDS} s or {memory / 2**20:.0f} MiB"
    too_much = RequestError("too_much_work", f"To decode the image takes more than {most}; send a smaller one.")
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        if (fork := os.fork()) == 0:
            with open("/proc/self/statm", encoding="ascii") as file:
                own = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (own + memory + 2**26, resource.RLIM_INFINITY))
            resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, resource.RLIM_INFINITY))
            with contextlib.suppress(BaseException):
                try:
                    outcome = pixels_of(*job)
                except (RequestError, MoreWorkError) as error:
                    outcome = error
                resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                connection.send(outcome)
                os._exit(0)
            os._exit(1)
        del job
        if os.waitpid(fork, 0)[1]:
            connection.send(too_much)


def main() -> None:
    """Decodes; the arguments are the numbers of the sockets of the lanes, and then as many bytes of memory."""
    import resource

    values = [int(value) for value in sys.argv[1:]]
    numbers, memory = values[: len(values) // 2], values[len(values) // 2 :]
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lane = next((lane for lane in range(1, len(numbers)) if os.fork() == 0), 0)
    for number in numbers:
        if number != numbers[lane]:
            os.close(number)
    _work(Connection(numbers[lane]), memory[lane])
