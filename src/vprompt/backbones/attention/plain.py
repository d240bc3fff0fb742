"""Attention that knows no positions: timm's plain and differential attention, and blocks that run it beside the MLP."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from timm.layers import Attention, DiffAttention
from timm.models.vision_transformer import Block, DiffParallelScalingBlock, ParallelScalingBlock, ResPostBlock
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode  # pyright: ignore[reportPrivateUsage]

from vprompt.backbones.attention.base import POST_NORM, PRE_NORM, BlockForm, PrefixAttention, sliceable
from vprompt.backbones.attention.functional import KeyValue, attend, attend_absorbed, attention_weights
from vprompt.backbones.attention.registry import register


@register
class PlainPrefix(PrefixAttention):
    """`timm.layers.Attention`: with or without q/k norm, scale norm, gate, biases."""

    name = "plain"
    attends = (Attention,)
    blocks: ClassVar = {Block: PRE_NORM, ResPostBlock: POST_NORM}

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As timm's, over the prefix."""
        if attn_mask is None and not is_causal and self._absorbs(x):
            return self.project_out(self._absorbed(x), x)
        q, k, v = self.project(x)
        return self.project_out(self.mix(q, k, v, self.prefix(self, x.shape[0]), attn_mask, is_causal), x)

    def _absorbs(self, x_BND: Tensor) -> bool:
        """Whether there are so few queries that the keys and values of the tokens need not be computed.

        In float32 or float64 on a CPU, where that was measured, and without gradients; where nothing stands between
        projection and attention. Who watches the operations sees the plain ones, so that costs are counted alike on all
        devices.
        """
        attn = self._timm
        return (
            not torch.compiler.is_exporting()
            and type(self) is PlainPrefix
            and self.num_queries is not None
            and 4 * self.num_queries * attn.num_heads <= x_BND.shape[-1]
            and x_BND.device.type == "cpu"
            and x_BND.dtype in (torch.float32, torch.float64)
            and sliceable(attn.qkv)
            and isinstance(attn.k_norm, nn.Identity)
            and self.observer is None
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(x_BND.device.type)
            and (torch.compiler.is_compiling() or _get_current_dispatch_mode() is None)
        )

    def _absorbed(self, x_BND: Tensor) -> Tensor:
        """Attention of the queries to prefix and tokens, (B, H, n, d)."""
        attn, prefix = self._timm, self.prefix(self, x_BND.shape[0])
        q_BHnd = self._query(self._linear(x_BND[:, : self.num_queries], 0)[0])
        _, *weights = attn.qkv.weight.chunk(3)
        _, *biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
        keys, values = zip(weights, biases, strict=True)
        return attend_absorbed(q_BHnd, x_BND, keys, values, prefix, scale=self.scale)


@register
class DifferentialPrefix(PlainPrefix):
    """`timm.layers.DiffAttention`: the difference of two attentions with values in common.

    Keys are those of both, (B, 2H, N, d); values (B, H, N, 2d).
    """

    name = "differential"
    attends = (DiffAttention,)

    def _query(self, q_BNA: Tensor) -> Tensor:
        return self._timm.q_norm(self._both(q_BNA))

    def _key(self, k_BNA: Tensor) -> Tensor:
        return self._timm.k_norm(self._both(k_BNA))

    def _both(self, x_BNA: Tensor) -> Tensor:
        return x_BNA.unflatten(-1, (2 * self._timm.num_heads, -1)).transpose(1, 2)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: KeyValue | None, mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        attn = self._timm
        dropout = attn.attn_drop_p if attn.training else 0.0
        first, second = (
            attend(
                q[:, part::2],
                k[:, part::2],
                v,
                prefix and prefix._replace(keys=prefix.keys[:, part::2]),
                attn_mask=mask,
                is_causal=is_causal,
                dropout=dropout,
                scale=self.scale,
            )
            for part in (0, 1)
        )
        out = first - attn._compute_lambda().type_as(q) * second
        return attn.sub_norm(out) * (1 - attn.lambda_init)

    def _weights(self, q: Tensor, k: Tensor, prefix: KeyValue | None, mask: Tensor | None) -> Tensor:
        weights = attention_weights(q, k, prefix, attn_mask=mask, scale=self.scale)
        return weights[:, ::2] - self._timm._compute_lambda().type_as(q) * weights[:, 1::2]


class _ParallelBlock(PrefixAttention):
    """A block with attention and MLP side by side out of one projection; the wrapper stands for the whole block."""

    def _projection(self) -> tuple[Any, int]:
        return self._timm.in_proj, self._timm.in_split[0]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As timm's, over the prefix."""
        block: Any = self._timm
        hidden_BNM, q_BNA, k_BNA, v_BNA = block.in_proj(block.in_norm(x)).split(block.in_split, dim=-1)
        if block.mlp_bias is not None:
            hidden_BNM = hidden_BNM + block.mlp_bias
        q, k, v = self._query(q_BNA), self._key(k_BNA), self._value(v_BNA)
        out_BHNd = self.mix(q, k, v, self.prefix(self, x.shape[0]), attn_mask, is_causal)
        out_BNA, hidden_BNM = out_BHNd.transpose(1, 2).flatten(2), block.mlp_drop(block.mlp_act(hidden_BNM))
        if block.out_proj is not None:
            y = block.out_proj(torch.cat([out_BNA, hidden_BNM], dim=-1))
        else:
            y = block.attn_out_proj(out_BNA) + block.mlp_out_proj(hidden_BNM)
        return x + block.drop_path(block.ls(y))


@register
class ParallelPrefix(_ParallelBlock):
    """timm's `ParallelScalingBlock`."""

    name = "parallel"
    attends = (ParallelScalingBlock,)
    blocks: ClassVar = {ParallelScalingBlock: BlockForm(entry="in_norm")}


@register
class DifferentialParallelPrefix(_ParallelBlock, DifferentialPrefix):
    """timm's `DiffParallelScalingBlock`."""

    name = "differential-parallel"
    attends = (DiffParallelScalingBlock,)
    blocks: ClassVar = {DiffParallelScalingBlock: BlockForm(entry="in_norm")}
