"""What differs between families of transformers' vision models: names of parameters, options in timm, pooling."""

from __future__ import annotations

import re
from functools import partial
from typing import Any, ClassVar

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vprompt.utils.registry import Registry

Pairs = tuple[tuple[str, str], ...]

BLOCKS: Pairs = (
    (r"(encoder\.layers?|layers|model\.layer)\.(?=\d)", "blocks."),
    (r"\.(self_attn|attention)\.(attention\.)?([qkv])_proj\.", r".attn.\3."),
    (r"\.(self_attn|attention)\.(o|out)_proj\.", ".attn.proj."),
    (r"\.(layer_norm1|layernorm_before)\.", ".norm1."),
    (r"\.(layer_norm2|layernorm_after)\.", ".norm2."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^(post_)?layernorm\.", "norm."),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.(distillation_token|register_tokens)$", "reg_token"),
    (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?(\.projection)?\.(?=weight|bias)", "patch_embed.proj."),
)
"""Patterns in the names of transformers' parameters, and what timm writes instead; all that match are applied."""


class Family:
    """A class of transformers' models that timm has a module of the same function for."""

    name: ClassVar[str]
    """The class; models that contain one count."""
    types: ClassVar[tuple[str, ...]]
    """Types of configurations that it is made from by name."""
    timm: ClassVar[type[nn.Module]] = VisionTransformer
    renames: ClassVar[Pairs] = BLOCKS
    unused: ClassVar[str] = r"embeddings\.mask_token|pooler\."
    """Pattern of the beginnings of parameters that the feature does not depend on."""
    positions: ClassVar[int | None] = 1
    """Tokens before the patches that have a position; None where positions are not learned."""
    sizes: ClassVar[str] = "asked"
    """Images of another size than the configuration's: taken only when `"asked"` (`interpolate_pos_encoding`), or
    `"always"`; the image processor's size then is the model's."""
    mean: ClassVar[tuple[float, ...]] = IMAGENET_DEFAULT_MEAN
    std: ClassVar[tuple[float, ...]] = IMAGENET_DEFAULT_STD
    interpolation: ClassVar[str] = "bicubic"
    """Preprocessing where no image processor says it."""

    def loaded(self, config: Any) -> str:
        """Name of the class that is made by name."""
        del config
        return self.name

    def hidden(self, config: Any) -> int:
        """Width of the MLP."""
        return config.intermediate_size

    def activation(self, config: Any) -> str:
        """transformers' name of what the MLPs apply."""
        return config.hidden_act

    def options(self, config: Any) -> dict[str, Any]:
        """Of timm's class, beside `img_size`."""
        return {
            "patch_size": pair(config.patch_size),
            "in_chans": config.num_channels,
            "num_classes": 0,
            "global_pool": "token",
            "embed_dim": config.hidden_size,
            "depth": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_ratio": (self.hidden(config) + 0.5) / config.hidden_size,  # timm rounds the product down
            "norm_layer": partial(nn.LayerNorm, eps=config.layer_norm_eps),
            "weight_init": "skip",
        }

    def finish(self, state: dict[str, Tensor]) -> None:
        """Changes what renaming alone does not, in place."""

    def settle(self, module: Any, trunk: Any, images: Tensor) -> None:
        """Makes what is not among the weights, for images like these."""

    def feature(self, trunk: Any, images: Tensor, **options: Any) -> Tensor:
        """The pooled feature, computed by transformers."""
        return trunk(pixel_values=images, **options).last_hidden_state[:, 0]

    def renamed(self, name: str) -> str:
        """timm's name of a parameter."""
        for pattern, instead in self.renames:
            name = re.sub(pattern, instead, name)
        return name


def pair(size: Any) -> tuple[int, int]:
    """Height and width of one number or two."""
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


FAMILIES = Registry[type[Family]]("model of transformers", "vprompt.backbones.huggingface", "vprompt.huggingface")
