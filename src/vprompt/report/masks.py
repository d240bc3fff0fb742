"""Masks as pictures: a colour for each class, over an image or alone, and where a prediction is wrong."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray

from vprompt.report.colours import COLOURS

GREY, WRONG, RIGHT = (128, 128, 128), (213, 94, 0), (255, 255, 255)

Pixels = NDArray[np.uint8]


def palette(classes: int) -> Pixels:
    """Colours (K, 3) of classes: black for the first, Okabe and Ito's six, then hues far from the last ones.

    Example:
        >>> palette(3).tolist()
        [[0, 0, 0], [0, 114, 178], [213, 94, 0]]
    """
    plain = ["#000000", *COLOURS[:-1]]
    known = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in plain]
    more = [colorsys.hsv_to_rgb(0.618 * n % 1, 0.55 + 0.15 * (n % 3), 0.95 - 0.2 * (n % 2)) for n in range(classes)]
    return np.array((known + [[round(255 * part) for part in rgb] for rgb in more])[:classes], np.uint8)


def coloured(mask_HW: NDArray[np.int64], classes: int) -> Pixels:
    """A mask as a picture (H, W, 3); what is no class is grey."""
    return np.concatenate([palette(classes), [GREY]]).astype(np.uint8)[np.where(mask_HW < 0, classes, mask_HW)]


def overlaid(image_HW3: Pixels, mask_HW: NDArray[np.int64], classes: int) -> Pixels:
    """A mask half over its image (H, W, 3)."""
    return ((image_HW3.astype(np.uint16) + coloured(mask_HW, classes)) // 2).astype(np.uint8)


def errors(said_HW: NDArray[np.int64], true_HW: NDArray[np.int64]) -> Pixels:
    """Where a prediction is wrong, as a picture (H, W, 3): orange, else white; what is no class is grey."""
    look = np.where(true_HW < 0, 2, said_HW != true_HW)
    return np.array([RIGHT, WRONG, GREY], np.uint8)[look]
