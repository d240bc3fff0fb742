"""Low-rank updates of linear layers of blocks, through peft; the only place where peft is used."""

from __future__ import annotations

import re
from typing import Any, cast

from torch import nn

from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo
from vprompt.methods.layers.tuned import Tuning
from vprompt.utils.errors import BackboneError, VPromptError

_PROJECTIONS = ("in_proj", "qkv", "q_proj", "k_proj", "v_proj")
_OUTPUTS = ("proj", "out_proj", "attn_out_proj", "mlp_out_proj")


def with_updates(rank: int, alpha: float, backbone: nn.Module, info: BackboneInfo, *, every: bool = False) -> Tuning:
    """Low-rank updates beside the projections to queries, keys and values in every block; or beside every layer.

    Raises:
        VPromptError: If peft is not installed.
        BackboneError: If a projection is not a plain linear layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise VPromptError(f"LoRA needs peft ({error}); install it: pip install 'vprompt[lora]'.") from error
    paths = _layers(backbone, info, every=every)
    # Shells down to the projections: peft exchanges modules and sets attributes there, not in the backbone.
    view = graft(backbone, {path: backbone.get_submodule(path) for path in paths})
    exactly = "|".join(re.escape(path) for path in paths)
    config: Any = LoraConfig(r=rank, lora_alpha=cast("int", alpha), target_modules=exactly)
    flags = [(p, p.requires_grad) for p in backbone.parameters()]
    inject_adapter_in_model(config, view)
    for parameter, gradient in flags:  # peft freezes all but its own
        parameter.requires_grad_(gradient)
    learned: dict[str, nn.Parameter] = {}
    for path in paths:
        layer: Any = view.get_submodule(path)
        for name in ("lora_A", "lora_B"):
            learned[f"{path}.{name}"] = getattr(layer, name)["default"].weight
    return Tuning(view, learned)


def merged(scale: float, backbone: nn.Module, tuned: Tuning) -> Tuning:
    """The same function in plain weights, W + scale·B·A."""
    learned = dict(tuned.named_parameters())
    weights: dict[str, nn.Parameter] = {}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in learned):
        weight = backbone.get_parameter(f"{path}.weight")
        update = scale * learned[f"{path}.lora_B"] @ learned[f"{path}.lora_A"]
        weights[f"{path}.weight"] = nn.Parameter(weight.detach() + update.detach().to(weight.dtype))
    return Tuning(graft(backbone, {}, parameters=weights), weights)


def _layers(backbone: nn.Module, info: BackboneInfo, *, every: bool) -> list[str]:
    """Paths of the layers to update, block by block."""
    paths: list[str] = []
    for site in info.blocks:
        block, names = backbone.get_submodule(site.path), (*_PROJECTIONS, *(_OUTPUTS if every else ()))
        found = {f"{site.attention}.{name}": m for name, m in backbone.get_submodule(site.attention).named_children()}
        found = {path: module for path, module in found.items() if path.rpartition(".")[2] in names}
        if every and isinstance(mlp := getattr(block, "mlp", None), nn.Module):
            layers = {f"{site.path}.mlp.{name}": module for name, module in mlp.named_modules()}
            found |= {path: module for path, module in layers.items() if isinstance(module, nn.Linear)}
        for path, module in found.items():
            if type(module) is not nn.Linear:
                raise BackboneError(
                    f"LoRA updates plain linear layers, and {path} is a {type(module).__name__}; give the backbone "
                    "without it."
                )
        paths += found
    return paths
