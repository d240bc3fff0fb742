"""Fourier prompts: some prompts of each block are learned as frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from vprompt.methods.base import DeepPrompts
from vprompt.methods.registry import register
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from torch import Tensor

    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.prompts import Prompts


@register
@dataclass(frozen=True)
class VFPT(DeepPrompts):
    """Deep prompts, a share of which are learned as frequencies, and a linear head; saved as ordinary prompts.

    The first prompts of a block are the real part of the Fourier transform, over prompts and channels, of their learned
    values. It is orthonormal here, so that they start about as large as the others, and not unnormalised as published:
    behind a norm that is the same function, but √(P·D) times the prompts.

    Args:
        num_prompts: P, prompts per block; 1 to 10,000.
        fourier_share: Share of each block's prompts that are transformed, 0 to 1.
        dropout: Probability of prompt dropout while training, 0 to below 1; 0.1 when not given.

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> VFPT(num_prompts=10, fourier_share=0.3).size
        'p10-fourier0.3'

    Source: VFPT (arXiv 2411.01327), section 3.2.
    """

    fourier_share: float = 0.5
    name: ClassVar[str] = "vfpt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fourier_share <= 1:
            raise VPromptError(f"The share of Fourier prompts lies between 0 and 1, not at {self.fourier_share}.")

    @property
    def size(self) -> str:
        """Numbers of prompts, their start where it is not random, and the share of them that are transformed."""
        return f"{super().size}-fourier{self.fourier_share:g}"

    def summary(self) -> str:
        """Prompts and the share that is transformed, in words."""
        return f"{super().summary()}, {100 * self.fourier_share:g} % of them learned as frequencies"

    def make_prompts(self, info: BackboneInfo) -> Prompts:
        """The prompts as training starts, drawn with torch's global generator."""
        from vprompt.methods.layers.prompts import init_bound

        counts, bound = self.initial_counts(len(info.blocks)), init_bound(info.patch_size, info.widths[0])
        transformed = [round(self.fourier_share * count) for count in counts]
        return _waves().initial(counts, info.widths, bound=bound, dropout=self.prompt_dropout, transformed=transformed)


@cache
def _waves() -> Any:
    """The class of the prompts; made when it is needed, because torch takes long to import."""
    import torch

    from vprompt.methods.layers.prompts import Prompts

    class Waves(Prompts):
        """Prompts of which the first are the real part of the Fourier transform of their learned values."""

        stored_plain = True

        def __init__(self, values: list[Tensor], *, transformed: list[int], dropout: float = 0.0) -> None:
            super().__init__(values, dropout=dropout)
            self.transformed = transformed

        def transform(self, block: int, values_PD: Tensor) -> Tensor:
            if not (count := self.transformed[block]):
                return values_PD
            precise = values_PD[:count].to(torch.promote_types(values_PD.dtype, torch.float32))
            waves = torch.fft.fft2(precise, norm="ortho").real
            return torch.cat([waves.to(values_PD.dtype), values_PD[count:]])

        def assign(self, block: int, prompts_PD: Tensor) -> None:
            """Takes the nearest prompts: done twice, the transform leaves what prompts can be."""
            super().assign(block, self.transform(block, prompts_PD))

    return Waves
