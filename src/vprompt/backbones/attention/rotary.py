"""Attention with rotary positions: EVA, DINOv3 and other models of timm's `Eva`, and encoders of language models."""

from __future__ import annotations

from typing import ClassVar

import torch
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.deepseek_vit import DeepseekVitBlock
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor

from vprompt.backbones.attention.base import POST_NORM, PRE_NORM, PRE_NORM_WHOLE, PrefixAttention
from vprompt.backbones.attention.functional import KeyValue
from vprompt.backbones.attention.registry import register


@register
class RotaryPrefix(PrefixAttention):
    """timm's `EvaAttention` and `AttentionRope`: prompts, like the leading tokens, are not rotated.

    With grouped queries the prefix has as many heads as the keys.
    """

    name = "rotary"
    attends = (EvaAttention, AttentionRope)
    blocks: ClassVar = {EvaBlock: PRE_NORM, EvaBlockPostNorm: POST_NORM, DeepseekVitBlock: PRE_NORM_WHOLE}
    positional = True

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """As timm's, over the prefix."""
        q, k, v = self.project(x)
        if rope is not None:
            q, k = self._rotated(q, rope).type_as(v), self._rotated(k, rope).type_as(v)
        return self.project_out(self.mix(q, k, v, self.prefix(self, x.shape[0]), attn_mask, is_causal), x)

    def _rotated(self, x_BHNd: Tensor, rope: Tensor) -> Tensor:
        still = self._timm.num_prefix_tokens + self.inserted[1]
        if x_BHNd.shape[2] <= still:
            return x_BHNd
        rotated = apply_rot_embed_cat(x_BHNd[:, :, still:], rope, half=getattr(self._timm, "rotate_half", False))
        return torch.cat([x_BHNd[:, :, :still], rotated], dim=2) if still else rotated

    def _key(self, k_BNA: Tensor) -> Tensor:
        return self._timm.k_norm(k_BNA.unflatten(-1, (self._key_heads, -1)).transpose(1, 2))

    def _value(self, v_BNA: Tensor) -> Tensor:
        return v_BNA.unflatten(-1, (self._key_heads, -1)).transpose(1, 2)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: KeyValue | None, mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """As that of all wrappers, once every query head has a key head of its own."""
        groups = self._timm.num_heads // self._key_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
            if prefix is not None:
                keys, values = (t.repeat_interleave(groups, dim=1) for t in prefix[:2])
                prefix = KeyValue(keys, values, prefix.bias)
        return super().mix(q, k, v, prefix, mask, is_causal)

    @property
    def _key_heads(self) -> int:
        return getattr(self._timm, "num_kv_heads", self._timm.num_heads)
