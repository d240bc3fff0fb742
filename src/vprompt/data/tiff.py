"""TIFF files that Pillow has no mode for (several bands of 16 or 32 bits, floats, doubles): tifffile reads them."""

from __future__ import annotations

import importlib
import logging
import math
import operator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

_KINDS = {1: ("u", "integers"), 2: ("i", "signed integers"), 3: ("f", "floats")}
"""SampleFormat -> numpy's letter, and words."""

_LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 34926, 50000)
"""Compressions that are undone: none, LZW, deflate, PackBits, LZMA, Zstandard."""

_ALPHA = (1, 2)
"""ExtraSamples that are an opacity."""

# Without a handler of their own, log lines of these libraries would reach standard error.
for _name in ("PIL", "tifffile"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


class Tiff:
    """The first picture of a TIFF file by its tags: its size, and the number, bits and kind of its samples."""

    def __init__(self, tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
        self.tags = tags
        self.size = _first(tags, 256, 0), _first(tags, 257, 0)
        self.bands, self.bits = _first(tags, 277, 1), _first(tags, 258, 1)
        self.kind, self._numbers = _KINDS.get(_first(tags, 339, 1), _KINDS[1])
        self._drawn = _first(tags, 262, 1) in (1, 2)  # grey, or RGB
        self._rgb = _first(tags, 262, 1) == 2

    @property
    def layout(self) -> str:
        """What it holds, in words."""
        numbers = f"{self.bits}-bit {self._numbers}"
        return f"{self.bands} bands of {numbers}" if self.bands > 1 else numbers

    @property
    def colours(self) -> int:
        """The number of bands that make a picture, opacity included; 0 where that cannot be told."""
        if not self._drawn:
            return 0
        clear = _first(self.tags, 338, 0) not in _ALPHA
        if self.bands >= 4:
            return (3 if clear else 4) if self._rgb else 0
        return {1: 1, 2: 1 if clear else 2, 3: 3}[self.bands]

    @property
    def known_to_pillow(self) -> bool:
        """Whether Pillow reads it without loss."""
        if not self._drawn:
            return True
        if self.bands == 1:
            return (self.bits <= 16 and self.kind != "f") or self.bits == 32
        return self.bits <= 8 and self.bands <= 6 and (self._rgb or self.bands == 2)

    def samples(self, file: BinaryIO) -> NDArray[Any]:
        """The samples (H, W, bands).

        Raises:
            ValueError: tifffile is not installed, or they are packed in a way that is not read.
        """
        try:
            tifffile: Any = importlib.import_module("tifffile")
        except ImportError:
            raise ValueError(f"{self.layout} are read after `pip install 'vprompt[tiff]'`") from None
        file.seek(0)
        with tifffile.TiffFile(file) as opened:
            page = opened.pages[0]
            # Other pictures inside, giant tiles and parts that are read many times could take any memory or time.
            most = max(sum(page.databytecounts), math.prod(page.chunks) * page.dtype.itemsize)
            if page.compression not in _LOSSLESS or most > 2 * page.nbytes + 2**24:
                raise ValueError(f"{self.layout}, packed in a way that is not read")
            ends = map(operator.add, page.dataoffsets, page.databytecounts)
            if max(ends) > opened.filehandle.size:  # what is missing would be black
                raise ValueError("the file is cut off")
            planes = page.asarray(squeeze=False, maxworkers=1)[:, 0]
        return np.moveaxis(planes, 0, -1).reshape(*planes.shape[1:3], -1)


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
        found = Tiff(tags)
        return found if min(*found.size, found.bands) > 0 else None
    except Exception:  # tags can be damaged in any way
        return None
