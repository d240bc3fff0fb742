"""Attention with a bias for relative positions, which prompts have not: BEiT and timm's `VisionTransformerRelPos`."""

from __future__ import annotations

from torch import Tensor

from vprompt.backbones.attention.base import PrefixAttention


class _BiasedPrefix(PrefixAttention):
    positional = True
    finite_masks = True

    def _biased(self, x: Tensor, bias_HNN: Tensor | None) -> Tensor:
        q, k, v = self.project(x)
        mask = None if bias_HNN is None else self._placed(bias_HNN.to(q.dtype))
        return self._leave(self._mix(q, k, v, self.prefix(self, x.shape[0]), mask), x)


class RelativePrefix(_BiasedPrefix):
    """timm's `RelPosAttention`: a bias of its own, or one that all blocks share."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """As timm's, over the prefix."""
        rel_pos = self._timm.rel_pos
        return self._biased(x, shared_rel_pos if rel_pos is None else rel_pos.get_bias())


class BeitPrefix(_BiasedPrefix):
    """The `Attention` of timm's BEiT: a bias of its own, one that all blocks share, both, or none."""

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """As timm's, over the prefix."""
        own = None if self._timm.relative_position_bias_table is None else self._timm._get_rel_pos_bias()
        if own is None or shared_rel_pos_bias is None:
            return self._biased(x, shared_rel_pos_bias if own is None else own)
        return self._biased(x, own + shared_rel_pos_bias)
