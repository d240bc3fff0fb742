"""What methods learn in a backbone, or beside it, without changing it: views with other parameters and parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from laconic.backbone import BackboneInfo
from laconic.baselines import Adapter, Bias, Full, LoRA, Partial, Side
from laconic.meta import on_meta
from laconic.methods import Method
from laconic.tuning.bottleneck import with_bottlenecks
from laconic.tuning.lora import merged, with_updates
from laconic.tuning.replaced import learned_copies
from laconic.tuning.side import SideNetwork
from laconic.tuning.tuning import Tuning

__all__ = ["Tuning", "folded", "learned_shapes", "tuning_for"]


def tuning_for(
    method: Method, backbone: nn.Module, info: BackboneInfo, values: Mapping[str, Tensor] | None = None
) -> Tuning:
    """What a method learns in or beside a backbone; empty for prompts and for heads alone.

    Args:
        method: The method.
        backbone: The timm model; it is not changed.
        info: Its description.
        values: Of all that is learned, by name; when not given, the method's initial values, for which torch's global
            generator is used.

    Raises:
        LaconicError: If the method does not fit the backbone.
    """
    if values is None:
        return _initial(method, backbone, info)
    with torch.random.fork_rng(devices=[]):
        tuned = _initial(method, backbone, info, values)
    tuned.fill(values)
    return tuned


def learned_shapes(method: Method, backbone: nn.Module, info: BackboneInfo) -> dict[str, torch.Size]:
    """Name -> shape of all that a method learns in or beside a backbone; costs neither memory nor random numbers."""
    with torch.random.fork_rng(devices=[]):
        tuned = _initial(method, on_meta(backbone), info)
    return {name: parameter.shape for name, parameter in tuned.named_parameters()}


def folded(method: Method, backbone: nn.Module, info: BackboneInfo, tuned: Tuning) -> Tuning:
    """A copy for inference, in which nothing learns: low-rank updates are merged into the weights."""
    if isinstance(method, LoRA):
        return merged(method, backbone, info, tuned).requires_grad_(False)
    return tuning_for(method, backbone, info, dict(tuned.named_parameters())).requires_grad_(False)


def _initial(method: Method, backbone: nn.Module, info: BackboneInfo, learned: Collection[str] | None = None) -> Tuning:
    if isinstance(method, Full | Partial | Bias):
        return learned_copies(method, backbone, info, learned)
    if isinstance(method, Adapter):
        return with_bottlenecks(method, backbone, info)
    if isinstance(method, LoRA):
        return with_updates(method, backbone, info)
    if isinstance(method, Side):
        like = next(backbone.parameters())
        return Tuning(backbone, side=SideNetwork(method.width, info.num_features).to(like.device, like.dtype))
    return Tuning(backbone)
