"""Attaching a method to a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import describe
from vprompt.data.preprocessing import Preprocessing
from vprompt.methods.base import Method
from vprompt.methods.layers.head import HeadInit, initialise
from vprompt.methods.vpt import VPT
from vprompt.model.model import Execution, PromptedModel
from vprompt.utils.errors import BackboneError, VPromptError


def attach(
    backbone: str | nn.Module,
    method: Method | None = None,
    *,
    num_classes: int,
    execution: Execution = "prefix",
    head_init: HeadInit = "paper",
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
    img_size: int | tuple[int, int] | None = None,
) -> PromptedModel:
    """Attaches a method, such as prompts, and a head to a frozen vision transformer.

    Prompts are drawn from uniform(-v, v) (see `init_bound` in `vprompt.methods.layers.prompts`) with torch's global
    generator: call `torch.manual_seed` to repeat.

    Args:
        backbone: `"small"`, `"base"` or `"large"`; a timm name (`hf-hub:` and `local-dir:` included); or a timm model,
            which is not changed.
        method: The method; `VPT()`, deep with 20 prompts, when not given.
        num_classes: At least 1.
        execution: `"prefix"` or `"published"`; the same function, see `PromptedModel`.
        head_init: `"paper"` draws the head's weight from Kaiming's normal distribution (fan out) and sets its bias to
            -ln 99; `"zero"` starts from zeros, which AdamW at usual rates gets further from in a short training. Of a
            deeper head, its last layer.
        classes: Names of the classes.
        preprocessing: Preprocessing of images; the backbone's own when not given.
        pretrained: With a name: load its weights.
        weights: With a name: file with other weights than those that the name stands for; see
            `vprompt.backbones.factory.create_backbone`.
        img_size: With a name: input size in pixels (one number, or height and width), where it should differ from the
            pre-training size.

    Returns:
        A `PromptedModel` in training mode.

    Raises:
        BackboneError: If the backbone cannot be made or is not supported.
        VPromptError: If another argument is out of range.

    Example:
        >>> import timm, torch
        >>> model = attach(timm.create_model("test_vit"), VPT(num_prompts=4), num_classes=3)
        >>> model(torch.zeros(2, 3, 160, 160)).shape, model.prompt_counts
        (torch.Size([2, 3]), [4, 4, 4, 4, 4, 4])

    Source: VPT (arXiv 2203.12119).
    """
    if num_classes < 1:
        raise VPromptError(f"A classifier needs at least one class, not {num_classes}.")
    method = VPT() if method is None else method
    if isinstance(backbone, str):
        backbone = create_backbone(backbone, pretrained=pretrained, weights=weights, img_size=img_size)
    elif img_size is not None:
        raise BackboneError("img_size goes with a backbone's name; a model object has its input size already.")
    elif weights is not None:
        raise BackboneError("weights goes with a backbone's name; a model object has its weights already.")
    info = describe(backbone)
    prompts, kv_prompts = method.make_prompts(info), method.make_kv_prompts(backbone, info)
    head = initialise(method.make_head(info.num_features, num_classes), head_init)
    like = next(backbone.parameters())
    model = PromptedModel(
        backbone,
        method,
        prompts,
        head,
        kv_prompts=kv_prompts,
        execution=execution,
        classes=classes,
        preprocessing=preprocessing,
    )
    return model.to(device=like.device, dtype=like.dtype).train()
