"""E²VPT: prompts, and key-value prompts behind the projections of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from vprompt.methods.base import MAX_PROMPTS, DeepPrompts, option
from vprompt.methods.registry import register
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from torch import nn

    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.layers.prompts import KVPrompts

Share = Literal["key-value", "heads", "none"]


@register
@dataclass(frozen=True)
class E2VPT(DeepPrompts):
    """Effective and efficient VPT: deep prompts, key-value prompts behind the projections of attention, a linear head.

    Args:
        num_prompts: P, prompts per block that pass the projections, as in VPT-Deep; at least 0.
        num_kv_prompts: n, prompts per block that are keys and values from the start; at least 0.
        share: Parts that the key-value prompts of a block have in common: `"key-value"`, keys and values are the same,
            each head has its own (the published code); `"heads"`, all heads have the same (the paper's summary);
            `"none"`.
        dropout: Probability of prompt dropout on the first kind while training, 0 to below 1; 0.1 when not given.
        init: Start of the first kind: random; tokens of training images on their way into each block; the centres of
            clusters of these; or vipamin, prompts that suit the attention (not for windows).

    Raises:
        VPromptError: If a value is out of range, or there is no prompt of either kind.

    Example:
        >>> E2VPT().initial_counts(3), E2VPT(num_prompts=0).prompt_dropout
        ([10, 10, 10], 0.1)

    Source: E²VPT (arXiv 2307.13770), section 3.2.
    """

    name: ClassVar[str] = "e2vpt"
    letters: ClassVar[str] = "p{num_prompts}-kv{num_kv_prompts}"
    words: ClassVar[str] = (
        "started with {num_prompts} prompts and {num_kv_prompts} key-value prompts per block (shared: {share})"
    )
    prunes: ClassVar[bool] = True

    num_prompts: int = option(10, flag="prompts", least=0, most=MAX_PROMPTS)
    num_kv_prompts: int = option(5, flag="kv_prompts", least=0, most=MAX_PROMPTS)
    share: Share = "key-value"

    def check_numbers(self) -> None:
        """Checks the numbers of prompts of both kinds."""
        if self.num_prompts + self.num_kv_prompts == 0:
            raise VPromptError("E2VPT needs at least one prompt of either kind; without any, it is Linear().")
        if not self.num_prompts and self.init != "random":
            raise VPromptError("Key-value prompts start from random numbers; leave out init, or have others as well.")

    def make_kv_prompts(self, backbone: nn.Module, info: BackboneInfo) -> KVPrompts:
        """The key-value prompts, drawn with torch's global generator."""
        from vprompt.methods.layers.inject import attention_at
        from vprompt.methods.layers.prompts import KVPrompts

        blocks = range(len(info.blocks)) if self.num_kv_prompts else ()
        heads = [attention_at(backbone, info, block).head_shape for block in blocks]
        return KVPrompts.initial(self.num_kv_prompts, heads, self.share)
