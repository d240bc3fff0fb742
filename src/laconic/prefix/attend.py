"""Attention over a prefix that asks no queries: the maths, without modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
            attn_mask = _widened(attn_mask, added, k_BHMd.shape[2])
        k_BHMd = join(prefix[0], k_BHMd, batch)
        v_BHMd = join(prefix[1], v_BHMd, batch)
    return F.scaled_dot_product_attention(
        q_BHNd, k_BHMd, v_BHMd, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal, scale=scale
    )


def attention_weights(
    q_BHNd: Tensor,
    k_BHMd: Tensor,
    prefix_keys: Tensor | None = None,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The weights that `attend` gives to the values, those of the prefix first.

    Args:
        q_BHNd: Queries (B, H, N, d).
        k_BHMd: Keys (B, H, M, d).
        prefix_keys: (1 or B, H, P, d).
        attn_mask: As in `attend`.
        scale: As in `attend`.

    Returns:
        (B, H, N, P + M); every row sums to 1.

    Example:
        >>> attention_weights(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 3, 4), torch.ones(1, 1, 1, 4))[0, 0, 0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    if prefix_keys is not None and prefix_keys.shape[2]:
        if attn_mask is not None:
            attn_mask = _widened(attn_mask, prefix_keys.shape[2], k_BHMd.shape[2])
        k_BHMd = join(prefix_keys, k_BHMd, q_BHNd.shape[0])
    logits_BHNM = q_BHNd @ k_BHMd.mT * (q_BHNd.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        logits_BHNM = logits_BHNM.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        logits_BHNM = logits_BHNM + attn_mask
    return logits_BHNM.softmax(-1)


def _widened(attn_mask: Tensor, added: int, keys: int) -> Tensor:
    """A mask over the keys as one over prefix and keys, which leaves the prefix alone."""
    attn_mask = attn_mask.expand(*attn_mask.shape[:-1], keys)
    return F.pad(attn_mask, (added, 0), value=True if attn_mask.dtype == torch.bool else 0.0)


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
