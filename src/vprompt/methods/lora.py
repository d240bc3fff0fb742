"""LoRA: low-rank updates of linear layers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vprompt.methods.base import Method, option
from vprompt.methods.registry import register
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import ADDED

if TYPE_CHECKING:
    from torch import nn

    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.tuned import Tuning


@register
@dataclass(frozen=True)
class LoRA(Method):
    """Low-rank updates of linear layers of every block, W + (alpha / rank)·B·A, and a linear head.

    Where a backbone has queries, keys and values in one layer, the three share A. It is trained with a stochastic depth
    of 0.2 (`Recipe.stochastic_depth`) unless another one is given.

    Args:
        rank: r, 1 to 4096.
        alpha: Above 0; the updates are scaled by alpha / rank.
        targets: Layers that are updated: `"attention"`, the projections to queries, keys and values; `"all"`, those of
            attention's output and of the MLP as well.

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> LoRA(rank=4).scale
        4.0

    Source: LoRA (arXiv 2106.09685), section 4.1.
    """

    rank: int = option(8, least=1, most=4096)
    alpha: float = 16.0
    targets: Literal["attention", "all"] = field(default="attention", metadata=ADDED)
    name: ClassVar[str] = "lora"
    letters: ClassVar[str] = "r{rank}"
    words: ClassVar[str] = "updates of rank {rank} (alpha {alpha:g}) of linear layers: {targets}"
    lr_factor: ClassVar[float] = 0.4
    stochastic_depth: ClassVar[float] = 0.2
    sizes: ClassVar[Mapping[str, tuple[Any, ...]]] = {"rank": (4, 16)}
    tunes_backbone: ClassVar[bool] = True
    merges_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < math.inf:
            raise VPromptError(f"The alpha of LoRA must be above 0, not {self.alpha}.")

    @property
    def scale(self) -> float:
        """Factor of B·A."""
        return self.alpha / self.rank

    @property
    def size(self) -> str:
        """The rank, and whether all linear layers are updated."""
        return super().size + "-all" * (self.targets == "all")

    def make_tuning(self, backbone: nn.Module, info: BackboneInfo, learned: Collection[str] | None = None) -> Tuning:
        """Low-rank updates beside the layers of every block."""
        from vprompt.methods.layers.lora import with_updates

        return with_updates(self.rank, self.scale, backbone, info, every=self.targets == "all")

    def fold_tuning(self, backbone: nn.Module, info: BackboneInfo, tuned: Tuning) -> Tuning:
        """The same function in plain weights, W + scale·B·A; weights of few bits have no place for it."""
        from vprompt.backbones.quantise import precision_held
        from vprompt.methods.layers.lora import merged

        if precision_held(backbone) != "fp32":
            return super().fold_tuning(backbone, info, tuned)
        return merged(self.scale, backbone, tuned).requires_grad_(False)
