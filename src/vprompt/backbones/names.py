"""Short names of backbones, and what timm calls them; without torch, as commands list them."""

from __future__ import annotations

from typing import Literal

from vprompt.backbones.bundled import BUNDLED_BACKBONE

BackbonePrecision = Literal["fp32", "bf16", "int8", "int4", "fp8"]
"""How the weights of a backbone's linear layers are held; fp32: as they are."""

SHORT_NAMES = {
    "small": "vit_small_patch16_224.augreg_in21k",
    "base": "vit_base_patch16_224.augreg_in21k",
    "large": "vit_large_patch16_224.augreg_in21k",
    "bundled": BUNDLED_BACKBONE,
}
"""Short names. The three sizes were trained on ImageNet-21k, as the papers' backbones, under a free licence."""


def full_name(name: str) -> str:
    """timm's name for a short one; every other name as it is.

    Example:
        >>> full_name("base"), full_name("swin_tiny_patch4_window7_224")
        ('vit_base_patch16_224.augreg_in21k', 'swin_tiny_patch4_window7_224')
    """
    return SHORT_NAMES.get(name.lower(), name)
