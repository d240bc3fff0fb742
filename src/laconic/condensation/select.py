"""Which prompts to keep, given their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from laconic.errors import LaconicError

Scope = Literal["global", "local"]
SCOPES: tuple[str, ...] = get_args(Scope)


def select(scores: Sequence[Tensor], *, ratio: float = 0.3, scope: Scope = "global") -> list[Tensor]:
    """Chooses the prompts with the highest scores.

    Equal scores go to the earlier block, then to the earlier prompt.

    Args:
        scores: One tensor (P_l,) per block.
        ratio: Share to keep, above 0 and up to 1; rounded to whole prompts, at least one.
        scope: `"global"` keeps the best over all blocks together, so that blocks end with different counts, possibly
            none; `"local"` keeps the share in every block.

    Returns:
        One int64 tensor of indices, rising, for every block.

    Raises:
        LaconicError: If the ratio or the scope is out of range, or a score is not a number.

    Example:
        >>> scores = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 9.0])]
        >>> [kept.tolist() for kept in select(scores, ratio=0.5)]
        [[0], [1]]
        >>> [kept.tolist() for kept in select(scores, ratio=0.25)]
        [[], [1]]

    Source: Prompt Condensation (arXiv 2305.17223), Algorithm 1.
    """
    if not 0 < ratio <= 1:
        raise LaconicError(f"The ratio of prompts to keep must be above 0 and at most 1, not {ratio}.")
    if scope not in SCOPES:
        raise LaconicError(f"The scope is 'global' or 'local', not {scope!r}.")
    for block, values in enumerate(scores):
        if not bool(torch.isfinite(values).all()):
            raise LaconicError(f"The scores of block {block} are not all numbers; the model or its data is broken.")
    if scope == "local":
        return [_best(values, ratio) for values in scores]
    counts = [len(values) for values in scores]
    kept = torch.zeros(sum(counts), dtype=torch.bool)
    if sum(counts):
        kept[_best(torch.cat([values.cpu() for values in scores]), ratio)] = True
    return [part.nonzero().flatten() for part in kept.split(counts)]


def _best(values: Tensor, ratio: float) -> Tensor:
    if not len(values):
        return torch.zeros(0, dtype=torch.int64)
    keep = max(1, round(ratio * len(values)))
    return values.cpu().sort(descending=True, stable=True).indices[:keep].sort().values
