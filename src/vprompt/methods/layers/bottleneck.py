"""Bottlenecks behind the MLP of every block, inside the residual branch, or behind whole blocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo
from vprompt.methods.layers.tuned import Tuning
from vprompt.utils.errors import BackboneError


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


class ScaledBottleneck(nn.Module):
    """x + scale · up(gelu(down(x))), whose weights all start small and none at zero.

    Args:
        width: D.
        hidden: Width of the bottleneck.
        drop_path: Share of images whose second term is dropped in training; the others' is scaled up for it.

    Source: Adapter+ (arXiv 2406.06820), section 3.
    """

    def __init__(self, width: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.drop = StochasticDepth(drop_path, "row")
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Of tokens (B, ..., D)."""
        return x + self.drop(self.scale * self.up(F.gelu(self.down(x))))


def with_scaled_bottlenecks(hidden: int, drop_path: float, backbone: nn.Module, info: BackboneInfo) -> Tuning:
    """A `ScaledBottleneck` behind every block."""
    like = next(backbone.parameters())
    parts = {site.path: ScaledBottleneck(site.width, hidden, drop_path) for site in info.blocks}
    learned = {
        f"{path}.adapter.{name}": parameter
        for path, part in parts.items()
        for name, parameter in part.to(like.device, like.dtype).named_parameters()
    }
    return Tuning(backbone, learned, behind=parts)


def with_bottlenecks(hidden: Callable[[int], int], backbone: nn.Module, info: BackboneInfo) -> Tuning:
    """A bottleneck in every block, as wide as `hidden` says for the block's width.

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
        part = Bottleneck(mlp, site.width, hidden(site.width))
        for name in ("down", "up"):
            layer = part.get_submodule(name).to(like.device, like.dtype)
            learned |= {f"{site.path}.mlp.{name}.{last}": p for last, p in layer.named_parameters()}
        parts[f"{site.path}.mlp"] = part
    return Tuning(graft(backbone, parts), learned)
