"""ViT and what is built like it: DeiT, MAE, DINOv2 with and without registers."""

from __future__ import annotations

from typing import Any

from timm.layers.mlp import SwiGLU
from torch import Tensor

from vprompt.backbones.huggingface.base import FAMILIES, Family


class ViT(Family):
    """`ViTModel`; the feature is the class token behind the last norm, as `ViTForImageClassification` takes it."""

    name = "ViTModel"
    types = ("vit",)
    mean = std = (0.5, 0.5, 0.5)
    interpolation = "bilinear"

    def options(self, config: Any) -> dict[str, Any]:
        """With biases as configured."""
        return {**super().options(config), "qkv_bias": config.qkv_bias}


class DeiT(ViT):
    """`DeiTModel`; the feature is the class token's, the distillation token stands beside it like a register."""

    name = "DeiTModel"
    types = ("deit",)
    positions = 2
    mean, std = Family.mean, Family.std
    interpolation = "bicubic"

    def options(self, config: Any) -> dict[str, Any]:
        """With one token more."""
        return {**super().options(config), "reg_tokens": 1, "no_embed_class": True}


class MAE(ViT):
    """`ViTMAEModel`, seeing all patches."""

    name = "ViTMAEModel"
    types = ("vit_mae",)
    mean, std = Family.mean, Family.std
    interpolation = "bicubic"

    def feature(self, trunk: Any, images: Tensor, **options: Any) -> Tensor:
        """Without masking, whatever the configuration says."""
        ratio, trunk.config.mask_ratio = trunk.config.mask_ratio, 0.0
        try:
            return super().feature(trunk, images, **options)
        finally:
            trunk.config.mask_ratio = ratio


class DINOv2(ViT):
    """`Dinov2Model`."""

    name = "Dinov2Model"
    types = ("dinov2",)
    sizes = "always"
    mean, std = Family.mean, Family.std
    interpolation = "bicubic"

    def hidden(self, config: Any) -> int:
        """From a ratio; two thirds of it, as a multiple of 8, where the MLP is gated."""
        hidden = int(config.hidden_size * config.mlp_ratio)
        return (int(hidden * 2 / 3) + 7) // 8 * 8 if config.use_swiglu_ffn else hidden

    def activation(self, config: Any) -> str:
        """Gated MLPs have their own."""
        return "silu" if config.use_swiglu_ffn else config.hidden_act

    def options(self, config: Any) -> dict[str, Any]:
        """With layer scale, and a gated MLP where there is one."""
        gated = {"mlp_layer": SwiGLU} if config.use_swiglu_ffn else {}
        return {**super().options(config), "init_values": 1.0, **gated}


class DINOv2WithRegisters(DINOv2):
    """`Dinov2WithRegistersModel`; registers have no position."""

    name = "Dinov2WithRegistersModel"
    types = ("dinov2_with_registers",)

    def options(self, config: Any) -> dict[str, Any]:
        """With registers."""
        return {**super().options(config), "reg_tokens": config.num_register_tokens, "no_embed_class": True}


for _family in (ViT, DeiT, MAE, DINOv2, DINOv2WithRegisters):
    FAMILIES.register(_family)
