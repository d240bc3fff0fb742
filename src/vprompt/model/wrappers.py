"""Gradient checkpointing: activations of blocks are computed again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vprompt.backbones.blocks import BlockCall, WindowBlock, wrapped
from vprompt.model.model import PromptedModel


def running_blocks(model: PromptedModel) -> list[str]:
    """Paths in a model's view of what runs as its blocks, in forward order."""
    if model.info.stages is None:
        return [site.path for site in model.info.blocks]
    return [path for path, module in model.view.named_modules() if isinstance(module, WindowBlock)]


def checkpointed_parts(model: PromptedModel, first: int = 0) -> dict[str, nn.Module]:
    """Blocks that save only their inputs for the backward pass, for `PromptedModel.exchanged`; equal gradients.

    Prompt dropout is drawn again as it was, and the precision of autocast is the same.

    Args:
        model: The model.
        first: The first block in which something is learned; those before it save nothing anyway.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
        >>> with model.exchanged(checkpointed_parts(model)):
        ...     model(torch.zeros(1, 3, 32, 32)).sum().backward()
        >>> model.prompts[0].grad.shape
        torch.Size([2, 64])

    Source: Chen et al. (arXiv 1604.06174).
    """
    blocks = running_blocks(model)[first:]
    return {path: wrapped(model.view.get_submodule(path), _checkpointed) for path in blocks}


def _checkpointed(run: BlockCall, x: Tensor, *arguments: Any, **positions: Any) -> Any:
    if not torch.is_grad_enabled():
        return run(x, *arguments, **positions)
    return checkpoint(run, x, *arguments, use_reentrant=False, **positions)
