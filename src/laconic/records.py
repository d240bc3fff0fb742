"""What was done to a model's prompts, as plain data that is saved with the adapter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Condensation:
    """Why each prompt stayed: what `condense` scored and chose, saved with the adapter.

    Args:
        criterion: Name of the score.
        scope: `"global"`, `"local"` or `"shared"`.
        ratio: Share of the prompts that was kept.
        merge: Whether the others of a block were merged into those that were kept.
        scores: Score of every prompt there was, block by block.
        kept: Indices of the kept prompts, block by block.
    """

    criterion: str
    scope: str
    ratio: float
    scores: tuple[tuple[float, ...], ...]
    kept: tuple[tuple[int, ...], ...]
    merge: bool = False


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What `prune` took away and how the rest was trained, saved with the adapter beside the `Condensation`.

    Args:
        tokens: Share of the prompts that is gone, 0 to below 1.
        segments: Share of the other prompts' segments that is gone, 0 to below 1.
        rewind_epoch: Epoch after which the values were recorded that the rest was trained from; None where it was not
            trained again, or from where it was.
    """

    tokens: float
    segments: float
    rewind_epoch: int | None
