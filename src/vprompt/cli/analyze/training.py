"""What the analyses that train have in common: tasks, recipe, and where their runs go."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.cli.analyze.common import Output, numbers
from vprompt.cli.bench import complain, overview_document, run_overview, show_overview
from vprompt.cli.console import UsageError, absolute, print_json

if TYPE_CHECKING:
    from vprompt.analysis.study import Study
    from vprompt.experiments.bench.plan import Plan
    from vprompt.experiments.bench.store import Store


@dataclass(frozen=True, kw_only=True)
class RunsOutput(Output):
    """Where runs and analysis go."""

    out: Annotated[str, tyro.conf.arg(metavar="RUNS")] = "runs/analyses"
    """Folder for the runs, and for NAME.json, NAME.png and one page with all analyses that are there. Analyses that
    share it share their runs; the same command again goes on where it stopped."""


@dataclass(frozen=True, kw_only=True)
class Condensing:
    """What is condensed, and how."""

    prompts: int | Literal["paper"] = 20
    """All prompts, per block (deep) or in all (shallow); paper: what the papers have for each task."""
    criterion: str = "taylor"
    """What makes a prompt worth keeping; `vprompt condense --help` names them."""
    scope: Literal["global", "local", "shared"] = "global"
    """Choose over all blocks together, inside every block, or the same for all blocks."""


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """What is trained, and how."""

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TASK...]")] = ()
    """Image folders, or tasks: vtab:NAME, fgvc:NAME (see `vprompt tasks`), synthetic:NAME, or all of vtab; the bundled
    one when left out."""
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out."""
    backbone: str = BUNDLED_BACKBONE
    """timm name of the vision transformer."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Weights of that backbone in a file instead of the published ones."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    seeds: int = 3
    """How many runs of each: seeds 0, 1, ..."""
    epochs: int = 100
    """Passes over the training images; the linear probe has at least 100."""
    batch_size: int = 64
    """Images per step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """SGD as in the papers, or AdamW, which needs less search."""
    lrs: Annotated[str, tyro.conf.arg(metavar="LR,...")] = ""
    """Learning rate. Of several, such as 0.005,0.02, each method and number of prompts has the one that validates
    best. 0.005 for adamw and 5.0 for sgd when left out."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is faster on GPUs and on recent CPUs."""
    workers: int = 1
    """How many runs at once."""
    dry_run: bool = False
    """Only say what would be run and how long that would take."""
    read_only: bool = False
    """Train nothing; show what there is so far."""
    retry_failed: bool = False
    """Try again also what failed for good, such as a loss that became no number."""
    output: RunsOutput = field(default_factory=RunsOutput)

    def study(self) -> Study:
        """These options for a plan.

        Raises:
            UsageError: If they cannot be meant.
        """
        from vprompt.analysis.study import Study
        from vprompt.data.sources.bundled import SOURCE

        if not all(self.tasks) or not self.output.out:
            raise UsageError("An empty name is no folder; give tasks, and a folder for --out.")
        if "://" in self.output.out:
            raise UsageError("The analysis is written beside its runs; give a folder of this machine by --out.")
        if min(self.seeds, self.workers) < 1:
            raise UsageError(f"There must be at least one seed and one worker, not {min(self.seeds, self.workers)}.")
        return Study(
            tasks=tuple(dict.fromkeys(self.tasks)) or (SOURCE,),
            backbone=self.backbone,
            weights=absolute(self.weights),
            img_size=self.img_size,
            seeds=self.seeds,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lrs=tuple(numbers(self.lrs, float, "--lrs", "0.005,0.02")) if self.lrs else (),
            precision=self.precision,
            workers=self.workers,
        )

    def analyze(self, plan: Plan, read: Callable[[Plan, Store], Any]) -> None:
        """Shows what a plan will do, does what is not done of it, and shows the analysis of its results.

        Args:
            plan: Called as its analysis.
            read: Makes the analysis.

        Raises:
            VPromptError: If a run failed, once the analysis of the others is shown.
        """
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError("The analysis starts its own workers; start it without torchrun.")
        from vprompt.experiments.bench.bench import overview, summary
        from vprompt.experiments.bench.store import open_store

        store = open_store(self.output.out)
        train = not self.read_only
        found = overview(plan, store, root=self.root, workers=self.workers, estimate=train)
        if self.dry_run:
            if self.output.json:
                print_json(overview_document(found))
            else:
                show_overview(found, store.address)
            return
        document = None
        if train:
            if not self.output.json:
                show_overview(found, store.address)
            outcomes = run_overview(found, store, workers=self.workers, retry_failed=self.retry_failed)
            document = summary(found, outcomes, store)
        self.output.show(plan.name, asdict(read(plan, store)))
        if document is not None:
            complain(document)
