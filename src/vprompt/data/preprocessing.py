"""Preprocessing of images: size, resizing and normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


Resize = Literal["squash", "crop"]

Augment = Literal["none", "crop-flip"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Size, resizing and normalisation of images, saved with every adapter and every result.

    Args:
        size: Height and width in pixels.
        mean: Per channel, on the 0-1 scale.
        std: Per channel, on the 0-1 scale.
        interpolation: `"bilinear"`, `"bicubic"` or `"nearest"`.
        resize: `"squash"` ignores the aspect ratio, as VTAB-1k does; `"crop"` resizes the short side to `size / 0.875`
            and cuts the centre, as FGVC does.

    Example:
        >>> Preprocessing(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).resize
        'squash'
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize: Resize = "squash"

    def normalise(self, pixels_BCHW: Tensor) -> Tensor:
        """Turns uint8 pixels (..., 3, H, W) into float32 with `mean` and `std` taken out; never in place."""
        import torch

        shape = (3, 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pixels_BCHW.device).view(shape)
        std = torch.tensor(self.std, dtype=torch.float32, device=pixels_BCHW.device).view(shape)
        return (pixels_BCHW.float() / 255 - mean) / std
