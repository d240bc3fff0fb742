"""Tasks that are rendered, not read."""

from vprompt.data.synthetic.tasks import PREFIX, SIZES, synthetic_listing, synthetic_names

__all__ = ["PREFIX", "SIZES", "synthetic_listing", "synthetic_names"]
