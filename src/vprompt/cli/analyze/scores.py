"""`vprompt analyze scores`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, cast

import tyro

from vprompt.cli.analyze.common import Adapters, Output, numbers
from vprompt.cli.console import UsageError
from vprompt.compression.criteria import CRITERIA


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How right scores of prompts are: against leaving out each prompt, each other, and by what they keep (Table 3)."""

    places: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER...")]
    """Folders of adapters, or with adapters in them (what `vprompt fit` or `vprompt bench` left)."""
    criteria: str = ",".join(CRITERIA)
    """Which criteria, separated by commas."""
    ratios: str = "0.1,0.3,0.5"
    """Shares of the prompts to keep, separated by commas."""
    scopes: str = "global,local"
    """Choose over all blocks together (global), inside every block (local), or the same for all blocks (shared)."""
    images: int = 256
    """Training images to score and ablate on: the exact ablation runs the model over them once for every prompt."""
    fine_tune_epochs: int = 0
    """Also fine-tune what each criterion keeps, for so many epochs."""
    seed: int = 0
    """Draws the images, and random scores."""
    adapters: Adapters = Adapters()
    output: Output = Output()

    def run(self) -> None:
        """Scores, ablates, keeps, writes, prints."""
        from vprompt.analysis.scores.measure import scores
        from vprompt.compression.criteria import SCOPES, check_name
        from vprompt.experiments.finished import open_trained
        from vprompt.utils.errors import VPromptError
        from vprompt.utils.progress import bar

        if not self.places:
            raise UsageError("Name an adapter, or a folder with adapters in it.")
        criteria, scopes = (list(dict.fromkeys(text.split(","))) for text in (self.criteria, self.scopes))
        for criterion in criteria:
            check_name(criterion)
        if wrong := next((scope for scope in scopes if scope not in SCOPES), None):
            raise VPromptError(f"The scope is 'global', 'local' or 'shared', not {wrong!r}.")
        ratios = numbers(self.ratios, float, "--ratios", "0.1,0.3")
        models: list[dict[str, Any]] = []
        where = self.adapters
        for trained in open_trained(self.places, data=where.data, root=where.root, weights=where.weights):
            with bar(trained.label) as report:
                found = scores(
                    trained.model,
                    trained.task.train,
                    trained.split(where.split),
                    criteria=cast("Any", criteria),
                    ratios=ratios,
                    scopes=cast("Any", scopes),
                    images=self.images,
                    fine_tune_epochs=self.fine_tune_epochs,
                    seed=self.seed,
                    report=report,
                )
            about = {"label": trained.label, "task": trained.task.source, "seed": trained.result.get("seed")}
            models.append({**about, **asdict(found)})
        options = {"ratios": ratios, "scopes": scopes, "split": where.split, "images": self.images}
        self.output.show("scores", {**options, "models": models})
