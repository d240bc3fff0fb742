"""Accuracy against the number of prompts: trained from scratch, and condensed with and without fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vprompt.analysis.base import Study, analyses
from vprompt.analysis.options import Condensation, Shares


@dataclass(frozen=True, kw_only=True)
class Sweep(Study):
    """Train with shares of the prompts and condense to them: accuracy against the number of prompts."""

    name: ClassVar[str] = "sweep"
    order: ClassVar[int] = 3
    condensing: Condensation = field(default_factory=Condensation)
    method: Literal["vpt-deep", "vpt-shallow", "both"] = "vpt-deep"
    """Prompts in every block, in the first, or one after the other."""
    shares: Shares = (0.1, 0.2, 0.3, 0.4, 0.5)
    """Shares of the prompts, trained from scratch and condensed to; all of them are trained as well."""
    fine_tune_epochs: int = 20
    """Epochs of fine-tuning after condensation."""


analyses.register(Sweep)
