"""BPT: prompts of low rank, products of two small matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vprompt.methods.base import MAX_PROMPTS, DeepPrompts, option
from vprompt.methods.registry import register
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.prompts import Prompts


@register
@dataclass(frozen=True)
class BPT(DeepPrompts):
    """Deep prompts of low rank: the prompts of a block are A·Bᵀ, of which A (P, r) and B (D, r) are learned.

    A starts from a normal distribution of deviation 0.02, B from Xavier's uniform one; with another `init`, from the
    nearest product to the prompts that it gives. An adapter on disk holds the products, which are ordinary prompts.

    Args:
        num_prompts: P, prompts per block; 1 to 10,000.
        rank: r, at least 1 and at most P and the width of a block; half of P when not given.
        dropout: Probability of prompt dropout while training, 0 to below 1; 0.1 when not given.
        init: Start of the prompts: random; tokens of training images on their way into each block; the centres of
            clusters of these; or vipamin, prompts that suit the attention (not for windows).

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> BPT(num_prompts=10, rank=4).size
        'p10-r4'

    Source: BPT (arXiv 2506.22908), its bilinear prompts with a plain start.
    """

    name: ClassVar[str] = "bpt"
    words: ClassVar[str] = "started with {num_prompts} prompts of low rank per block"

    num_prompts: int = option(50, flag="prompts", most=MAX_PROMPTS)
    rank: int | None = None

    @property
    def columns(self) -> int:
        """The rank in force."""
        return (self.num_prompts + 1) // 2 if self.rank is None else self.rank

    @property
    def size(self) -> str:
        """Numbers of prompts, rank and start."""
        return super().size + ("" if self.rank is None else f"-r{self.rank}")

    def check_numbers(self) -> None:
        """Checks the numbers of prompts, and the rank against them."""
        super().check_numbers()
        if not 1 <= self.columns <= self.num_prompts:
            raise VPromptError(
                f"The rank of BPT is at least 1 and at most its {self.num_prompts} prompts a block, not {self.rank}."
            )

    def make_prompts(self, info: BackboneInfo) -> Prompts:
        """Both matrices of each block, drawn with torch's global generator."""
        import torch

        from vprompt.methods.layers.prompts import Prompts

        if (rank := self.columns) > min(info.widths):
            raise VPromptError(
                f"The rank of BPT is at most the width of a block, {min(info.widths)} on {info.name}, not {rank}."
            )
        values = [0.02 * torch.randn(count, rank) for count in self.initial_counts(len(info.blocks))]
        bases = [torch.nn.init.xavier_uniform_(torch.empty(width, rank)) for width in info.widths]
        return Prompts(values, dropout=self.prompt_dropout, bases=bases)
