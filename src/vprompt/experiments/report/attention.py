"""Attention maps: where the class token looks, and which patches look at the prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from vprompt.backbones.attention.base import Observer
from vprompt.model.model import PromptedModel


@torch.no_grad()
def attention_maps(model: PromptedModel, images_BCHW: Tensor) -> dict[str, Tensor]:
    """Mean attention over heads for normalised images, as maps (B, h, w) of patches; none where blocks see windows.

    `class token` is its attention to each patch in the last block, where there is one; `prompts` the attention that
    each patch pays to the prompts of its block, the mean over the blocks that have any.
    """
    info, watched = model.info, model.copy(execution="prefix").eval()
    if info.stages is not None:
        return {}
    height, width = (n // p for n, p in zip(images_BCHW.shape[2:], info.patch_size, strict=True))
    tokens, maps = model.method.riding == "tokens", dict[str, Tensor]()
    first, paid = (info.num_prefix_tokens if tokens else 0), list[Tensor]()

    def watch(block: int) -> Observer:
        count = watched.prompt_counts[0 if tokens else block]

        def note(weights: Callable[[int], Tensor]) -> None:
            weights_BNM = weights(sys.maxsize).mean(1)
            if info.class_token:
                maps["class token"] = weights_BNM[:, 0, -height * width :].unflatten(1, (height, width))
            if count and weights_BNM.shape[1] >= height * width:  # the last block may compute the class token only
                to_prompts_BN = weights_BNM[:, -height * width :, first : first + count].sum(2)
                paid.append(to_prompts_BN.unflatten(1, (height, width)))

        return note

    for block, attention in enumerate(watched.attentions):
        attention.observer = watch(block)
    watched(images_BCHW)
    return {**maps, "prompts": torch.stack(paid).mean(0)} if paid else maps
