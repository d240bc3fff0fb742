"""DINOv3: rotary positions, registers; timm's `Eva`."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.eva import Eva
from torch import Tensor

from vprompt.backbones.huggingface.base import BLOCKS, FAMILIES, Family


class DINOv3(Family):
    """`DINOv3ViTModel`; the feature is the class token behind the last norm."""

    name = "DINOv3ViTModel"
    types = ("dinov3_vit",)
    timm = Eva
    renames = (*BLOCKS, (r"\.ls([12])\.gamma$", r".gamma_\1"))
    positions = None
    sizes = "always"
    interpolation = "bilinear"

    def options(self, config: Any) -> dict[str, Any]:
        """Of `Eva`, in the form whose keys may have a bias."""
        options = super().options(config)
        del options["weight_init"]
        return {
            **options,
            "qkv_bias": config.query_bias or config.key_bias or config.value_bias,
            "attn_type": "rope",
            "init_values": 1.0,
            "num_reg_tokens": config.num_register_tokens,
            "use_abs_pos_emb": False,
            "use_rot_pos_emb": True,
            "rope_type": "dinov3",
            "rope_rotate_half": True,
            "rope_temperature": config.rope_theta,
            "use_fc_norm": False,
            "swiglu_mlp": config.use_gated_mlp,
            "swiglu_align_to": 1,
        }

    def finish(self, state: dict[str, Tensor]) -> None:
        """The plain MLP's first layer is called like the second of the gated one; registers may be none."""
        if not any(".fc1_g." in name for name in state):
            for name in [name for name in state if ".fc1_x." in name]:
                state[name.replace(".fc1_x.", ".fc1.")] = state.pop(name)
        if not state["reg_token"].numel():
            del state["reg_token"]

    def settle(self, module: Any, trunk: Any, images: Tensor) -> None:
        """Rotations as transformers computes them, in its precision."""
        cos, sin = trunk.rope_embeddings(images)
        module.rope.to_empty(device=images.device).init_non_persistent_buffers()
        module.rope.pos_embed_cached = torch.cat([sin, cos], dim=-1)


FAMILIES.register(DINOv3)
