"""Which adapter belongs to which attention class of timm."""

from __future__ import annotations

from timm.layers import Attention, AttentionRope, DiffAttention
from timm.models.beit import Attention as BeitAttention
from timm.models.cait import TalkingHeadAttn
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import WindowAttention
from timm.models.swin_transformer_v2 import WindowAttention as WindowAttentionV2
from timm.models.swin_transformer_v2_cr import WindowMultiHeadAttention
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from timm.models.vision_transformer_relpos import RelPosAttention
from timm.models.vision_transformer_sam import Attention as SamAttention
from torch import nn

from vprompt.backbones.attention.base import PrefixAttention
from vprompt.backbones.attention.plain import (
    DifferentialParallelPrefix,
    DifferentialPrefix,
    ParallelPrefix,
    PlainPrefix,
)
from vprompt.backbones.attention.relative import BeitPrefix, RelativePrefix
from vprompt.backbones.attention.rotary import RotaryPrefix
from vprompt.backbones.attention.talking_heads import TalkingPrefix
from vprompt.backbones.attention.windows import SamPrefix, WindowPrefix, WindowV2CrPrefix, WindowV2Prefix
from vprompt.utils.errors import BackboneError

ADAPTERS: dict[type[nn.Module], type[PrefixAttention]] = {
    Attention: PlainPrefix,
    DiffAttention: DifferentialPrefix,
    ParallelScalingBlock: ParallelPrefix,
    DiffParallelScalingBlock: DifferentialParallelPrefix,
    EvaAttention: RotaryPrefix,
    AttentionRope: RotaryPrefix,
    BeitAttention: BeitPrefix,
    RelPosAttention: RelativePrefix,
    TalkingHeadAttn: TalkingPrefix,
    WindowAttention: WindowPrefix,
    WindowAttentionV2: WindowV2Prefix,
    WindowMultiHeadAttention: WindowV2CrPrefix,
    SamAttention: SamPrefix,
}
"""Attention class of timm -> its adapter. Parallel blocks are their own attention."""


def adapter_for(attention: nn.Module) -> type[PrefixAttention]:
    """The adapter of an attention module.

    Raises:
        BackboneError: If there is none for its class.
    """
    found = ADAPTERS.get(type(attention))
    if found is None:
        known = ", ".join(sorted({cls.__name__ for cls in ADAPTERS}))
        raise BackboneError(
            f"The attention class {type(attention).__name__} is not supported; supported are {known} of timm."
        )
    return found
