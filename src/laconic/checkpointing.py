"""Gradient checkpointing: activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from laconic.model import PromptedModel
from laconic.standin import StandIn, running_blocks


def checkpointed_parts(model: PromptedModel, first: int = 0) -> dict[str, nn.Module]:
    """Blocks that keep only what enters them, for `PromptedModel.exchanged`; gradients are the same numbers.

    Prompt dropout is drawn again as it was, and the precision of autocast is the same.

    Args:
        model: The model.
        first: The first block in which something is learned; those below keep nothing anyway.

    Example:
        >>> import timm, laconic
        >>> model = laconic.attach(timm.create_model("test_vit", img_size=32), laconic.VPT(2), num_classes=2)
        >>> with model.exchanged(checkpointed_parts(model)):
        ...     model(torch.zeros(1, 3, 32, 32)).sum().backward()
        >>> model.prompts[0].grad.shape
        torch.Size([2, 64])

    Source: Chen et al. (arXiv 1604.06174).
    """
    return {path: _Checkpointed(model.view.get_submodule(path)) for path in running_blocks(model)[first:]}


class _Checkpointed(StandIn):
    """The block, of which nothing is kept for the backward pass but what enters it."""

    def call(self, run: Any, x: Tensor, *arguments: Any, **positions: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(x, *arguments, **positions)
        return checkpoint(run, x, *arguments, use_reentrant=False, **positions)
