"""Routing of requests through the blocks: which of them share a row of the batch. Pure bookkeeping, without tensors.

A request is an image and an adapter. Below the first block in which its adapter has prompts, a request has nothing of
its own: all requests about one image share a row there. From that block on, it has a row, and rows of one adapter stand
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Rows `start` to `stop` of one block that attend over the prefix of one adapter; None: over no prefix."""

    start: int
    stop: int
    adapter: int | None


@dataclass(frozen=True, kw_only=True)
class Route:
    """The route of some requests through the blocks.

    Args:
        images: Which images enter the first block, in order.
        spread: By block: which row of those before it each of its rows comes from; None where nothing changes.
        groups: By block: its rows by adapter, all of them, in order.
        rows: By adapter: the row of each of its requests behind the last block.
    """

    images: tuple[int, ...]
    spread: tuple[tuple[int, ...] | None, ...]
    groups: tuple[tuple[Group, ...], ...]
    rows: tuple[tuple[int, ...], ...]


def route(asked: Sequence[Sequence[int]], prompted: Sequence[Sequence[bool]], *, shared: bool = True) -> Route:
    """The route through the blocks in which nothing is computed twice.

    Args:
        asked: For every adapter the images it is asked about, none twice.
        prompted: For every adapter, which blocks it has prompts in; as many blocks for each.
        shared: Whether requests may share a row; else each has its own from the start.

    Example:
        >>> example = route([[0], [0, 1]], [[False, True], [False, False]])  # the second adapter has no prompts
        >>> example.images, example.spread, example.rows
        ((0, 1), (None, (0, 1, 0)), ((2,), (0, 1)))
        >>> example.groups[1]
        (Group(start=0, stop=2, adapter=None), Group(start=2, stop=3, adapter=0))
    """
    blocks = len(prompted[0]) if prompted else 0
    first = [next((block for block in range(blocks) if has[block]), blocks) if shared else -1 for has in prompted]
    # In the order of the first adapter that asks, so that mostly nothing moves where requests part.
    images = tuple(dict.fromkeys(image for wanted in asked for image in wanted))
    rows: list[tuple[int | None, int]] = [(None, image) for image in images]
    if not shared:
        rows = [(adapter, image) for adapter, wanted in enumerate(asked) for image in wanted]
        images = tuple(image for _, image in rows)
    spread: list[tuple[int, ...] | None] = []
    groups: list[tuple[Group, ...]] = []
    for block in range(blocks):
        before = {key: place for place, key in enumerate(rows)}
        if block in first:
            later = {image for wanted, at in zip(asked, first, strict=True) if at > block for image in wanted}
            rows = [(None, image) for image in images if image in later]
            rows += [(adapter, image) for adapter, at in enumerate(first) if at <= block for image in asked[adapter]]
        index = tuple(before[key] if key in before else before[None, key[1]] for key in rows)
        spread.append(None if index == tuple(range(len(before))) else index)
        owners = [key[0] if key[0] is not None and prompted[key[0]][block] else None for key in rows]
        groups.append(_runs(owners))
    place = {key: row for row, key in enumerate(rows)}
    return Route(
        images=images,
        spread=tuple(spread),
        groups=tuple(groups),
        rows=tuple(
            tuple(place[(adapter if at < blocks else None), image] for image in wanted)
            for adapter, (wanted, at) in enumerate(zip(asked, first, strict=True))
        ),
    )


def _runs(owners: Sequence[int | None]) -> tuple[Group, ...]:
    """Groups of neighbours of one adapter."""
    starts = [row for row in range(len(owners)) if not row or owners[row] != owners[row - 1]]
    return tuple(
        Group(start, stop, owners[start]) for start, stop in zip(starts, [*starts[1:], len(owners)], strict=True)
    )
