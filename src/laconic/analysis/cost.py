"""What a method costs: multiply-accumulates and parameters, counted on the model itself without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from laconic.attachment import attach
from laconic.creation import create_backbone
from laconic.errors import LaconicError
from laconic.head import MLPHead
from laconic.meta import on_meta
from laconic.methods import VPT, Linear
from laconic.model import FoldedModel, PromptedModel


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


def cost(backbone: str, prompts: Sequence[int], *, shallow: bool = False, img_size: int | None = None) -> list[Cost]:
    """Costs of a backbone with different numbers of prompts; needs no weights and no download.

    Args:
        backbone: A timm name.
        prompts: Prompts per block (deep), or in all (shallow); 0 is the bare backbone.
        shallow: Count shallow instead of deep prompts.
        img_size: Input size in pixels where it should differ from the pre-training size.

    Returns:
        One `Cost` per entry of `prompts`.

    Raises:
        BackboneError: If the backbone is unknown or not supported.
        LaconicError: If a number of prompts is negative.

    Example:
        >>> plain, prompted = cost("vit_base_patch16_224", [0, 50])
        >>> round(plain.published_gmacs, 2), round(prompted.published_gmacs, 2), round(prompted.folded_gmacs, 2)
        (17.56, 22.22, 16.51)

    Source: Prompt Condensation (arXiv 2305.17223), Table 1, whose "GFLOPs" are multiply-accumulates.
    """
    if any(count < 0 for count in prompts):
        raise LaconicError(f"Numbers of prompts must be at least 0, not {min(prompts)}.")
    with torch.device("meta"):
        model = create_backbone(backbone, pretrained=False, img_size=img_size)
    depth = "shallow" if shallow else "deep"
    methods = {count: VPT(count, depth) if count else Linear() for count in prompts}
    return [replace(model_cost(attach(model, methods[n], num_classes=1)), prompts=n) for n in prompts]


def model_cost(model: PromptedModel) -> Cost:
    """Cost of a model as it stands, with whatever its method added, and whatever count of prompts each block has.

    Args:
        model: On any device; it is not run.
    """
    meta = on_meta(model)
    counts = model.prompt_counts
    used = sum(count > 0 for count in counts)
    return Cost(
        prompts=sum(counts) / used if used else 0,
        published_gmacs=_gmacs(meta.copy(execution="published").eval()),
        prefix_gmacs=_gmacs(meta.copy(execution="prefix").eval()),
        folded_gmacs=_gmacs(meta.fold()),
        prompt_params=sum(p.numel() for p in model.prompts),
    )


def folded_gmacs(model: PromptedModel) -> float:
    """10^9 multiply-accumulates of one image once the model is folded, without the classifier; it is not run.

    Example:
        >>> import timm
        >>> round(folded_gmacs(attach(timm.create_model("vit_base_patch16_224"), VPT(50), num_classes=2)), 2)
        16.51
    """
    return _gmacs(on_meta(model).fold())


def _gmacs(model: PromptedModel | FoldedModel) -> float:
    """10^9 multiply-accumulates of what the classifier sees of one image, counted as the model runs."""
    model.requires_grad_(False)
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *model.preprocessing.size, device=parameter.device, dtype=parameter.dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = model.features(image)
        if isinstance(model.head, MLPHead):
            model.head.represent(features)
    return counter.get_total_flops() / 2e9
