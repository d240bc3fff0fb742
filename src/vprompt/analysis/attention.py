"""Attention matrices of every block: square, over tokens and prompts together, and the rows that anything reads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vprompt.backbones.attention.base import Observer, PrefixAttention
from vprompt.backbones.graft import graft
from vprompt.methods.layers.inject import deep_token_parts, shallow_token_parts
from vprompt.methods.layers.prompts import KVPrompts
from vprompt.methods.layers.tokens import strip
from vprompt.model.model import PromptedModel

ShowMatrices = Callable[[int, Tensor, Tensor], None]
"""Is given the number of a block, its attention matrices (R, N, M), one for each image, head and window, and their live
rows (R, L, M)."""


def watched(model: PromptedModel, see: ShowMatrices, *, prompts: int | None = None) -> Callable[[Tensor], None]:
    """The published execution of a model, which shows the attention matrices of every block as it runs.

    Prompts are tokens that ask queries too, so that a matrix has a row for each of the n tokens and m prompts. In a
    model with windows each window has a matrix of its own. Key-value prompts ask no queries: they are columns only.
    What a block makes of deep prompts is thrown away, so that the rows of the tokens alone are live; all are where the
    prompts are shallow. A matrix is what values are mixed with: behind CaiT's talking heads, and the difference in
    differential attention.

    Args:
        model: It is not changed.
        see: Told of the matrices, block after block.
        prompts: Only the first m prompts of each block; all when not given. With 0 it is the bare backbone, without
            key-value prompts as well.

    Returns:
        What to call with normalised images (B, 3, H, W).
    """
    retained = [torch.arange(count if prompts is None else min(prompts, count)) for count in model.prompt_counts]
    tokens = model.prompts.select(retained).constants().eval()
    base = model.tuned.base
    if model.method.riding == "tokens":
        parts = shallow_token_parts(base, model.info, tokens, published=True, observable=True)
    else:
        kv_prompts = KVPrompts() if prompts == 0 else model.kv_prompts
        parts = deep_token_parts(base, model.info, tokens, kv_prompts, observable=True)
    view: Any = graft(base, parts).eval()
    attentions = [module for module in view.modules() if isinstance(module, PrefixAttention)]
    for block, attention in enumerate(attentions):
        dead = (0, 0) if model.method.riding == "tokens" else attention.inserted
        attention.observer = _observer(block, see, dead)

    @torch.no_grad()
    def run(images_BCHW: Tensor) -> None:
        view.forward_features(images_BCHW)

    return run


def _observer(block: int, see: ShowMatrices, dead: tuple[int, int]) -> Observer:
    def observe(weights: Callable[[int], Tensor]) -> None:
        square_RNM = weights(sys.maxsize).flatten(0, 1)
        see(block, square_RNM, strip(square_RNM, dead[1], dead[0]) if dead[1] else square_RNM)

    return observe
