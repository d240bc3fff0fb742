"""VPT: prompts in the first block or in every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from vprompt.utils.errors import VPromptError


@dataclass(frozen=True)
class VPT:
    """Visual prompt tuning: learned prompts in the first block (shallow) or in every block (deep), and a linear head.

    Args:
        num_prompts: P, prompts per block (deep) or in all (shallow); at least 1.
        depth: `"deep"` or `"shallow"`.
        dropout: Probability of prompt dropout while training, 0 to below 1; the paper's 0.1 (deep) or 0 (shallow) when
            not given.

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> VPT(num_prompts=10).initial_counts(3), VPT(num_prompts=10, depth="shallow").initial_counts(3)
        ([10, 10, 10], [10, 0, 0])

    Source: VPT (arXiv 2203.12119), section 3.2.
    """

    num_prompts: int = 50
    depth: Literal["deep", "shallow"] = "deep"
    dropout: float | None = None
    lr_factor: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise VPromptError(f"VPT needs at least one prompt, not {self.num_prompts}; without any, it is Linear().")
        if self.depth not in ("deep", "shallow"):
            raise VPromptError(f"VPT's depth is 'deep' or 'shallow', not {self.depth!r}.")
        if not 0 <= self.prompt_dropout < 1:
            raise VPromptError(f"Prompt dropout is at least 0 and below 1, not {self.dropout}.")

    @property
    def name(self) -> str:
        """`vpt-deep` or `vpt-shallow`."""
        return f"vpt-{self.depth}"

    @property
    def prompt_dropout(self) -> float:
        """The dropout in force."""
        if self.dropout is not None:
            return self.dropout
        return 0.1 if self.depth == "deep" else 0.0

    def initial_counts(self, num_blocks: int) -> list[int]:
        """Prompts of each block before training and condensation."""
        if self.depth == "deep":
            return [self.num_prompts] * num_blocks
        return [self.num_prompts] + [0] * (num_blocks - 1)
