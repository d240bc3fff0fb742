"""What stands where a block stood in a model's view, and is called as the block is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from laconic.blocks import WindowBlock
from laconic.model import PromptedModel


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
