"""Where to write the names of points so that none covers another, a marker or an error bar; plain geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""

# Right and left first: names are wide and low.
_ANGLES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240)
_DISTANCES = (1.0, 1.8, 2.8, 4.0, 5.5, 7.5)


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    frame: Box,
    *,
    gap: float,
) -> list[Box] | None:
    """Finds a free place for every label, as near its point as there is one, first come, first served.

    Args:
        points: What the labels belong to.
        sizes: Width and height of each label.
        taken: What no label may cover.
        frame: What no label may leave.
        gap: Distance to the point that looks right; up to several times that is tried.

    Returns:
        A box for each label; None where there is no room for all of them.

    Example:
        >>> place_labels([(5, 5), (5, 5)], [(4, 2), (4, 2)], [], (0, 0, 20, 10), gap=1)
        [(6.0, 4.0, 10.0, 6.0), (0.0, 4.0, 4.0, 6.0)]
    """
    found: list[Box] = []
    for point, size in zip(points, sizes, strict=True):
        places = (_beside(point, size, angle, gap * far) for far in _DISTANCES for angle in _ANGLES)
        busy = [*taken, *found]
        free = [box for box in places if _inside(box, frame) and not any(_overlap(box, other) for other in busy)]
        clear = [box for box in free if not _crosses(point, box, found)]
        box = next((box for box in clear if not _crosses(point, box, taken)), clear[0] if clear else None)
        if box is None:
            return None
        found.append(box)
    return found


def _beside(point: tuple[float, float], size: tuple[float, float], angle: float, distance: float) -> Box:
    """A box whose nearest edge or corner lies in a direction from a point."""
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = point[0] + distance * across, point[1] + distance * up
    left = x if across > 0.4 else x - size[0] if across < -0.4 else x - size[0] / 2
    bottom = y if up > 0.4 else y - size[1] if up < -0.4 else y - size[1] / 2
    return left, bottom, left + size[0], bottom + size[1]


def nearest(point: tuple[float, float], box: Box) -> tuple[float, float]:
    """The point of a box that is nearest to a point.

    Example:
        >>> nearest((0, 5), (2, 1, 4, 3))
        (2, 3)
    """
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _crosses(point: tuple[float, float], box: Box, others: Sequence[Box]) -> bool:
    """Whether the line from a point to its label would run over another box than those that the point is in."""
    x, y = nearest(point, box)
    steps = [(point[0] + t * (x - point[0]), point[1] + t * (y - point[1])) for t in (0.2, 0.4, 0.6, 0.8)]
    away = [other for other in others if not _overlap((*point, *point), other)]
    return any(_overlap((*step, *step), other) for step in steps for other in away)


def _inside(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
