"""Attention in windows: Swin, its second version, and SAM. Every window sees the same prefix.

Rows are windows, all of one image after another; the bias for relative positions and the mask of shifted windows leave
prompts alone.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.swin_transformer_v2 import WindowAttention as WindowAttentionV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock, WindowMultiHeadAttention
from timm.models.vision_transformer_sam import Attention as SamAttention
from timm.models.vision_transformer_sam import Block as SamBlock
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias
from torch import Tensor

from vprompt.backbones.attention.base import POST_NORM, PRE_NORM_WHOLE, PrefixAttention
from vprompt.backbones.attention.functional import KeyValue
from vprompt.backbones.attention.registry import register


@register
class WindowPrefix(PrefixAttention):
    """The `WindowAttention` of timm's Swin."""

    name = "swin"
    attends = (WindowAttention,)
    blocks: ClassVar = {SwinTransformerBlock: PRE_NORM_WHOLE}
    positional = True
    finite_masks = True

    def forward(self, x: Tensor, mask: Tensor | None = None, *, images: int, window: tuple[int, int]) -> Tensor:
        """As timm's, over the prefix.

        Args:
            x: Tokens of windows (B·W, N, D), those that are inserted included, and first.
            mask: Of shifted windows (W, N', N') over the tokens that stand in the image, or None.
            images: B.
            window: Height and width of a window in tokens, N' in all.
        """
        q, k, v = self.project(x)
        bias_WHNN = self._bias(q, window)
        if bias_WHNN is not None and mask is not None:
            bias_WHNN = bias_WHNN.to(q.dtype) + mask.to(q.dtype).unsqueeze(1)
        placed = None if bias_WHNN is None else self._placed(bias_WHNN.to(q.dtype))
        return self.project_out(self.mix(q, k, v, self._prefix(x, images), placed), x)

    def _prefix(self, x: Tensor, images: int) -> KeyValue | None:
        """The prefix for all windows together, or one for each where every image has its own."""
        prefix = self.prefix(self, images)
        if prefix is None:
            return None
        windows = x.shape[0] // images
        keys, values = (t if t.shape[0] == 1 else t.repeat_interleave(windows, dim=0) for t in prefix[:2])
        bias = prefix.bias
        if bias is not None and bias.shape[0] > 1:
            bias = bias.repeat_interleave(windows, dim=0)
        return KeyValue(keys, values, bias)

    def _bias(self, q_RHNd: Tensor, window: tuple[int, int]) -> Tensor | None:
        """The bias between the positions of a window (1, H, N', N') or of every window (B·W, H, N', N'), if any."""
        return self._timm._get_rel_pos_bias()

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: KeyValue | None, mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """As that of all wrappers, with a mask for every window too, (W, H, N', N')."""
        if mask is None or mask.shape[0] in (1, q.shape[0]):
            return super().mix(q, k, v, prefix, mask)
        # Windows as heads, so that one mask serves all images without being copied for each.
        windows, heads = mask.shape[:2]
        q, k, v = (t.unflatten(0, (-1, windows)).flatten(1, 2) for t in (q, k, v))
        if prefix is not None:
            both = (t.unflatten(0, (-1, windows)) if t.shape[0] > 1 else t.unsqueeze(1) for t in prefix[:2])
            keys, values = (t.expand(-1, windows, -1, -1, -1).flatten(1, 2) for t in both)
            bias = prefix.bias
            # One for each window, but the same for all windows of an image.
            prefix = KeyValue(keys, values, bias if bias is None or bias.shape[0] == 1 else bias[::windows])
        out = super().mix(q, k, v, prefix, mask.flatten(0, 1).unsqueeze(0))
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


@register
class WindowV2Prefix(_CosinePrefix):
    """The `WindowAttention` of timm's Swin V2."""

    name = "swin-v2"
    attends = (WindowAttentionV2,)
    blocks: ClassVar = {SwinTransformerV2Block: POST_NORM}

    def _bias(self, q_RHNd: Tensor, window: tuple[int, int]) -> Tensor:
        attn = self._timm
        table_PH = attn.cpb_mlp(attn.relative_coords_table).flatten(0, 2)
        bias_NNH = table_PH[attn.relative_position_index]
        return 16 * bias_NNH.permute(2, 0, 1).unsqueeze(0).sigmoid()


@register
class WindowV2CrPrefix(_CosinePrefix):
    """The `WindowMultiHeadAttention` of timm's Swin V2-CR."""

    name = "swin-v2-cr"
    attends = (WindowMultiHeadAttention,)
    blocks: ClassVar = {SwinTransformerV2CrBlock: POST_NORM}

    def _bias(self, q_RHNd: Tensor, window: tuple[int, int]) -> Tensor:
        return self._timm._relative_positional_encodings()


@register
class SamPrefix(WindowPrefix):
    """The `Attention` of timm's SAM: windows, or the whole map; a bias that depends on the query, rotation, or none."""

    name = "sam"
    attends = (SamAttention,)
    blocks: ClassVar = {SamBlock: PRE_NORM_WHOLE}

    def project(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, rotated where the tokens stand in the image and the model does so."""
        q, k, v = super().project(x_BND)
        if self._timm.rope is None:
            return q, k, v
        rope, still = self._timm.rope.get_embed(), self.inserted[1]
        q, k = (torch.cat([t[:, :, :still], apply_rot_embed_cat(t[:, :, still:], rope)], dim=2) for t in (q, k))
        return q.type_as(v), k.type_as(v), v

    def _bias(self, q_RHNd: Tensor, window: tuple[int, int]) -> Tensor | None:
        attn, still = self._timm, self.inserted[1]
        if not attn.use_rel_pos:
            return None
        q_RNd = q_RHNd[:, :, still:].flatten(0, 1)
        bias_RNN = get_decomposed_rel_pos_bias(q_RNd, attn.rel_pos_h, attn.rel_pos_w, window, window)
        return bias_RNN.unflatten(0, q_RHNd.shape[:2])
