"""CLIP: a norm before the blocks; the feature is the class token behind the last norm, before the projection."""

from __future__ import annotations

from typing import Any

from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor

from vprompt.backbones.huggingface.base import BLOCKS, FAMILIES, Family


class CLIP(Family):
    """`CLIPVisionModel`; where there is a projection to the space of texts, it is the module's `head`."""

    name = "CLIPVisionModel"
    types = ("clip", "clip_vision_model")
    renames = (*BLOCKS, (r"^pre_layrnorm\.", "norm_pre."))
    mean, std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    def loaded(self, config: Any) -> str:
        """With the projection, unless the file was saved without."""
        return self.name if config.architectures == [self.name] else "CLIPVisionModelWithProjection"

    def options(self, config: Any) -> dict[str, Any]:
        """With a norm before the blocks."""
        return {**super().options(config), "pre_norm": True}

    def finish(self, state: dict[str, Tensor]) -> None:
        """The class token is a vector in transformers."""
        state["cls_token"] = state["cls_token"].reshape(1, 1, -1)

    def feature(self, trunk: Any, images: Tensor, **options: Any) -> Tensor:
        """Behind the last norm."""
        return trunk(pixel_values=images, **options).pooler_output


FAMILIES.register(CLIP)
