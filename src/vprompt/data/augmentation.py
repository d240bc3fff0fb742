"""Random views: the part of an image that one epoch of training takes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class View:
    """One random crop of an image, mirrored or not.

    Args:
        top: Where the crop is between the highest (0) and the lowest place (towards 1).
        left: The same from left to right.
        mirrored: Whether left and right are exchanged.
    """

    top: float
    left: float
    mirrored: bool

    @classmethod
    def drawn(cls, *, seed: int, epoch: int, index: int) -> View:
        """The view of one image in one epoch of a training; batches, processes and versions have no part in it.

        Example:
            >>> view = View.drawn(seed=0, epoch=3, index=7)
            >>> view == View.drawn(seed=0, epoch=3, index=7), view == View.drawn(seed=0, epoch=4, index=7)
            (True, False)
        """
        bits = hashlib.sha256(f"view\0{seed}\0{epoch}\0{index}".encode()).digest()
        return cls(top=_fraction(bits[:8]), left=_fraction(bits[8:16]), mirrored=bits[16] % 2 == 1)


def _fraction(bits: bytes) -> float:
    """A number from 0 to below 1, exact on every machine."""
    return (int.from_bytes(bits, "big") >> 11) * 2.0**-53
