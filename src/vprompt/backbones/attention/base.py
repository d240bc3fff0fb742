"""What all adapters have in common: one module beside timm's attention that runs it over a prefix."""

# pyright: reportPrivateUsage=false
# Nothing public tells whether a module has hooks.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.backbones.attention.functional import KeyValue, attend, attention_weights
from vprompt.utils.errors import BackboneError

Observer = Callable[[Callable[[int], Tensor]], None]
"""Is given, at every forward, a function: number of leading queries -> their attention weights (B, H, n, P + M)."""


class PrefixAttention(nn.Module):
    """timm's attention over a prefix, as a module of its own beside the original, which stays as it is.

    One subclass for each attention class. A subclass says how its class projects tokens, what it knows of positions,
    and how it is called; `forward` is called as the original is.

    Args:
        attention: The original module; its parameters are used, not copied.
        entry: What the block does to a token before attention (its first norm), or identity.
        prefix: Called with this module and the number of images at every forward; gives keys and values or nothing.
        num_queries: Compute only this many tokens from the front; all when not given.
        inserted: Index and number of tokens in the sequence that stand nowhere in the image: they are not rotated and
            have no relative position.
    """

    positional: ClassVar[bool] = False
    """Whether the attention class knows positions, so that inserted tokens must be told to it."""
    finite_masks: ClassVar[bool] = False
    """Whether its masks are biases of its own, which hide no token altogether."""

    def __init__(
        self,
        attention: nn.Module,
        entry: nn.Module,
        prefix: Callable[[PrefixAttention, int], KeyValue | None],
        *,
        num_queries: int | None = None,
        inserted: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.attention = attention
        self.entry = entry
        self.prefix = prefix
        self.num_queries = num_queries
        self.inserted = inserted
        self.observer: Observer | None = None

    def key_values(self, prompts_bPD: Tensor) -> KeyValue:
        """Keys and values (b, H, P, d) of prompts, as the published token insertion would compute them."""
        return self._key_values(self.entry(prompts_bPD))

    def project(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first `num_queries` tokens, keys and values (B, H, N, d) of tokens at its door.

        As tokens that stand nowhere have them: normalised, not rotated.
        """
        if self.num_queries is not None:
            return self._query(self._linear(x_BND[:, : self.num_queries], 0)[0]), *self._key_values(x_BND)[:2]
        q_BNA, k_BNA, v_BNA = self._linear(x_BND, 0, 1, 2)
        return self._query(q_BNA), self._key(k_BNA), self._value(v_BNA)

    @property
    def _timm(self) -> Any:
        """The attention without timm's partial annotations."""
        return self.attention

    @property
    def head_shape(self) -> tuple[int, int]:
        """Number and width of the heads of keys and values.

        Raises:
            BackboneError: If keys and values differ in it.
        """
        attn = self._timm
        projection = attn.k_proj if getattr(attn, "qkv", self) is None else self._projection()[0]
        keys, values, _ = self._key_values(projection.weight.new_zeros(1, 0, projection.weight.shape[1]))
        if keys.shape != values.shape:
            raise BackboneError(
                f"Key-value prompts need keys and values of one shape, which {type(self.attention).__name__} does not "
                "have; use prompts that pass its projections."
            )
        return keys.shape[1], keys.shape[3]

    @property
    def scale(self) -> float:
        """Factor of the logits."""
        return self._timm.scale

    def _key_values(self, x_BND: Tensor) -> KeyValue:
        k_BNA, v_BNA = self._linear(x_BND, 1, 2)
        return KeyValue(self._key(k_BNA), self._value(v_BNA))

    def _linear(self, x_BND: Tensor, *parts: int) -> tuple[Tensor, ...]:
        """Projections of tokens, before heads are told apart: neighbours among queries (0), keys (1), values (2)."""
        attn = self._timm
        if getattr(attn, "qkv", self) is None:
            return tuple([attn.q_proj, attn.k_proj, attn.v_proj][part](x_BND) for part in parts)
        module, first = self._projection()
        # timm adds such a bias to what the projection alone gives.
        apart = getattr(attn, "q_bias", None) is not None
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]) if apart else module.bias
        if not sliceable(module) or (len(parts) == 3 and not apart):
            found_BNA = module(x_BND)[..., first:]
            found = (found_BNA + bias if apart else found_BNA).chunk(3, dim=-1)
            return tuple(found[part] for part in parts)
        width = (module.weight.shape[0] - first) // 3
        rows = slice(first + parts[0] * width, first + (parts[-1] + 1) * width)
        return F.linear(x_BND, module.weight[rows], None if bias is None else bias[rows]).split(width, dim=-1)

    def _projection(self) -> tuple[Any, int]:
        """The one projection to queries, keys and values, and the first of its outputs that is theirs."""
        return self._timm.qkv, 0

    def _query(self, q_BNA: Tensor) -> Tensor:
        return _normed(self._timm, "q_norm", _heads(q_BNA, self._timm.num_heads))

    def _key(self, k_BNA: Tensor) -> Tensor:
        return _normed(self._timm, "k_norm", _heads(k_BNA, self._timm.num_heads))

    def _value(self, v_BNA: Tensor) -> Tensor:
        return _heads(v_BNA, self._timm.num_heads)

    def _mix(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: KeyValue | None, mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """Attention of queries to prefix and tokens, (B, H, N, d)."""
        attn = self._timm
        dropout = attn.attn_drop.p if attn.training else 0.0
        if mask is not None:
            mask = mask[..., : self.num_queries, :]
        if self.observer is not None:
            self.observer(lambda queries: self._weights(q[:, :, :queries], k, prefix, mask))
        return attend(
            q,
            k,
            v,
            prefix,
            attn_mask=mask,
            is_causal=is_causal,
            dropout=dropout,
            scale=self.scale,
            finite=self.finite_masks,
        )

    def _weights(self, q: Tensor, k: Tensor, prefix: KeyValue | None, mask: Tensor | None) -> Tensor:
        """What the queries pay to prefix and tokens, (B, H, N, P + M)."""
        mask = mask if mask is None else mask[..., : q.shape[2], :]
        return attention_weights(q, k, prefix, attn_mask=mask, scale=self.scale)

    def _leave(self, out_BHNd: Tensor, x_BND: Tensor) -> Tensor:
        """From the heads' outputs to the module's, (B, N, D)."""
        attn = self._timm
        out_BNA = _normed(attn, "norm", out_BHNd.transpose(1, 2).flatten(2))
        if getattr(attn, "gate", None) is not None:
            out_BNA = out_BNA * attn.gate(x_BND[:, : self.num_queries]).sigmoid()
        return attn.proj_drop(attn.proj(out_BNA))

    def _placed(self, bias_HNN: Tensor) -> Tensor:
        """A bias between positions (..., N, N), with none for the inserted tokens."""
        index, count = self.inserted
        for dim in (-2, -1) if count else ():
            before, after = bias_HNN.split((index, bias_HNN.shape[dim] - index), dim=dim)
            shape = list(bias_HNN.shape)
            shape[dim] = count
            bias_HNN = torch.cat([before, bias_HNN.new_zeros(shape), after], dim=dim)
        return bias_HNN


def sliceable(module: Any) -> bool:
    """Whether a projection is no more than its weight and bias: not wrapped (LoRA, quantisation), and not watched."""
    return type(module) is nn.Linear and not module._forward_hooks and not module._forward_pre_hooks


def _heads(x_BNA: Tensor, heads: int) -> Tensor:
    return x_BNA.unflatten(-1, (heads, -1)).transpose(1, 2)


def _normed(attn: Any, name: str, x: Tensor) -> Tensor:
    """What the attention's norm of that name makes of a tensor, if it has one."""
    norm = getattr(attn, name, None)
    return x if norm is None else norm(x)
