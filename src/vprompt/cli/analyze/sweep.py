"""`vprompt analyze sweep`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from vprompt.cli.analyze.common import numbers
from vprompt.cli.analyze.training import Condensing, Trainings


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Train with shares of the prompts and condense to them: accuracy against the number of prompts."""

    trainings: Trainings = field(default_factory=Trainings)
    condensing: Condensing = field(default_factory=Condensing)
    method: Literal["vpt-deep", "vpt-shallow", "both"] = "vpt-deep"
    """Prompts in every block, in the first, or one after the other."""
    shares: Annotated[str, tyro.conf.arg(metavar="SHARE,...")] = "0.1,0.2,0.3,0.4,0.5"
    """Shares of the prompts, trained from scratch and condensed to; all of them are trained as well."""
    fine_tune_epochs: int = 20
    """Epochs of fine-tuning after condensation."""

    def run(self) -> None:
        """Runs, writes, prints."""
        from vprompt.analysis.sweep import measure as sweep

        condensing = self.condensing
        plan = sweep.plan_of(
            self.trainings.study(),
            methods=("vpt-deep", "vpt-shallow") if self.method == "both" else (self.method,),
            prompts=condensing.prompts,
            shares=numbers(self.shares, float, "--shares", "0.1,0.3,0.5"),
            fine_tune_epochs=self.fine_tune_epochs,
            criterion=condensing.criterion,
            scope=condensing.scope,
        )
        self.trainings.analyze(plan, sweep.read)
