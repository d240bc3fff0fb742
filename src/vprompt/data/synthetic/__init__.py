"""Tasks that are rendered, not read."""
