"""Attention with rotary positions: EVA, DINOv3 and other models of timm's `Eva`, and encoders of language models."""

from __future__ import annotations

import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor

from vprompt.backbones.attention.base import PrefixAttention
from vprompt.backbones.attention.functional import KeyValue


class RotaryPrefix(PrefixAttention):
    """timm's `EvaAttention` and `AttentionRope`: prompts, like the leading tokens, are not rotated.

    With grouped queries the prefix has as many heads as the keys.
    """

    positional = True

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """As timm's, over the prefix."""
        q, k, v = self.project(x)
        if rope is not None:
            q, k = self._rotated(q, rope).type_as(v), self._rotated(k, rope).type_as(v)
        return self._leave(self._mix(q, k, v, self.prefix(self, x.shape[0]), attn_mask, is_causal), x)

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

    def _mix(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: KeyValue | None, mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        groups = self._timm.num_heads // self._key_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
            if prefix is not None:
                keys, values = (t.repeat_interleave(groups, dim=1) for t in prefix[:2])
                prefix = KeyValue(keys, values, prefix.bias)
        return super()._mix(q, k, v, prefix, mask, is_causal)

    @property
    def _key_heads(self) -> int:
        return getattr(self._timm, "num_kv_heads", self._timm.num_heads)
