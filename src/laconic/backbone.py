"""What we need to know of a timm model: its blocks, widths, pooling, input, and a fingerprint of its weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import nn

from laconic.errors import BackboneError
from laconic.prefix import adapter_for
from laconic.preprocessing import Preprocessing

ENTRIES: dict[type[nn.Module], str | None] = {Block: "norm1", ResPostBlock: None}
"""Block class -> the child that a token passes on its way to attention, if any."""


@dataclass(frozen=True, kw_only=True)
class BlockSite:
    """Where a block's attention stands in the model.

    Args:
        path: Dotted path of the block.
        attention: Dotted path of its attention.
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
        name: What `laconic.creation.create_backbone` makes it by (timm's name with its tag, or hf-hub: or local-dir:
            and the place), or the class of a model that timm did not make.
        blocks: In forward order.
        patch_size: Height and width in pixels.
        num_prefix_tokens: Class, distillation and register tokens at the front of the sequence.
        class_token: Whether the first of them is a class token.
        num_features: Width of the pooled feature.
        leading_tokens: How many tokens from the front the pooling reads, where it reads no others; else None.
        preprocessing: What the model was trained to see.
    """

    name: str
    blocks: tuple[BlockSite, ...]
    patch_size: tuple[int, int]
    num_prefix_tokens: int
    class_token: bool
    num_features: int
    leading_tokens: int | None
    preprocessing: Preprocessing

    @property
    def widths(self) -> list[int]:
        """D_l for every block."""
        return [block.width for block in self.blocks]


def describe(model: nn.Module) -> BackboneInfo:
    """Reads what prompts need to know of a timm model.

    Args:
        model: A model made by timm, or an instance of one of its supported classes.

    Raises:
        BackboneError: If its class, or the class of a block or of an attention in it, is not supported.

    Example:
        >>> import timm
        >>> info = describe(timm.create_model("vit_tiny_patch16_224"))
        >>> len(info.blocks), info.widths[0], info.patch_size, info.leading_tokens
        (12, 192, (16, 16), 1)
    """
    if not isinstance(model, VisionTransformer):
        raise BackboneError(
            f"The model class {type(model).__name__} is not supported; supported are timm's VisionTransformer models "
            "(ViT, DeiT, AugReg, CLIP, DINOv2)."
        )
    preprocessing, patch = _preprocessing(model), tuple(model.patch_embed.patch_size)
    if any(pixels % side or pixels < side for pixels, side in zip(preprocessing.size, patch, strict=True)):
        size = "x".join(map(str, preprocessing.size))
        raise BackboneError(f"The image size {size} cannot be cut into patches of {'x'.join(map(str, patch))} pixels.")
    sites: list[BlockSite] = []
    for index, block in enumerate(model.blocks):
        if type(block) not in ENTRIES:
            known = ", ".join(sorted(cls.__name__ for cls in ENTRIES))
            raise BackboneError(f"The block class {type(block).__name__} is not supported; supported are {known}.")
        attention: nn.Module = block.get_submodule("attn")
        adapter_for(attention)
        entry = ENTRIES[type(block)]
        path = f"blocks.{index}"
        sites.append(
            BlockSite(
                path=path,
                attention=f"{path}.attn",
                entry=None if entry is None else f"{path}.{entry}",
                width=model.embed_dim,
            )
        )
    return BackboneInfo(
        name=_name(model),
        blocks=tuple(sites),
        patch_size=patch,
        num_prefix_tokens=model.num_prefix_tokens,
        class_token=model.has_class_token,
        num_features=model.head_hidden_size,
        leading_tokens=_leading_tokens(model),
        preprocessing=preprocessing,
    )


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights but the classifier's, first 16 hex digits.

    Two models with the same fingerprint give the same features; the type in which weights are held counts.
    """
    digest = hashlib.sha256()
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None  # pyright: ignore[reportCallIssue]
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    skipped = {id(p) for head in heads if isinstance(head, nn.Module) for p in head.parameters()}
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if id(tensor) in skipped:
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _name(model: VisionTransformer) -> str:
    config: Any = getattr(model, "pretrained_cfg", None)
    if not config or not config.get("architecture"):
        return type(model).__name__
    if config.get("source") == "hf-hub" and config.get("hf_hub_id"):
        return f"hf-hub:{config['hf_hub_id']}"
    if config.get("source") == "local-dir" and config.get("file"):
        return f"local-dir:{config['file']}"
    return f"{config['architecture']}.{config['tag']}" if config.get("tag") else config["architecture"]


def _leading_tokens(model: VisionTransformer) -> int | None:
    if model.global_pool != "token" or model.attn_pool is not None or type(model.blocks[-1]) is not Block:
        return None
    return model.num_prefix_tokens if isinstance(model, VisionTransformerDistilled) else 1


def _preprocessing(model: VisionTransformer) -> Preprocessing:
    config = resolve_model_data_config(model)
    size = model.patch_embed.img_size or config["input_size"][1:]
    return Preprocessing(
        size=(int(size[0]), int(size[1])),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )
