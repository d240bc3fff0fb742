"""Stochastic depth of a frozen backbone: in training, branches of its blocks are left out for some of the images."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from vprompt.model.model import PromptedModel
from vprompt.model.split import first_learned
from vprompt.model.wrappers import running_blocks

Branches = Sequence[tuple[nn.Module, float]]
"""Where a branch ends that may be left out, and for which share of the images it is."""


def branches(model: PromptedModel, share: float) -> Branches:
    """Attention and MLP of every block: left out for none of the images in the first, and for `share` in the last.

    Blocks before the first in which something is learned are left as they are: their output may be computed once.

    Args:
        model: In any of its forms; places are those where timm has a `DropPath`, or nothing in its stead.
        share: 0 to below 1.

    Example:
        >>> import timm, torch, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.LoRA(), num_classes=2)
        >>> [share for _, share in branches(model, 0.5)]
        [0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]

    Source: Huang et al. (arXiv 1603.09382), section 3, the linear rule; for frozen backbones, Adapter+ (arXiv
    2406.06820), section 4.
    """
    blocks = [model.view.get_submodule(path) for path in running_blocks(model)]
    first = first_learned(model)
    return [
        (module, share * number / max(1, len(blocks) - 1))
        for number, block in enumerate(blocks)
        for path, module in block.named_modules()
        if number >= first and path.rpartition(".")[2].startswith("drop_path")
    ]


@contextmanager
def left_out(branches: Branches) -> Generator[None]:
    """Inside, forward passes leave the branches out at random, each for its share of the images.

    What is kept is scaled up, so that its mean stays.
    """
    with ExitStack() as hooks:
        for module, share in branches:
            hooks.enter_context(module.register_forward_hook(partial(_thinned, share)))
        yield


def _thinned(share: float, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return stochastic_depth(output, share, "row", training=True)
