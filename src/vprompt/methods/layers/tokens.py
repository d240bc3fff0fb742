"""Prompts as tokens in the sequence: shallow prompts, and deep ones as the papers run them.

In a sequence they stand between the leading tokens (class, distillation, registers) and the patches; where blocks see
windows, beside the map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vprompt.backbones.blocks import WindowBlock
from vprompt.methods.layers.prompts import Prompts


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

    def forward(self, x_BND: Tensor, *arguments: Any, **positions: Any) -> Tensor:
        """(B, N, D) to (B, N', D); takes what the block takes."""
        if self.enter is not None and self.prompts.counts[self.enter]:
            x_BND = insert(x_BND, self.prompts.as_tokens(self.enter, x_BND.shape[0]), self.position)
        x_BND = self.block(x_BND, *arguments, **positions)
        if self.leave is not None and self.prompts.counts[self.leave]:
            x_BND = strip(x_BND, self.prompts.num_tokens[self.leave], self.position)
        return x_BND


class TokenStages(nn.Module):
    """The stages of a model with windows, with prompts beside the map of tokens; they are gone at its end.

    Deep: every block has its own, and what it makes of them goes no further than through the merging of patches, which
    the published count includes. Shallow: the first block's travel through all blocks; at a merging a prompt stands
    for all four patches.

    Args:
        mergings: What each stage does to the map before its blocks; identity for nothing.
        blocks: The blocks of each stage.
        prompts: Of all blocks.
        deep: Which of the two.
        channels_first: Whether maps come and go as (B, C, H, W).
    """

    def __init__(
        self,
        mergings: Sequence[nn.Module],
        blocks: Sequence[Sequence[WindowBlock]],
        prompts: Prompts,
        *,
        deep: bool,
        channels_first: bool,
    ) -> None:
        super().__init__()
        self.mergings = nn.ModuleList(mergings)
        self.blocks = nn.ModuleList(nn.ModuleList(part) for part in blocks)
        self.prompts = prompts
        self.deep = deep
        self.channels_first = channels_first
        self.tell: Callable[[int, Tensor], object] | None = None

    def told(self, tell: Callable[[int, Tensor], object]) -> TokenStages:
        """The same stages, which tell of the map that each block gives, (B, H, W, C)."""
        twin = copy.copy(self)
        twin.tell = tell
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """A map of tokens to a map of tokens, as the stages."""
        x_BHWC = x.permute(0, 2, 3, 1) if self.channels_first else x
        carried: Tensor | None = None
        index = 0
        for merging, blocks in zip(self.mergings, self.blocks, strict=True):
            x_BHWC = merging(x_BHWC)
            if carried is not None and not isinstance(merging, nn.Identity):
                map_B2QC = carried.repeat_interleave(2, dim=1).unsqueeze(1).expand(-1, 2, -1, -1)
                carried = merging(map_B2QC).squeeze(1)
            for block in cast("nn.ModuleList", blocks):
                if self.deep or index == 0:
                    carried = self._enter(index, x_BHWC)
                x_BHWC, carried = cast("WindowBlock", block).carry(x_BHWC, carried)
                if self.tell is not None:
                    self.tell(index, x_BHWC)
                index += 1
        return x_BHWC.permute(0, 3, 1, 2) if self.channels_first else x_BHWC

    def _enter(self, block: int, x_BHWC: Tensor) -> Tensor | None:
        if not self.prompts.counts[block]:
            return None
        batch = x_BHWC.shape[0]
        return self.prompts.as_tokens(block, batch).to(x_BHWC.dtype).expand(batch, -1, -1)
