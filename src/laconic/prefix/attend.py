"""Attention over a prefix that asks no queries: the maths, without modules."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from laconic.prefix.apart import attend_apart, can_be_apart


class KeyValue(NamedTuple):
    """A prefix.

    Args:
        keys: (1 or B, H, P, d).
        values: (1 or B, H, P, d).
        bias: What is added to the logits of each key, (1 or B, P); the logarithm of a number lets a key count as often.
            None adds nothing.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None


def attend(
    q_BHNd: Tensor,
    k_BHMd: Tensor,
    v_BHMd: Tensor,
    prefix: KeyValue | tuple[Tensor, Tensor] | None = None,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    dropout: float = 0.0,
    scale: float | None = None,
    finite: bool = False,
) -> Tensor:
    """Attention whose keys and values are preceded by a prefix that every query sees.

    Args:
        q_BHNd: Queries (B, H, N, d).
        k_BHMd: Keys (B, H, M, d).
        v_BHMd: Values (B, H, M, d).
        prefix: Keys, values and perhaps a bias of their logits; one for the whole batch, or one per sample.
        attn_mask: As in `scaled_dot_product_attention`, over the M keys; the prefix is never masked.
        is_causal: Query n sees the prefix and the keys up to n; goes without a mask.
        dropout: Probability of dropping an attention weight.
        scale: Factor of the logits; 1/sqrt(d) when not given.
        finite: Whether a mask is known to hide no query's keys altogether, which may save time.

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
        prefix = prefix if isinstance(prefix, KeyValue) else KeyValue(*prefix)
        batch = q_BHNd.shape[0]
        free = not is_causal and not dropout and (attn_mask is None or finite)
        if free and can_be_apart(q_BHNd, k_BHMd, v_BHMd, prefix.bias, attn_mask):
            return attend_apart(q_BHNd, k_BHMd, v_BHMd, *prefix, attn_mask=attn_mask, scale=scale)
        if is_causal:
            attn_mask = torch.ones(q_BHNd.shape[2], k_BHMd.shape[2], dtype=torch.bool, device=q_BHNd.device).tril()
            is_causal = False
        attn_mask = _widened(attn_mask, prefix, k_BHMd)
        k_BHMd = join(prefix.keys, k_BHMd, batch)
        v_BHMd = join(prefix.values, v_BHMd, batch)
    return F.scaled_dot_product_attention(
        q_BHNd, k_BHMd, v_BHMd, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal, scale=scale
    )


def attention_weights(
    q_BHNd: Tensor,
    k_BHMd: Tensor,
    prefix: KeyValue | None = None,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The weights that `attend` gives to the values, those of the prefix first.

    Args:
        q_BHNd: Queries (B, H, N, d).
        k_BHMd: Keys (B, H, M, d).
        prefix: As in `attend`.
        attn_mask: As in `attend`.
        scale: As in `attend`.

    Returns:
        (B, H, N, P + M); every row sums to 1.

    Example:
        >>> one = torch.ones(1, 1, 1, 4)
        >>> attention_weights(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 3, 4), KeyValue(one, one))[0, 0, 0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    if prefix is not None and prefix.keys.shape[2]:
        attn_mask = _widened(attn_mask, prefix, k_BHMd)
        k_BHMd = join(prefix.keys, k_BHMd, q_BHNd.shape[0])
    logits_BHNM = q_BHNd @ k_BHMd.mT * (q_BHNd.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits_BHNM = logits_BHNM.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        logits_BHNM = logits_BHNM + attn_mask
    return logits_BHNM.softmax(-1)


def _widened(attn_mask: Tensor | None, prefix: KeyValue, k_BHMd: Tensor) -> Tensor | None:
    """A mask over the keys as one over prefix and keys, which says of the prefix no more than its bias."""
    added, keys = prefix.keys.shape[2], k_BHMd.shape[2]
    if prefix.bias is None:
        if attn_mask is None:
            return None
        attn_mask = attn_mask.expand(*attn_mask.shape[:-1], keys)
        return F.pad(attn_mask, (added, 0), value=True if attn_mask.dtype == torch.bool else 0.0)
    bias_b11P = prefix.bias.to(k_BHMd.dtype)[:, None, None]
    if attn_mask is None:
        return F.pad(bias_b11P, (0, keys))
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=k_BHMd.dtype).masked_fill(~attn_mask, -torch.inf)
    shape = torch.broadcast_shapes(attn_mask.shape[:-1], bias_b11P.shape[:-1])
    return torch.cat([bias_b11P.expand(*shape, added), attn_mask.expand(*shape, keys)], dim=-1)


def join(prefix_bHPd: Tensor, tokens_BHMd: Tensor, batch: int) -> Tensor:
    """Keys or values (B, H, P + M, d) of a prefix (1 or B, H, P, d) and of tokens (B, H, M, d), in their type."""
    prefix_BHPd = prefix_bHPd.to(tokens_BHMd.dtype).expand(batch, -1, -1, -1)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat([prefix_BHPd, tokens_BHMd], dim=2)
    # Token by token as the projection left them, so that whole rows are copied: twice as fast as `cat` on a CPU.
    (batch, heads, tokens, width), added = tokens_BHMd.shape, prefix_BHPd.shape[2]
    joined_BNHd = tokens_BHMd.new_empty(batch, added + tokens, heads, width)
    joined_BNHd[:, :added] = prefix_BHPd.transpose(1, 2)
    joined_BNHd[:, added:] = tokens_BHMd.transpose(1, 2)
    return joined_BNHd.transpose(1, 2)
