"""Accuracy against the epochs of fine-tuning after condensation, and what scoring and fine-tuning take in time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from vprompt.analysis.base import Study, analyses
from vprompt.analysis.options import Condensation, commas

PAPER_EPOCHS = 20
"""Of fine-tuning, in the paper."""

Epochs = Annotated[tuple[int, ...], commas(int, "--fine-tune-epochs", "0,5,20", "EPOCHS,...")]


@dataclass(frozen=True, kw_only=True)
class Schedule(Study):
    """Fine-tune condensed prompts for several numbers of epochs: accuracy, and the time it takes."""

    name: ClassVar[str] = "schedule"
    order: ClassVar[int] = 7
    condensing: Condensation = field(default_factory=Condensation)
    method: Literal["vpt-deep", "vpt-shallow"] = "vpt-deep"
    """Prompts in every block, or in the first."""
    ratio: float = 0.1
    """Share of the prompts to keep."""
    fine_tune_epochs: Epochs = (0, 2, 5, 10, 20, 40)
    """Numbers of epochs of fine-tuning; 0 is without."""


analyses.register(Schedule)
