"""Attention of a few queries that never computes the keys and values of the tokens: the maths, without modules.

q·(W_k x) is (W_kᵀ q)·x, and the sum of weighted values W_v x is W_v of the weighted sum of x: for few queries, to apply
the projections to the queries and to that sum is a small part of applying them to every token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from laconic.prefix.attend import KeyValue


def attend_absorbed(
    q_BHnd: Tensor,
    x_BND: Tensor,
    keys: tuple[Tensor, Tensor | None],
    values: tuple[Tensor, Tensor | None],
    prefix: KeyValue | None = None,
    *,
    scale: float,
) -> Tensor:
    """Attention over a prefix and over tokens that are not projected.

    Args:
        q_BHnd: Queries (B, H, n, d).
        x_BND: Tokens (B, N, D).
        keys: Weight (H·d, D) and bias (H·d,) that would make the keys of the tokens.
        values: Weight and bias that would make their values.
        prefix: As in `attend`.
        scale: Factor of the logits.

    Returns:
        (B, H, n, d), what `attend` gives for the projected tokens.

    Example:
        >>> q, x, weight = torch.ones(2, 3, 1, 4), torch.ones(2, 5, 8), torch.ones(12, 8)
        >>> attend_absorbed(q, x, (weight, None), (weight, None), scale=0.5).shape
        torch.Size([2, 3, 1, 4])
    """
    _, heads, queries, width = q_BHnd.shape
    (key_weight, key_bias), (value_weight, value_bias) = keys, values
    q_BHnd = q_BHnd * scale
    asking_BHnD = _by_head(q_BHnd, key_weight.view(heads, width, -1))
    logits_BHnN = (asking_BHnD.flatten(1, 2) @ x_BND.mT).unflatten(1, (heads, queries))
    if key_bias is not None:
        logits_BHnN = logits_BHnN + q_BHnd @ key_bias.view(heads, width, 1)
    added = 0 if prefix is None else prefix.keys.shape[2]
    if prefix is not None and added:
        before_BHnP = _by_head(q_BHnd, prefix.keys.to(q_BHnd.dtype).mT)
        if prefix.bias is not None:
            before_BHnP = before_BHnP + prefix.bias.to(q_BHnd.dtype)[:, None, None]
        logits_BHnN = torch.cat([before_BHnP, logits_BHnN], dim=-1)
    weights_BHnP, weights_BHnN = logits_BHnN.softmax(-1).split([added, x_BND.shape[1]], dim=-1)
    seen_BHnD = (weights_BHnN.flatten(1, 2) @ x_BND).unflatten(1, (heads, queries))
    out_BHnd = _by_head(seen_BHnD, value_weight.view(heads, width, -1).mT)
    if value_bias is not None:
        out_BHnd = out_BHnd + weights_BHnN.sum(-1, keepdim=True) * value_bias.view(heads, 1, width)
    if prefix is not None and added:
        out_BHnd = out_BHnd + _by_head(weights_BHnP, prefix.values.to(q_BHnd.dtype))
    return out_BHnd


def _by_head(left_BHna: Tensor, right_bHac: Tensor) -> Tensor:
    """The product (B, H, n, c) with a matrix for each head, without a copy of it for each of the batch."""
    if right_bHac.ndim == 4 and right_bHac.shape[0] > 1:
        return left_BHna @ right_bHac
    right_Hac = right_bHac[0] if right_bHac.ndim == 4 else right_bHac
    batch, _, queries, _ = left_BHna.shape
    return (left_BHna.transpose(0, 1).flatten(1, 2) @ right_Hac).unflatten(1, (batch, queries)).transpose(0, 1)
