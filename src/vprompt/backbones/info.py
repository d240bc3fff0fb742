"""A timm model as prompts see it: its blocks, widths, pooling, input, and a fingerprint of its weights."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.layers import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from vprompt.backbones.attention.base import BlockForm
from vprompt.backbones.attention.registry import WRAPPERS, wrapper_for
from vprompt.backbones.frozen_linear import FrozenLinear
from vprompt.backbones.supported import layout_of
from vprompt.data.preprocessing import Preprocessing
from vprompt.utils.errors import BackboneError
from vprompt.utils.serialization import brief

ROUNDED = (torch.float32, torch.float16, torch.bfloat16)
"""Types that weights are rounded to, to run or to keep them cheaply."""


@dataclass(frozen=True, kw_only=True)
class BlockSite:
    """The place of a block's attention in the model.

    Args:
        path: Dotted path of the block.
        attention: Dotted path of its attention; the block's own where the block is its attention.
        entry: Dotted path of what a token passes before attention; None where it passes nothing.
        width: D, the width of a token.
    """

    path: str
    attention: str
    entry: str | None
    width: int


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """A backbone as prompts see it.

    Args:
        name: What `create_backbone` makes it by (timm's name with its tag, or hf-hub: or local-dir: and the
            place), or the class of a model that timm did not make.
        blocks: In forward order.
        stages: Dotted path of the stages, or of the blocks of the only one, where blocks see windows of a map of tokens
            (Swin, SAM); None where they see one sequence.
        patch_size: Height and width in pixels.
        num_prefix_tokens: Class, distillation and register tokens at the front of the sequence.
        class_token: Whether the first of them is a class token.
        pooling: How tokens become one feature: `"token"`, `"avg"`, ... as timm calls it, or `"attention"`.
        num_features: Width of the pooled feature.
        leading_tokens: How many tokens from the front the pooling reads, where it reads no others; else None.
        attended: How many tokens a query sees at most, without prompts.
        channels_first: Whether a map of tokens is (B, C, H, W) between stages.
        fixed_batch: Whether it counts the images before its blocks and relies on it behind them.
        any_size: Whether it takes images of other sizes than that of `preprocessing` as they come.
        preprocessing: What the model was trained to see.
    """

    name: str
    blocks: tuple[BlockSite, ...]
    stages: str | None
    patch_size: tuple[int, int]
    num_prefix_tokens: int
    class_token: bool
    pooling: str
    num_features: int
    leading_tokens: int | None
    attended: int
    channels_first: bool
    fixed_batch: bool
    any_size: bool
    preprocessing: Preprocessing

    __repr__ = brief

    @property
    def widths(self) -> list[int]:
        """D_l for every block."""
        return [block.width for block in self.blocks]


def describe(model: nn.Module) -> BackboneInfo:
    """Describes a timm model as prompts see it.

    Args:
        model: A model made by timm, or an instance of a supported class (`vprompt.backbones.supported`).

    Raises:
        BackboneError: If its class, or the class of a block or of an attention in it, is not supported.

    Example:
        >>> import timm
        >>> info = describe(timm.create_model("vit_tiny_patch16_224"))
        >>> len(info.blocks), info.widths[0], info.patch_size, info.leading_tokens
        (12, 192, (16, 16), 1)
    """
    timm_model: Any = model
    layout = layout_of(model)
    blocks = _blocks(model, layout.blocks)
    sites = tuple(_site(path, block) for path, block in blocks)
    leading: int = timm_model.num_prefix_tokens if layout.leading else 0
    embed: Any = model.get_submodule(patch_embed_path(model))
    preprocessing = _preprocessing(model, embed)
    # In pixels, also behind a convolutional stem.
    side = embed.feat_ratio(as_scalar=False) if hasattr(embed, "feat_ratio") else embed.patch_size
    patch = int(side[0]), int(side[1])
    patches = (preprocessing.size[0] // patch[0]) * (preprocessing.size[1] // patch[1])
    info = BackboneInfo(
        name=_name(model),
        blocks=sites,
        stages=layout.blocks if layout.windows else None,
        patch_size=patch,
        num_prefix_tokens=leading,
        class_token=leading > 0 and getattr(model, "cls_token", getattr(embed, "cls_token", None)) is not None,
        pooling=_pooling(timm_model),
        num_features=timm_model.head_hidden_size,
        leading_tokens=_leading_tokens(timm_model, blocks[-1][1], leading),
        attended=max(_window_area(block) or patches for _, block in blocks) if layout.windows else leading + patches,
        channels_first=layout.channels_first,
        fixed_batch=layout.fixed_batch,
        any_size=not getattr(embed, "strict_img_size", False),
        preprocessing=preprocessing,
    )
    if info.pooling == "":
        raise BackboneError(
            f"The {type(model).__name__} has no pooling, so there is no feature to classify; make it with "
            "global_pool='avg' or 'token'."
        )
    check_size(model, info, preprocessing.size)
    return info


def check_size(model: nn.Module, info: BackboneInfo, size: tuple[int, int]) -> None:
    """Checks that a model with this description takes images of a size.

    A fixed size may leave a margin of pixels that no patch covers; a free one may not.

    Raises:
        BackboneError: It does not.
    """
    embed, own, patch = model.get_submodule(patch_embed_path(model)), info.preprocessing.size, info.patch_size
    if size != own and not info.any_size:
        there, here = ("×".join(map(str, pair)) for pair in (size, own))
        raise BackboneError(
            f"The preprocessing makes images of {there} pixels, and the backbone takes {here}; make it with img_size."
        )
    if not isinstance(embed, PatchEmbed) or embed.dynamic_img_pad:
        return
    if any(pixels < side or (info.any_size and pixels % side) for pixels, side in zip(size, patch, strict=True)):
        raise BackboneError(
            f"The image size {'x'.join(map(str, size))} cannot be cut into patches of {'x'.join(map(str, patch))} "
            "pixels."
        )


def fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 over names, shapes and values of all weights but the classifier's, first 16 hex digits.

    Two models with the same fingerprint give the same features; the type in which weights are held counts.

    Args:
        model: A timm model.
        dtype: Of the same weights, rounded to this type.
    """
    digest = hashlib.sha256()
    skipped = classifier_parameters(model)
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if id(tensor) in skipped:
            continue
        values = tensor.detach().to(dtype if tensor.is_floating_point() else None)
        digest.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
        digest.update(values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def rounded_fingerprints(model: nn.Module) -> tuple[str, ...]:
    """The fingerprints that a model's weights would have in types of lower precision than their own."""
    held = precision_of(model).itemsize
    return tuple(fingerprint(model, dtype) for dtype in ROUNDED if dtype.itemsize < held)


def precision_of(model: nn.Module) -> torch.dtype:
    """The type of a model's numbers; of several, the most precise."""
    return functools.reduce(torch.promote_types, {p.dtype for p in model.parameters() if p.is_floating_point()})


def classifier_parameters(model: nn.Module) -> set[int]:
    """The ids of the parameters of a timm model's own classifier, which vprompt never uses."""
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None  # pyright: ignore[reportCallIssue]
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    return {id(p) for head in heads if isinstance(head, nn.Module) for p in head.parameters()}


def num_parameters(model: nn.Module) -> int:
    """Numbers in a timm model without its classifier.

    Example:
        >>> import timm
        >>> num_parameters(timm.create_model("vit_base_patch16_224"))
        85798656
    """
    left_out = classifier_parameters(model)
    coded = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, FrozenLinear))
    return coded + sum(p.numel() for p in model.parameters() if id(p) not in left_out)


def patch_embed_path(model: nn.Module) -> str:
    """Dotted path of what makes patches of an image in a timm model."""
    return next((name for name in ("patch_embed", "embeds") if hasattr(model, name)), "encoder.patch_embed")


def _blocks(model: nn.Module, within: str) -> list[tuple[str, nn.Module]]:
    """Paths and blocks in forward order, those of stages included."""
    blocks: list[tuple[str, nn.Module]] = []
    for name, child in model.get_submodule(within).named_children():
        path = f"{within}.{name}"
        blocks += _blocks(model, f"{path}.blocks") if hasattr(child, "blocks") else [(path, child)]
    return blocks


def _window_area(block: Any) -> int:
    """Tokens in a window; 0 where the whole map is one."""
    size = block.window_size
    return size[0] * size[1] if isinstance(size, tuple) else size**2


def _site(path: str, block: nn.Module) -> BlockSite:
    attention, entry = _attention_in(block), _form_of(block).entry
    return BlockSite(
        path=path,
        attention=path if attention is block else f"{path}.attn",
        entry=None if entry is None else f"{path}.{entry}",
        width=wrapper_for(attention)(attention, nn.Identity()).width,
    )


def _attention_in(block: nn.Module) -> nn.Module:
    return getattr(block, "attn", block)


def _form_of(block: nn.Module) -> BlockForm:
    """The form of a block around its attention, which must be of a class that may stand there."""
    known = {cls for wrapper in WRAPPERS for cls in wrapper.blocks}
    if type(block) not in known:
        listed = ", ".join(sorted({cls.__name__ for cls in known}))
        raise BackboneError(f"The block class {type(block).__name__} is not supported; supported are {listed}.")
    attention = _attention_in(block)
    form = wrapper_for(attention).blocks.get(type(block))
    if form is None:
        raise BackboneError(
            f"The attention class {type(attention).__name__} is not supported in blocks of class "
            f"{type(block).__name__}; register an attention wrapper that names it."
        )
    return form


def _name(model: nn.Module) -> str:
    config: Any = getattr(model, "pretrained_cfg", None)
    if not config or not config.get("architecture"):
        return type(model).__name__
    if config.get("source") == "hf-hub" and config.get("hf_hub_id"):
        return f"hf-hub:{config['hf_hub_id']}"
    if config.get("source") == "local-dir" and config.get("file"):
        return f"local-dir:{config['file']}"
    return f"{config['architecture']}.{config['tag']}" if config.get("tag") else config["architecture"]


def _pooling(model: Any) -> str:
    if getattr(model, "attn_pool", None) is not None:
        return "attention"
    pool = getattr(model, "global_pool", None)
    return pool if isinstance(pool, str) else model.head.global_pool.pool_type


def _leading_tokens(model: Any, last_block: nn.Module, leading: int) -> int | None:
    if not leading or _pooling(model) != "token" or not _form_of(last_block).cuttable:
        return None
    return leading if isinstance(model, VisionTransformerDistilled) else 1


def _preprocessing(model: nn.Module, embed: Any) -> Preprocessing:
    config = resolve_model_data_config(model)
    size = getattr(embed, "img_size", None) or config["input_size"][1:]
    channels = next((part.in_channels for part in embed.modules() if isinstance(part, nn.Conv2d)), 3)

    def per_channel(values: Sequence[float]) -> tuple[float, ...]:
        """Of the channels that timm makes of those of RGB: their mean, or one after the other."""
        own = (sum(values) / len(values),) if channels == 1 else tuple(values) * channels
        return tuple(values) if channels == len(values) else own[:channels]

    return Preprocessing(
        size=(int(size[0]), int(size[1])),
        mean=per_channel(config["mean"]),
        std=per_channel(config["std"]),
        interpolation=config["interpolation"],
    )
