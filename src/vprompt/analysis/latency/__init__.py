"""Time per image with prompts."""
