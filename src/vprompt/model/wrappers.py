"""Wrappers of blocks, and gradient checkpointing: activations are computed again in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vprompt.backbones.blocks import WindowBlock
from vprompt.model.model import PromptedModel


class StandIn(nn.Module):
    """Called in a sequence, or with prompts beside a map of tokens; what to do is for `call` to say."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *arguments: Any, **positions: Any) -> Any:
        """As the block's."""
        return self.call(self.block, x, *arguments, **positions)

    def carry(self, x_BHWC: Tensor, prompts_BPC: Tensor | None) -> Any:
        """As `WindowBlock.carry`."""
        block: Any = self.block
        return self.call(block.carry, x_BHWC, prompts_BPC)

    def call(self, run: Any, x: Tensor, *arguments: Any, **positions: Any) -> Any:
        """Does what stands here instead of `run`, which is the block or its `carry`."""
        raise NotImplementedError


def running_blocks(model: PromptedModel) -> list[str]:
    """Paths in a model's view of what runs as its blocks, in forward order."""
    if model.info.stages is None:
        return [site.path for site in model.info.blocks]
    found: list[str] = []
    for path, module in model.view.named_modules():
        within = bool(found) and path.startswith(f"{found[-1]}.")
        if isinstance(module, WindowBlock | StandIn) and not within:
            found.append(path)
    return found


def checkpointed_parts(model: PromptedModel, first: int = 0) -> dict[str, nn.Module]:
    """Blocks that keep only what enters them, for `PromptedModel.exchanged`; gradients are the same numbers.

    Prompt dropout is drawn again as it was, and the precision of autocast is the same.

    Args:
        model: The model.
        first: The first block in which something is learned; those below keep nothing anyway.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
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
