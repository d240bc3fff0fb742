"""Models of `transformers`: converted exactly into timm's modules, one file a family."""
