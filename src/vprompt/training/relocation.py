"""Prompts that move from block to block between the epochs of a training."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.training.loader import ImageLabels, iterate, size_of
from vprompt.training.precision import autocast

IMAGES = 32
"""Training images on which the effects of prompts are measured, the same after every epoch."""

Places = tuple[tuple[int, int], ...]
"""Block and row of prompts."""


def effects(model: PromptedModel, data: ImageLabels, recipe: Recipe) -> list[Tensor]:
    """By block the effects ⟨∂L/∂p, p⟩ (B, P) of prompts p on the loss of each of a few training images, drawn once."""
    index = torch.randperm(size_of(data), generator=torch.Generator().manual_seed(recipe.seed))[:IMAGES]
    was, found = model.training, list[list[Tensor]]()
    model.eval()
    for images, labels in iterate(data, index.split(1), device=model.device):
        with autocast(model, recipe):
            logits = model(images).float()
        loss = model.target.loss(logits, labels).sum()
        gradients = torch.autograd.grad(loss, list(model.prompts))
        found.append([(g * p.detach()).sum(1) for g, p in zip(gradients, model.prompts, strict=True)])
    model.train(was)
    return [torch.stack(of_block).float().cpu() for of_block in zip(*found, strict=True)]


def relocate(
    model: PromptedModel,
    data: ImageLabels,
    recipe: Recipe,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    average: Mapping[int, Tensor],
    fresh: Collection[tuple[int, int]],
) -> Places:
    """Moves prompts as the model's method says, and returns the places of those that were planted.

    Args:
        model: Changed in place; its parameters stay the same objects.
        data: Images to train on.
        recipe: Of the training.
        epoch: The number of epochs done; the seed of what is planted, with the recipe's.
        optimizer: What it knows of a prompt moves with it; of what is planted it knows nothing.
        average: By block a moving average of the prompts, if there is one, which is moved as well.
        fresh: What was returned the last time.
    """
    gone, planted = model.method.relocated(effects(model, data, recipe), fresh)
    if not gone:
        return ()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed * 1_000_003 + epoch)
        drawn = [model.method.make_prompts(model.info)[block][:1].detach() for block in planted]
    places = list[tuple[int, int]]()
    for block in sorted({*planted, *(block for block, _ in gone)}):
        parameter = model.prompts[block]
        kept = torch.tensor([row for row in range(len(parameter)) if (block, row) not in gone], device=parameter.device)
        own = [row.to(parameter) for to, row in zip(planted, drawn, strict=True) if to == block]
        fresh_FD = torch.cat([parameter.data[:0], *own])
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.cat([value[kept], torch.zeros_like(fresh_FD)])
        if block in average:
            average[block].data = torch.cat([average[block].data[kept], fresh_FD])
        model.prompts.rearrange(block, kept, fresh_FD)
        places += [(block, len(kept) + number) for number in range(len(own))]
    model.reinstall()
    return tuple(places)


def resize(model: PromptedModel, values: Mapping[str, Tensor]) -> None:
    """Gives each block as many prompts as there are among values by name, which are then to be copied."""
    if not model.method.relocates:
        return
    for block, parameter in enumerate(model.prompts):
        value = values.get(f"prompts.{block}")
        if value is not None and len(value) != len(parameter):
            model.prompts.rearrange(block, torch.arange(0), value)
    model.reinstall()
