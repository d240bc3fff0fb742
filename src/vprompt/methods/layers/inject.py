"""Parts of a backbone with prompts in them: as a prefix or as tokens, learned or constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.backbones.attention.base import Prefix, PrefixAttention, no_prefix
from vprompt.backbones.attention.functional import KeyValue
from vprompt.backbones.attention.registry import wrapper_for
from vprompt.backbones.blocks import LeadingTokensBlock, WindowBlock
from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo
from vprompt.methods.layers.prompts import KVPrompts, Prompts
from vprompt.methods.layers.tokens import TokenBlock, TokenStages

Around = Callable[[int, PrefixAttention], nn.Module]
"""Makes the module in place of a block's attention: it calls that attention, and has its `num_queries`."""


class KVPrefix:
    """The key-value prompts of a block as they are."""

    def __init__(self, kv_prompts: KVPrompts, block: int) -> None:
        self.kv_prompts = kv_prompts
        self.block = block

    def __call__(self, attention: PrefixAttention, batch: int) -> KeyValue | None:
        """One set for the batch; None where there are none."""
        if not len(self.kv_prompts):
            return None
        # Finding the number of heads costs a little at every forward; it is asked where all of them share.
        heads = attention.head_shape[0] if self.kv_prompts.share == "heads" else 0
        pair = self.kv_prompts.take(self.block, heads)
        return None if pair is None else KeyValue(*pair)


class LearnedPrefix(KVPrefix):
    """Keys and values of all of a block's prompts, computed anew at every forward so that gradients reach them.

    Key-value prompts stand behind the others.
    """

    def __init__(self, prompts: Prompts, kv_prompts: KVPrompts, block: int) -> None:
        super().__init__(kv_prompts, block)
        self.prompts = prompts

    def __call__(self, attention: PrefixAttention, batch: int) -> KeyValue | None:
        """One set for the batch, or one per sample; None for a block without prompts."""
        projected, ready = self._projected(attention, batch), super().__call__(attention, batch)
        if projected is None or ready is None:
            return ready if projected is None else projected
        keys, values = (
            torch.cat([first, other.to(first.dtype).expand(first.shape[0], -1, -1, -1)], dim=2)
            for first, other in zip(projected[:2], ready[:2], strict=True)
        )
        bias = None if projected.bias is None else F.pad(projected.bias, (0, ready.keys.shape[2]))
        return KeyValue(keys, values, bias)

    def _projected(self, attention: PrefixAttention, batch: int) -> KeyValue | None:
        if not self.prompts.counts[self.block]:
            return None
        bias = self.prompts.bias(self.block)
        if self.prompts.recorded is not None:
            keys, values, _ = attention.key_values(self.prompts.dense(self.block).unsqueeze(0))
            if not self.prompts.records_bias:
                keys, values = self.prompts.record(self.block, batch, keys, values)
                return KeyValue(keys, values, bias)
            bias = keys.new_zeros(1, keys.shape[2]) if bias is None else bias.to(keys.dtype)
            return KeyValue(*self.prompts.record(self.block, batch, keys, values, bias))
        return attention.key_values(self.prompts.take(self.block, batch))._replace(bias=bias)


class ConstantPrefix(nn.Module):
    """Keys and values that no longer change, and the bias of their logits if any: buffers (1, H, P, d) and (1, P)."""

    def __init__(self, keys: Tensor, values: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)
        self.register_buffer("bias", bias)

    def __len__(self) -> int:
        """P."""
        return cast("Tensor", self.keys).shape[2]

    def constant(self) -> KeyValue | None:
        """Keys, values and bias; None where there are no prompts."""
        return KeyValue(*cast("KeyValue", (self.keys, self.values, self.bias))) if len(self) else None

    def forward(self, attention: PrefixAttention, batch: int) -> KeyValue | None:
        """The constants, for any attention and batch."""
        return self.constant()


def prefix_parts(
    backbone: nn.Module,
    info: BackboneInfo,
    prefix_of: Callable[[int], Prefix],
    *,
    around: Around | None = None,
    whole: bool = False,
) -> dict[str, nn.Module]:
    """Attention over a prefix in every block; the last block cut to the tokens that the pooling reads.

    Args:
        backbone: The timm model.
        info: Its description.
        prefix_of: Gives each block its prefix.
        around: Puts something around the attention of each block.
        whole: Let the last block compute all tokens.

    Returns:
        Path in the backbone -> the module in its place, for `graft`.
    """
    last = len(info.blocks) - 1
    return {
        site.path: _block(
            backbone,
            info,
            block,
            prefix_of(block),
            num_queries=info.leading_tokens if block == last and not whole else None,
            around=around,
        )
        for block, site in enumerate(info.blocks)
    }


def deep_token_parts(
    backbone: nn.Module, info: BackboneInfo, prompts: Prompts, kv_prompts: KVPrompts, *, observable: bool = False
) -> dict[str, nn.Module]:
    """Every block is given its own prompts as tokens, and their places are cleared after it; returns as above.

    Key-value prompts are a prefix in this execution, too: it is what they are.

    Args:
        backbone: The timm model.
        info: Its description.
        prompts: Of all blocks.
        kv_prompts: Of all blocks, or none.
        observable: Run our attention in every block, which can be observed, also where timm's own would do.
    """
    if info.stages is not None:
        return _stages_part(backbone, info, info.stages, prompts, kv_prompts)
    return {
        site.path: TokenBlock(
            _published_block(backbone, info, block, prompts.num_tokens[block], kv_prompts, observable=observable),
            prompts,
            info.num_prefix_tokens,
            enter=block,
            leave=block,
        )
        for block, site in enumerate(info.blocks)
    }


def shallow_token_parts(
    backbone: nn.Module, info: BackboneInfo, prompts: Prompts, *, published: bool, observable: bool = False
) -> dict[str, nn.Module]:
    """The first block's prompts enter before it and leave after the last block; returns as above.

    Args:
        backbone: The timm model.
        info: Its description.
        prompts: Of all blocks; the first has them.
        published: Run timm's own attention where it can be, and the last block whole; else let the last block compute
            only what the pooling reads, where it reads leading tokens.
        observable: As for `deep_token_parts`.
    """
    if info.stages is not None:
        return _stages_part(backbone, info, info.stages, prompts)
    last, count = len(info.blocks) - 1, prompts.counts[0]
    parts: dict[str, nn.Module] = {}
    for block, site in enumerate(info.blocks):
        cut = info.leading_tokens if block == last and not published else None
        if published:
            module = _published_block(backbone, info, block, count, observable=observable)
        else:
            inserted = (info.num_prefix_tokens, count)
            module = _block(backbone, info, block, no_prefix, num_queries=cut, inserted=inserted)
        # Leading tokens stand before the prompts, so that nothing is left to strip of a block that is cut.
        leave = 0 if block == last and cut is None else None
        if block == 0 or leave is not None:
            enter = 0 if block == 0 else None
            module = TokenBlock(module, prompts, info.num_prefix_tokens, enter=enter, leave=leave)
        parts[site.path] = module
    return parts


def attention_at(
    backbone: nn.Module,
    info: BackboneInfo,
    block: int,
    prefix: Prefix = no_prefix,
    *,
    num_queries: int | None = None,
    inserted: tuple[int, int] = (0, 0),
) -> PrefixAttention:
    """The wrapper of a block's attention; without a prefix, to compute with. Arguments as those of the wrapper."""
    site = info.blocks[block]
    attention = backbone.get_submodule(site.attention)
    entry = nn.Identity() if site.entry is None else backbone.get_submodule(site.entry)
    return wrapper_for(attention)(attention, entry, prefix, num_queries=num_queries, inserted=inserted)


def constant_prefixes(
    backbone: nn.Module, info: BackboneInfo, prompts: Prompts, kv_prompts: KVPrompts
) -> list[ConstantPrefix]:
    """The keys and values of every block's prompts as they are now."""
    still = prompts.constants()
    prefixes: list[ConstantPrefix] = []
    for block in range(len(info.blocks)):
        attention = attention_at(backbone, info, block)
        learned = LearnedPrefix(still, kv_prompts, block)(attention, 1)
        prefix = attention.key_values(still[block].unsqueeze(0)) if learned is None else learned
        keys, values = (_by_token(part.detach()) for part in prefix[:2])
        prefixes.append(ConstantPrefix(keys, values, None if prefix.bias is None else prefix.bias.to(keys.dtype)))
    return prefixes


def _by_token(heads_1HPd: Tensor) -> Tensor:
    """The same numbers in memory of their own, laid out as `attend` copies them: token by token."""
    return heads_1HPd.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)


def _block(
    backbone: nn.Module,
    info: BackboneInfo,
    block: int,
    prefix: Prefix,
    *,
    num_queries: int | None = None,
    inserted: tuple[int, int] = (0, 0),
    around: Around | None = None,
) -> nn.Module:
    """A block with our attention in it, only for its first tokens if `num_queries` is given."""
    site = info.blocks[block]
    bare = attention_at(backbone, info, block, prefix, num_queries=num_queries, inserted=inserted)
    attention: Any = bare if around is None else around(block, bare)
    if site.attention == site.path:
        return attention
    module = backbone.get_submodule(site.path)
    if info.stages is not None:
        return WindowBlock(module, attention, pre_norm=site.entry is not None)
    if num_queries is not None:
        return LeadingTokensBlock(module, attention)
    return graft(module, {site.attention.removeprefix(f"{site.path}."): attention})


def _published_block(
    backbone: nn.Module,
    info: BackboneInfo,
    block: int,
    count: int,
    kv_prompts: KVPrompts | None = None,
    *,
    observable: bool = False,
) -> nn.Module:
    """A block for tokens among which prompts stand: timm's own, unless its attention must be told of something."""
    site = info.blocks[block]
    prefix = KVPrefix(kv_prompts, block) if kv_prompts else no_prefix
    if not observable and prefix is no_prefix and not wrapper_for(backbone.get_submodule(site.attention)).positional:
        return backbone.get_submodule(site.path)
    return _block(backbone, info, block, prefix, inserted=(info.num_prefix_tokens, count))


def _stages_part(
    backbone: nn.Module, info: BackboneInfo, path: str, prompts: Prompts, kv_prompts: KVPrompts | None = None
) -> dict[str, nn.Module]:
    """All stages in one, as timm holds them: in a sequence, through which it may go itself.

    Shallow without `kv_prompts`.
    """
    counts, deep = prompts.num_tokens, kv_prompts is not None
    wrapped: list[WindowBlock] = []
    for block in range(len(info.blocks)):
        prefix = KVPrefix(kv_prompts, block) if kv_prompts else no_prefix
        inserted = (0, counts[block if deep else 0])
        wrapped.append(cast("WindowBlock", _block(backbone, info, block, prefix, inserted=inserted)))
    blocks = iter(wrapped)
    stages = list(backbone.get_submodule(path).children())
    if hasattr(stages[0], "blocks"):
        mergings = [stage.get_submodule("downsample") for stage in stages]
        groups = [[next(blocks) for _ in stage.get_submodule("blocks").children()] for stage in stages]
    else:
        mergings, groups = [nn.Identity()], [list(blocks)]
    return {path: nn.Sequential(TokenStages(mergings, groups, prompts, deep=deep, channels_first=info.channels_first))}
