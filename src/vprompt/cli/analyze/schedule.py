"""`vprompt analyze schedule`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from vprompt.cli.analyze.common import numbers
from vprompt.cli.analyze.training import Condensing, Trainings


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Fine-tune condensed prompts for several numbers of epochs: accuracy, and the time it takes."""

    trainings: Trainings = field(default_factory=Trainings)
    condensing: Condensing = field(default_factory=Condensing)
    method: Literal["vpt-deep", "vpt-shallow"] = "vpt-deep"
    """Prompts in every block, or in the first."""
    ratio: float = 0.1
    """Share of the prompts to keep."""
    fine_tune_epochs: Annotated[str, tyro.conf.arg(metavar="EPOCHS,...")] = "0,2,5,10,20,40"
    """Numbers of epochs of fine-tuning; 0 is without."""

    def run(self) -> None:
        """Runs, writes, prints."""
        from vprompt.analysis.schedule import measure as schedule

        condensing = self.condensing
        plan = schedule.plan_of(
            self.trainings.study(),
            method=self.method,
            prompts=condensing.prompts,
            ratio=self.ratio,
            fine_tune_epochs=numbers(self.fine_tune_epochs, int, "--fine-tune-epochs", "0,5,20"),
            criterion=condensing.criterion,
            scope=condensing.scope,
        )
        self.trainings.analyze(plan, schedule.read)
