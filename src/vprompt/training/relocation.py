"""Prompts that move between blocks from one epoch to the next: which ones, and all that goes with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vprompt.methods.base import Move
from vprompt.methods.layers.prompts import init_bound
from vprompt.model.effects import gradient_effects
from vprompt.model.model import PromptedModel
from vprompt.model.records import Gradient, Recipe
from vprompt.training.loader import ImageLabels, iterate, size_of
from vprompt.utils.distributed import gathered

SHARE, LEAST, MOST = 25, 32, 256
"""The effects of prompts are seen on one training image of so many, but on no less and no more than so many."""


def chosen(model: PromptedModel, data: ImageLabels, recipe: Recipe, planted: Sequence[int]) -> list[Move]:
    """The moves that the method wants now; of several processes, those of the first.

    Args:
        model: What is trained; it stays as it is.
        data: The training images; the same ones are looked at every time, not augmented, in full precision.
        recipe: Of the training.
        planted: By block, how many of its last prompts are new.
    """
    if not model.relocates:
        return []
    number = min(size_of(data), max(LEAST, min(MOST, size_of(data) // SHARE)))
    sample = torch.randperm(size_of(data), generator=torch.Generator().manual_seed(recipe.seed))[:number]
    # A copy in which nothing is checkpointed or a token, with the same prompts.
    still, parts = model.copy(execution="prefix").eval(), sample.split(recipe.batch)
    with (
        torch.autocast(model.device.type, enabled=False),
        gradient_effects(still, Gradient(signed=True), segments=1, seed=recipe.seed) as effects,
    ):
        batches = iterate(data, parts, device=model.device, workers=recipe.workers)
        found = [effects(images, labels) for images, labels in batches]
    rises = [torch.cat([of_batch[block][..., 0] for of_batch in found]) for block in range(len(model.prompts))]
    return gathered(model.method.relocate(rises, planted))[0]


def fresh(model: PromptedModel, moves: Sequence[Move], *, seed: int, epoch: int) -> list[Tensor]:
    """The prompts to plant, drawn as those at the start, by the seed and the epoch alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    bound = init_bound(model.info.patch_size, model.info.widths[0])
    rows = [torch.empty(model.info.widths[move.target]) for move in moves]
    return [row.uniform_(-bound, bound, generator=generator) for row in rows]


def moved(values: Sequence[Tensor], moves: Sequence[Move], fresh: Sequence[Tensor]) -> list[Tensor]:
    """Values of prompts by block, without the rows of those that are removed, and with fresh ones at their ends.

    Example:
        >>> moved([torch.eye(2), torch.zeros(1, 2)], [Move(0, 0, 1)], [torch.ones(2)])
        [tensor([[0., 1.]]), tensor([[0., 0.],
                [1., 1.]])]
    """
    result: list[Tensor] = []
    for block, value_PD in enumerate(values):
        gone = {move.row for move in moves if move.block == block}
        retained = [row for row in range(len(value_PD)) if row not in gone]
        new = [row[None].to(value_PD) for row, move in zip(fresh, moves, strict=True) if move.target == block]
        result.append(torch.cat([value_PD.detach()[retained], *new]))
    return result
