"""The classes of models that prompts can be put into, and where their blocks are; open like the attention wrappers."""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deepseek_vit import DeepseekVitClassifier
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.qwen3_vit import Qwen3VitClassifier
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from vprompt.utils.errors import BackboneError
from vprompt.utils.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Layout of a class of models: the place of its blocks, and what these see.

    Args:
        model: The class; it has timm's `forward_features` and `forward_head`. Subclasses count.
        blocks: Dotted path of its blocks, or of stages of blocks.
        windows: Whether blocks see windows of a map of tokens (Swin, SAM) instead of one sequence.
        leading: Whether class, distillation and register tokens stand before the patches in all blocks.
        channels_first: Whether the map of tokens is (B, C, H, W) between stages.
        fixed_batch: Whether it counts the images before its blocks and relies on it behind them.
    """

    model: type[nn.Module]
    blocks: str = "blocks"
    windows: bool = False
    leading: bool = True
    channels_first: bool = False
    fixed_batch: bool = False

    @property
    def name(self) -> str:
        """The class with its module."""
        return f"{self.model.__module__}.{self.model.__qualname__}"


LAYOUTS = Registry[Layout]("model layout", "vprompt.backbones.supported", "vprompt.models")

for _layout in (
    Layout(model=VisionTransformer),
    Layout(model=Eva),
    Layout(model=Beit),
    Layout(model=VisionTransformerRelPos),
    Layout(model=NaFlexVit),
    Layout(model=Cait, leading=False),  # its class token joins after these blocks
    Layout(model=DeepseekVitClassifier, blocks="encoder.blocks", fixed_batch=True),
    Layout(model=Qwen3VitClassifier, blocks="encoder.blocks", fixed_batch=True),
    Layout(model=SwinTransformer, blocks="layers", windows=True, leading=False),
    Layout(model=SwinTransformerV2, blocks="layers", windows=True, leading=False),
    Layout(model=SwinTransformerV2Cr, blocks="stages", windows=True, leading=False, channels_first=True),
    Layout(model=VisionTransformerSAM, windows=True, leading=False),
):
    LAYOUTS.register(_layout)


def layout_of(model: nn.Module) -> Layout:
    """The layout of a model's class, or of the nearest class that it is derived from.

    Raises:
        BackboneError: If there is none.
    """
    layouts = {layout.model: layout for layout in LAYOUTS}
    for cls in type(model).__mro__:
        if cls in layouts:
            return layouts[cls]
    raise BackboneError(
        f"The model class {type(model).__name__} is not supported; supported are timm's "
        f"{', '.join(cls.__name__ for cls in layouts)} (`vprompt backbones` lists the models)."
    )
