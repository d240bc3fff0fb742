"""Low-rank prompts: those of each block are learned as a product of two matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from vprompt.methods.base import MAX_PROMPTS, DeepPrompts, option
from vprompt.methods.registry import register
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from torch import Tensor

    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.prompts import Prompts


@register
@dataclass(frozen=True)
class BPT(DeepPrompts):
    """Deep prompts of low rank, P = A·Bᵀ in every block, and a linear head; saved as ordinary prompts.

    A is drawn from N(0, 0.02²), B is Xavier-uniform, so that prompts start at about a tenth of the usual size.

    Args:
        num_prompts: P, prompts per block; 1 to 10,000.
        rank: r, 1 to the number of prompts and the width of the blocks; half the number of prompts when not given.
        dropout: Probability of prompt dropout while training, 0 to below 1; 0.1 when not given.

    Raises:
        VPromptError: If a value is out of range; a rank that is too high is noticed when the method is attached.

    Example:
        >>> BPT(num_prompts=50, rank=25).size
        'p50-r25'

    Source: BPT (arXiv 2506.22908), with the plain start.
    """

    rank: int | None = option(None, least=1, most=MAX_PROMPTS)
    name: ClassVar[str] = "bpt"

    @property
    def rank_of_prompts(self) -> int:
        """The rank in force."""
        return max(1, self.num_prompts // 2) if self.rank is None else self.rank

    @property
    def size(self) -> str:
        """Numbers of prompts, their rank, and their start where it is not random."""
        return f"{super().size}-r{self.rank_of_prompts}"

    def summary(self) -> str:
        """Prompts and their rank, in words."""
        return f"{super().summary()}, learned as products of rank {self.rank_of_prompts}"

    def make_prompts(self, info: BackboneInfo) -> Prompts:
        """The factors as training starts, drawn with torch's global generator."""
        counts, rank = self.initial_counts(len(info.blocks)), self.rank_of_prompts
        if rank > (most := min(self.num_prompts, *info.widths)):
            raise VPromptError(
                f"{self.num_prompts} prompts in blocks of {min(info.widths)} channels have no rank of {rank}; give BPT "
                f"a rank of at most {most}."
            )
        return _products().drawn(counts, info.widths, rank, self.prompt_dropout)


@cache
def _products() -> Any:
    """The class of the prompts; made when it is needed, because torch takes long to import."""
    import torch
    from torch import nn

    from vprompt.methods.layers.prompts import Prompts

    class Products(Prompts):
        """Prompts whose learned values are A (P, r), one a block, and B (D, r)."""

        stored_plain = True
        right: nn.ParameterList

        @classmethod
        def drawn(cls, counts: list[int], widths: tuple[int, ...], rank: int, dropout: float) -> Products:
            prompts = cls([0.02 * torch.randn(count, rank) for count in counts], dropout=dropout)
            prompts.right = nn.ParameterList(nn.init.xavier_uniform_(torch.empty(width, rank)) for width in widths)
            return prompts

        def transform(self, block: int, values_PD: Tensor) -> Tensor:
            return values_PD @ self.right[block].T

        @torch.no_grad()
        def assign(self, block: int, prompts_PD: Tensor) -> None:
            """Takes the nearest prompts of this rank, and shares their size between the factors."""
            rank, precise = self[block].shape[1], prompts_PD.to(torch.promote_types(prompts_PD.dtype, torch.float32))
            left_PS, size_S, right_SD = torch.linalg.svd(precise, full_matrices=False)
            root_r = size_S[:rank].sqrt()
            self[block].copy_(left_PS[:, :rank] * root_r)
            self.right[block].copy_(right_SD[:rank].T * root_r)

    return Products
