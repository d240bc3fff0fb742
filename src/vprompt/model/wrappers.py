"""Functions run in place of blocks, and gradient checkpointing: activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vprompt.backbones.blocks import WindowBlock
from vprompt.backbones.graft import graft
from vprompt.model.model import PromptedModel

M = TypeVar("M", bound=nn.Module)

BlockCall = Callable[..., Any]
"""Called in place of a block with what would run, which is the block or its `carry`, and the arguments."""


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
