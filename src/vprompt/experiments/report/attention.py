"""Attention maps: where the class token looks, and which patches look at the prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from vprompt.compression.gradients import observed
from vprompt.model.model import PromptedModel


@torch.no_grad()
def attention_maps(model: PromptedModel, images_BCHW: Tensor) -> dict[str, Tensor]:
    """Mean attention over heads for normalised images, as maps (B, h, w) of patches; none where blocks see windows.

    `class token` is its attention to each patch in the last block, where there is one; `prompts` the attention that
    each patch pays to the prompts of its block, the mean over the blocks that have any.
    """
    if model.info.stages is not None:
        return {}
    height, width = (n // p for n, p in zip(images_BCHW.shape[2:], model.info.patch_size, strict=True))
    maps, paid = dict[str, Tensor](), list[Tensor]()

    def note(block: int, prompts: slice, weights: Callable[[int], Tensor]) -> None:
        weights_BNM = weights(sys.maxsize).mean(1)
        if model.info.class_token:
            maps["class token"] = weights_BNM[:, 0, -height * width :].unflatten(1, (height, width))
        # The last block may compute the class token only.
        if prompts.start < prompts.stop and weights_BNM.shape[1] >= height * width:
            paid.append(weights_BNM[:, -height * width :, prompts].sum(2).unflatten(1, (height, width)))

    observed(model, note)(images_BCHW)
    return {**maps, "prompts": torch.stack(paid).mean(0)} if paid else maps
