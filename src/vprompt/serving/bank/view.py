"""View of a backbone whose attention gives the rows of a batch different prefixes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vprompt.backbones.attention.base import PrefixAttention
from vprompt.backbones.attention.functional import KeyValue
from vprompt.backbones.blocks import BlockCall, with_forward, wrapped
from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo
from vprompt.methods.layers.inject import prefix_parts
from vprompt.serving.bank.routing import Group, Route


class _Current(threading.local):
    """The forward pass of each thread, so that several may run at once.

    By block, which row each of its rows comes from, its rows by adapter, and the prefixes of the adapters; and the
    prefix of the rows that attend now.
    """

    spread: Sequence[Tensor | None] = ()
    groups: Sequence[Sequence[Group]] = ()
    prefixes: Sequence[Sequence[KeyValue | None]] = ()
    prefix: KeyValue | None = None


class MixedView:
    """A backbone that computes the features of many adapters' images in one pass.

    Args:
        backbone: The timm model, frozen.
        info: Its description.
    """

    def __init__(self, backbone: nn.Module, info: BackboneInfo) -> None:
        self.shares = not info.fixed_batch
        """Whether requests about one image may share the blocks below their prompts."""
        self._current = _Current()
        parts = prefix_parts(backbone, info, lambda block: self._prefix, around=self._by_adapter)
        blocks = {path: wrapped(part, partial(self._run, block)) for block, (path, part) in enumerate(parts.items())}
        self._view: Any = graft(backbone, blocks)

    def _prefix(self, attention: PrefixAttention, batch: int) -> KeyValue | None:
        return self._current.prefix

    def _run(self, block: int, run: BlockCall, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Runs a block, before which shared rows become one for each adapter."""
        index = self._current.spread[block]
        return run(x if index is None else x.index_select(0, index), *arguments, **options)

    def _by_adapter(self, block: int, attention: PrefixAttention) -> PrefixAttention:
        """Attention that is run adapter by adapter, each over its own prefix."""
        current = self._current

        def forward(x: Tensor, *arguments: Any, images: int | None = None, **options: Any) -> Tensor:
            """As the attention; with `images`, the rows are windows, so many images of them."""
            groups, windows = current.groups[block], x.shape[0] // images if images else 1
            outputs: list[Tensor] = []
            for group in groups:
                current.prefix = None if group.adapter is None else current.prefixes[group.adapter][block]
                count = {} if images is None else {"images": group.stop - group.start}
                part = x if len(groups) == 1 else x[group.start * windows : group.stop * windows]
                outputs.append(attention(part, *arguments, **count, **options))
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

        return with_forward(attention, forward)

    def features(self, images_BCHW: Tensor, route: Route, prefixes: Sequence[Sequence[KeyValue | None]]) -> Tensor:
        """Pooled features (rows, F), in the order behind the last block of the route.

        Args:
            images_BCHW: Normalised images.
            route: Which rows go through each block, and in which order.
            prefixes: For every adapter of the route and every block, its keys and values, or None.
        """
        device, current = images_BCHW.device, self._current
        current.spread = [None if index is None else torch.tensor(index, device=device) for index in route.spread]
        current.groups, current.prefixes = route.groups, prefixes
        try:
            if route.images != tuple(range(len(images_BCHW))):
                images_BCHW = images_BCHW[torch.tensor(route.images, device=device)]
            return self._view.forward_head(self._view.forward_features(images_BCHW), pre_logits=True)
        finally:
            vars(current).clear()
