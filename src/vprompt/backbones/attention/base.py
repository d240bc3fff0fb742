"""The base of all attention wrappers: a module beside timm's attention that runs it over a prefix."""

# pyright: reportPrivateUsage=false
# Nothing public tells whether a module has hooks.

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.backbones.attention.functional import KeyValue, attend, attention_weights
from vprompt.backbones.frozen_linear import LINEAR
from vprompt.utils.errors import BackboneError

Observer = Callable[[Callable[[int], Tensor]], None]
"""Called at every forward with a function: number of leading queries -> their attention weights (B, H, n, P + M)."""


Prefix = Callable[["PrefixAttention", int], KeyValue | None]
"""Gives an attention wrapper the keys and values of its prompts, or none, for a number of images."""


def no_prefix(attention: PrefixAttention, batch: int) -> None:
    """The prefix of a block without prompts."""


@dataclass(frozen=True, kw_only=True)
class BlockForm:
    """The form of a class of blocks around its attention.

    Args:
        entry: The child that a token passes on its way to attention (its first norm); None where it passes nothing.
        cuttable: Whether `vprompt.backbones.blocks.LeadingTokensBlock` computes its first tokens as it does.
    """

    entry: str | None
    cuttable: bool = False


PRE_NORM = BlockForm(entry="norm1", cuttable=True)
"""timm's usual block: `x + attn(norm1(x))`, then `x + mlp(norm2(x))`, with layer scale and dropped paths."""

PRE_NORM_WHOLE = BlockForm(entry="norm1")
"""A norm before attention; only the whole block computes what comes after."""

POST_NORM = BlockForm(entry=None)
"""The norm stands behind attention."""


class PrefixAttention(nn.Module):
    """Attention wrapper: timm's attention over a prefix, beside the original, which stays as it is.

    One subclass for an attention class, or for a few that are called alike; `vprompt.backbones.attention.registry`
    finds it. A subclass names these classes and the blocks that they stand in, and says how they project tokens, what
    they know of positions, and how they are called: `forward` is called as the original is.

    Args:
        attention: The original module; its parameters are used, not copied.
        entry: What the block does to a token before attention (its first norm), or identity.
        prefix: Called with this module and the number of images at every forward; gives keys and values or none.
        num_queries: Compute only this many tokens from the front; all when not given.
        inserted: Index and number of tokens in the sequence that stand nowhere in the image: they are not rotated and
            have no relative position.
    """

    name: ClassVar[str]
    """Unique among the attention wrappers."""
    attends: ClassVar[tuple[type[nn.Module], ...]]
    """The attention classes that it stands for; subclasses of them do not count."""
    blocks: ClassVar[Mapping[type[nn.Module], BlockForm]]
    """The classes of blocks that their attention, `block.attn` or the block itself, may stand in."""
    positional: ClassVar[bool] = False
    """Whether the attention class knows positions, so that inserted tokens must be told to it."""
    finite_masks: ClassVar[bool] = False
    """Whether its masks are biases of its own, which hide no token altogether."""

    def __init__(
        self,
        attention: nn.Module,
        entry: nn.Module,
        prefix: Prefix = no_prefix,
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

    def queries(self, x_BND: Tensor) -> Tensor:
        """Queries (B, H, N, d) of tokens at its door, as those of `project`."""
        return self._query(self._linear(x_BND, 0)[0])

    def project(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first `num_queries` tokens, keys and values (B, H, N, d) of tokens at its door.

        As tokens that stand nowhere have them: normalised, not rotated.
        """
        if self.num_queries is not None:
            return self.queries(x_BND[:, : self.num_queries]), *self._key_values(x_BND)[:2]
        q_BNA, k_BNA, v_BNA = self._linear(x_BND, 0, 1, 2)
        return self._query(q_BNA), self._key(k_BNA), self._value(v_BNA)

    def value_map(self) -> tuple[Tensor, Tensor]:
        """Weight (A, D) and bias (A,) of the projection of normalised tokens to values, before heads are told apart."""
        like = self._projection()[0].weight
        (bias_1A,) = self._linear(like.new_zeros(1, self.width), 2)
        (rows_DA,) = self._linear(torch.eye(self.width, dtype=like.dtype, device=like.device), 2)
        return (rows_DA - bias_1A).T, bias_1A[0]

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
        keys, values, _ = self._key_values(self._projection()[0].weight.new_zeros(1, 0, self.width))
        if keys.shape != values.shape:
            raise BackboneError(
                f"Key-value prompts need keys and values of one shape, which {type(self.attention).__name__} does not "
                "have; use prompts that pass its projections."
            )
        return keys.shape[1], keys.shape[3]

    @property
    def width(self) -> int:
        """D, the width of the tokens that come in."""
        projection = self._projection()[0]
        return projection.in_features if hasattr(projection, "in_features") else projection.weight.shape[1]

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
            projected_BNA = module(x_BND)[..., first:]
            thirds = (projected_BNA + bias if apart else projected_BNA).chunk(3, dim=-1)
            return tuple(thirds[part] for part in parts)
        width = (module.out_features - first) // 3
        rows = slice(first + parts[0] * width, first + (parts[-1] + 1) * width)
        bias = None if bias is None else bias[rows]
        whole = type(module) is nn.Linear
        part = F.linear(x_BND, module.weight[rows], bias) if whole else module.part(x_BND, rows, bias)
        return part.split(width, dim=-1)

    def _projection(self) -> tuple[Any, int]:
        """The projection to queries, keys and values, or to keys alone; and the first of its outputs that is theirs."""
        attn = self._timm
        return attn.k_proj if getattr(attn, "qkv", self) is None else attn.qkv, 0

    def _query(self, q_BNA: Tensor) -> Tensor:
        return _normed(self._timm, "q_norm", _heads(q_BNA, self._timm.num_heads))

    def _key(self, k_BNA: Tensor) -> Tensor:
        return _normed(self._timm, "k_norm", _heads(k_BNA, self._timm.num_heads))

    def _value(self, v_BNA: Tensor) -> Tensor:
        return _heads(v_BNA, self._timm.num_heads)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: KeyValue | None, mask: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """Attention of queries to prefix and tokens, (B, H, N, d)."""

        def rows(count: int | None) -> Tensor | None:
            return None if mask is None else mask[..., :count, :]

        if self.observer is not None:
            self.observer(lambda queries: self._weights(q[:, :, :queries], k, prefix, rows(queries)))
        return self._attend(q, k, v, prefix, rows(self.num_queries), is_causal)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, prefix: KeyValue | None, mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        attn = self._timm
        return attend(
            q,
            k,
            v,
            prefix,
            attn_mask=mask,
            is_causal=is_causal,
            dropout=attn.attn_drop.p if attn.training else 0.0,
            scale=self.scale,
            finite=self.finite_masks,
        )

    def _weights(self, q: Tensor, k: Tensor, prefix: KeyValue | None, mask: Tensor | None) -> Tensor:
        """Attention weights of the queries over prefix and tokens, (B, H, N, P + M)."""
        return attention_weights(q, k, prefix, attn_mask=mask, scale=self.scale)

    def project_out(self, out_BHNd: Tensor, x_BND: Tensor) -> Tensor:
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
    """Whether a projection is no more than its weight and bias: not wrapped (LoRA), and not watched."""
    return type(module) in LINEAR and not module._forward_hooks and not module._forward_pre_hooks


def _heads(x_BNA: Tensor, heads: int) -> Tensor:
    return x_BNA.unflatten(-1, (heads, -1)).transpose(1, 2)


def _normed(attn: Any, name: str, x: Tensor) -> Tensor:
    """A tensor behind the attention's norm of that name, if it has one."""
    norm = getattr(attn, name, None)
    return x if norm is None else norm(x)
