"""Attention of a few queries that never computes the keys and values of the tokens: the maths, without modules.

q·(W_k x) is (W_kᵀ q)·x, and the sum of weighted values W_v x is W_v of the weighted sum of x: for few queries, to apply
the projections to the queries and to that sum is a small part of applying them to every token.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor


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


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def can_be_apart(
    q_BHNd: Tensor,
    k_BHMd: Tensor,
    v_BHMd: Tensor,
    bias_bP: Tensor | None = None,
    attn_mask: Tensor | None = None,
) -> bool:
    """Whether attention over a prefix can be computed in two parts.

    Not in a graph that leaves torch or must be differentiated by it, nor where a bias or mask of the logits needs a
    gradient; and not for a single image in float32, where joining costs less (measured).
    """
    learns = torch.is_grad_enabled()
    return (
        q_BHNd.device.type == "cpu"
        and not (torch.compiler.is_compiling() and (learns or torch.compiler.is_exporting()))
        and q_BHNd.shape[-1] == v_BHMd.shape[-1]
        and q_BHNd.dtype == k_BHMd.dtype == v_BHMd.dtype
        and (learns or q_BHNd.dtype == torch.bfloat16 or q_BHNd.shape[0] > 1)
        # What `sdpa_kernel` chooses; a graph cannot ask.
        and (torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled())
        and not any(t is not None and learns and t.requires_grad for t in (bias_bP, attn_mask))
        and (attn_mask is None or attn_mask.is_floating_point())
    )


def attend_apart(
    q_BHNd: Tensor,
    k_BHMd: Tensor,
    v_BHMd: Tensor,
    keys_bHPd: Tensor,
    values_bHPd: Tensor,
    bias_bP: Tensor | None = None,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention over a prefix as `attend` gives it, computed in two parts on a CPU.

    Args:
        q_BHNd: Queries (B, H, N, d).
        k_BHMd: Keys of the tokens (B, H, M, d).
        v_BHMd: Values of the tokens.
        keys_bHPd: Keys of the prefix (1 or B, H, P, d).
        values_bHPd: Values of the prefix.
        bias_bP: What is added to the logits of the prefix, (1 or B, P).
        attn_mask: What is added to the logits of the tokens, to be broadcast to (B, H, N, M); every query must see some
            token.
        scale: Factor of the logits; 1/sqrt(d) when not given.

    Example:
        >>> q = k = v = torch.ones(2, 3, 5, 4)
        >>> attend_apart(q, k, v, torch.ones(1, 3, 7, 4), torch.ones(1, 3, 7, 4)).shape
        torch.Size([2, 3, 5, 4])
    """
    kind = k_BHMd.dtype
    keys_bHPd, values_bHPd = keys_bHPd.to(kind), values_bHPd.to(kind)
    bias = None if bias_bP is None else bias_bP.to(kind)[:, None, None]
    if bias is not None and bias.shape[0] > keys_bHPd.shape[0]:
        keys_bHPd, values_bHPd = (part.expand(bias.shape[0], -1, -1, -1) for part in (keys_bHPd, values_bHPd))
    factor = q_BHNd.shape[-1] ** -0.5 if scale is None else scale
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.ndim)].to(kind)
    inputs = (q_BHNd, k_BHMd, v_BHMd, keys_bHPd, values_bHPd, bias, attn_mask, factor)
    if torch.is_grad_enabled():
        return cast("Tensor", _Apart.apply(*inputs))
    out, divisor, seen, seen_divisor = _parts(*inputs)
    return out.lerp_(seen, (seen_divisor - divisor).sigmoid_().unsqueeze(-1).to(out.dtype))


def _parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention to the tokens (B, H, N, d), the logarithm of its divisor (B, H, N), and both of the prefix."""
    out, divisor = _forward(q, k, v, attn_mask=mask, scale=scale)
    if keys.shape[0] > 1:
        return out, divisor, *_forward(q, keys, values, attn_mask=bias, scale=scale)
    seen, seen_divisor = _forward(_as_one(q), keys, values, attn_mask=bias, scale=scale)
    return out, divisor, _as_many(seen, q.shape[0]), _as_many(seen_divisor.unsqueeze(-1), q.shape[0]).squeeze(-1)


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Takes what `_parts` does."""
        out, divisor, seen, seen_divisor = _parts(*inputs)
        divisor = torch.logaddexp(divisor, seen_divisor)
        out = out.lerp_(seen, (seen_divisor - divisor).exp_().unsqueeze(-1).to(out.dtype))
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors, out, divisor)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, keys, values, bias, mask, out, divisor = ctx.saved_tensors
        (grad,) = gradients
        common: dict[str, Any] = {"dropout_p": 0.0, "is_causal": False, "scale": ctx.scale}
        d_q = d_k = d_v = None
        if any(ctx.needs_input_grad[:3]):
            d_q, d_k, d_v = _backward(grad, q, k, v, out, divisor, attn_mask=mask, **common)
        rows = (grad, q, out, divisor.unsqueeze(-1))
        grad, asking, out, divisor = map(_as_one, rows) if len(keys) == 1 else rows
        d_seen, d_keys, d_values = _backward(
            grad, asking, keys, values, out, divisor.squeeze(-1), attn_mask=bias, **common
        )
        if d_q is not None:
            d_q = d_q.add_(_as_many(d_seen, len(q)) if len(keys) == 1 else d_seen)
        return d_q, d_k, d_v, d_keys, d_values, None, None, None


def _as_one(x_BHNd: Tensor) -> Tensor:
    """The rows of a batch as those of one sample, (1, H, B·N, d); token by token in memory, this moves nothing."""
    return x_BHNd.transpose(1, 2).flatten(0, 1).transpose(0, 1).unsqueeze(0)


def _as_many(x_1HRd: Tensor, batch: int) -> Tensor:
    """The other way."""
    return x_1HRd.squeeze(0).transpose(0, 1).unflatten(0, (batch, -1)).transpose(1, 2)


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
