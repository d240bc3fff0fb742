"""PRO-VPT: deep prompts that move between blocks while they are trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vprompt.methods.base import DeepPrompts, Move
from vprompt.methods.registry import register
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class PROVPT(DeepPrompts):
    """Deep prompts whose number per block is a result of training: idle ones go, fresh ones come where they are worth.

    After every epoch of the falling learning rate but the last, the prompts that are worth least in the whole model are
    removed, one after the other, and for each a fresh random one is planted in the block whose prompts are worth most
    in the mean, in which a new one counts as nothing. A prompt that was planted is not removed at the end of its first
    epoch, and no block loses its last one.

    The worth of a prompt is the rise of the loss, to first order, when it is scaled to zero, -⟨∂L/∂p, p⟩, on a sample
    of the training images that stays the same: the mean over images with signs, in which harm is below zero, or
    without. It differs from the paper in that the block is chosen greedily, where the paper learns to choose it by
    PPO. The optimiser's moments of a planted prompt start at zero, while Adam counts the steps of the whole block, so
    that the first hundred steps of that prompt are three to six times as large as those of a fresh start.

    Args:
        num_prompts: P, prompts per block at the start; 1 to 10,000.
        scores: `"signed"` (the paper's) or `"absolute"`.
        moved: Prompts that move after an epoch: a whole number, or below 1 a share of all.
        dropout: Probability of prompt dropout while training, 0 to below 1; 0.1 when not given.
        init: Start of the prompts: random; tokens of training images on their way into each block; the centres of
            clusters of these; or vipamin, prompts that suit the attention (not for windows).

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> PROVPT(num_prompts=10).most_counts(3)
        [28, 28, 28]

    Source: PRO-VPT (arXiv 2503.06901, ICCV 2025), its idleness score, with a greedy choice instead of PPO.
    """

    name: ClassVar[str] = "pro-vpt"
    letters: ClassVar[str] = "p{num_prompts}-m{moved:g}-{scores}"
    words: ClassVar[str] = "started with {num_prompts} prompts per block, which moved between blocks in training"
    relocates: ClassVar[bool] = True

    scores: Literal["signed", "absolute"] = "signed"
    moved: float = 1.0

    def check_numbers(self) -> None:
        """Checks the numbers of prompts, and of those that move."""
        super().check_numbers()
        if not (0 < self.moved < 1 or (self.moved >= 1 and self.moved % 1 == 0)):
            raise VPromptError(
                f"Prompts that move are a whole number or a share between 0 and 1, not {self.moved}; give --moved 1."
            )

    def most_counts(self, num_blocks: int) -> list[int]:
        """All prompts but one of each other block."""
        return [num_blocks * (self.num_prompts - 1) + 1] * num_blocks

    def relocate(self, effects: Sequence[Tensor], planted: Sequence[int]) -> list[Move]:
        """The idlest prompts, each with the block that a fresh one is planted in."""
        signed = self.scores == "signed"
        worth = [(rise if signed else rise.abs()).mean(0).tolist() for rise in effects]
        counts, sums = [len(values) for values in worth], [math.fsum(values) for values in worth]
        settled = [
            (value, block, row)
            for block, values in enumerate(worth)
            for row, value in enumerate(values[: len(values) - planted[block]])
        ]
        number = int(self.moved) if self.moved >= 1 else max(1, round(self.moved * sum(counts)))
        moves: list[Move] = []
        for value, block, row in sorted(settled):
            if len(moves) < number and counts[block] > 1:
                counts[block] -= 1
                sums[block] -= value
                target = max(range(len(counts)), key=lambda other: sums[other] / counts[other])
                counts[target] += 1
                moves.append(Move(block, row, target))
        return moves
