"""Structured tasks that are specified by their factors, rendered here: nothing to download, the same everywhere."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from vprompt.data.listing import Item, Listing
from vprompt.data.synthetic.counting import COUNTS, picture
from vprompt.data.synthetic.draws import Draws
from vprompt.data.synthetic.dsprites import FACTORS, Factors, sprites
from vprompt.utils.errors import DataError

PREFIX = "synthetic:"

SIZES = (800, 200, 2000)
"""Training, validation and test images of every task."""

SEED = 20_231

CHUNK = 100
"""Sprites drawn at once: few enough to stay in the processor's cache."""

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""(N, 64, 64) or (N, 64, 64, 3), and the labels."""


@functools.cache
def synthetic_listing(spec: str) -> Listing:
    """Draws a task: 800 training, 200 validation and 2,000 test images of 64 x 64 pixels, no two of them equal.

    `synthetic:dsprites-orientation` and `synthetic:dsprites-location` ask for one factor of a sprite of unknown shape,
    in 16 classes, as VTAB-1k does: the angle, or the place from left to right. `synthetic:counting` asks for the number
    of objects, 3 to 10, as CLEVR's counting task does.

    Args:
        spec: One of `synthetic_names`.

    Raises:
        DataError: There is no such task.

    Example:
        >>> listing = synthetic_listing("synthetic:counting")
        >>> len(listing.splits["train"]), len(listing.splits["test"]), listing.classes[0]
        (800, 2000, '3 objects')
    """
    if spec not in _TASKS:
        raise DataError(f"There is no synthetic task {spec}; there are {', '.join(synthetic_names())}.")
    draw, classes = _TASKS[spec]
    images, labels = draw()
    items = [Item(str(number), classes[label]) for number, label in enumerate(labels)]
    ends = itertools.accumulate(SIZES, initial=0)
    parts = zip(("train", "val", "test"), itertools.pairwise(ends), strict=True)
    return Listing(
        name=spec.removeprefix(PREFIX),
        source=spec,
        where=spec,
        splits={split: items[start:end] for split, (start, end) in parts},
        rendered=lambda: images,
        classes=classes,
    )


def synthetic_names() -> tuple[str, ...]:
    """The specs of all tasks that are rendered."""
    return tuple(_TASKS)


def _sprites(stream: int, label: Callable[[Factors], int]) -> Images:
    draws, wanted = Draws(SEED + stream), sum(SIZES)
    seen: dict[bytes, tuple[NDArray[np.uint8], int]] = {}
    while len(seen) < wanted:
        some: list[Factors] = []
        for _ in range(CHUNK):
            shape, scale, angle, x, y = (draws.below(number) for number in FACTORS)
            some.append((shape, scale, angle, x, y))
        for factors, image in zip(some, sprites(some), strict=True):
            seen.setdefault(image.tobytes(), (image, label(factors)))
    images, labels = zip(*list(seen.values())[:wanted], strict=True)
    return np.stack(images), np.array(labels)


def _counting() -> Images:
    draws = Draws(SEED + 3)
    labels = [draws.below(len(COUNTS)) for _ in range(sum(SIZES))]
    return np.stack([picture(COUNTS[label], draws) for label in labels]), np.array(labels)


def _angles() -> Iterator[str]:
    """Names of the 16 classes that the 40 angles from 0 to a whole turn fall into."""
    for label in range(16):
        inside = [angle for angle in range(40) if angle * 2 // 5 == label]
        yield f"{360 * inside[0] / 39:.0f} to {360 * inside[-1] / 39:.0f} degrees"


_TASKS: dict[str, tuple[Callable[[], Images], tuple[str, ...]]] = {
    # As in the original, no model can be perfect: squares look the same after a quarter turn and ellipses after a half,
    # and the last angle, in class 15, is the first one again, which is in class 0.
    "synthetic:dsprites-orientation": (
        lambda: _sprites(1, lambda factors: factors[2] * 2 // 5),
        tuple(_angles()),
    ),
    "synthetic:dsprites-location": (
        lambda: _sprites(2, lambda factors: factors[3] // 2),
        tuple(f"x {2 * label} to {2 * label + 1}" for label in range(16)),
    ),
    "synthetic:counting": (_counting, tuple(f"{count} objects" for count in COUNTS)),
}
