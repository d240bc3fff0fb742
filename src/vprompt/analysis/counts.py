"""Numbers of prompts per block before and after condensation, where nothing was trained that could tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vprompt.compression.criteria import whole
from vprompt.methods.e2vpt import E2VPT
from vprompt.methods.linear import Linear
from vprompt.methods.vpt import VPT
from vprompt.model.attach import attach
from vprompt.model.model import Execution, PromptedModel
from vprompt.utils.errors import VPromptError

Allocation = Literal["local", "global", "given", "even"]
"""Local: the share in every block. Global: the share of all, in blocks as they may be. Given: real counts. Even: as
many prompts as given, the same number in every block as nearly as can be."""


@dataclass(frozen=True, kw_only=True)
class Retained:
    """Prompts that condensation leaves.

    Args:
        original: Prompts of every block before; None where that is not known.
        share: Of the prompts that is retained; None where that is not known.
        where: How they are distributed over the blocks.
        counts: Prompts of each block after.
    """

    original: int | None
    share: float | None
    where: Allocation
    counts: tuple[int, ...]


def retained_counts(original: int, shares: Sequence[float], blocks: int, *, shallow: bool = False) -> list[Retained]:
    """Prompts retained of `original` per block, for each share, local and global.

    Both are rounded as `vprompt.select` does. Global counts depend on trained scores; a profile stands in for them.

    Args:
        original: Prompts of every block (deep), or in all (shallow, where global and local are one).
        shares: Above 0 and up to 1.
        blocks: How many blocks there are.
        shallow: Only the first block has prompts.

    Raises:
        VPromptError: If a number is out of range.

    Example:
        >>> for row in retained_counts(10, [0.3, 1.0], 4):
        ...     print(row.share, row.where, row.counts)
        0.3 local (3, 3, 3, 3)
        0.3 global (1, 2, 4, 5)
        1.0 local (10, 10, 10, 10)
    """
    if original < 1:
        raise VPromptError(f"Condensation starts from at least one prompt per block, not {original}.")
    if wrong := [share for share in shares if not 0 < share <= 1]:
        raise VPromptError(f"Shares of the prompts to keep are above 0 and at most 1, not {wrong[0]}.")
    rows: list[Retained] = []
    for share in shares:
        total = whole(share, original if shallow else original * blocks)
        counts = same(total, blocks, shallow=True) if shallow else even(total, blocks, first=True)
        rows.append(Retained(original=original, share=share, where="local", counts=counts))
        if not shallow and share < 1:
            counts = rising(total, blocks, original)
            rows.append(Retained(original=original, share=share, where="global", counts=counts))
    return rows


def rising(total: int, blocks: int, most: int) -> tuple[int, ...]:
    """Counts in proportion to the place of the block, the first being number 1: early blocks keep few prompts.

    The paper says of trained counts that early blocks keep few, and prints none. Whole numbers are dealt out one by
    one, each to the block that is furthest behind its share (Sainte-Laguë), a tie to the later one.

    Args:
        total: Prompts in all blocks.
        blocks: How many blocks there are.
        most: Prompts that a block has at most.

    Example:
        >>> rising(12, 4, 10), rising(12, 4, 4), rising(1, 3, 5)
        ((1, 2, 4, 5), (1, 3, 4, 4), (0, 0, 1))

    Source: Prompt Condensation (arXiv 2305.17223), Figure 7.
    """
    counts = [0] * blocks
    for _ in range(min(total, blocks * most)):
        open_blocks = (block for block in range(blocks) if counts[block] < most)
        counts[max(open_blocks, key=lambda block: ((block + 1) / (2 * counts[block] + 1), block))] += 1
    return tuple(counts)


def same(number: int, blocks: int, *, shallow: bool = False) -> tuple[int, ...]:
    """The same number of prompts in every block (deep), or in the first only (shallow).

    Example:
        >>> same(5, 3), same(5, 3, shallow=True)
        ((5, 5, 5), (5, 0, 0))
    """
    return (number,) * blocks if not shallow else (number, *(0,) * (blocks - 1))


def even(total: int, blocks: int, *, first: bool = False) -> tuple[int, ...]:
    """The same number in every block; what is left over goes to the last blocks, or to the first.

    Example:
        >>> even(10, 4), even(10, 4, first=True)
        ((2, 2, 3, 3), (3, 3, 2, 2))
    """
    each, over = divmod(total, blocks)
    counts = (each + (block >= blocks - over) for block in range(blocks))
    return tuple(sorted(counts, reverse=first))


def with_counts(
    backbone: nn.Module,
    counts: Sequence[int],
    *,
    shallow: bool = False,
    kv_prompts: int = 0,
    num_classes: int = 1,
    execution: Execution = "prefix",
) -> PromptedModel:
    """A backbone with new prompts, so many in each block, and key-value ones; without any, the backbone with a head.

    Raises:
        VPromptError: If a count is negative, there are not as many counts as blocks, or shallow ones beyond the first.
    """
    if any(count < 0 for count in counts):
        raise VPromptError(f"Numbers of prompts must be at least 0, not {min(counts)}.")
    method = VPT(max(counts), "shallow" if shallow else "deep") if any(counts) else Linear()
    method = E2VPT(max(counts), kv_prompts) if kv_prompts else method
    model = attach(backbone, method, num_classes=num_classes, head_init="paper", execution=execution).eval()
    if model.prompt_counts == list(counts):
        return model
    if shallow:
        raise VPromptError("Shallow prompts are in the first block only; give deep counts, or 0 for all other blocks.")
    return model.keep([torch.arange(count) for count in counts])
