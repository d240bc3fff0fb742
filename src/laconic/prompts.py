"""What is learned: the prompts of every block, and how a batch gets them."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def init_bound(patch_size: tuple[int, int], width: int) -> float:
    """Bound v of the uniform(-v, v) initialisation of prompts, sqrt(6 / (3·ph·pw + D)).

    Args:
        patch_size: Height and width of a patch in pixels.
        width: D of the first stage.

    Example:
        >>> init_bound((16, 16), 768)
        0.0625

    Source: VPT (arXiv 2203.12119), section 4.
    """
    return math.sqrt(6.0 / (3 * patch_size[0] * patch_size[1] + width))


class Prompts(nn.ParameterList):
    """One learned parameter (P_l, D_l) for every block, in forward order; P_l may be 0 and may differ.

    Args:
        values: The prompts of each block.
        dropout: Probability of prompt dropout while training; every sample gets a mask of its own.
    """

    def __init__(self, values: Sequence[Tensor], *, dropout: float = 0.0) -> None:
        # An empty parameter gets no gradient; saying so keeps data-parallel training from waiting for one.
        super().__init__(nn.Parameter(v, requires_grad=len(v) > 0) for v in values)
        self.dropout = dropout
        self.recorded: dict[int, tuple[Tensor, ...]] | None = None

    @staticmethod
    def initial(counts: Sequence[int], widths: Sequence[int], *, bound: float, dropout: float = 0.0) -> Prompts:
        """Draws prompts from uniform(-bound, bound) with torch's global generator."""
        drawn = [torch.empty(p, width).uniform_(-bound, bound) for p, width in zip(counts, widths, strict=True)]
        return Prompts(drawn, dropout=dropout)

    @property
    def counts(self) -> list[int]:
        """P_l for every block."""
        return [len(prompts) for prompts in self]

    def take(self, block: int, batch: int) -> Tensor:
        """The prompts of one block for a batch.

        Returns:
            (1, P, D) where one set serves the whole batch; (B, P, D) under dropout and inside `per_sample`.
        """
        prompts_1PD = self[block].unsqueeze(0)
        if self.recorded is not None:
            (leaf_BPD,) = self.record(block, batch, prompts_1PD)
            return leaf_BPD
        if self.training and self.dropout > 0 and len(self[block]):
            return F.dropout(prompts_1PD.expand(batch, -1, -1), self.dropout)
        return prompts_1PD

    def record(self, block: int, batch: int, *shared: Tensor) -> tuple[Tensor, ...]:
        """Inside `per_sample`: copies of tensors (1, ...) for every sample, as leaves that are kept by block."""
        assert self.recorded is not None
        leaves = tuple(t.detach().expand(batch, *t.shape[1:]).clone().requires_grad_() for t in shared)
        self.recorded[block] = leaves
        return leaves

    @contextmanager
    def per_sample(self) -> Generator[dict[int, tuple[Tensor, ...]]]:
        """Inside, every sample has its own copy of what prompts are to it, so that gradients are per sample.

        Yields:
            A dict block -> leaves of the latest forward pass: prompts (B, P, D) where they ride as tokens, keys and
            values (B, H, P, d) where they are a prefix.
        """
        self.recorded = {}
        try:
            yield self.recorded
        finally:
            self.recorded = None

    def select(self, kept: Sequence[Tensor]) -> Prompts:
        """A copy that holds only the prompts whose indices are given for each block."""
        values = [p.detach()[index.to(p.device)].clone() for p, index in zip(self, kept, strict=True)]
        return Prompts(values, dropout=self.dropout)

    def extra_repr(self) -> str:
        """Counts and dropout, for print(model)."""
        return f"counts={self.counts}, dropout={self.dropout}"
