"""Selection of prompts and segments by their scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vprompt.compression.criteria import SCOPES, Scope, whole
from vprompt.utils.errors import VPromptError


def select(scores: Sequence[Tensor], *, ratio: float = 0.3, scope: Scope = "global") -> list[Tensor]:
    """Chooses the prompts with the highest scores.

    Equal scores go to the earlier block, then to the earlier prompt.

    Args:
        scores: One tensor (P_l,) per block.
        ratio: Share to retain, above 0 and up to 1; rounded to whole prompts (a half upwards), at least one in all.
        scope: `"global"` retains the best over all blocks together, so that blocks end with different counts, possibly
            none; `"local"` retains as many in all, dealt out to the blocks by their size (Sainte-Laguë), one that is
            left over to the earlier block: of 5 prompts in each of 6 blocks 30 % are 2, 2, 2, 1, 1 and 1. `"shared"`
            retains the same prompts in every block that has any, those with the highest sums of scores; as it rounds
            in the block, its total is that of the others or the nearest multiple of the blocks.

    Returns:
        One int64 tensor of indices, rising, for every block.

    Raises:
        VPromptError: If the ratio or the scope is out of range, a score is not a number, or blocks that share their
            choice have different numbers of prompts.

    Example:
        >>> scores = [torch.tensor([3.0, 1.0]), torch.tensor([2.0, 9.0])]
        >>> [index.tolist() for index in select(scores, ratio=0.5)]
        [[0], [1]]
        >>> [index.tolist() for index in select(scores, ratio=0.25)]
        [[], [1]]

    Source: Prompt Condensation (arXiv 2305.17223), Algorithm 1; shared: E²VPT (arXiv 2307.13770), section 3.3.
    """
    values = _comparable(scores, ratio, scope, "prompts")
    return [mask.nonzero().flatten() for mask in _best(values, ratio, scope)]


def select_segments(scores: Sequence[Tensor], *, ratio: float = 0.5, scope: Scope = "global") -> list[Tensor]:
    """Chooses the segments with the highest scores; every prompt retains its best one at least.

    Args:
        scores: One tensor (P_l, R) per block.
        ratio: Share of the segments to retain, above 0 and up to 1.
        scope: As for `select`.

    Returns:
        One mask (P_l, R) for every block.

    Raises:
        VPromptError: As for `select`.

    Example:
        >>> select_segments([torch.tensor([[3.0, 1.0], [0.2, 0.1], [4.0, 5.0]])], ratio=0.67)[0].tolist()
        [[True, False], [True, False], [True, True]]

    Source: E²VPT (arXiv 2307.13770), section 3.3.
    """
    values = _comparable(scores, ratio, scope, "segments")
    firm = [block_PR.masked_fill(_best_of_each(block_PR), torch.inf).flatten() for block_PR in values]
    return [mask.view(block_PR.shape) for mask, block_PR in zip(_best(firm, ratio, scope), values, strict=True)]


def summed_over_blocks(scores: Sequence[Tensor]) -> list[Tensor]:
    """For each block that has any scores, their sum over the blocks, by which blocks share one mask.

    Raises:
        VPromptError: If blocks have different numbers of prompts.
    """
    used = [values for values in scores if len(values)]
    if len({values.shape for values in used}) > 1:
        raise VPromptError("Blocks with different numbers of prompts cannot share a choice; use the scope 'global'.")
    total = torch.stack(used).sum(0) if used else torch.empty(0)
    return [total if len(values) else values for values in scores]


def _comparable(scores: Sequence[Tensor], ratio: float, scope: Scope, parts: str) -> list[Tensor]:
    """Checked scores on the CPU; where blocks share their choice, the sum in each."""
    if not 0 < ratio <= 1:
        raise VPromptError(f"The ratio of {parts} to keep must be above 0 and at most 1, not {ratio}.")
    if scope not in SCOPES:
        raise VPromptError(f"The scope is 'global', 'local' or 'shared', not {scope!r}.")
    for block, values in enumerate(scores):
        if not bool(torch.isfinite(values).all()):
            raise VPromptError(f"The scores of block {block} are not all numbers; the model or its data is broken.")
    on_cpu = [values.cpu() for values in scores]
    return summed_over_blocks(on_cpu) if scope == "shared" else on_cpu


def _best(scores: Sequence[Tensor], ratio: float, scope: Scope) -> list[Tensor]:
    """Masks of the highest of each block's scores (N_l,), or of all together."""
    if scope == "shared":
        return [_highest(values, ratio) for values in scores]
    if scope == "local":
        scores = [_places(values) for values in scores]
    counts = [len(values) for values in scores]
    return list(_highest(torch.cat(list(scores)), ratio).split(counts))


def _highest(values: Tensor, ratio: float) -> Tensor:
    """A mask of the highest values: as many as the ratio says, but at least one, and all that are infinite."""
    number = max(whole(ratio, len(values)), int(values.isinf().sum()))
    mask = torch.zeros(len(values), dtype=torch.bool)
    mask[values.sort(descending=True, stable=True).indices[:number]] = True
    return mask


def _places(values: Tensor) -> Tensor:
    """The share of its block's values (N_l,) that are ahead of each, negated: the best of them over all blocks are as
    many of each block as its size says, by the divisors of Sainte-Laguë. What is infinite stays so.
    """
    places = torch.empty(len(values), dtype=torch.float64)
    ahead = torch.arange(len(values), dtype=torch.float64) + 0.5
    places[values.sort(descending=True, stable=True).indices] = -ahead / max(1, len(values))
    return places.masked_fill(values.isinf(), torch.inf)


def _best_of_each(values_PR: Tensor) -> Tensor:
    """A mask (P, R) of the highest value of each row."""
    mask = torch.zeros(values_PR.shape, dtype=torch.bool)
    return mask.scatter(1, values_PR.argmax(1, keepdim=True), True) if len(values_PR) else mask
