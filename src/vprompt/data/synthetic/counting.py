"""Pictures of three to ten coloured objects, to be counted."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vprompt.data.synthetic.draws import Draws

SIDE = 64

COUNTS = tuple(range(3, 11))

COLOURS = (
    *((214, 39, 40), (44, 160, 44), (31, 119, 180), (255, 187, 40)),
    *((148, 103, 189), (23, 190, 207), (235, 235, 235)),
)

AREA = (0.07, 0.15)
"""Of all objects together, as a share of the picture: drawn apart from their number, so that it does not tell it.

Over the 3,000 pictures of the task, the correlation of the number with the area is -0.003, with brightness 0.015.
"""

TRIES = 100

Discs = list[tuple[float, float, float]]
"""For each object the centre and the radius of a circle around it."""


def picture(count: int, draws: Draws) -> NDArray[np.uint8]:
    """Draws a picture of so many discs, squares and triangles that do not touch, on a noisy grey ground.

    Args:
        count: 3 to 10.
        draws: What all else comes from.

    Returns:
        (64, 64, 3).

    Example:
        >>> picture(3, Draws(0)).shape
        (64, 64, 3)
    """
    discs = _places(count, draws)
    noise = draws.bytes(SIDE * SIDE).reshape(SIDE, SIDE, 1) % 25
    image = np.broadcast_to(noise, (SIDE, SIDE, 3)).astype(np.uint8) + np.uint8(60 + draws.below(80))
    for x, y, radius in discs:
        inside = _object(draws.below(3), x, y, radius, draws.between(0, 2 * math.pi))
        shade = 1 - 0.3 * draws.between(0, 1)
        image[inside] = [int(shade * part) for part in COLOURS[draws.below(len(COLOURS))]]
    return image


def _places(count: int, draws: Draws) -> Discs:
    """Circles that do not touch; drawn anew where there is no room for the last ones."""
    while True:
        weights = [draws.between(1, 3) for _ in range(count)]
        unit = SIDE * SIDE * draws.between(*AREA) / sum(weights) / math.pi
        discs: Discs = []
        for radius in sorted((math.sqrt(weight * unit) for weight in weights), reverse=True):
            for _ in range(TRIES):
                x, y = draws.between(radius, SIDE - radius), draws.between(radius, SIDE - radius)
                if all((x - a) ** 2 + (y - b) ** 2 > (radius + other + 1) ** 2 for a, b, other in discs):
                    discs.append((x, y, radius))
                    break
        if len(discs) == count:
            return discs


def _object(kind: int, x: float, y: float, radius: float, angle: float) -> NDArray[np.bool_]:
    """The pixels of a disc, or of a turned square or triangle inside its circle."""
    pixels = np.arange(SIDE) + 0.5
    across, down = pixels[None, :] - x, pixels[:, None] - y
    if kind == 0:
        return across**2 + down**2 < radius**2
    sides = 4 if kind == 1 else 3
    turns = [angle + 2 * math.pi * side / sides for side in range(sides)]
    away = [math.cos(turn) * across + math.sin(turn) * down for turn in turns]
    return np.max(away, axis=0) < radius * math.cos(math.pi / sides)
