"""Blocks of timm around an attention wrapper: for their first tokens only, in windows, or with a function around."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn

from vprompt.backbones.attention.base import PrefixAttention
from vprompt.backbones.graft import graft

M = TypeVar("M", bound=nn.Module)

BlockCall = Callable[..., Any]
"""Called in place of a block with what would run, which is the block or its `carry`, and the arguments."""


class LeadingTokensBlock(nn.Module):
    """A pre-norm block that computes only the tokens which anything reads: the first ones.

    With class-token pooling all other queries, their output projection and their MLP in the last block are dead work.

    Args:
        block: The original block, of a form that is `cuttable`.
        attention: Its attention, set to the same number of queries.
    """

    def __init__(self, block: nn.Module, attention: PrefixAttention) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x_BND: Tensor, **positions: Any) -> Tensor:
        """(B, N, D) to (B, n, D) with the n leading tokens; takes what the block takes."""
        block: Any = self.block
        x_BnD = x_BND[:, : self.attention.num_queries]
        x_BnD = x_BnD + block.drop_path1(_scaled(block, 1, self.attention(block.norm1(x_BND), **positions)))
        return x_BnD + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x_BnD))))


def _scaled(block: Any, number: int, x_BND: Tensor) -> Tensor:
    """The block's layer scale, which timm holds as a module or as a parameter."""
    module, gamma = getattr(block, f"ls{number}", None), getattr(block, f"gamma_{number}", None)
    if module is not None:
        return module(x_BND)
    return x_BND if gamma is None else gamma * x_BND


class WindowBlock(nn.Module):
    """A block of Swin, SAM (pre-norm) or Swin V2 (post-norm) that can carry prompts through its windows.

    Every window sees the prompts; each computes its own outputs for them, and these are averaged over the windows of an
    image.

    Args:
        block: The original block.
        attention: Its attention, told of as many inserted tokens as there are prompts.
        pre_norm: Whether the first norm stands before attention.
    """

    def __init__(self, block: nn.Module, attention: PrefixAttention, *, pre_norm: bool) -> None:
        super().__init__()
        self.block = block
        self.attention = attention
        self.pre_norm = pre_norm

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """A map of tokens (B, H, W, C) without prompts among them."""
        return self.carry(x_BHWC, None)[0]

    def carry(self, x_BHWC: Tensor, prompts_BPC: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A map of tokens (B, H, W, C) and prompts (B, P, C) beside it, to the same."""
        seen_BPC = None if prompts_BPC is None else self._seen(prompts_BPC)
        mixed_BHWC, mixed_BPC = self._attention(self._seen(x_BHWC), seen_BPC)
        if prompts_BPC is not None and mixed_BPC is not None:
            prompts_BPC = self._rest(prompts_BPC, mixed_BPC)
        return self._rest(x_BHWC, mixed_BHWC), prompts_BPC

    def _seen(self, x: Tensor) -> Tensor:
        """Tokens or prompts as attention sees them."""
        block: Any = self.block
        return block.norm1(x) if self.pre_norm else x

    def _rest(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Residual and MLP."""
        block: Any = self.block
        if self.pre_norm:
            x = x + block.drop_path1(_scaled(block, 1, mixed))
            return x + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x))))
        x = x + block.drop_path1(block.norm1(mixed))
        x = x + block.drop_path2(block.norm2(block.mlp(x)))
        return block.norm3(x) if hasattr(block, "norm3") else x

    def _attention(self, x_BHWC: Tensor, prompts_BPC: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As timm: shift, pad, cut into windows, attend, put together again."""
        block: Any = self.block
        batch, height, width, _ = x_BHWC.shape
        # SAM has square windows, or none: then the whole map is one.
        wh, ww = block.window_size if isinstance(block.window_size, tuple) else (block.window_size,) * 2
        wh, ww, shift = wh or height, ww or width, getattr(block, "shift_size", (0, 0))
        if any(shift):
            x_BHWC = torch.roll(x_BHWC, shifts=(-shift[0], -shift[1]), dims=(1, 2))
        x_BHWC = F.pad(x_BHWC, (0, 0, 0, -width % ww, 0, -height % wh))
        dynamic = getattr(block, "dynamic_mask", False)
        mask = block.get_attn_mask(x_BHWC) if dynamic else getattr(block, "attn_mask", None)
        rows_RNC = window_partition(x_BHWC, (wh, ww)).flatten(1, 2)
        count, windows = 0, (x_BHWC.shape[1] // wh) * (x_BHWC.shape[2] // ww)
        if prompts_BPC is not None:
            count = prompts_BPC.shape[1]
            rows_RNC = torch.cat([prompts_BPC.repeat_interleave(windows, dim=0), rows_RNC], dim=1)
        rows_RNC = self.attention(rows_RNC, mask=mask, images=batch, window=(wh, ww))
        mixed_BPC = rows_RNC[:, :count].unflatten(0, (batch, windows)).mean(1) if count else None
        maps_RHWC = rows_RNC[:, count:].unflatten(1, (wh, ww))
        y_BHWC = window_reverse(maps_RHWC.contiguous(), (wh, ww), *x_BHWC.shape[1:3])[:, :height, :width]
        if any(shift):
            y_BHWC = torch.roll(y_BHWC, shifts=(shift[0], shift[1]), dims=(1, 2))
        return y_BHWC, mixed_BPC


def with_forward(module: M, forward: Callable[..., Any]) -> M:
    """A view of a module, with all its attributes, that runs another forward."""
    view = graft(module, {})
    view.__dict__["forward"] = forward
    return view


def wrapped(block: nn.Module, call: BlockCall) -> nn.Module:
    """A view of a block that hands every call of it to `call`, also with prompts beside a map of tokens.

    Example:
        >>> wrapped(nn.Identity(), lambda run, x: 2 * run(x))(torch.tensor(3))
        tensor(6)
    """
    view = with_forward(block, partial(call, block))
    if isinstance(block, WindowBlock):
        view.__dict__["carry"] = partial(call, block.carry)
    return view
