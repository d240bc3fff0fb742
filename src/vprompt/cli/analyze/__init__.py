"""`vprompt analyze`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vprompt.cli.analyze.blocks import Blocks
from vprompt.cli.analyze.cost import Cost
from vprompt.cli.analyze.e2vpt import E2VPT
from vprompt.cli.analyze.latency import Latency
from vprompt.cli.analyze.rank import Rank
from vprompt.cli.analyze.schedule import Schedule
from vprompt.cli.analyze.scores import Scores
from vprompt.cli.analyze.sweep import Sweep
from vprompt.cli.console import UsageError

Analyses = (
    Annotated[Cost, tyro.conf.subcommand("cost", prefix_name=False)]
    | Annotated[Latency, tyro.conf.subcommand("latency", prefix_name=False)]
    | Annotated[Sweep, tyro.conf.subcommand("sweep", prefix_name=False)]
    | Annotated[Scores, tyro.conf.subcommand("scores", prefix_name=False)]
    | Annotated[Blocks, tyro.conf.subcommand("blocks", prefix_name=False)]
    | Annotated[Rank, tyro.conf.subcommand("rank", prefix_name=False)]
    | Annotated[Schedule, tyro.conf.subcommand("schedule", prefix_name=False)]
    | Annotated[E2VPT, tyro.conf.subcommand("e2vpt", prefix_name=False)]
)


@dataclass(frozen=True, kw_only=True)
class Analyze:
    """Answer one question of the papers about a backbone, adapters or data: numbers, a picture, a page."""

    analysis: Analyses

    def run(self) -> None:
        """Runs that analysis."""
        analysis = self.analysis
        if isinstance(analysis, Sweep | Schedule | E2VPT):
            output = analysis.trainings.output
        else:
            output = analysis.output
            output.check()
        if getattr(analysis, "places", None) == ():
            raise UsageError("Name an adapter, or a folder with adapters in it.")
        if "://" not in output.out:
            from vprompt.analysis.page import refuse_others

            refuse_others(Path(output.out), type(analysis).__name__.lower())
        analysis.run()
