"""Attention that prompts are paid: each by the class token, image by image, and all together in every block."""

from __future__ import annotations

import functools
import sys
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


@torch.no_grad()
def attention_mass(model: PromptedModel, images_BCHW: Tensor) -> list[tuple[float, float]]:
    """By block, shares of the tokens' attention that go to prompts and to key-value prompts, means over all heads.

    Where the last block computes the class token only, it is that token's attention. Weights that may be below zero,
    as those of differential attention, count by their size.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.E2VPT(2, 1), num_classes=2)
        >>> all(0 < visual + key_value < 1 for visual, key_value in attention_mass(model, torch.zeros(1, 3, 32, 32)))
        True
    """
    shares: list[tuple[float, float]] = []

    def note(block: int, prompts: slice, weights: Callable[[int], Tensor]) -> None:
        paid_RHNM = weights(sys.maxsize).detach().float().abs()
        paid_RNM = (paid_RHNM / paid_RHNM.sum(3, keepdim=True)).mean(1)
        if model.method.riding == "tokens":  # prompts ask queries as well
            paid_RNM = torch.cat([paid_RNM[:, : prompts.start], paid_RNM[:, prompts.stop :]], 1)
        paid_M = paid_RNM.mean((0, 1))
        ready = slice(prompts.stop, prompts.stop + model.kv_prompts.count)
        shares.append((float(paid_M[prompts].sum()), float(paid_M[ready].sum())))

    watched = observed(model, note)
    with torch.set_grad_enabled(model.target.dense):  # then all windows of the images are one batch
        watched(images_BCHW)
    return shares
