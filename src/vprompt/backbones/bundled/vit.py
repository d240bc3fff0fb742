"""The bundled backbone, registered with timm like any other of its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from vprompt.backbones.bundled import BUNDLED_BACKBONE

__all__: list[str] = []

default_cfgs = generate_default_cfgs(
    {
        BUNDLED_BACKBONE: {
            "file": str(Path(__file__).with_name("backbone.safetensors")),
            "input_size": (3, 64, 64),
            "num_classes": 200,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def vprompt_vit_tiny_patch8_64(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT, patch 8, width 192, 12 blocks, 3 heads, class token, 64x64 pixels: 5.5 M parameters."""
    arguments: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 12, "num_heads": 3}
    return build_model_with_cfg(
        VisionTransformer,
        "vprompt_vit_tiny_patch8_64",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **{**arguments, **kwargs},
    )
