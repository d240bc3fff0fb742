"""Rank of attention against the number of prompts, and the law of its growth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from vprompt.analysis.base import Analysis, analyses
from vprompt.analysis.options import Adapters, commas


@dataclass(frozen=True, kw_only=True)
class Rank(Analysis):
    """Rank of attention with and without prompts, and whether it grows by the logarithmic law (Fig. 2, Prop. 1)."""

    name: ClassVar[str] = "rank"
    order: ClassVar[int] = 6
    prompts: Annotated[tuple[int, ...], commas(int, "--prompts", "0,5,10")] | None = None
    """Numbers of prompts to look at, taken from the front of each block; 0 and six up to all when left out."""
    epsilon: Annotated[tuple[float, ...], commas(float, "--epsilon", "0.1,0.01", "E,E,...")] = (0.1, 0.03, 0.01)
    """Relative errors of the numerical rank."""
    images: int = 32
    """Images to look at, at most."""
    adapters: Adapters = field(default_factory=Adapters)


analyses.register(Rank)
