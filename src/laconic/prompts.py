"""What is learned: the prompts of every block, as tokens or as keys and values, and how a batch gets them."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Share = Literal["key-value", "heads", "none"]
"""What key-value prompts have in common; see `KVPrompts`."""


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


class KVPrompts(nn.ParameterList):
    """Prompts that are keys and values from the start: one learned parameter for every block, or none at all.

    They join the keys and values of an attention layer as they are: behind its projections and norms, at no position,
    without dropout.

    Args:
        values: By block, of shape (H, n, d), (2, n, d) or (2, H, n, d) as `share` says; H heads of width d, keys first.
        share: `"key-value"`: keys and values are the same; `"heads"`: all heads have the same; `"none"`.

    Source: E²VPT (arXiv 2307.13770), section 3.2.
    """

    def __init__(self, values: Sequence[Tensor] = (), share: Share = "key-value") -> None:
        super().__init__(nn.Parameter(value) for value in values)
        self.share: Share = share

    @staticmethod
    def initial(count: int, heads: Sequence[tuple[int, int]], share: Share) -> KVPrompts:
        """Draws `count` prompts a block from uniform(-v, v), v = sqrt(6 / (n·d)), with torch's global generator.

        Args:
            count: n; with 0 there are none.
            heads: Number and width of the heads of each block.
            share: See the class.
        """
        drawn: list[Tensor] = []
        for number, width in heads if count else ():
            shape = {"key-value": (number,), "heads": (2,), "none": (2, number)}[share]
            bound = math.sqrt(6.0 / (count * width))
            drawn.append(torch.empty(*shape, count, width).uniform_(-bound, bound))
        return KVPrompts(drawn, share)

    @property
    def count(self) -> int:
        """n, the prompts of a block."""
        return self[0].shape[-2] if len(self) else 0

    def take(self, block: int, heads: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values (1, H, n, d) of one block; None where there are none. `heads` matters where all share."""
        if not len(self):
            return None
        value = self[block]
        if self.share == "key-value":
            return value.unsqueeze(0), value.unsqueeze(0)
        keys, values = value.unbind(0)
        if self.share == "heads":
            keys, values = (t.unsqueeze(0).expand(heads, -1, -1) for t in (keys, values))
        return keys.unsqueeze(0), values.unsqueeze(0)

    def extra_repr(self) -> str:
        """Count and sharing, for print(model)."""
        return f"count={self.count}, share={self.share!r}"
