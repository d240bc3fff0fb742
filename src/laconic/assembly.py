"""Which parts stand in for which of a backbone's: prompts as prefix or as tokens, learned or constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from laconic.backbone import BackboneInfo, BlockSite
from laconic.prefix import KeyValue, LeadingTokensBlock, PrefixAttention, adapter_for
from laconic.prompts import Prompts
from laconic.tokens import TokenBlock

Prefix = Callable[[PrefixAttention, int], KeyValue | None]
"""Gives a block's attention the keys and values of its prompts, or none, for a batch of a given size."""


class LearnedPrefix:
    """Keys and values of a block's prompts, computed anew at every forward so that gradients reach the prompts."""

    def __init__(self, prompts: Prompts, block: int) -> None:
        self.prompts = prompts
        self.block = block

    def __call__(self, attention: PrefixAttention, batch: int) -> KeyValue | None:
        """One set for the batch, or one per sample; None for a block without prompts."""
        if not len(self.prompts[self.block]):
            return None
        if self.prompts.recorded is not None:
            shared = attention.key_values(self.prompts[self.block].unsqueeze(0))
            keys, values = self.prompts.record(self.block, batch, *shared)
            return keys, values
        return attention.key_values(self.prompts.take(self.block, batch))


class ConstantPrefix(nn.Module):
    """Keys and values that no longer change: buffers (1, H, P, d)."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)

    def forward(self, attention: PrefixAttention, batch: int) -> KeyValue:
        """The constants, whatever asks."""
        return cast("KeyValue", (self.keys, self.values))


def no_prefix(attention: PrefixAttention, batch: int) -> None:
    """The prefix of a block without prompts."""


def _attention(
    backbone: nn.Module, info: BackboneInfo, block: int, prefix: Prefix, num_queries: int | None = None
) -> PrefixAttention:
    site = info.blocks[block]
    attention: Any = backbone.get_submodule(site.attention)
    entry = nn.Identity() if site.entry is None else backbone.get_submodule(site.entry)
    return adapter_for(attention)(attention, entry, prefix, num_queries=num_queries)


def prefix_parts(backbone: nn.Module, info: BackboneInfo, prefix_of: Callable[[int], Prefix]) -> dict[str, nn.Module]:
    """Attention over a prefix in every block; the last block cut to the tokens that the pooling reads.

    Args:
        backbone: The timm model.
        info: Its description.
        prefix_of: Gives each block its prefix.

    Returns:
        Path in the backbone -> what stands there instead, for `graft`.
    """
    if info.leading_tokens is None:
        return {site.attention: _attention(backbone, info, block, prefix_of(block)) for block, site in _sites(info)}
    last = len(info.blocks) - 1
    parts = {site.attention: _attention(backbone, info, block, prefix_of(block)) for block, site in _sites(info)[:last]}
    return {**parts, info.blocks[last].path: _short_last_block(backbone, info, prefix_of(last), info.leading_tokens)}


def deep_token_parts(backbone: nn.Module, info: BackboneInfo, prompts: Prompts) -> dict[str, nn.Module]:
    """Every block is given its own prompts as tokens, and their places are cleared after it; returns as above."""
    return {
        site.path: TokenBlock(
            backbone.get_submodule(site.path), prompts, info.num_prefix_tokens, enter=block, leave=block
        )
        for block, site in _sites(info)
    }


def shallow_token_parts(
    backbone: nn.Module, info: BackboneInfo, prompts: Prompts, *, cut_last_block: bool
) -> dict[str, nn.Module]:
    """The first block's prompts enter before it and leave after the last block; returns as above.

    Args:
        backbone: The timm model.
        info: Its description.
        prompts: Of all blocks; the first has them.
        cut_last_block: Let the last block compute only what the pooling reads, where it reads leading tokens.
    """
    last = len(info.blocks) - 1
    blocks = {block: backbone.get_submodule(info.blocks[block].path) for block in (0, last)}
    leave: int | None = 0
    if cut_last_block and info.leading_tokens is not None:
        # Leading tokens stand before the prompts, so that nothing is left to strip.
        blocks[last], leave = _short_last_block(backbone, info, no_prefix, info.leading_tokens), None
    return {
        info.blocks[block].path: TokenBlock(
            module,
            prompts,
            info.num_prefix_tokens,
            enter=0 if block == 0 else None,
            leave=leave if block == last else None,
        )
        for block, module in blocks.items()
    }


def attention_at(backbone: nn.Module, info: BackboneInfo, block: int) -> PrefixAttention:
    """The adapter of a block's attention without a prefix, to compute with."""
    return _attention(backbone, info, block, no_prefix)


def constant_prefixes(backbone: nn.Module, info: BackboneInfo, prompts: Prompts) -> list[ConstantPrefix]:
    """The keys and values of every block's prompts as they are now."""
    found: list[ConstantPrefix] = []
    for block in range(len(info.blocks)):
        keys, values = attention_at(backbone, info, block).key_values(prompts[block].detach().unsqueeze(0))
        found.append(ConstantPrefix(_by_token(keys), _by_token(values)))
    return found


def _by_token(heads_1HPd: Tensor) -> Tensor:
    """The same numbers, laid out as `attend` copies them: token by token."""
    return heads_1HPd.transpose(1, 2).contiguous().transpose(1, 2)


def _sites(info: BackboneInfo) -> list[tuple[int, BlockSite]]:
    return list(enumerate(info.blocks))


def _short_last_block(backbone: nn.Module, info: BackboneInfo, prefix: Prefix, tokens: int) -> LeadingTokensBlock:
    last = len(info.blocks) - 1
    attention = _attention(backbone, info, last, prefix, tokens)
    return LeadingTokensBlock(backbone.get_submodule(info.blocks[last].path), attention)
