"""A whole run: data, training, condensation, one look at the test data, adapter and result on disk; resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from laconic.adapter import load
from laconic.analysis.cost import folded_gmacs
from laconic.attachment import attach
from laconic.backbone import num_parameters
from laconic.batches import ImageLabels
from laconic.condensation import check_criterion, condense, fine_tuning_recipe
from laconic.creation import create_backbone, describe_name
from laconic.data import Task, open_task
from laconic.errors import DataError, DivergedError, LaconicError, TrainingError
from laconic.evaluation import evaluate
from laconic.files import write_atomically
from laconic.model import PromptedModel
from laconic.preprocessing import Preprocessing
from laconic.processes import is_main_process
from laconic.progress import bar
from laconic.prompts import check_segments
from laconic.provenance import provenance
from laconic.pruning import Pruned, PruneSettings, prune
from laconic.recipe import Recipe
from laconic.runfolder import RESULT, RunFolder, read_json
from laconic.settings import CondenseSettings, Settings
from laconic.train import History, fit
from laconic.weights import weights_origin

REPORT_KEYS = (
    "val_accuracy",
    "test_accuracy",
    "prompt_counts",
    "learned_params",
    "backbone_params",
    "folded_gmacs",
    "method",
    "training_seconds",
    "converged",
    "epochs",
)
"""What a result says of each model in it."""


def run(settings: Settings, out: Path, *, resume: bool = False, progress: bool = False) -> dict[str, Any]:
    """Trains, condenses if asked, evaluates, and writes adapter and result.json to a folder.

    Under `torchrun`, every process calls it and the first one writes.

    Args:
        settings: What to do.
        out: Where to; must not hold a run yet unless `resume`.
        resume: Go on with the unfinished run in `out`, or start it where there is none; a finished one is left alone.
        progress: Show bars on standard error.

    Returns:
        The document in result.json.

    Raises:
        LaconicError: Or one of its kinds, whatever goes wrong that a sentence explains.
        Interrupted: On Ctrl-C; the run can be resumed.
    """
    folder = RunFolder(out, asdict(settings))
    if (finished := folder.claim(resume=resume)) is not None:
        return finished
    with _abandoning(folder):
        # The data is looked at before any weights are fetched, but after weights that are here already.
        info = describe_name(settings.backbone, img_size=settings.img_size)
        make = partial(create_backbone, settings.backbone, img_size=settings.img_size, weights=settings.weights)
        given = None if settings.weights is None else make()
        preprocessing = replace(info.preprocessing, resize=settings.resize)
        if settings.condense is not None:
            check_criterion(settings.criterion, info)
        if settings.prune is not None:
            check_criterion(settings.prune.criterion, info)
            check_segments(settings.prune.num_segments, info.widths)
        stages = _Stages(folder, settings, preprocessing, progress)
        if settings.prune is not None and settings.prune.searched and stages.task.val is None:
            raise DataError(
                "There are no validation images on which to search how much to prune; give --prune-tokens and "
                "--prune-segments."
            )
        backbone = make() if given is None else given
        origin = weights_origin(backbone)
        torch.manual_seed(settings.recipe.seed)
        model = attach(
            backbone,
            settings.make_method(),
            num_classes=len(stages.task.classes),
            head_init=settings.head_init,
            classes=stages.task.classes,
            preprocessing=preprocessing,
        )
        facts: dict[str, Any] = {"backbone": settings.backbone, "seed": settings.recipe.seed}
        if settings.prune is not None:
            history, found = stages.train_and_prune(model, settings.recipe, settings.prune, settings.rewind_epoch)
            facts |= {"before": stages.report(model, history), "pruning": _pruning_facts(found)}
            return stages.finish(found.model, found.history or history, facts, origin)
        history = stages.train(model, settings.recipe, "training")
        if settings.condense is None:
            return stages.finish(model, history, facts, origin)
        recipe = settings.recipe.for_fine_tuning(epochs=settings.fine_tune_epochs)
        small, tuning = stages.condense(model, settings.condense, recipe)
        return stages.finish(small, tuning, {"before": stages.report(model, history), **facts}, origin)


def run_condense(
    settings: CondenseSettings, out: Path, *, resume: bool = False, progress: bool = False
) -> dict[str, Any]:
    """Condenses a saved adapter into another folder; arguments and errors as those of `run`."""
    folder = RunFolder(out, asdict(settings))
    if (finished := folder.claim(resume=resume)) is not None:
        return finished
    with _abandoning(folder):
        model = load(settings.adapter, weights=settings.weights)
        origin = weights_origin(model.backbone)
        stages = _Stages(folder, settings, model.preprocessing, progress)
        if model.classes is not None and model.classes != stages.task.classes:
            raise DataError(
                f"The classes of {stages.task.source} are not those of the adapter {settings.adapter}; give the data "
                "that it was trained on."
            )
        recipe = replace(fine_tuning_recipe(model), epochs=settings.fine_tune_epochs, seed=settings.seed)
        small, history = stages.condense(model, settings.ratio, recipe)
        before = _earlier_report(settings.adapter, stages.task) or stages.report(model, History())
        facts = {"before": before, "backbone": model.info.name, "seed": settings.seed}
        return stages.finish(small, history, facts, origin)


@contextmanager
def _abandoning(folder: RunFolder) -> Generator[None]:
    """Lets a run that fails before anything was saved leave nothing in the way of the next one."""
    try:
        yield
    except LaconicError as error:
        folder.abandon(diverged=isinstance(error, DivergedError))
        raise


class _Stages:
    """The stages of one run, each of which goes on where its checkpoint stands."""

    def __init__(
        self, folder: RunFolder, settings: Settings | CondenseSettings, preprocessing: Preprocessing, progress: bool
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.progress = progress
        self.started = time.monotonic()
        with bar("reading images", enabled=progress) as report:
            self.task = open_task(
                settings.data,
                preprocessing,
                split_seed=settings.split_seed,
                skip_bad=settings.skip_bad,
                progress=report,
            )

    def train(
        self, model: PromptedModel, recipe: Recipe, stage: str, at_epoch: Callable[[int], None] | None = None
    ) -> History:
        """Trains what there is to learn."""
        return fit(
            model,
            self.task.train,
            self.task.val,
            recipe=recipe,
            checkpoint=self.folder.checkpoint(stage),
            resume=True,
            progress=self.progress,
            label=stage,
            at_epoch=at_epoch,
        )

    def train_and_prune(
        self, model: PromptedModel, recipe: Recipe, settings: PruneSettings, rewind_epoch: int
    ) -> tuple[History, Pruned]:
        """Trains with all prompts, records the values to rewind to on the way, and prunes."""
        folder = self.folder.place("pruning")
        early = folder / "early.safetensors"

        def record(epochs: int) -> None:
            if epochs == rewind_epoch and is_main_process():
                values = {name: value.cpu().contiguous() for name, value in model.state().items()}
                write_atomically(early, lambda part: save_file(values, part))

        history = self.train(model, recipe, "training", record)
        found = prune(
            model,
            self.task.train,
            self.task.val,
            early=_read_state(early),
            rewind_epoch=rewind_epoch,
            settings=settings,
            recipe=recipe,
            folder=folder / "search",
            resume=True,
            progress=self.progress,
        )
        return history, found

    def condense(self, model: PromptedModel, ratio: float, recipe: Recipe) -> tuple[PromptedModel, History]:
        """The model with the prompts that are kept, fine-tuned if the settings say so."""
        settings = self.settings
        small = condense(
            model,
            self.task.train,
            ratio=ratio,
            criterion=settings.criterion,
            scope=settings.scope,
            fine_tune=False,
            recipe=recipe,
            progress=self.progress,
        )
        return small, self.train(small, recipe, "fine-tuning") if settings.fine_tune else History()

    def report(self, model: PromptedModel, history: History) -> dict[str, Any]:
        """The numbers of one model; the only place where test data is read."""
        return {
            "val_accuracy": self._accuracy(model, self.task.val, "validation"),
            "test_accuracy": self._accuracy(model, self.task.test, "test"),
            "prompt_counts": model.prompt_counts,
            "learned_params": model.num_learned,
            "backbone_params": num_parameters(model.backbone),
            "folded_gmacs": round(folded_gmacs(model), 6),
            "method": model.method.name,
            "training_seconds": round(history.seconds, 1),
            "converged": history.converged,
            "epochs": history.rows,
        }

    def finish(
        self, model: PromptedModel, history: History, facts: dict[str, Any], weights: dict[str, str] | None
    ) -> dict[str, Any]:
        """Writes adapter and result."""
        result = {
            **self.report(model, history),
            **facts,
            "settings": self.folder.document,
            "provenance": provenance(model, self.task, weights),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        result = json.loads(json.dumps(result))
        self.folder.finish(model, result)
        return result

    def _accuracy(self, model: PromptedModel, data: ImageLabels | None, name: str) -> float | None:
        if data is None:
            return None
        with bar(f"evaluating ({name})", enabled=self.progress) as report:
            return evaluate(model, data, report=report).accuracy


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"{path} is damaged ({error}); start the run anew in another --out.") from error


def _pruning_facts(found: Pruned) -> dict[str, Any]:
    """What the search came to, and everything it tried."""
    record = found.model.pruning
    return {
        "tokens": 0.0 if record is None else record.tokens,
        "segments": 0.0 if record is None else record.segments,
        "trainings": round(1 + found.trainings, 2),
        "trials": [asdict(trial) for trial in found.trials],
    }


def _earlier_report(adapter: str, task: Task) -> dict[str, Any] | None:
    """The numbers that the adapter's own run left beside it, if that run was on the same data."""
    path = Path(adapter) / RESULT
    if not path.is_file():
        return None
    result = read_json(path)
    if result.get("provenance", {}).get("data", {}).get("fingerprint") != task.fingerprint():
        return None
    return {key: result[key] for key in REPORT_KEYS if key in result}
