"""Copies of a backbone's parameters that are learned in place of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo, classifier_parameters
from vprompt.backbones.meta import QuickShapes, on_meta
from vprompt.backbones.quantise import precision_held
from vprompt.methods.layers.tuned import Tuning
from vprompt.utils.errors import BackboneError, VPromptError


def own_parameters(backbone: nn.Module) -> list[str]:
    """Names of a backbone's parameters, without its own classifier's."""
    left_out = classifier_parameters(backbone)
    return [name for name, p in backbone.named_parameters() if id(p) not in left_out]


def learned_copies(
    method: str,
    names: Sequence[str],
    backbone: nn.Module,
    info: BackboneInfo,
    learned: Collection[str] | None = None,
) -> Tuning:
    """Copies of parameters, in place of the backbone's; those that do not reach the pooled feature are left out.

    Args:
        method: Name of the method, for messages.
        names: Parameters that it would learn.
        backbone: The timm model; it is not changed.
        info: Its description.
        learned: Names of those that are learned, where they are known; finding them out takes a run.

    Raises:
        BackboneError: If there is nothing to learn.
    """
    if (precision := precision_held(backbone)) != "fp32":
        raise BackboneError(
            f"The method {method!r} learns the backbone's own weights, which {precision} holds fixed; leave out "
            "the backbone's precision, or take a method that leaves them as they are, such as vpt-deep or lora."
        )
    names = _reaching(names, backbone, info) if learned is None else [name for name in names if name in learned]
    if not names:
        raise BackboneError(f"The backbone {info.name} has no parameters that the method {method!r} could learn.")
    parameters = {name: nn.Parameter(backbone.get_parameter(name).detach().clone()) for name in names}
    copies = {id(backbone.get_parameter(name)): parameter for name, parameter in parameters.items()}
    # A parameter that is used in several places is learned once and acts in all of them.
    places = backbone.named_parameters(remove_duplicate=False)
    everywhere = {path: copies[id(p)] for path, p in places if id(p) in copies}
    return Tuning(graft(backbone, {}, parameters=everywhere), parameters)


def from_last_blocks(names: Sequence[str], info: BackboneInfo, count: int) -> list[str]:
    """The names inside the last blocks, and those that are registered after the last block."""
    if count > len(info.blocks):
        raise VPromptError(
            f"The backbone {info.name} has {len(info.blocks)} blocks, so Partial cannot learn the last {count}; give "
            "it fewer blocks."
        )
    inside = tuple(f"{site.path}." for site in info.blocks[-count:])
    last = max(index for index, name in enumerate(names) if name.startswith(inside[-1]))
    return [name for index, name in enumerate(names) if index > last or name.startswith(inside)]


def _reaching(names: Sequence[str], backbone: nn.Module, info: BackboneInfo) -> list[str]:
    """The names of parameters on which the pooled feature depends, found out on shapes alone."""
    model: Any = on_meta(backbone).eval()
    watched = [model.get_parameter(name).requires_grad_() for name in names]
    if not watched:
        return []
    image = torch.zeros(1, *info.preprocessing.shape, device="meta", dtype=watched[0].dtype)
    with QuickShapes(), torch.enable_grad():
        feature = model.forward_head(model.forward_features(image), pre_logits=True)
        values = torch.autograd.grad(feature.sum(), watched, allow_unused=True)
    gradients = cast("tuple[Tensor | None, ...]", values)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
