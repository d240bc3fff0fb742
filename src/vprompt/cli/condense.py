"""`vprompt condense`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vprompt.cli.console import absolute
from vprompt.cli.fit import show_result
from vprompt.compression.criteria import Criterion, Scope
from vprompt.utils.distributed import is_main_process


@dataclass(frozen=True, kw_only=True)
class Condense:
    """Score the prompts of a trained adapter, keep the best, fine-tune them, and save the smaller adapter."""

    adapter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]
    """Folder of the adapter, or its Hub id."""
    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
    """The image folder or task it was trained on; the bundled task when left out."""
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The backbone's weights, where the adapter was trained with a file of them that is no longer where it was."""
    ratio: float = 0.3
    """Share of the prompts to keep."""
    criterion: Criterion = "taylor"
    """What makes a prompt worth keeping: what zeroing it (taylor) or removing it does to the loss, to the loss with
    the model's own labels (pseudo-label) or to the features; attention of the class token; length; chance."""
    scope: Scope = "global"
    """Choose over all blocks together, inside every block, or the same for all blocks."""
    merge: bool = False
    """Merge the other prompts of a block into those that stay, instead of dropping them."""
    fine_tune: bool = True
    """Fine-tune the kept prompts, at a tenth of the learning rate of the adapter's training."""
    fine_tune_epochs: int = 20
    """Epochs of that fine-tuning."""
    seed: int = 0
    """Seeds order and random scores."""
    split_seed: int = 0
    """Cuts the splits that a folder does not have; as given to `fit`."""
    skip_bad: bool = False
    """Go on without images and classes that cannot be used, and say how many."""
    out: Path
    """Folder for the smaller adapter and result.json."""
    resume: bool = False
    """Go on with the run in --out, or start it where there is none."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        """Scores, keeps, fine-tunes, evaluates, saves."""
        from vprompt.experiments.run import run_condense
        from vprompt.experiments.settings import CondenseSettings

        settings = CondenseSettings(
            adapter=self.adapter,
            weights=absolute(self.weights),
            data=self.data,
            root=self.root,
            ratio=self.ratio,
            criterion=self.criterion,
            scope=self.scope,
            merge=self.merge,
            fine_tune=self.fine_tune,
            fine_tune_epochs=self.fine_tune_epochs,
            seed=self.seed,
            split_seed=self.split_seed,
            skip_bad=self.skip_bad,
        )
        try:
            result = run_condense(settings, self.out, resume=self.resume, progress=is_main_process())
        except KeyboardInterrupt as error:
            again = f"Go on with the same command and --resume (in {self.out})."
            raise KeyboardInterrupt(f"{error} {again}".strip()) from error
        show_result(result, self.out, as_json=self.json)
