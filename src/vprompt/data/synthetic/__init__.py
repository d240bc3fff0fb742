"""Tasks that are rendered, not read."""

from vprompt.data.synthetic.tasks import PREFIX, SIZES, load_synthetic, synthetic_names

__all__ = ["PREFIX", "SIZES", "load_synthetic", "synthetic_names"]
