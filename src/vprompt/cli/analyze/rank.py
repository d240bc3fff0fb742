"""`vprompt analyze rank`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from vprompt.cli.analyze.common import Adapters, Output, numbers


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Rank of attention with and without prompts, and whether it grows by the logarithmic law (Fig. 2, Prop. 1)."""

    places: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]
    """Adapters, folders with adapters below them, or ids on the Hub; of several, means and spread."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="N,N,...")] = None
    """Numbers of prompts to look at, taken from the front of each block; 0 and six up to all when left out."""
    epsilon: Annotated[str, tyro.conf.arg(metavar="E,E,...")] = "0.1,0.03,0.01"
    """Relative errors of the numerical rank."""
    images: int = 32
    """Images to look at, at most."""
    adapters: Adapters = Adapters()
    output: Output = Output()

    def run(self) -> None:
        """Looks at one adapter after the other, writes, prints."""
        from vprompt.analysis.rank.measure import Ranks, rank, study
        from vprompt.experiments.finished import open_trained
        from vprompt.utils.progress import bar

        counts = None if self.prompts is None else numbers(self.prompts, int, "--prompts", "0,5,10")
        epsilons = numbers(self.epsilon, float, "--epsilon", "0.1,0.01")
        found: list[tuple[str, Ranks]] = []
        given = self.adapters
        for trained in open_trained(
            self.places, data=given.data, root=given.root, weights=given.weights, progress=not self.output.json
        ):
            images = trained.split(given.split)
            with bar(f"rank, {trained.label}", enabled=not self.output.json) as report:
                ranks = rank(
                    trained.model, images, counts=counts, epsilon=epsilons, max_images=self.images, report=report
                )
            found.append((trained.label, ranks))
        self.output.show("rank", asdict(study(found)))
