"""Learned prompts of every block, as tokens or as keys and values, and the form in which a batch gets them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.utils.errors import VPromptError

Share = Literal["key-value", "heads", "none"]
"""Parts that key-value prompts have in common; see `KVPrompts`."""


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


def check_segments(number: int, widths: Sequence[int]) -> None:
    """Raises a `VPromptError` for prompts of some width that cannot be cut into that many equal segments."""
    width = next((width for width in widths if number < 1 or width % number), None)
    if width is not None:
        raise VPromptError(
            f"Prompts of {width} channels cannot be cut into {number} equal segments; choose a divisor of {width} "
            "(--num-segments)."
        )


class Prompts(nn.ParameterList):
    """One learned parameter (P_l, D_l) for every block, in forward order; P_l may be 0 and may differ.

    Where segments were pruned, a block's parameter holds the retained ones only, (K_l, D_l / R); `dense` is what the
    block is given. Where prompts were merged, one stands for several: it counts as often in attention.

    Args:
        values: The prompts of each block, or their retained segments.
        dropout: Probability of prompt dropout while training; every sample gets a mask of its own.
        segments: By block a mask (P_l, R): which of a prompt's R segments, contiguous channels, are retained; all when
            not given.
        multiplicity: By block how many prompts each one stands for, P_l whole numbers; 1 when not given.
        bases: By block a matrix (D_l, r) that is learned as well; prompts are then the values (P_l, r) times its
            transpose.
        made: Computes the prompts of a block from these; see `transform`.

    Source: VPT (arXiv 2203.12119), section 3.2; segments: E²VPT (arXiv 2307.13770), section 3.3.
    """

    def __init__(
        self,
        values: Sequence[Tensor],
        *,
        dropout: float = 0.0,
        segments: Sequence[Tensor] | None = None,
        multiplicity: Sequence[Sequence[int]] | None = None,
        bases: Sequence[Tensor] | None = None,
        made: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        # An empty parameter gets no gradient; saying so keeps data-parallel training from waiting for one.
        super().__init__(nn.Parameter(v, requires_grad=len(v) > 0) for v in values)
        self.bases = None if bases is None else nn.ParameterList(nn.Parameter(b, b.numel() > 0) for b in bases)
        self.made = made
        self.dropout = dropout
        self.recorded: dict[int, tuple[Tensor, ...]] | None = None
        self.records_bias = False
        self.counts = [len(v) for v in (values if segments is None else segments)]
        """P_l for every block."""
        self.num_segments = 1 if segments is None else segments[0].shape[1]
        """R; 1 where prompts are whole."""
        for block, mask_PR in enumerate(segments or ()):
            # Places of the retained segments: with a mask, every step would have to ask the device how many there are.
            places = mask_PR.flatten().nonzero().flatten().to(values[block].device)
            self.register_buffer(f"places_{block}", places)
        self.multiplicity = [list(numbers) for numbers in multiplicity or ([1] * count for count in self.counts)]
        """By block, how many prompts each one stands for."""
        self.merged = any(number > 1 for numbers in self.multiplicity for number in numbers)
        """True where some prompt stands for several."""
        self.num_tokens = [sum(numbers) for numbers in self.multiplicity]
        """By block, how many tokens its prompts are as the papers run them: each as often as it counts."""
        for block, numbers in enumerate(self.multiplicity if self.merged else ()):
            self.register_buffer(f"multiplicity_{block}", torch.tensor(numbers, device=values[block].device).long())

    @classmethod
    def initial(
        cls, counts: Sequence[int], widths: Sequence[int], *, bound: float, dropout: float = 0.0, **options: Any
    ) -> Self:
        """Draws prompts from uniform(-bound, bound) with torch's global generator; a subclass may take more options."""
        drawn = [torch.empty(p, width).uniform_(-bound, bound) for p, width in zip(counts, widths, strict=True)]
        return cls(drawn, dropout=dropout, **options)

    @property
    def plain(self) -> bool:
        """True where the learned values are the prompts themselves; a subclass computes them by its `transform`."""
        return type(self) is Prompts and self.bases is None and self.made is None

    def transform(self, block: int, values_PD: Tensor) -> Tensor:
        """The prompts (P, D) of one block, computed from its learned values; these, but for bases and a function.

        A subclass may compute anything in which gradients reach the values. When some of its prompts are selected,
        merged or pruned, the others become ordinary prompts with the values that they have then.
        """
        whole_PD = values_PD if self.bases is None else values_PD @ self.bases[block].T
        return whole_PD if self.made is None else self.made(whole_PD)

    @torch.no_grad()
    def assign(self, block: int, prompts_PD: Tensor) -> None:
        """Sets the learned values of one block's prompts before anything is trained; with bases, to the nearest."""
        if self.bases is None:
            self[block].copy_(prompts_PD)
            return
        left_Pk, size_k, right_kD = torch.linalg.svd(
            prompts_PD.to(torch.promote_types(prompts_PD.dtype, torch.float32)), full_matrices=False
        )
        root_r = size_k[: self[block].shape[1]].sqrt()
        self[block].copy_(left_Pk[:, : len(root_r)] * root_r)
        self.bases[block].copy_(right_kD[: len(root_r)].T * root_r)

    def replace(self, values: Sequence[Tensor]) -> None:
        """Puts whole prompts, which may be others in number, in the place of plain ones: new parameters."""
        for block, value in enumerate(values):
            self[block] = nn.Parameter(value.detach().clone(), requires_grad=len(value) > 0)
        self.counts = [len(value) for value in values]
        self.multiplicity = [[1] * count for count in self.counts]
        self.num_tokens = list(self.counts)

    def settled(self) -> Prompts:
        """The prompts as they are saved: ordinary ones where bases or a function make them, and else these."""
        if self.bases is None and self.made is None:
            return self
        return Prompts([self.dense(block).detach() for block in range(len(self))], dropout=self.dropout)

    def penalty(self) -> Tensor | None:
        """A term of the loss that is about the prompts alone, added once to every step of a training; none here."""
        return None

    def dense(self, block: int) -> Tensor:
        """The prompts (P, D) of one block, with zeros in the places of pruned segments."""
        if self.num_segments == 1:
            return self.transform(block, self[block])
        retained_Kw, rows = self[block], self.counts[block] * self.num_segments
        scattered = retained_Kw.new_zeros(rows, retained_Kw.shape[1]).index_copy(0, self._places(block), retained_Kw)
        return scattered.view(self.counts[block], self.num_segments * retained_Kw.shape[1])

    def segments(self, block: int) -> Tensor:
        """A mask (P, R) of the retained segments of one block's prompts."""
        mask_S = torch.zeros(self.counts[block] * self.num_segments, dtype=torch.bool, device=self[block].device)
        mask_S[self._places(block) if self.num_segments > 1 else slice(None)] = True
        return mask_S.view(-1, self.num_segments)

    def bias(self, block: int) -> Tensor | None:
        """The bias of attention's logits of one block's prompts, (1, P); None where there is none."""
        if not self.merged:
            return None
        precise = torch.promote_types(self[block].dtype, torch.float32)
        return self.get_buffer(f"multiplicity_{block}").to(precise).log().unsqueeze(0)

    def constants(self) -> Prompts:
        """A copy as plain values: nothing to learn, no dropout, every prompt whole."""
        blocks = range(len(self))
        values = [self.dense(block).detach().clone() for block in blocks]
        return Prompts(values, multiplicity=self.multiplicity).requires_grad_(False)

    def _places(self, block: int) -> Tensor:
        return self.get_buffer(f"places_{block}")

    def take(self, block: int, batch: int) -> Tensor:
        """The prompts of one block for a batch.

        Returns:
            (1, P, D) where one set serves the whole batch; (B, P, D) under dropout and inside `per_sample`.
        """
        prompts_1PD = self.dense(block).unsqueeze(0)
        if self.recorded is not None:
            (leaf_BPD,) = self.record(block, batch, prompts_1PD)
            return leaf_BPD
        if self.training and self.dropout > 0 and self.counts[block]:
            return F.dropout(prompts_1PD.expand(batch, -1, -1), self.dropout)
        return prompts_1PD

    def as_tokens(self, block: int, batch: int) -> Tensor:
        """The prompts of one block as tokens, (1 or B, num_tokens, D): each as often as it counts."""
        prompts_bPD = self.take(block, batch)
        if not self.merged:
            return prompts_bPD
        multiplicity_P, tokens = self.get_buffer(f"multiplicity_{block}"), sum(self.multiplicity[block])
        return prompts_bPD.repeat_interleave(multiplicity_P, dim=1, output_size=tokens)

    def record(self, block: int, batch: int, *shared: Tensor) -> tuple[Tensor, ...]:
        """Inside `per_sample`: copies of tensors (1, ...) for every sample, as leaves that are recorded by block."""
        assert self.recorded is not None
        leaves = tuple(t.detach().expand(batch, *t.shape[1:]).clone().requires_grad_() for t in shared)
        self.recorded[block] = leaves
        return leaves

    @contextmanager
    def per_sample(self, *, with_bias: bool = False) -> Generator[dict[int, tuple[Tensor, ...]]]:
        """Inside, every sample has its own copy of what prompts are to it, so that gradients are per sample.

        Args:
            with_bias: Record the bias of the logits as well, which keeps attention from running fused.

        Yields:
            A dict block -> leaves of the latest forward pass: prompts (B, P, D) where they are tokens; keys and
            values (B, H, P, d), and that bias (B, P) if asked for, where they are a prefix.
        """
        self.recorded, self.records_bias = {}, with_bias
        try:
            yield self.recorded
        finally:
            self.recorded = None

    def select(self, retained: Sequence[Tensor], segments: Sequence[Tensor] | None = None) -> Prompts:
        """A copy that holds only some of the prompts, and of those only some segments.

        Args:
            retained: Indices of the retained prompts, for each block.
            segments: For each block a mask (number of retained prompts, R); the segments they have when not given.
        """
        indices = [index.to(p.device) for p, index in zip(self, retained, strict=True)]
        values = [self.dense(block).detach()[index] for block, index in enumerate(indices)]
        if segments is None and self.num_segments > 1:
            segments = [self.segments(block)[index] for block, index in enumerate(indices)]
        multiplicity = [
            [numbers[place] for place in index.tolist()]
            for numbers, index in zip(self.multiplicity, retained, strict=True)
        ]
        if segments is None:
            return Prompts([v.clone() for v in values], dropout=self.dropout, multiplicity=multiplicity)
        masks = [mask.to(v.device) for v, mask in zip(values, segments, strict=True)]
        values = [v.reshape(*m.shape, v.shape[1] // m.shape[1])[m] for v, m in zip(values, masks, strict=True)]
        return Prompts(values, dropout=self.dropout, segments=masks, multiplicity=multiplicity)

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
