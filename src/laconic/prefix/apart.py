"""Attention over a prefix and over tokens as two calls of torch's kernel for CPUs: nothing is joined, nothing copied.

Each call gives its part of the output and the logarithm of what it was divided by; together they weigh the two parts.
A prefix that serves the whole batch is seen by all queries at once, so that its keys are read once and their gradient
comes summed. The backward pass gives each part the output and the divisor of both.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

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
    """What `laconic.prefix.attend` gives, on a CPU.

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
    """What queries see of the tokens (B, H, N, d), the logarithm of its divisor (B, H, N), and both of the prefix."""
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
