"""Maps of features: the patch tokens that blocks give, laid out as an image, for dense heads and detectors."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from vprompt.backbones.blocks import BlockCall, wrapped
from vprompt.backbones.graft import graft
from vprompt.backbones.info import BackboneInfo
from vprompt.methods.layers.tokens import TokenStages
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import count


def feature_maps(
    view: nn.Module,
    info: BackboneInfo,
    images_BCHW: Tensor,
    blocks: Sequence[int],
    *,
    prompts: int = 0,
    norm: bool = False,
) -> list[Tensor]:
    """What some blocks give of each patch, (B, D_l, h, w); class, register and prompt tokens are left out.

    Args:
        view: The timm model with what is learned in place, whose blocks compute all patches.
        info: Its description.
        images_BCHW: Normalised images.
        blocks: Numbers of blocks, those below 0 from the end.
        prompts: Tokens that stand before the patches between blocks, and are gone after the last.
        norm: Apply the backbone's last norm to each.

    Raises:
        VPromptError: If there is no such block, a block's tokens are no map, or the last norm is not for its width.
    """
    depth = len(info.blocks)
    numbers = [operator.index(number) for number in blocks]
    if wrong := [number for number in numbers if not -depth <= number < depth]:
        raise VPromptError(f"The backbone has {count(depth, 'block')}, 0 to {depth - 1}; there is no block {wrong[0]}.")
    numbers = [number % depth for number in numbers]
    given_by, parts = dict[int, Tensor](), dict[str, nn.Module]()
    stages = None if info.stages is None else next(view.get_submodule(info.stages).children(), None)
    if isinstance(stages, TokenStages):
        parts[f"{info.stages}.0"] = stages.told(given_by.__setitem__)
    else:
        for number in numbers:
            path = info.blocks[number].path
            parts[path] = wrapped(view.get_submodule(path), partial(_kept, given_by, number))
    tapped: Any = graft(view, parts)
    tapped.forward_features(images_BCHW)
    maps: list[Tensor] = []
    for number in numbers:
        given, width = given_by[number], info.widths[number]
        if norm:
            last = getattr(view, "norm", None)
            if last is None or width != info.widths[-1]:
                raise VPromptError(f"The backbone has no last norm for the {width} channels of block {number}.")
            given = last(given)
        inserted = prompts if number < depth - 1 else 0
        maps.append(_map_of(given, info, width, images_BCHW, inserted))
    return maps


def _kept(given_by: dict[int, Tensor], number: int, run: BlockCall, *arguments: Any, **positions: Any) -> Tensor:
    given = given_by[number] = run(*arguments, **positions)
    return given


def _map_of(given: Tensor, info: BackboneInfo, width: int, images_BCHW: Tensor, prompts: int) -> Tensor:
    """A map (B, D, h, w) of what a block gave: a map already, or a sequence that ends with the patches."""
    if given.ndim == 4 and given.shape[-1] == width:
        return given.permute(0, 3, 1, 2)
    sides, before = [*zip(images_BCHW.shape[2:], info.patch_size, strict=True)], info.num_prefix_tokens + prompts
    # What is over of an image is padded to a patch, or left away.
    for grid in ([math.ceil(side / patch) for side, patch in sides], [side // patch for side, patch in sides]):
        if given.ndim == 3 and given.shape[1] == before + math.prod(grid):
            return given[:, before:].transpose(1, 2).unflatten(2, grid)
    raise VPromptError(
        f"The tokens of {info.name} {tuple(given.shape)} are not the patches of an image {tuple(images_BCHW.shape[2:])}"
        ", so that there is no map of them."
    )
