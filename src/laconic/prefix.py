"""Prompts as keys and values: attention over a prefix that asks no queries.

The maths is `attend`; below it stands one small adapter for each attention class of timm. An adapter knows how its
class projects tokens and what its block does to a token before attention; it knows no method.

A deep prompt's output is discarded by VPT, so it acts on the network only as a key and a value (the exact shortcut).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from laconic.errors import BackboneError

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of a prefix, each (1 or B, H, P, d)."""


def attend(
    q_BHNd: Tensor,
    k_BHMd: Tensor,
    v_BHMd: Tensor,
    prefix: KeyValue | None = None,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention whose keys and values are preceded by a prefix that every query sees.

    Args:
        q_BHNd: Queries (B, H, N, d).
        k_BHMd: Keys (B, H, M, d).
        v_BHMd: Values (B, H, M, d).
        prefix: Keys and values (1 or B, H, P, d); one for the whole batch, or one per sample.
        attn_mask: As in `scaled_dot_product_attention`, over the M keys; the prefix is never masked.
        is_causal: Query n sees the prefix and the keys up to n; goes without a mask.
        dropout: Probability of dropping an attention weight.
        scale: Factor of the logits; 1/sqrt(d) when not given.

    Returns:
        (B, H, N, d).

    Raises:
        ValueError: If both a mask and `is_causal` are given.

    Example:
        >>> q = k = v = torch.ones(2, 3, 5, 4)
        >>> attend(q, k, v, (torch.ones(1, 3, 7, 4), torch.ones(1, 3, 7, 4))).shape
        torch.Size([2, 3, 5, 4])
    """
    if is_causal and attn_mask is not None:
        raise ValueError("attend takes a mask or is_causal, not both")
    if prefix is not None and prefix[0].shape[2]:
        batch, added = q_BHNd.shape[0], prefix[0].shape[2]
        if is_causal:
            attn_mask = torch.ones(q_BHNd.shape[2], k_BHMd.shape[2], dtype=torch.bool, device=q_BHNd.device).tril()
            is_causal = False
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*attn_mask.shape[:-1], k_BHMd.shape[2])
            attn_mask = F.pad(attn_mask, (added, 0), value=True if attn_mask.dtype == torch.bool else 0.0)
        k_BHMd = _join(prefix[0], k_BHMd, batch)
        v_BHMd = _join(prefix[1], v_BHMd, batch)
    return F.scaled_dot_product_attention(
        q_BHNd, k_BHMd, v_BHMd, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal, scale=scale
    )


def _join(prefix_bHPd: Tensor, tokens_BHMd: Tensor, batch: int) -> Tensor:
    prefix_BHPd = prefix_bHPd.to(tokens_BHMd.dtype).expand(batch, -1, -1, -1)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat([prefix_BHPd, tokens_BHMd], dim=2)
    # Token by token as the projection left them, so that whole rows are copied: twice as fast as `cat` on a CPU.
    (batch, heads, tokens, width), added = tokens_BHMd.shape, prefix_BHPd.shape[2]
    joined_BNHd = tokens_BHMd.new_empty(batch, added + tokens, heads, width)
    joined_BNHd[:, :added] = prefix_BHPd.transpose(1, 2)
    joined_BNHd[:, added:] = tokens_BHMd.transpose(1, 2)
    return joined_BNHd.transpose(1, 2)


class PrefixAttention(nn.Module):
    """timm's `Attention` over a prefix, as a module of its own beside the original, which stays as it is.

    Covers q/k norm, scale norm, gates, and biases or none.

    Args:
        attention: The original module; its parameters are used, not copied.
        entry: What the block does to a token before attention (its first norm), or identity.
        prefix: Called with this module and the batch size at every forward; gives keys and values or nothing.
        num_queries: Compute only this many tokens from the front; all when not given.
    """

    def __init__(
        self,
        attention: Attention,
        entry: nn.Module,
        prefix: Callable[[PrefixAttention, int], KeyValue | None],
        *,
        num_queries: int | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.entry = entry
        self.prefix = prefix
        self.num_queries = num_queries

    @property
    def scale(self) -> float:
        """Factor of the logits."""
        return self._timm.scale

    @property
    def _timm(self) -> Any:
        """The attention without timm's partial annotations."""
        return self.attention

    def project(self, x_BND: Tensor, num_queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (of the first `num_queries` tokens), keys and values, each (B, H, N, d), of tokens at its door."""
        attn = self._timm
        if num_queries is None:
            q_BHNd, k_BHNd, v_BHNd = self._heads(attn.qkv(x_BND), 3)
            return attn.q_norm(q_BHNd), attn.k_norm(k_BHNd), v_BHNd
        width, weight, bias = attn.attn_dim, attn.qkv.weight, attn.qkv.bias
        q_BnA = F.linear(x_BND[:, :num_queries], weight[:width], None if bias is None else bias[:width])
        (q_BHnd,) = self._heads(q_BnA, 1)
        return attn.q_norm(q_BHnd), *self._key_values(x_BND)

    def key_values(self, prompts_bPD: Tensor) -> KeyValue:
        """Keys and values (b, H, P, d) of prompts, as the published token insertion would compute them."""
        return self._key_values(self.entry(prompts_bPD))

    def _key_values(self, x_BND: Tensor) -> KeyValue:
        attn = self._timm
        width, weight, bias = attn.attn_dim, attn.qkv.weight, attn.qkv.bias
        kv_BN2A = F.linear(x_BND, weight[width:], None if bias is None else bias[width:])
        k_BHNd, v_BHNd = self._heads(kv_BN2A, 2)
        return attn.k_norm(k_BHNd), v_BHNd

    def _heads(self, x_BNA: Tensor, parts: int) -> tuple[Tensor, ...]:
        attn = self._timm
        batch, tokens = x_BNA.shape[:2]
        return x_BNA.reshape(batch, tokens, parts, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As timm's `Attention.forward`, over the prefix."""
        attn, batch = self._timm, x.shape[0]
        q_BHNd, k_BHMd, v_BHMd = self.project(x, self.num_queries)
        prefix = self.prefix(self, batch)
        dropout = attn.attn_drop.p if attn.training else 0.0
        out_BHNd = attend(
            q_BHNd, k_BHMd, v_BHMd, prefix, attn_mask=attn_mask, is_causal=is_causal, dropout=dropout, scale=attn.scale
        )
        out_BNA = attn.norm(out_BHNd.transpose(1, 2).reshape(batch, -1, attn.attn_dim))
        if getattr(attn, "gate", None) is not None:
            out_BNA = out_BNA * attn.gate(x[:, : self.num_queries]).sigmoid()
        return attn.proj_drop(attn.proj(out_BNA))


class LeadingTokensBlock(nn.Module):
    """A pre-norm timm `Block` that computes only the tokens which anything reads: the first ones.

    With class-token pooling all other queries, their output projection and their MLP in the last block are dead work.

    Args:
        block: The original block.
        attention: Its attention, set to the same number of queries.
    """

    def __init__(self, block: nn.Module, attention: PrefixAttention) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, n, D) with the n leading tokens."""
        block: Any = self.block
        x_BnD = x_BND[:, : self.attention.num_queries]
        x_BnD = x_BnD + block.drop_path1(block.ls1(self.attention(block.norm1(x_BND))))
        return x_BnD + block.drop_path2(block.ls2(block.mlp(block.norm2(x_BnD))))


ADAPTERS: dict[type[nn.Module], type[PrefixAttention]] = {Attention: PrefixAttention}
"""Attention class of timm -> its adapter."""


def adapter_for(attention: nn.Module) -> type[PrefixAttention]:
    """The adapter of an attention module.

    Raises:
        BackboneError: If there is none for its class.
    """
    found = ADAPTERS.get(type(attention))
    if found is None:
        known = ", ".join(sorted(cls.__name__ for cls in ADAPTERS))
        raise BackboneError(
            f"The attention class {type(attention).__name__} is not supported; supported is {known} "
            "(ViT, DeiT, AugReg, CLIP and DINOv2 models of timm)."
        )
    return found
