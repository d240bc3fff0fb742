"""VPT: prompts in every block (deep) or in the first (shallow)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vprompt.methods.base import DeepPrompts, Riding
from vprompt.methods.registry import register


@register
@dataclass(frozen=True)
class VPT(DeepPrompts):
    """Visual prompt tuning: learned prompts in the first block (shallow) or in every block (deep), and a linear head.

    Args:
        num_prompts: P, prompts per block (deep) or in all (shallow); 1 to 10,000.
        depth: `"deep"` or `"shallow"`.
        dropout: Probability of prompt dropout while training, 0 to below 1; the paper's 0.1 (deep) or 0 (shallow) when
            not given.
        init: Start of the prompts: random; tokens of training images on their way into each block; the centres of
            clusters of these; or vipamin, prompts that suit the attention (not for windows).

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> VPT(num_prompts=10).initial_counts(3), VPT(num_prompts=10, depth="shallow").initial_counts(3)
        ([10, 10, 10], [10, 0, 0])

    Source: VPT (arXiv 2203.12119), section 3.2.
    """

    depth: Literal["deep", "shallow"] = "deep"

    @classmethod
    def variants(cls) -> Mapping[str, Mapping[str, Any]]:
        """One name for each depth."""
        return {"vpt-deep": {"depth": "deep"}, "vpt-shallow": {"depth": "shallow"}}

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """`vpt-deep` or `vpt-shallow`."""
        return f"vpt-{self.depth}"

    @property
    def riding(self) -> Riding:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Deep prompts are a prefix; shallow ones are tokens, which ask queries themselves in every block."""
        return "prefix" if self.depth == "deep" else "tokens"

    @property
    def prompt_dropout(self) -> float:
        """The dropout in force."""
        return 0.0 if self.dropout is None and self.depth == "shallow" else super().prompt_dropout

    def summary(self) -> str:
        """Prompts and where they are, in words."""
        where = "per block" if self.depth == "deep" else "in the first block"
        return f"started with {self.num_prompts} prompts {where}"

    def initial_counts(self, num_blocks: int) -> list[int]:
        """Prompts of each block before training and condensation."""
        if self.depth == "deep":
            return super().initial_counts(num_blocks)
        return [self.num_prompts] + [0] * (num_blocks - 1)
