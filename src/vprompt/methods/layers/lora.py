"""Low-rank updates of linear layers of blocks."""

from __future__ import annotations

import math
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.backbones.frozen_linear import LINEAR
from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo
from vprompt.methods.layers.tuned import Tuning
from vprompt.utils.errors import BackboneError

_PROJECTIONS = ("in_proj", "qkv", "q_proj", "k_proj", "v_proj")
_OUTPUTS = ("proj", "out_proj", "attn_out_proj", "mlp_out_proj")


class UpdatedLinear(nn.Module):
    """A linear layer with a low-rank update beside it, W x + b + scale·B·A·x; at the start the layer's own function.

    Args:
        linear: The layer, which stays as it is.
        rank: r, rows of A.
        scale: Of the update.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear = linear
        self.scale = scale
        self.lora_A = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def weight(self) -> Tensor:
        """The layer's own."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's own."""
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Of rows (..., in_features)."""
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def with_updates(rank: int, scale: float, backbone: nn.Module, info: BackboneInfo, *, every: bool = False) -> Tuning:
    """Low-rank updates beside the projections to queries, keys and values in every block; or beside every layer.

    Raises:
        BackboneError: If a layer is not a plain linear one.
    """
    paths = _layers(backbone, info, every=every)
    parts = {path: UpdatedLinear(layer, rank, scale) for path, layer in paths.items()}
    learned = {f"{path}.{name}": getattr(part, name) for path, part in parts.items() for name in ("lora_A", "lora_B")}
    return Tuning(graft(backbone, parts), learned)


def merged(scale: float, backbone: nn.Module, tuned: Tuning) -> Tuning:
    """The same function in plain weights, W + scale·B·A."""
    learned = dict(tuned.named_parameters())
    weights: dict[str, nn.Parameter] = {}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in learned):
        weight = backbone.get_parameter(f"{path}.weight")
        update = scale * learned[f"{path}.lora_B"] @ learned[f"{path}.lora_A"]
        weights[f"{path}.weight"] = nn.Parameter(weight.detach() + update.detach().to(weight.dtype))
    return Tuning(graft(backbone, {}, parameters=weights), weights)


def _layers(backbone: nn.Module, info: BackboneInfo, *, every: bool) -> dict[str, nn.Linear]:
    """The layers to update by their paths, block by block."""
    plain: dict[str, nn.Linear] = {}
    for site in info.blocks:
        block, names = backbone.get_submodule(site.path), (*_PROJECTIONS, *(_OUTPUTS if every else ()))
        found = {f"{site.attention}.{name}": m for name, m in backbone.get_submodule(site.attention).named_children()}
        found = {path: module for path, module in found.items() if path.rpartition(".")[2] in names}
        if every and isinstance(mlp := getattr(block, "mlp", None), nn.Module):
            layers = {f"{site.path}.mlp.{name}": module for name, module in mlp.named_modules()}
            found |= {path: module for path, module in layers.items() if isinstance(module, nn.Linear)}
        for path, module in found.items():
            if type(module) not in LINEAR:
                raise BackboneError(
                    f"LoRA updates plain linear layers, and {path} is a {type(module).__name__}; give the backbone "
                    "without it."
                )
            plain[path] = cast("nn.Linear", module)
    return plain
