"""PAE's regulariser: deep prompts whose way from block to block is kept close to one stable linear map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from vprompt.methods.base import DeepPrompts, option
from vprompt.methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.prompts import Prompts

LATENT = 256
"""Width of the space in which blocks are compared."""


@register
@dataclass(frozen=True)
class PAE(DeepPrompts):
    """Deep prompts under PAE's regulariser, and a linear head; saved as ordinary prompts.

    With z_l the mean of the block's prompts times U (D, 256), V(z) = |z Lᵀ|², and means over pairs of blocks, training
    adds `koopman`·mean |z_{l+1} - z_l K|² + `stability`·mean softplus(V(z_{l+1}) - V(z_l)) to the loss. K and L start
    at the identity, U at random; all three are learned, and left behind when the adapter is saved.

    Args:
        num_prompts: P, prompts per block; 1 to 10,000.
        dropout: Probability of prompt dropout while training, 0 to below 1; 0.1 when not given.
        init: Start of the prompts: random; tokens of training images on their way into each block; the centres of
            clusters of these; or vipamin, prompts that suit the attention (not for windows).
        koopman: Weight of the first term, 0 to 1,000.
        stability: Weight of the second term, 0 to 1,000.

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> PAE(num_prompts=10).size
        'p10-k0.5-s0.2'

    Source: PAE (arXiv 2601.20232), by its formula, with no start of its own, and K not normalised. The published code
    goes prompt by prompt, adds over blocks, takes means over the 256 dimensions, and leaves the first block out, so
    that its weights are of another scale. Where stages of a backbone differ in width, each width has its own U.
    """

    koopman: float = option(0.5, least=0, most=1000)
    stability: float = option(0.2, least=0, most=1000)
    name: ClassVar[str] = "pae"

    @property
    def size(self) -> str:
        """Numbers of prompts, their start where it is not random, and both weights."""
        return f"{super().size}-k{self.koopman:g}-s{self.stability:g}"

    def summary(self) -> str:
        """Prompts and their regulariser, in words."""
        return f"{super().summary()}, regularised from block to block ({self.koopman:g}, {self.stability:g})"

    def make_prompts(self, info: BackboneInfo) -> Prompts:
        """The prompts as training starts, drawn with torch's global generator."""
        from vprompt.methods.layers.prompts import init_bound

        counts, bound = self.initial_counts(len(info.blocks)), init_bound(info.patch_size, info.widths[0])
        weights = (self.koopman, self.stability)
        return _regularised().initial(counts, info.widths, bound=bound, dropout=self.prompt_dropout, weights=weights)


@cache
def _regularised() -> Any:
    """The class of the prompts; made when it is needed, because torch takes long to import."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from vprompt.methods.layers.prompts import Prompts

    class Regularised(Prompts):
        """Ordinary prompts, and the parameters of their penalty."""

        def __init__(self, values: list[Tensor], *, weights: tuple[float, float], dropout: float = 0.0) -> None:
            super().__init__(values, dropout=dropout)
            self.weights = weights
            widths = sorted({value.shape[1] for value in values})
            self.into = nn.ParameterDict({str(width): torch.randn(width, LATENT) / width**0.5 for width in widths})
            self.onward, self.energy = (nn.Parameter(torch.eye(LATENT)) for _ in range(2))

        def settled(self) -> Prompts:
            return Prompts([values.detach() for values in self], dropout=self.dropout)

        def penalty(self) -> Tensor | None:
            if len(self) < 2:
                return None
            z_LZ = torch.stack([(self[n] @ self.into[str(self[n].shape[1])]).mean(0) for n in range(len(self))])
            strayed = (z_LZ[1:] - z_LZ[:-1] @ self.onward).square().sum(1).mean()
            risen = F.softplus((z_LZ @ self.energy.T).square().sum(1).diff()).mean()
            return self.weights[0] * strayed + self.weights[1] * risen

    return Regularised
