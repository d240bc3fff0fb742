"""Multiply-accumulates and parameters of a backbone with prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch.utils.flop_counter import FlopCounterMode

from vprompt.backbones.factory import create_backbone
from vprompt.backbones.meta import QuickShapes, on_meta
from vprompt.methods.layers.head import MLPHead
from vprompt.methods.linear import Linear
from vprompt.model.attach import attach
from vprompt.model.model import FoldedModel, PromptedModel
from vprompt.model.tensors import held
from vprompt.utils.errors import VPromptError


def gmacs(model: PromptedModel | FoldedModel) -> float:
    """10^9 multiply-accumulates of the features of one image, counted as the model runs."""
    return gmacs_and_biases(model)[0]


def gmacs_and_biases(model: PromptedModel | FoldedModel) -> tuple[float, float]:
    """10^9 multiply-accumulates of one image without the classifier, and 10^9 additions of linear layers' biases.

    Where pixels have labels, of one window with the head.

    Args:
        model: On the meta device, or it runs for real.
    """
    biases = 0

    def addmm(bias: Sequence[int], rows: Sequence[int], columns: Sequence[int], **_: Any) -> int:
        nonlocal biases
        biases += rows[0] * columns[1]
        return 2 * rows[0] * rows[1] * columns[1]

    model.requires_grad_(False)
    parameter = next(model.parameters())
    image = torch.zeros(1, *model.preprocessing.shape, device=parameter.device, dtype=parameter.dtype)
    # The CPU's own attention is not counted by every version of torch.
    aten = torch.ops.aten
    counted = {aten.addmm: addmm, aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    counter = FlopCounterMode(display=False, custom_mapping=counted)
    with QuickShapes(), counter, torch.no_grad():
        if model.target.dense:
            model(image)  # whose head is no small part of it
        else:
            features = model.features(image)
            if isinstance(model.head, MLPHead):
                model.head.represent(features)
    return counter.get_total_flops() / 2e9, biases / 1e9


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Operations of attention on shapes (B, H, N, d), two for each multiply-accumulate."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def adapter_bytes(model: PromptedModel) -> int:
    """Size of the file of tensors that `model.save_pretrained` writes.

    The card and the configuration beside it take a few thousand bytes more.

    Example:
        >>> import timm, vprompt
        >>> adapter_bytes(vprompt.attach(timm.create_model("test_vit"), vprompt.VPT(1), num_classes=2))
        2648
    """
    alike = {name: torch.zeros(p.shape, dtype=p.dtype, device="cpu") for name, p in held(model).items()}
    return len(save(alike, metadata={"format": "pt"}))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one image under each execution, in 10^9 multiply-accumulates, without the classifier.

    Args:
        prompts: Prompts over all blocks, divided by the blocks that have any.
        published_gmacs: Prompts as tokens through every block, as the papers run and count them.
        prefix_gmacs: Prompts as keys and values computed for this one image; a larger batch shares that part.
        folded_gmacs: Prompts as constants, and the last block cut to what the pooling reads.
        prompt_params: Learned numbers in the prompts.
    """

    prompts: float
    published_gmacs: float
    prefix_gmacs: float
    folded_gmacs: float
    prompt_params: int


def bare_gmacs(backbone: str, img_size: int | None = None) -> float:
    """10^9 multiply-accumulates of one image in a backbone, by its timm name; needs no weights and no download.

    Example:
        >>> round(bare_gmacs("vit_base_patch16_224"), 2)
        17.56
    """
    with torch.device("meta"):
        model = create_backbone(backbone, pretrained=False, img_size=img_size)
    return gmacs(attach(model, Linear(), num_classes=1).copy(execution="published").eval())


def model_cost(model: PromptedModel) -> Cost:
    """Cost of a model as it stands, with whatever its method added, and whatever count of prompts each block has.

    Args:
        model: On any device; it is not run.
    """
    counts = model.prompt_counts
    used = sum(count > 0 for count in counts)
    costs = executions(model)
    return Cost(
        prompts=sum(counts) / used if used else 0,
        published_gmacs=costs.published_gmacs,
        prefix_gmacs=costs.prefix_gmacs,
        folded_gmacs=costs.folded_gmacs,
        prompt_params=sum(p.numel() for p in (*model.prompts.parameters(), *model.kv_prompts.parameters())),
    )


@dataclass(frozen=True, kw_only=True)
class Executions:
    """Cost of one image under each execution, as in `Cost`.

    Args:
        published_gmacs: As in `Cost`.
        published_gmacs_with_biases: With one more multiply-accumulate for every bias that a linear layer adds.
        prefix_gmacs: As in `Cost`.
        folded_gmacs: As in `Cost`.
    """

    published_gmacs: float
    published_gmacs_with_biases: float
    prefix_gmacs: float
    folded_gmacs: float


def executions(model: PromptedModel) -> Executions:
    """MACs of a model in each of its executions."""
    meta = on_meta(model)
    published, biases = gmacs_and_biases(meta.copy(execution="published").eval())
    prefix, folded = gmacs(meta.copy(execution="prefix").eval()), folded_gmacs(meta)
    return Executions(
        published_gmacs=published,
        published_gmacs_with_biases=published + biases,
        prefix_gmacs=prefix,
        folded_gmacs=folded,
    )


def folded_gmacs(model: PromptedModel) -> float:
    """10^9 multiply-accumulates of one image once the model is folded, without the classifier; it is not run.

    Example:
        >>> import timm, vprompt
        >>> backbone = timm.create_model("vit_base_patch16_224")
        >>> round(folded_gmacs(attach(backbone, vprompt.VPT(50), num_classes=2)), 2)
        16.51
    """
    meta = on_meta(model)
    with QuickShapes():  # folding runs parts of the blocks
        return gmacs(meta.fold())


def check_prompts(prompts: Sequence[int]) -> None:
    """Raises a VPromptError for numbers of prompts that cannot be counted."""
    if not prompts:
        raise VPromptError("There is nothing to count: give at least one number of prompts, such as 0 or 50.")
    if any(count < 0 for count in prompts):
        raise VPromptError(f"Numbers of prompts must be at least 0, not {min(prompts)}.")
