"""View of a backbone whose attention gives the rows of a batch different prefixes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vprompt.backbones.attention.base import PrefixAttention
from vprompt.backbones.attention.functional import KeyValue
from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo
from vprompt.methods.layers.inject import prefix_parts
from vprompt.serving.bank.routing import Route


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward pass: its route, which rows come from which by block, and the prefixes of its adapters by block."""

    route: Route
    spread: Sequence[Tensor | None]
    prefixes: Sequence[Sequence[KeyValue | None]]


class _Current(threading.local):
    """The forward pass of each thread, so that several may run at once."""

    forward: Pass | None = None
    prefix: KeyValue | None = None


class _Rows(nn.Module):
    """A block before which shared rows become one for each adapter.

    Args:
        block: The module that computes the block.
        number: Number of the block.
        current: The forward pass under way.
    """

    def __init__(self, block: nn.Module, number: int, current: _Current) -> None:
        super().__init__()
        self.block = block
        self.number = number
        self.current = current

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """(rows before, ...) to (rows, ...); takes what the block takes."""
        index = cast("Pass", self.current.forward).spread[self.number]
        return self.block(x if index is None else x.index_select(0, index), *arguments, **options)


class _Groups(nn.Module):
    """Attention that is run adapter by adapter, each over its own prefix.

    Args:
        attention: Asks `current` for its prefix.
        number: Number of its block.
        current: The forward pass under way.
    """

    def __init__(self, attention: PrefixAttention, number: int, current: _Current) -> None:
        super().__init__()
        self.attention = attention
        self.number = number
        self.current = current
        self.num_queries = attention.num_queries

    def forward(self, x: Tensor, *arguments: Any, images: int | None = None, **options: Any) -> Tensor:
        """As the attention; with `images`, the rows are windows, so many images of them."""
        forward = cast("Pass", self.current.forward)
        groups, windows = forward.route.groups[self.number], x.shape[0] // images if images else 1
        outputs: list[Tensor] = []
        for group in groups:
            self.current.prefix = None if group.adapter is None else forward.prefixes[group.adapter][self.number]
            count = {} if images is None else {"images": group.stop - group.start}
            part = x if len(groups) == 1 else x[group.start * windows : group.stop * windows]
            outputs.append(self.attention(part, *arguments, **count, **options))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class MixedView:
    """A backbone that computes the features of many adapters' images in one pass.

    Args:
        backbone: The timm model, frozen.
        info: Its description.
    """

    def __init__(self, backbone: nn.Module, info: BackboneInfo) -> None:
        self.shares = not info.fixed_batch
        """Whether requests about one image may share the blocks below their prompts."""
        current = self._current = _Current()

        def prefix(attention: PrefixAttention, batch: int) -> KeyValue | None:
            return current.prefix

        parts = prefix_parts(
            backbone, info, lambda block: prefix, around=lambda block, attention: _Groups(attention, block, current)
        )
        rows = {path: _Rows(part, block, current) for block, (path, part) in enumerate(parts.items())}
        self._view: Any = graft(backbone, rows)

    def features(self, images_BCHW: Tensor, route: Route, prefixes: Sequence[Sequence[KeyValue | None]]) -> Tensor:
        """Pooled features (rows, F), in the order behind the last block of the route.

        Args:
            images_BCHW: Normalised images.
            route: Which rows go through each block, and in which order.
            prefixes: For every adapter of the route and every block, its keys and values, or None.
        """
        device = images_BCHW.device
        spread = [None if index is None else torch.tensor(index, device=device) for index in route.spread]
        self._current.forward = Pass(route=route, spread=spread, prefixes=prefixes)
        try:
            if route.images != tuple(range(len(images_BCHW))):
                images_BCHW = images_BCHW[torch.tensor(route.images, device=device)]
            return self._view.forward_head(self._view.forward_features(images_BCHW), pre_logits=True)
        finally:
            self._current.forward = self._current.prefix = None
