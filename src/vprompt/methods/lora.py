"""LoRA on the projections of attention, through peft; the only place where peft is used."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import nn

from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo
from vprompt.methods.base import Promptless
from vprompt.methods.tuned import Tuning
from vprompt.utils.errors import BackboneError, VPromptError

_PROJECTIONS = ("in_proj", "qkv", "q_proj", "k_proj", "v_proj")


def with_updates(method: LoRA, backbone: nn.Module, info: BackboneInfo) -> Tuning:
    """Low-rank updates beside the projections to queries, keys and values in every block.

    Raises:
        VPromptError: If peft is not installed.
        BackboneError: If a projection is not a plain linear layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise VPromptError(f"LoRA needs peft ({error}); install it: pip install 'vprompt[lora]'.") from error
    paths = _projections(backbone, info)
    # Shells down to the projections: peft exchanges modules and sets attributes there, not in the backbone.
    view = graft(backbone, {path: backbone.get_submodule(path) for path in paths})
    exactly = "|".join(re.escape(path) for path in paths)
    config: Any = LoraConfig(r=method.rank, lora_alpha=cast("int", method.alpha), target_modules=exactly)
    wanted = [(p, p.requires_grad) for p in backbone.parameters()]
    inject_adapter_in_model(config, view)
    for parameter, gradient in wanted:  # peft freezes all but its own
        parameter.requires_grad_(gradient)
    learned: dict[str, nn.Parameter] = {}
    for path in paths:
        layer: Any = view.get_submodule(path)
        for name in ("lora_A", "lora_B"):
            learned[f"{path}.{name}"] = getattr(layer, name)["default"].weight
    return Tuning(view, learned)


def merged(method: LoRA, backbone: nn.Module, info: BackboneInfo, tuned: Tuning) -> Tuning:
    """The same function in plain weights, W + scale·B·A."""
    learned = dict(tuned.named_parameters())
    weights: dict[str, nn.Parameter] = {}
    for path in _projections(backbone, info):
        weight = backbone.get_parameter(f"{path}.weight")
        update = method.scale * learned[f"{path}.lora_B"] @ learned[f"{path}.lora_A"]
        weights[f"{path}.weight"] = nn.Parameter(weight.detach() + update.detach().to(weight.dtype))
    return Tuning(graft(backbone, {}, parameters=weights), weights)


def _projections(backbone: nn.Module, info: BackboneInfo) -> list[str]:
    """Paths of the projections to queries, keys and values, block by block."""
    found: list[str] = []
    for site in info.blocks:
        children = dict(backbone.get_submodule(site.attention).named_children())
        for name in _PROJECTIONS:
            if name not in children:
                continue
            if type(children[name]) is not nn.Linear:
                raise BackboneError(
                    f"LoRA updates plain linear projections, and {site.attention}.{name} is a "
                    f"{type(children[name]).__name__}; give the backbone without it."
                )
            found.append(f"{site.attention}.{name}")
    return found


@dataclass(frozen=True)
class LoRA(Promptless):
    """Low-rank updates of the projections to queries, keys and values, W + (alpha / rank)·B·A, and a linear head.

    Needs `peft`: `pip install 'vprompt[lora]'`.

    Args:
        rank: r, 1 to 4096.
        alpha: Above 0; the updates are scaled by alpha / rank.

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> LoRA(rank=4).scale
        4.0

    Source: LoRA (arXiv 2106.09685), section 4.1.
    """

    rank: int = 8
    alpha: float = 16.0
    name: ClassVar[str] = "lora"
    lr_factor: ClassVar[float] = 0.4

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 4096:
            raise VPromptError(f"The rank of LoRA must be at least 1 and at most 4096, not {self.rank}.")
        if not 0 < self.alpha < math.inf:
            raise VPromptError(f"The alpha of LoRA must be above 0, not {self.alpha}.")

    @property
    def scale(self) -> float:
        """Factor of B·A."""
        return self.alpha / self.rank
