"""VFPT: some prompts of every block are learned as frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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
    """Deep prompts, a share of which are the real part of the 2-D Fourier transform of what is learned.

    The transform runs over prompts and channels, without a factor; prompt dropout acts on what comes out of it (in the
    published code, on what goes in). An adapter on disk holds what comes out, which are ordinary prompts. They start
    from random numbers alone.

    Args:
        num_prompts: P, prompts per block; 1 to 10,000.
        dropout: Probability of prompt dropout while training, 0 to below 1; 0.1 when not given.
        fourier_share: Share of each block's prompts that are transformed, the first ones, rounded down; 0 to 1.

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> VFPT(num_prompts=10, fourier_share=0.3).fourier_prompts
        3

    Source: VFPT (arXiv 2411.01327), section 3.2.
    """

    name: ClassVar[str] = "vfpt"
    letters: ClassVar[str] = "p{num_prompts}-f{fourier_share:g}"
    words: ClassVar[str] = "started with {num_prompts} prompts per block, a share of {fourier_share:g} as frequencies"

    fourier_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fourier_share <= 1:
            raise VPromptError(f"The share of Fourier prompts lies between 0 and 1, not at {self.fourier_share}.")
        if self.init != "random":  # most tokens are no real part of a transform
            raise VPromptError("Prompts that are learned as frequencies start from random numbers; leave out init.")

    @property
    def fourier_prompts(self) -> int:
        """How many prompts of a block are transformed."""
        return math.floor(self.fourier_share * self.num_prompts)

    def make_prompts(self, info: BackboneInfo) -> Prompts:
        """The learned values, drawn as those of other prompts."""
        prompts = super().make_prompts(info)
        prompts.made = self._transformed
        return prompts

    def _transformed(self, values_PD: Tensor) -> Tensor:
        import torch

        first_FD, others = values_PD.split([self.fourier_prompts, len(values_PD) - self.fourier_prompts])
        precise = first_FD.to(torch.promote_types(first_FD.dtype, torch.float32))
        waves_FD = torch.fft.fft2(precise).real if len(first_FD) else precise
        return torch.cat([waves_FD.to(values_PD.dtype), others])
