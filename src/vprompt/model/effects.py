"""Effects of each prompt on each image, on its loss or features, to first order."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vprompt.methods.layers.inject import attention_at
from vprompt.model.model import PromptedModel
from vprompt.model.records import Gradient
from vprompt.utils.errors import VPromptError

Effects = Callable[[Tensor, Tensor], dict[int, Tensor]]
"""From images and labels, in the order of the data, to the effect of each prompt or segment on each image: (B, P, R) by
block."""


@contextmanager
def gradient_effects(model: PromptedModel, kind: Gradient, *, segments: int, seed: int) -> Generator[Effects]:
    """Rise of each image's loss, or change of its features, without a prompt or segment, to first order.

    - Scaled to zero: -<dL_i/ds, s>. Norms before attention undo the length of a prompt all but for their epsilon, so
      that the inner product is a small remainder of large terms. For a prefix it is therefore taken at its keys and
      values, along their change when the segment is scaled, which is computed in float64.
    - Removed: -dL_i/db at b = 0, where b is added to the logits of the prompt's key for all queries and heads. A prompt
      that counts m = exp(b) times in attention is gone at m = 0, and dL/dm = dL/db at m = 1.
    - Features: with u drawn from N(0, I) for each image, the mean of |u . J d| is sqrt(2 / pi) times the length of the
      change J d of the features.
    """
    tokens = model.method.riding == "tokens"
    run = model if tokens or model.execution == "prefix" else model.copy(execution="prefix").eval()
    removal = kind.along == "removal"
    used = [block for block, count in enumerate(run.prompt_counts) if count]
    along: dict[int, tuple[Tensor, ...]] = {}
    for block in () if removal else used:
        along[block] = (
            (_cut(run.prompts.dense(block).detach(), segments),) if tokens else _scaling(run, block, segments)
        )
    first = 0
    with run.prompts.per_sample(with_bias=removal) as recorded:

        def effects(images: Tensor, labels: Tensor) -> dict[int, Tensor]:
            nonlocal first
            recorded.clear()
            if not used:
                return {}
            total = _objective(run, images, labels, kind, seed, first)
            first += len(images)
            if removal:
                leaves = [recorded[block][2] for block in used]
                by_block = dict(zip(used, (-g.unsqueeze(2) for g in torch.autograd.grad(total, leaves)), strict=True))
            else:
                gradients = iter(torch.autograd.grad(total, [leaf for block in used for leaf in recorded[block]]))
                by_block = {
                    block: -torch.stack([_products(next(gradients), change) for change in changes]).sum(0)
                    for block, changes in along.items()
                }
            # Of an image that is seen in windows, a prompt's effect is that in all of them.
            return {block: each.unflatten(0, (len(images), -1)).sum(1) for block, each in by_block.items()}

        yield effects


def _objective(model: PromptedModel, images: Tensor, labels: Tensor, kind: Gradient, seed: int, first: int) -> Tensor:
    """The quantity that changes with the prompts, summed over images."""
    if kind.of == "features":
        if model.target.dense:
            raise VPromptError("Pooled features say nothing of pixels; score by taylor, removal or another criterion.")
        features_BF = model.features(images)
        drawn = [
            torch.randn(features_BF.shape[1], generator=torch.Generator().manual_seed((seed << 32) + first + image))
            for image in range(len(images))
        ]
        directions_BF = torch.stack(drawn).to(features_BF.device, features_BF.dtype)
        return math.sqrt(math.pi / 2) * (features_BF * directions_BF).sum()
    logits = model(images)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    given = labels if kind.of == "loss" else model.target.pseudo(logits.detach())
    return model.target.loss(logits, given).sum()


def _cut(prompts_PD: Tensor, segments: int) -> Tensor:
    """Each segment alone, zeros elsewhere: (R, P, D)."""
    cut_PRw = prompts_PD.unflatten(1, (segments, -1))
    alone_RPRw = torch.eye(segments, dtype=cut_PRw.dtype, device=cut_PRw.device)[:, None, :, None] * cut_PRw
    return alone_RPRw.flatten(2)


def _scaling(model: PromptedModel, block: int, segments: int) -> tuple[Tensor, Tensor]:
    """Derivatives of keys and values (R, H, P, d) of a block's prompts by the scale of a segment, in float64."""
    attention = copy.deepcopy(attention_at(model.tuned.base, model.info, block)).cpu().double().requires_grad_(False)
    prompts_PD = model.prompts.dense(block).detach().cpu().double()
    jvp: Any = torch.func.jvp

    def projected(prompts_1PD: Tensor) -> tuple[Tensor, Tensor]:
        keys, values, _ = attention.key_values(prompts_1PD)
        return keys, values

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about its own use of torch.jit
        changes = [
            jvp(projected, (prompts_PD.unsqueeze(0),), (alone_PD.unsqueeze(0),))[1]
            for alone_PD in _cut(prompts_PD, segments)
        ]
    keys, values = (torch.cat(parts) for parts in zip(*changes, strict=True))
    device = model.prompts[block].device
    # Apple's GPUs have no float64.
    return (keys, values) if device.type == "mps" else (keys.to(device), values.to(device))


def _products(gradient: Tensor, change: Tensor) -> Tensor:
    """Inner products (B, P, R) of a gradient (B, ..., P, width) and changes (R, ..., P, width)."""
    sizes = "bpw, rpw -> bpr" if gradient.ndim == 3 else "bhpw, rhpw -> bpr"
    return torch.einsum(sizes, _exact(gradient.to(change.device)), _exact(change))


def _exact(values: Tensor) -> Tensor:
    """In float64; on the CPU where the device, one of Apple's, has none."""
    return values.cpu().double() if values.device.type == "mps" else values.double()
