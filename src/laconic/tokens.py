"""Prompts as tokens in the sequence: shallow prompts, and deep ones as the papers run them.

Prompts stand between the leading tokens (class, distillation, registers) and the patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from laconic.prompts import Prompts


def insert(x_BND: Tensor, prompts_bPD: Tensor, position: int) -> Tensor:
    """Puts prompts (1 or B, P, D) into a sequence (B, N, D) before index `position`; returns (B, N + P, D)."""
    prompts_BPD = prompts_bPD.to(x_BND.dtype).expand(x_BND.shape[0], -1, -1)
    return torch.cat([x_BND[:, :position], prompts_BPD, x_BND[:, position:]], dim=1)


def strip(x_BND: Tensor, count: int, position: int) -> Tensor:
    """Takes the `count` tokens from index `position` on out of a sequence (B, N, D); returns (B, N - count, D)."""
    return torch.cat([x_BND[:, :position], x_BND[:, position + count :]], dim=1)


class TokenBlock(nn.Module):
    """A block that is given prompts as tokens before it runs, gives prompts' places back after it, or both.

    Deep prompts enter and leave at every block (what the block computed in their places is thrown away); shallow ones
    enter at the first and leave at the last.

    Args:
        block: The original block.
        prompts: Prompts of all blocks.
        position: Index of the first prompt in the sequence.
        enter: Block whose prompts are inserted before this block runs, or None.
        leave: Block whose prompts are stripped after this block ran, or None.
    """

    def __init__(
        self, block: nn.Module, prompts: Prompts, position: int, *, enter: int | None = None, leave: int | None = None
    ) -> None:
        super().__init__()
        self.block = block
        self.prompts = prompts
        self.position = position
        self.enter = enter
        self.leave = leave

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N', D)."""
        if self.enter is not None and len(self.prompts[self.enter]):
            x_BND = insert(x_BND, self.prompts.take(self.enter, x_BND.shape[0]), self.position)
        x_BND = self.block(x_BND)
        if self.leave is not None and len(self.prompts[self.leave]):
            x_BND = strip(x_BND, len(self.prompts[self.leave]), self.position)
        return x_BND
