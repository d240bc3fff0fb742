"""Attention in windows: Swin and its second version. Every window sees the same prefix.

Rows are windows, all of one image after another; the bias for relative positions and the mask of shifted windows leave
prompts alone.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from laconic.prefix.attend import KeyValue
from laconic.prefix.attention import PrefixAttention


class WindowPrefix(PrefixAttention):
    """The `WindowAttention` of timm's Swin."""

    positional = True

    def forward(self, x: Tensor, mask: Tensor | None = None, *, images: int) -> Tensor:
        """As timm's, over the prefix.

        Args:
            x: Tokens of windows (B·W, N, D), those that are inserted included.
            mask: Of shifted windows (W, N', N') over the tokens that stand in the image, or None.
            images: B.
        """
        q, k, v = self.project(x)
        bias_WHNN = self._bias().to(q.dtype)
        if mask is not None:
            bias_WHNN = bias_WHNN + mask.to(q.dtype).unsqueeze(1)
        prefix = self.prefix(self, images)
        if prefix is not None and prefix[0].shape[0] > 1:
            windows = x.shape[0] // images
            prefix = prefix[0].repeat_interleave(windows, dim=0), prefix[1].repeat_interleave(windows, dim=0)
        return self._leave(self._mix(q, k, v, prefix, self._placed(bias_WHNN)), x)

    def _bias(self) -> Tensor:
        """The bias between the positions of a window (1, H, N', N')."""
        return self._timm._get_rel_pos_bias()

    def _mix(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: KeyValue | None, mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        assert mask is not None
        if mask.shape[0] == 1:
            return super()._mix(q, k, v, prefix, mask)
        # Windows as heads, so that one mask serves all images without being copied for each.
        windows, heads = mask.shape[:2]
        q, k, v = (t.unflatten(0, (-1, windows)).flatten(1, 2) for t in (q, k, v))
        if prefix is not None:
            keys, values = (t.unflatten(0, (-1, windows)) if t.shape[0] > 1 else t.unsqueeze(1) for t in prefix)
            keys, values = (t.expand(-1, windows, -1, -1, -1).flatten(1, 2) for t in (keys, values))
            prefix = keys, values
        out = super()._mix(q, k, v, prefix, mask.flatten(0, 1).unsqueeze(0))
        return out.unflatten(1, (windows, heads)).flatten(0, 1)


class _CosinePrefix(WindowPrefix):
    """Cosine attention: queries and keys have length one, the factor of the logits is learned for every head."""

    @property
    def scale(self) -> float:
        """The factor is in the queries."""
        return 1.0

    def _query(self, q_BNA: Tensor) -> Tensor:
        factor_H11 = self._timm.logit_scale.reshape(-1, 1, 1).clamp(max=math.log(100.0)).exp()
        return F.normalize(super()._query(q_BNA), dim=-1) * factor_H11

    def _key(self, k_BNA: Tensor) -> Tensor:
        return F.normalize(super()._key(k_BNA), dim=-1)


class WindowV2Prefix(_CosinePrefix):
    """The `WindowAttention` of timm's Swin V2."""

    def _bias(self) -> Tensor:
        attn = self._timm
        table_PH = attn.cpb_mlp(attn.relative_coords_table).flatten(0, 2)
        bias_NNH = table_PH[attn.relative_position_index]
        return 16 * bias_NNH.permute(2, 0, 1).unsqueeze(0).sigmoid()


class WindowV2CrPrefix(_CosinePrefix):
    """The `WindowMultiHeadAttention` of timm's Swin V2-CR."""

    def _bias(self) -> Tensor:
        return self._timm._relative_positional_encodings()
