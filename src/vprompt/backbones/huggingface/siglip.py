"""SigLIP: no class token; the feature is that of its attention head, or the mean of tokens where it has none."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vprompt.backbones.huggingface.base import BLOCKS, FAMILIES, Family


class SigLIP(Family):
    """`SiglipVisionModel`."""

    name = "SiglipVisionModel"
    types = ("siglip", "siglip_vision_model")
    renames = (
        (r"^head\.probe$", "attn_pool.latent"),
        (r"^head\.attention\.in_proj_", "attn_pool.in_proj."),
        (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
        (r"^head\.layernorm\.", "attn_pool.norm."),
        (r"^head\.mlp\.", "attn_pool.mlp."),
        *BLOCKS,
    )
    positions = 0
    mean = std = (0.5, 0.5, 0.5)

    def options(self, config: Any) -> dict[str, Any]:
        """With attention as pooling."""
        pooling = "map" if config.vision_use_head else "avg"
        return {**super().options(config), "class_token": False, "global_pool": pooling, "fc_norm": False}

    def finish(self, state: dict[str, Tensor]) -> None:
        """One projection of transformers is two of timm: of the query, and of keys and values."""
        for kind in ("weight", "bias") if "attn_pool.latent" in state else ():
            joined = state.pop(f"attn_pool.in_proj.{kind}")
            width = len(joined) // 3
            state[f"attn_pool.q.{kind}"], state[f"attn_pool.kv.{kind}"] = joined[:width], joined[width:]

    def feature(self, trunk: Any, images: Tensor, **options: Any) -> Tensor:
        """Pooled by attention, or the mean."""
        outputs = trunk(pixel_values=images, **options)
        return outputs.last_hidden_state.mean(1) if outputs.pooler_output is None else outputs.pooler_output


FAMILIES.register(SigLIP)
