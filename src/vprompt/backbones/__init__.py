"""timm: what its models are like, how they are made, and their attention with prompts."""
