"""Adapters: a bottleneck behind the MLP of every block."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vprompt.methods.base import Method, option
from vprompt.methods.registry import register

if TYPE_CHECKING:
    from torch import nn

    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.tuned import Tuning


@register
@dataclass(frozen=True)
class Adapter(Method):
    """A bottleneck after the MLP of every block, inside the residual branch, and a linear head.

    h = mlp(x) becomes h + up(gelu(down(h))); `up` starts at zero, and so the network at the backbone's function.

    Args:
        reduction: Width of a block over that of its bottleneck; at least 1.

    Raises:
        VPromptError: If `reduction` is below 1.

    Example:
        >>> Adapter().reduction
        8

    Source: Houlsby et al. (arXiv 1902.00751), section 2; placed once a block, as in Pfeiffer et al. (arXiv 2005.00247).
    """

    reduction: int = option(8, least=1)
    name: ClassVar[str] = "adapter"
    letters: ClassVar[str] = "r{reduction}"
    words: ClassVar[str] = "a bottleneck of 1/{reduction} of the width behind the MLP of every block"
    lr_factor: ClassVar[float] = 0.4
    sizes: ClassVar[Mapping[str, tuple[Any, ...]]] = {"reduction": (8, 32)}
    tunes_backbone: ClassVar[bool] = True

    def hidden(self, width: int) -> int:
        """Width of the bottleneck in a block of this width, at least 1."""
        return max(1, width // self.reduction)

    def make_tuning(self, backbone: nn.Module, info: BackboneInfo, learned: Collection[str] | None = None) -> Tuning:
        """A bottleneck in every block."""
        from vprompt.methods.layers.bottleneck import with_bottlenecks

        return with_bottlenecks(self.hidden, backbone, info)
