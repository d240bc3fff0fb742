"""The backbone that comes with the package."""

BUNDLED_BACKBONE = "vprompt_vit_tiny_patch8_64.tiny_imagenet"
"""timm name of the backbone that comes with the package: a ViT for 64x64 images, trained on Tiny ImageNet."""

FORMER_NAMES = {"laconic_vit_tiny_patch8_64": "vprompt_vit_tiny_patch8_64"}
"""Architectures under the names that older adapters know them by, and their names today."""
