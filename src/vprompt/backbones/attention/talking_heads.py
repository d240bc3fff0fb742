"""Talking heads: CaiT's attention, whose heads are mixed before and after the softmax."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from timm.models.cait import LayerScaleBlock, TalkingHeadAttn
from torch import Tensor

from vprompt.backbones.attention.base import PRE_NORM_WHOLE, PrefixAttention
from vprompt.backbones.attention.functional import KeyValue, join
from vprompt.backbones.attention.registry import register


@register
class TalkingPrefix(PrefixAttention):
    """The `TalkingHeadAttn` of timm's CaiT."""

    name = "talking-heads"
    attends = (TalkingHeadAttn,)
    blocks: ClassVar = {LayerScaleBlock: PRE_NORM_WHOLE}

    def forward(self, x: Tensor) -> Tensor:
        """As timm's, over the prefix."""
        q, k, v = self.project(x)
        return self.project_out(self.mix(q, k, v, self.prefix(self, x.shape[0]), None), x)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: KeyValue | None, mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        weights_BHNM = self._timm.attn_drop(self._weights(q, k, prefix, mask))
        return weights_BHNM @ (v if prefix is None else join(prefix.values, v, v.shape[0]))

    def _weights(self, q: Tensor, k: Tensor, prefix: KeyValue | None, mask: Tensor | None) -> Tensor:
        attn = self._timm
        tokens = k.shape[2]
        k = k if prefix is None else join(prefix.keys, k, k.shape[0])
        logits_BNMH = attn.proj_l((q * self.scale @ k.mT).permute(0, 2, 3, 1))
        bias = None if prefix is None else prefix.bias
        added_b1M = None if bias is None else F.pad(bias.to(q.dtype), (0, tokens)).unsqueeze(1)
        if added_b1M is not None:
            # Behind the mixing: keys that are the same have the same logits there.
            logits_BNMH = logits_BNMH + added_b1M.unsqueeze(-1)
        weights_BHNM = attn.proj_w(logits_BNMH.softmax(dim=2)).permute(0, 3, 1, 2)
        if added_b1M is not None and attn.proj_w.bias is not None:
            # A key that counts m times has the bias of the second mixing m times, too.
            weights_BHNM = weights_BHNM + (added_b1M.unsqueeze(1).exp() - 1) * attn.proj_w.bias[:, None, None]
        return weights_BHNM
