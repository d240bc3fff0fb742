"""Samples of TIFF files that Pillow knows no mode for: several bands of 16 or 32 bits, floats, doubles."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

_KINDS = {1: "u", 2: "i", 3: "f"}
"""SampleFormat -> numpy's letter."""

_WORDS = {"u": "integers", "i": "signed integers", "f": "floats"}

_ALPHA = (1, 2)
"""ExtraSamples that are an opacity."""


@dataclass(frozen=True, kw_only=True)
class Tiff:
    """The first picture of a TIFF file by its tags.

    Args:
        file: The open file.
        tags: All of them.
        order: `"<"` or `">"`.
        size: Width and height.
        bands: Samples per pixel.
        bits: Bits per sample.
        kind: Numpy's letter of the samples' type.
        photometric: 1 of grey, 2 of RGB.
    """

    file: BinaryIO
    tags: TiffImagePlugin.ImageFileDirectory_v2
    order: str
    size: tuple[int, int]
    bands: int
    bits: int
    kind: str
    photometric: int

    @property
    def layout(self) -> str:
        """What it holds, in words."""
        numbers = f"{self.bits}-bit {_WORDS[self.kind]}"
        return f"{self.bands} bands of {numbers}" if self.bands > 1 else numbers

    @property
    def colours(self) -> int:
        """The number of bands that make a picture, opacity included; 0 where that cannot be told."""
        if self.photometric not in (1, 2):
            return 0
        clear = _first(self.tags, 338, 0) not in _ALPHA
        if self.bands >= 4:
            return (3 if clear else 4) if self.photometric == 2 else 0
        return {1: 1, 2: 1 if clear else 2, 3: 3}[self.bands]

    @property
    def known_to_pillow(self) -> bool:
        """Whether Pillow reads it without loss."""
        if self.photometric not in (1, 2):
            return True
        if self.bands == 1:
            return (self.bits <= 16 and self.kind != "f") or self.bits == 32
        return self.bits <= 8 and self.bands <= 6 and (self.photometric == 2 or self.bands == 2)

    def samples(self) -> NDArray[Any]:
        """The samples (H, W, bands).

        Raises:
            ValueError: They are compressed in a way that cannot be undone here.
        """
        width, height = self.size
        kind = np.dtype(f"{self.order}{self.kind}{self.bits // 8}")
        predictor = _first(self.tags, 317, 1)
        if self.bits % 8 or predictor not in (1, 2) or (predictor == 2 and self.kind == "f"):
            raise ValueError(f"{self.layout}, packed in a way that is not read")
        planes = self.bands if _first(self.tags, 284, 1) == 2 else 1
        together = self.bands // planes
        parts: list[NDArray[Any]] = []
        for plane in range(planes):
            raw = self._plane(plane, planes, together * kind.itemsize)
            part = np.frombuffer(raw, kind).reshape(height, width, together).astype(kind.newbyteorder("="))
            if predictor == 2:
                step = _first(self.tags, 322, width)
                for left in range(0, width, step):
                    part[:, left : left + step] = part[:, left : left + step].cumsum(1, dtype=part.dtype)
            parts.append(part)
        return np.concatenate(parts, axis=2)

    def _plane(self, plane: int, planes: int, pixel: int) -> bytes:
        """The bytes of a plane, `pixel` for each pixel, unpacked by Pillow: to it they are grey values in long rows."""
        width, height = self.size
        offsets, counts, rows = (324, 325, 323) if 324 in self.tags else (273, 279, 278)
        same = {number: self.tags[number] for number in (259, 266, rows) if number in self.tags}
        wide = {256: width * pixel, **({322: _first(self.tags, 322, 0) * pixel} if 324 in self.tags else {})}
        lengths = _share(self.tags[counts], plane, planes)
        if min(lengths) < 0 or sum(lengths) > 2 * width * height * pixel + 2**16:
            raise ValueError("more bytes are packed than unpacked")
        pieces: list[bytes] = []
        for offset, length in zip(_share(self.tags[offsets], plane, planes), lengths, strict=True):
            self.file.seek(offset)
            pieces.append(self.file.read(length))
        body, begins = b"".join(pieces), tuple(accumulate(lengths[:-1], initial=8))
        tags = {**same, **wide, 257: height, 258: 8, 262: 1, 277: 1, 284: 1, offsets: begins, counts: lengths}
        start = 8 + len(body) + len(body) % 2
        head = struct.pack(f"{self.order}2sHI", b"II" if self.order == "<" else b"MM", 42, start)
        file = (head + body).ljust(start, b"\0") + _directory(tags, self.order, start)
        with Image.open(io.BytesIO(file), formats=["TIFF"]) as image:
            return image.tobytes()


def _directory(tags: Mapping[int, int | tuple[int, ...]], order: str, start: int) -> bytes:
    """Tags of whole numbers as a directory that stands at `start`."""
    entries, beyond, after = b"", b"", start + 6 + 12 * len(tags)
    for number, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            packed, beyond = struct.pack(order + "I", after + len(beyond)), beyond + packed
        entries += struct.pack(order + "HHI", number, 4, len(values)) + packed
    return struct.pack(order + "H", len(tags)) + entries + bytes(4) + beyond


def _share(values: Any, plane: int, planes: int) -> tuple[int, ...]:
    several: tuple[int, ...] = values if isinstance(values, tuple) else (values,)
    each = len(several) // planes
    return several[plane * each : (plane + 1) * each]


def white_in(tags: TiffImagePlugin.ImageFileDirectory_v2) -> int | None:
    """The value of white as far as tags tell it: the largest value of 9 to 15 bits, or of the bits it is said to need.

    Example:
        >>> tags = TiffImagePlugin.ImageFileDirectory_v2()
        >>> tags[258], tags[281] = 16, 4000
        >>> white_in(tags)
        4095
    """
    bits = _first(tags, 258, 1)
    most = _first(tags, 341, _first(tags, 281, 2**bits - 1 if 8 < bits < 16 else 0))
    return 2 ** max(8, most.bit_length()) - 1 if 0 < most < 65536 else None


def _first(tags: TiffImagePlugin.ImageFileDirectory_v2, number: int, default: int) -> int:
    value = tags.get(number, default)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else default


def read_tiff(file: BinaryIO) -> Tiff | None:
    """The tags of the first picture of a TIFF file; None of another file, or where they are damaged."""
    head = file.read(8)
    if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0"):
        return None
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head + (file.read(8) if head[2] == 43 else b""))
        file.seek(tags.next)
        tags.load(file)
        found = Tiff(
            file=file,
            tags=tags,
            order="<" if head[:2] == b"II" else ">",
            size=(_first(tags, 256, 0), _first(tags, 257, 0)),
            bands=_first(tags, 277, 1),
            bits=_first(tags, 258, 1),
            kind=_KINDS.get(_first(tags, 339, 1), "u"),
            photometric=_first(tags, 262, 1),
        )
        return found if min(*found.size, found.bands) > 0 else None
    except Exception:  # tags can be damaged in any way
        return None
