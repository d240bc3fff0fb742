"""Scores of prompts against exact ablation, against each other, and by what they retain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from vprompt.analysis.base import Analysis, analyses
from vprompt.analysis.options import Adapters, commas
from vprompt.compression.criteria import CRITERIA

EXACT = ("ablation", "ablation-signed", "zeroing", "zeroing-signed")
"""Names of the exact effects beside the criteria: mean absolute change of an image's loss without a prompt, and by how
much the mean loss rises; the same for a prompt that is zero and stays in attention (the paper's equation 13)."""


@dataclass(frozen=True, kw_only=True)
class Scores(Analysis):
    """Accuracy of scores of prompts: against leaving out each prompt, each other, and by what they keep (Table 3)."""

    name: ClassVar[str] = "scores"
    order: ClassVar[int] = 4
    criteria: Annotated[tuple[str, ...], commas(str, "--criteria", "taylor,random", "NAME,...")] = CRITERIA
    """Criteria, separated by commas."""
    ratios: Annotated[tuple[float, ...], commas(float, "--ratios", "0.1,0.3", "R,R,...")] = (0.1, 0.3, 0.5)
    """Shares of the prompts to keep, separated by commas."""
    scopes: Annotated[tuple[str, ...], commas(str, "--scopes", "global,local", "SCOPE,...")] = ("global", "local")
    """Choose over all blocks together (global), inside every block (local), or the same for all blocks (shared)."""
    images: int = 256
    """Training images to score and ablate on: the exact ablation runs the model over them once for every prompt."""
    zeroing: bool = True
    """Also set each prompt to zero, which takes as long again."""
    fine_tune_epochs: int = 0
    """Also fine-tune what each criterion keeps, for so many epochs."""
    early: Annotated[tuple[float, ...], commas(float, "--early", "0,0.1", "SHARE,...")] = ()
    """Also choose after these shares of the training, 0 being the random prompts that it starts from, and train what
    was chosen for the rest of it; the training is done again, once for every choice."""
    seed: int = 0
    """Draws the images, and random scores."""
    adapters: Adapters = field(default_factory=Adapters)


analyses.register(Scores)
