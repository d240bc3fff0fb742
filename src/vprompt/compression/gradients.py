"""Effects of each prompt on each image that are seen in the attention of the class token."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from vprompt.model.effects import Effects
from vprompt.model.model import PromptedModel


def observed(model: PromptedModel, note: Callable[[int, slice, Callable[[int], Tensor]], None]) -> PromptedModel:
    """A copy that tells of attention as it runs: number of a block, place of prompts among keys, weights of queries."""
    watched, tokens = model.copy(execution="prefix").eval(), model.method.riding == "tokens"
    # A prefix stands before all tokens; prompts among the tokens stand behind the leading ones.
    first = model.info.num_prefix_tokens if tokens else 0
    for block, attention in enumerate(watched.attentions):
        count = watched.prompt_counts[0 if tokens else block]
        attention.observer = functools.partial(note, block, slice(first, first + count))
    return watched


@contextmanager
def class_similarity(model: PromptedModel) -> Generator[Effects]:
    """The class token's attention to each prompt, (B, P, 1) by block of the prompts."""
    shallow = model.method.riding == "tokens"
    seen: dict[int, Tensor] = {}

    def note(block: int, prompts: slice, weights: Callable[[int], Tensor]) -> None:
        if prompts.start < prompts.stop:
            source, scale = (0, len(model.info.blocks)) if shallow else (block, 1)
            paid = weights(1)[:, :, 0, prompts].detach().mean(1).unsqueeze(2) / scale
            seen[source] = seen.get(source, torch.zeros_like(paid)) + paid

    watched = observed(model, note)

    @torch.no_grad()
    def effects(images: Tensor, labels: Tensor) -> dict[int, Tensor]:
        seen.clear()
        with torch.set_grad_enabled(model.target.dense):  # then all windows of the images are one batch
            watched(images)
        return {block: paid.unflatten(0, (len(images), -1)).mean(1) for block, paid in seen.items()}

    yield effects
