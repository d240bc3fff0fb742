"""Whole backbones with their linear layers held in few bits."""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

from torch import nn

from vprompt.backbones.frozen_linear import FORMS, FrozenLinear
from vprompt.backbones.graft import graft
from vprompt.backbones.info import classifier_parameters, fingerprint, rounded_fingerprints
from vprompt.backbones.names import BackbonePrecision
from vprompt.utils.errors import BackboneError

LEAST = 32
"""Layers with fewer inputs or outputs stay as they are: they hold next to nothing."""

_ORIGIN = "_vprompt_origin"


class _Origin(NamedTuple):
    """How a backbone's linear layers are held, and fingerprints of the weights that they were made of."""

    precision: BackbonePrecision
    fingerprint: str = ""
    rounded: tuple[str, ...] = ()


def precision_held(backbone: nn.Module) -> BackbonePrecision:
    """The precision that `quantise` gave a backbone; fp32 where it did not."""
    return backbone.__dict__.get(_ORIGIN, _Origin("fp32")).precision


def original_fingerprint(backbone: nn.Module) -> str:
    """The fingerprint of a backbone's weights before `quantise`."""
    return backbone.__dict__[_ORIGIN].fingerprint if _ORIGIN in backbone.__dict__ else fingerprint(backbone)


def original_rounded(backbone: nn.Module) -> tuple[str, ...]:
    """`rounded_fingerprints` of a backbone's weights before `quantise`."""
    return backbone.__dict__[_ORIGIN].rounded if _ORIGIN in backbone.__dict__ else rounded_fingerprints(backbone)


def shared_key(fingerprint: str, precision: BackbonePrecision) -> str:
    """What adapters have in common that may share a backbone."""
    return fingerprint if precision == "fp32" else f"{fingerprint} in {precision}"


def quantise(backbone: nn.Module, precision: BackbonePrecision | None) -> nn.Module:
    """A view of a backbone with its linear layers in few bits, and all else shared; the backbone stays as it is.

    int8: a factor for each row of a weight. int4: one for each 32 numbers of it. fp8: e4m3, a factor for each row.
    Norms, biases, embeddings, convolutions and the smallest layers stay as they are.

    Args:
        backbone: A timm model.
        precision: None takes the backbone as it is, `"fp32"` only if it is not quantised.

    Raises:
        BackboneError: If there is no such precision, or the backbone is held in another already.

    Example:
        >>> import timm
        >>> view = quantise(timm.create_model("test_vit"), "int4")
        >>> type(view).__name__, type(view.blocks[0].attn.qkv).__name__, precision_held(view)
        ('VisionTransformer', 'FrozenLinear', 'int4')
    """
    now = precision_held(backbone)
    if precision is None or precision == now:
        return backbone
    if precision not in ("fp32", *FORMS):
        raise BackboneError(f"There is no precision {precision!r} of backbones; take fp32, {', '.join(FORMS)}.")
    if now != "fp32":
        raise BackboneError(f"The backbone is held in {now} already, so {precision} is lost; give the original.")
    left_out, frozen = classifier_parameters(backbone), cache(partial(FrozenLinear, precision=precision))
    parts = {
        path: frozen(module)
        for path, module in backbone.named_modules(remove_duplicate=False)
        if type(module) is nn.Linear and min(module.weight.shape) >= LEAST and id(module.weight) not in left_out
    }
    view, origin = graft(backbone, parts), _Origin(precision)
    if not next(backbone.parameters()).is_meta:  # shapes have no fingerprint
        origin = _Origin(precision, fingerprint(backbone), rounded_fingerprints(backbone))
    view.__dict__[_ORIGIN] = origin
    return view
