"""Preprocessing of images: size, resizing and normalisation, and the random views of a training."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from vprompt.utils.errors import DataError
from vprompt.utils.serialization import ADDED

if TYPE_CHECKING:
    from torch import Tensor


Resize = Literal["squash", "crop", "keep", "fit"]

WHOLE = ("keep", "fit")
"""Ways of resizing that keep the aspect ratio and all of an image, whose size then is its own."""

Augment = Literal["none", "crop-flip", "light", "medium", "strong"]

WHITE = 65535
"""The value of white in images of 16 bits."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

MAX_CHANNELS = 1024
"""Most channels of an image."""

MAX_SIDE = 4096
"""Most pixels of a side of the images that a model is given."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Size, resizing and normalisation of images, saved with every adapter and every result.

    Args:
        size: Height and width in pixels.
        mean: Per channel, on the 0-1 scale; as many as images have channels, three of which are RGB.
        std: Per channel, on the 0-1 scale.
        interpolation: `"nearest"`, `"bilinear"`, `"bicubic"` or `"lanczos"`.
        resize: `"squash"` ignores the aspect ratio, as VTAB-1k does; `"crop"` resizes the short side to `size / 0.875`
            and cuts the centre, as FGVC does. Where pixels have labels: `"keep"` leaves the image as it is, `"fit"`
            makes its short side that of the size, and both are seen in windows of the size.
        white: The value of white in images of 16 bits, such as 4095 for those of a camera of 12 bits, unless a file
            says it itself.

    Raises:
        DataError: If a value is out of range.

    Example:
        >>> Preprocessing(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).resize
        'squash'
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize: Resize = "squash"
    white: int = field(default=WHITE, metadata=ADDED)

    def __post_init__(self) -> None:
        checks = [
            (
                0 < min(self.size) <= max(self.size) <= MAX_SIDE,
                f"The size is from 1 to {MAX_SIDE} pixels, not {self.size}",
            ),
            (
                1 <= len(self.mean) == len(self.std) <= MAX_CHANNELS,
                f"There are a mean and a 'std' for each of 1 to {MAX_CHANNELS} channels, not {self.mean}, {self.std}",
            ),
            (all(map(math.isfinite, self.mean)), f"The mean is finite, not {self.mean}"),
            (all(0 < value < math.inf for value in self.std), f"'std' is above 0 and finite, not {self.std}"),
            (
                self.resize in ("squash", "crop", *WHOLE),
                f"Images are resized by 'squash' or 'crop', with masks by 'keep' or 'fit', not {self.resize!r}",
            ),
            (
                self.interpolation in INTERPOLATIONS,
                f"The interpolation {self.interpolation!r} is not known; use one of {', '.join(INTERPOLATIONS)}",
            ),
            (0 < self.white <= WHITE, f"'white' is from 1 to {WHITE}, not {self.white}"),
        ]
        for holds, problem in checks:
            if not holds:
                raise DataError(f"{problem}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that a model is given."""
        return (len(self.mean), *self.size)

    @property
    def squashed(self) -> Preprocessing:
        """The same, for images that all must have the size."""
        return replace(self, resize="squash") if self.resize in WHOLE else self

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an image of a size is resized to.

        Example:
            >>> Preprocessing(size=(32, 32), mean=(0.5,), std=(0.5,), resize="fit").scaled((100, 200))
            (32, 64)
        """
        if self.resize not in WHOLE:
            return self.size
        times = max(self.size[0] / size[0], self.size[1] / size[1]) if self.resize == "fit" else 1
        return max(1, round(times * size[0])), max(1, round(times * size[1]))

    def normalise(self, pixels_BCHW: Tensor) -> Tensor:
        """Turns uint8 pixels (..., C, H, W) into float32 with `mean` and `std` taken out; never in place."""
        import torch

        from vprompt.utils.devices import moved

        of_channels = torch.tensor([self.mean, self.std], dtype=torch.float32).view(2, -1, 1, 1)
        mean, std = moved(of_channels, pixels_BCHW.device)
        return (pixels_BCHW.float() / 255 - mean) / std


@dataclass(frozen=True, kw_only=True)
class View:
    """One random crop of an image, mirrored or not.

    Args:
        top: Where the crop is between the highest (0) and the lowest place (towards 1).
        left: The same from left to right.
        mirrored: Whether left and right are exchanged.
        zoom: Of images whose pixels have labels, how large they are seen: 0 is half, 1 twice their size.
    """

    top: float
    left: float
    mirrored: bool
    zoom: float | None = None

    @classmethod
    def drawn(cls, *, seed: int, epoch: int, index: int, zoomed: bool = False) -> View:
        """The view of one image in one epoch of a training; batches, processes and versions have no part in it.

        Example:
            >>> view = View.drawn(seed=0, epoch=3, index=7)
            >>> view == View.drawn(seed=0, epoch=3, index=7), view == View.drawn(seed=0, epoch=4, index=7)
            (True, False)
        """
        bits = drawn_bits("view", seed=seed, epoch=epoch, index=index)
        top, left = _fraction(bits[:8]), _fraction(bits[8:16])
        return cls(top=top, left=left, mirrored=bits[16] % 2 == 1, zoom=_fraction(bits[17:25]) if zoomed else None)


def drawn_bits(purpose: str, *, seed: int, epoch: int, index: int) -> bytes:
    """32 random bytes for one image in one epoch of a training, and a purpose."""
    return hashlib.sha256(f"{purpose}\0{seed}\0{epoch}\0{index}".encode()).digest()


def _fraction(bits: bytes) -> float:
    """A number from 0 to below 1, exact on every machine."""
    return (int.from_bytes(bits, "big") >> 11) * 2.0**-53
