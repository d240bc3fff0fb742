"""Adapters: a bottleneck behind the MLP of every block, inside the residual branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo
from vprompt.methods.base import Promptless
from vprompt.methods.tuned import Tuning
from vprompt.utils.errors import BackboneError, VPromptError


class Bottleneck(nn.Module):
    """An MLP followed by h + up(gelu(down(h))), at the start the MLP's own function.

    Args:
        mlp: The block's MLP.
        width: D.
        hidden: Width of the bottleneck.
    """

    def __init__(self, mlp: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """As the MLP's."""
        h = self.mlp(x)
        return h + self.up(F.gelu(self.down(h)))


def with_bottlenecks(method: Adapter, backbone: nn.Module, info: BackboneInfo) -> Tuning:
    """A bottleneck in every block.

    Raises:
        BackboneError: If a block has no MLP of its own.
    """
    parts: dict[str, nn.Module] = {}
    learned: dict[str, nn.Parameter] = {}
    like = next(backbone.parameters())
    for site in info.blocks:
        block = backbone.get_submodule(site.path)
        mlp = getattr(block, "mlp", None)
        if not isinstance(mlp, nn.Module):
            raise BackboneError(
                f"Adapter stands behind the MLP of a block, and a {type(block).__name__} has none of its own; use "
                "another method or backbone."
            )
        part = Bottleneck(mlp, site.width, method.hidden(site.width))
        for name in ("down", "up"):
            layer = part.get_submodule(name).to(like.device, like.dtype)
            learned |= {f"{site.path}.mlp.{name}.{last}": p for last, p in layer.named_parameters()}
        parts[f"{site.path}.mlp"] = part
    return Tuning(graft(backbone, parts), learned)


@dataclass(frozen=True)
class Adapter(Promptless):
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

    reduction: int = 8
    name: ClassVar[str] = "adapter"
    lr_factor: ClassVar[float] = 0.4

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise VPromptError(f"The reduction of Adapter must be at least 1, not {self.reduction}.")

    def hidden(self, width: int) -> int:
        """Width of the bottleneck in a block of this width, at least 1."""
        return max(1, width // self.reduction)
