"""`vprompt analyze blocks`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from vprompt.cli.analyze.common import Adapters, Output, numbers


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Accuracy without each block's prompts, and how many prompts blocks keep (Fig. 3 and 7)."""

    places: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]
    """Adapters, folders with adapters below them, or ids on the Hub; of several, means and spread."""
    ratios: Annotated[str, tyro.conf.arg(metavar="R,R,...")] = "0.5,0.3,0.1"
    """Shares of all prompts to keep, chosen by scores on the training images."""
    adapters: Adapters = Adapters()
    output: Output = Output()

    def run(self) -> None:
        """Takes one adapter after the other apart, writes, prints."""
        from vprompt.analysis.blocks.measure import AdapterBlocks, blocks, check_ratios, kept, study
        from vprompt.experiments.finished import open_trained
        from vprompt.utils.progress import bar

        ratios = numbers(self.ratios, float, "--ratios", "0.5,0.1")
        check_ratios(ratios)
        found: list[AdapterBlocks] = []
        given, bars = self.adapters, not self.output.json
        for trained in open_trained(
            self.places, data=given.data, root=given.root, weights=given.weights, progress=bars
        ):
            with bar(f"removing, {trained.label}", enabled=bars) as report:
                ablation = blocks(trained.model, trained.split(given.split), report=report)
            with bar(f"scoring, {trained.label}", enabled=bars) as report:
                chosen = kept(trained.model, trained.split("train"), ratios=ratios, report=report)
            split = trained.split_name(given.split)
            found.append(
                AdapterBlocks(name=trained.label, task=trained.task.source, split=split, ablation=ablation, kept=chosen)
            )
        self.output.show("blocks", asdict(study(found)))
