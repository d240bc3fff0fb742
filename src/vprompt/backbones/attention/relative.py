"""Attention with a bias for relative positions, which prompts have not: BEiT and timm's `VisionTransformerRelPos`."""

from __future__ import annotations

from typing import ClassVar

from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Block as BeitBlock
from timm.models.vision_transformer_relpos import RelPosAttention, RelPosBlock, ResPostRelPosBlock
from torch import Tensor

from vprompt.backbones.attention.base import POST_NORM, PRE_NORM, PrefixAttention
from vprompt.backbones.attention.registry import register


class _BiasedPrefix(PrefixAttention):
    positional = True
    finite_masks = True

    def _biased(self, x: Tensor, bias_HNN: Tensor | None) -> Tensor:
        q, k, v = self.project(x)
        mask = None if bias_HNN is None else self._placed(bias_HNN.to(q.dtype))
        return self.project_out(self.mix(q, k, v, self.prefix(self, x.shape[0]), mask), x)


@register
class RelativePrefix(_BiasedPrefix):
    """timm's `RelPosAttention`: a bias of its own, or one that all blocks share."""

    name = "relative"
    attends = (RelPosAttention,)
    blocks: ClassVar = {RelPosBlock: PRE_NORM, ResPostRelPosBlock: POST_NORM}

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """As timm's, over the prefix."""
        rel_pos = self._timm.rel_pos
        return self._biased(x, shared_rel_pos if rel_pos is None else rel_pos.get_bias())


@register
class BeitPrefix(_BiasedPrefix):
    """The `Attention` of timm's BEiT: a bias of its own, one that all blocks share, both, or none."""

    name = "beit"
    attends = (BeitAttention,)
    blocks: ClassVar = {BeitBlock: PRE_NORM}

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """As timm's, over the prefix."""
        own = None if self._timm.relative_position_bias_table is None else self._timm._get_rel_pos_bias()
        if own is None or shared_rel_pos_bias is None:
            return self._biased(x, shared_rel_pos_bias if own is None else own)
        return self._biased(x, own + shared_rel_pos_bias)
