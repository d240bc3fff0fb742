"""Which models and blocks of timm prompts can be put into, and what each of them does to a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.cait import Cait, LayerScaleBlock
from timm.models.deepseek_vit import DeepseekVitBlock, DeepseekVitClassifier
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.naflexvit import NaFlexVit
from timm.models.qwen3_vit import Qwen3VitClassifier
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr, SwinTransformerV2CrBlock
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import RelPosBlock, ResPostRelPosBlock, VisionTransformerRelPos
from timm.models.vision_transformer_sam import Block as SamBlock
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn


@dataclass(frozen=True, kw_only=True)
class SequenceModel:
    """A model whose blocks see one sequence of tokens.

    Args:
        blocks: Dotted path of its blocks.
        leading: Tells how many tokens stand before the patches.
    """

    blocks: str = "blocks"
    leading: Callable[[Any], int] = lambda model: model.num_prefix_tokens


SEQUENCES: dict[type[nn.Module], SequenceModel] = {
    VisionTransformer: SequenceModel(),
    Eva: SequenceModel(),
    Beit: SequenceModel(),
    VisionTransformerRelPos: SequenceModel(),
    NaFlexVit: SequenceModel(),
    # The class token of CaiT joins after these blocks.
    Cait: SequenceModel(leading=lambda model: 0),
    DeepseekVitClassifier: SequenceModel(blocks="encoder.blocks"),
    Qwen3VitClassifier: SequenceModel(blocks="encoder.blocks"),
}
"""Model class -> where its blocks are; subclasses count."""

WINDOWS: dict[type[nn.Module], str] = {
    SwinTransformer: "layers",
    SwinTransformerV2: "layers",
    SwinTransformerV2Cr: "stages",
    VisionTransformerSAM: "blocks",
}
"""Class of a model whose blocks see windows of a map of tokens -> dotted path of its stages, or of its blocks where
there is but one stage; subclasses count."""

FIXED_BATCH: frozenset[type[nn.Module]] = frozenset({DeepseekVitClassifier, Qwen3VitClassifier})
"""Model classes that count the images before their blocks and rely on it behind them."""

ENTRIES: dict[type[nn.Module], str | None] = {
    Block: "norm1",
    ResPostBlock: None,
    ParallelScalingBlock: "in_norm",
    DiffParallelScalingBlock: "in_norm",
    EvaBlock: "norm1",
    EvaBlockPostNorm: None,
    DeepseekVitBlock: "norm1",
    BeitBlock: "norm1",
    RelPosBlock: "norm1",
    ResPostRelPosBlock: None,
    LayerScaleBlock: "norm1",
    SwinTransformerBlock: "norm1",
    SwinTransformerV2Block: None,
    SwinTransformerV2CrBlock: None,
    SamBlock: "norm1",
}
"""Block class -> the child that a token passes on its way to attention, if any."""

CUTTABLE: frozenset[type[nn.Module]] = frozenset({Block, EvaBlock, BeitBlock, RelPosBlock})
"""Block classes of which `LeadingTokensBlock` can compute the first tokens only."""
