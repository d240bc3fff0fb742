"""PRO-VPT: prompts move from block to block while they are trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vprompt.methods.base import MAX_PROMPTS, DeepPrompts, option
from vprompt.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True)
class PROVPT(DeepPrompts):
    """Deep prompts that are relocated: after each epoch the idlest go, and as many fresh ones are planted elsewhere.

    The effect of a prompt p on the loss of an image is I = ⟨∂L/∂p, p⟩, by which the loss falls, to first order, when p
    becomes zero. The idlest prompts are those with the largest mean effect over some training images, or the least
    mean of its size; fresh ones come to the block whose prompts are worth most on average by the same measure. A block
    keeps at least one prompt, and a fresh prompt stays for an epoch. The published method chooses the block by
    reinforcement learning.

    Args:
        num_prompts: P, prompts per block at the start; 1 to 10,000. Their sum stays.
        moved: Prompts that move after each epoch from the end of warm-up to the last but one; at least 1.
        scores: `"signed"`: effects of images cancel, and harmful prompts go first; `"absolute"`.

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> import torch
        >>> effects = [torch.tensor([[0.2, -0.1]]), torch.tensor([[-0.5, -0.3]])]
        >>> PROVPT(num_prompts=2).relocated(effects)
        ([(0, 0)], [1])

    Source: PRO-VPT (arXiv 2503.06901), sections 3 and 4.
    """

    name: ClassVar[str] = "pro-vpt"
    letters: ClassVar[str] = "p{num_prompts}-m{moved}-{scores}"
    words: ClassVar[str] = "started with {num_prompts} prompts per block, of which {moved} moved after an epoch"
    relocates: ClassVar[bool] = True

    moved: int = option(1, least=1, most=MAX_PROMPTS)
    scores: Literal["signed", "absolute"] = "signed"

    def most_counts(self, num_blocks: int) -> list[int]:
        """All but one prompt of each other block may have come to one."""
        return [num_blocks * (self.num_prompts - 1) + 1] * num_blocks

    def relocated(
        self, effects_BP: Sequence[Tensor], fresh: Collection[tuple[int, int]] = ()
    ) -> tuple[list[tuple[int, int]], list[int]]:
        """Places (block, row) of the prompts that go, and the block of each prompt that is planted for them."""
        worths = [-effects.mean(0) if self.scores == "signed" else effects.abs().mean(0) for effects in effects_BP]
        rows = [(float(worth), (block, row)) for block, of in enumerate(worths) for row, worth in enumerate(of)]
        left, gone = [len(worth) for worth in worths], list[tuple[int, int]]()
        for _, (block, row) in sorted(rows):
            if len(gone) < self.moved and left[block] > 1 and (block, row) not in fresh:
                gone.append((block, row))
                left[block] -= 1
        means = [float(worth.mean()) if len(worth) else float("-inf") for worth in worths]
        return gone, [max(range(len(means)), key=means.__getitem__)] * len(gone)
