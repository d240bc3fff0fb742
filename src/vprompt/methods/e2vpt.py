"""E²VPT: prompts, and key-value prompts behind the projections of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

from vprompt.methods.prompts import Share
from vprompt.utils.errors import VPromptError


@dataclass(frozen=True)
class E2VPT:
    """Effective and efficient VPT: deep prompts, key-value prompts behind the projections of attention, a linear head.

    Args:
        num_prompts: P, prompts per block that pass the projections, as in VPT-Deep; at least 0.
        num_kv_prompts: n, prompts per block that are keys and values from the start; at least 0.
        share: What the key-value prompts of a block have in common: `"key-value"`, keys and values are the same, each
            head has its own (the published code); `"heads"`, all heads have the same (the paper's summary); `"none"`.
        dropout: Probability of prompt dropout on the first kind while training, 0 to below 1; 0.1 when not given.

    Raises:
        VPromptError: If a value is out of range, or there is no prompt of either kind.

    Example:
        >>> E2VPT().initial_counts(3), E2VPT(num_prompts=0).prompt_dropout
        ([10, 10, 10], 0.1)

    Source: E²VPT (arXiv 2307.13770), section 3.2.
    """

    num_prompts: int = 10
    num_kv_prompts: int = 5
    share: Share = "key-value"
    dropout: float | None = None
    name: ClassVar[str] = "e2vpt"
    lr_factor: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        if min(self.num_prompts, self.num_kv_prompts) < 0:
            raise VPromptError(
                f"Numbers of prompts are at least 0, not {min(self.num_prompts, self.num_kv_prompts)}; "
                "give num_prompts and num_kv_prompts."
            )
        if self.num_prompts + self.num_kv_prompts == 0:
            raise VPromptError("E2VPT needs at least one prompt of either kind; without any, it is Linear().")
        if self.share not in get_args(Share):
            raise VPromptError(f"E2VPT's share is 'key-value', 'heads' or 'none', not {self.share!r}.")
        if not 0 <= self.prompt_dropout < 1:
            raise VPromptError(f"Prompt dropout is at least 0 and below 1, not {self.dropout}.")

    @property
    def prompt_dropout(self) -> float:
        """The dropout in force."""
        return 0.1 if self.dropout is None else self.dropout

    def initial_counts(self, num_blocks: int) -> list[int]:
        """Prompts of the first kind in each block before training and pruning."""
        return [self.num_prompts] * num_blocks
