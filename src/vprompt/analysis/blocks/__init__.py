"""Importance of each block's prompts: accuracy without them, and how many of them a selection retains."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from vprompt.analysis.base import Analysis, analyses
from vprompt.analysis.options import Adapters, commas


@dataclass(frozen=True, kw_only=True)
class Blocks(Analysis):
    """Accuracy without each block's prompts, and how many prompts blocks keep (Fig. 3 and 7)."""

    name: ClassVar[str] = "blocks"
    order: ClassVar[int] = 5
    ratios: Annotated[tuple[float, ...], commas(float, "--ratios", "0.5,0.1", "R,R,...")] = (0.5, 0.3, 0.1)
    """Shares of all prompts to keep, chosen by scores on the training images."""
    adapters: Adapters = field(default_factory=Adapters)


analyses.register(Blocks)
