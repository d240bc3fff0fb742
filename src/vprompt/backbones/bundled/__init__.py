"""Files that come with vprompt; `vprompt.data` and `vprompt.backbone` read them."""

BUNDLED_BACKBONE = "vprompt_vit_tiny_patch8_64.tiny_imagenet"
"""timm name of the backbone that comes with the package: a ViT for 64x64 images, trained on Tiny ImageNet."""
