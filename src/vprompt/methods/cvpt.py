"""CVPT: tokens attend to prompts after each block's attention, by a second one with the same frozen weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vprompt.methods.base import MAX_PROMPTS, Method, option
from vprompt.methods.registry import register
from vprompt.utils.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vprompt.backbones.attention.base import PrefixAttention
    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.tuned import Tuning


@register
@dataclass(frozen=True)
class CVPT(Method):
    """Cross-attention of the tokens to prompts of each block, with the block's own frozen weights, and a linear head.

    After attention, x becomes x + W_O softmax((W_Q x)(W_K P)ᵀ/√d)(W_V P). The prompts P are Xavier-uniform at the
    start. For backbones of timm's usual blocks (ViT, DeiT, DINOv2, ...).

    Args:
        num_prompts: P, prompts per block; 1 to 10,000.

    Raises:
        VPromptError: If there are fewer or more.

    Example:
        >>> CVPT(num_prompts=5).size
        'p5'

    Source: CVPT (arXiv 2408.14961), section 3.
    """

    num_prompts: int = option(20, flag="prompts", least=1, most=MAX_PROMPTS)
    name: ClassVar[str] = "cvpt"
    letters: ClassVar[str] = "p{num_prompts}"
    sizes: ClassVar[Mapping[str, tuple[Any, ...]]] = {"prompts": (10, 50)}
    words: ClassVar[str] = "cross-attention to {num_prompts} prompts per block"
    tunes_backbone: ClassVar[bool] = True

    def make_tuning(self, backbone: nn.Module, info: BackboneInfo, learned: Collection[str] | None = None) -> Tuning:
        """Prompts of every block, and the view of the backbone that attends to them."""
        import torch
        from torch import nn

        start = nn.init.xavier_uniform_
        return _crossed(backbone, info, [start(torch.empty(self.num_prompts, width)) for width in info.widths])

    def fold_tuning(self, backbone: nn.Module, info: BackboneInfo, tuned: Tuning) -> Tuning:
        """Keys and values (2, 1, H, P, d) as constants in the place of prompts, where they have one shape."""
        import torch

        parts = [tuned.base.get_submodule(f"{site.path}.mlp") for site in info.blocks]
        held = [(part.prompts, *part.across[0].key_values(part.prompts[None])[:2]) for part in parts]
        folded = [torch.stack([k, v]) if k.shape == v.shape else prompts.clone() for prompts, k, v in held]
        return _crossed(backbone, info, folded).requires_grad_(False)


def _crossed(backbone: nn.Module, info: BackboneInfo, held: Sequence[Tensor]) -> Tuning:
    """Cross-attention in every block to its prompts, or to its keys and values."""
    from torch import nn

    from vprompt.backbones.attention.base import PRE_NORM
    from vprompt.backbones.graft import graft
    from vprompt.methods.layers.inject import attention_at
    from vprompt.methods.layers.tuned import Tuning

    class Crossing(nn.Module):
        """From tokens behind attention to what the block adds to them: by the prompts, and by its MLP after that."""

        def __init__(self, block: Any, across: PrefixAttention, prompts: nn.Parameter) -> None:
            super().__init__()
            self.norm, self.mlp, self.scale, self.prompts = block.norm2, block.mlp, block.ls2, prompts
            across.entry = nn.Identity()
            self.across = (across,)  # no child: it is none of the backbone's own attentions

        def forward(self, x_BND: Tensor) -> Tensor:
            (across,), prompts = self.across, self.prompts
            q, pair = across.queries(x_BND), prompts if prompts.ndim > 2 else across.key_values(prompts[None])[:2]
            k, v = (t.to(q.dtype).expand(x_BND.shape[0], -1, -1, -1) for t in pair)
            added_BND = across.project_out(across.mix(q, k, v, None, None), x_BND)
            return added_BND + self.scale(self.mlp(self.norm(x_BND + added_BND)))

    like, learned, parts = next(backbone.parameters()), dict[str, nn.Parameter](), dict[str, nn.Module]()
    for number, site in enumerate(info.blocks):
        block, across = backbone.get_submodule(site.path), attention_at(backbone, info, number)
        if across.blocks.get(type(block)) is not PRE_NORM or not hasattr(block, "ls2"):
            what = f"CVPT stands between attention and MLP of timm's usual blocks, not of a {type(block).__name__}"
            raise BackboneError(f"{what}; use another method or backbone.")
        learned[f"{site.path}.prompts"] = prompts = nn.Parameter(held[number].to(like.device, like.dtype))
        # Between attention and MLP a block has no place for more; one module does what stands there and behind it.
        parts |= {f"{site.path}.{name}": nn.Identity() for name in ("norm2", "ls2")}
        parts[f"{site.path}.mlp"] = Crossing(block, across, prompts)
    return Tuning(graft(backbone, parts), learned)
