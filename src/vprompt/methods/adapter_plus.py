"""Adapter+: a scaled bottleneck behind every block, on the residual stream."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vprompt.methods.base import Method, option
from vprompt.methods.registry import register
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from torch import nn

    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.tuned import Tuning


@register
@dataclass(frozen=True)
class AdapterPlus(Method):
    """A bottleneck behind every block, scaled channel by channel, and a linear head.

    x = block(x) becomes x + scale · up(gelu(down(x))). Branches of the blocks are left out as well, as in the paper:
    `Recipe.stochastic_depth`.

    Args:
        rank: Width of the bottleneck, 1 to 4096.
        drop_path: Share of the images for which a block's bottleneck is left out in training, 0 to below 1.

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> AdapterPlus(rank=16).size
        'r16'

    Source: Adapter+ (arXiv 2406.06820), sections 3 and 4.
    """

    rank: int = option(8, least=1, most=4096)
    drop_path: float = 0.1
    name: ClassVar[str] = "adapter-plus"
    letters: ClassVar[str] = "r{rank}"
    words: ClassVar[str] = "a scaled bottleneck of width {rank} behind every block"
    lr_factor: ClassVar[float] = 0.4
    stochastic_depth: ClassVar[float] = 0.1
    sizes: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rank": (8, 32)}
    tunes_backbone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop_path < 1:
            raise VPromptError(f"The dropped share of Adapter+ is at least 0 and below 1, not {self.drop_path}.")

    def make_tuning(self, backbone: nn.Module, info: BackboneInfo, learned: Collection[str] | None = None) -> Tuning:
        """A bottleneck behind every block."""
        from vprompt.methods.layers.bottleneck import with_scaled_bottlenecks

        return with_scaled_bottlenecks(self.rank, self.drop_path, backbone, info)
