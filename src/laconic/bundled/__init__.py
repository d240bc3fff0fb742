"""Files that come with laconic; `laconic.data` and `laconic.backbone` read them."""

BUNDLED_BACKBONE = "laconic_vit_tiny_patch8_64.tiny_imagenet"
"""timm name of the backbone that comes with the package: a ViT for 64x64 images, trained on Tiny ImageNet."""
