"""A whole run: data, training, condensation, one look at the test data, adapter and result on disk; resumable."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from laconic import __version__
from laconic.adapter import load
from laconic.backbone import fingerprint, num_parameters
from laconic.baselines import Promptless
from laconic.batches import ImageLabels
from laconic.condensation import CRITERIA, SCOPES, Criterion, Scope, check_criterion, condense, fine_tuning_recipe
from laconic.creation import create_backbone, describe_name
from laconic.data import Task, open_task
from laconic.errors import DataError, DivergedError, LaconicError, TrainingError
from laconic.evaluation import evaluate
from laconic.files import write_atomically
from laconic.methods import Method, method_from_name
from laconic.model import HeadInit, PromptedModel, attach, check_segments
from laconic.preprocessing import Preprocessing, Resize
from laconic.processes import is_main_process
from laconic.progress import bar
from laconic.prompts import Share
from laconic.pruning import Pruned, PruneSettings, prune
from laconic.recipe import Recipe
from laconic.runfolder import RESULT, RunFolder, read_json
from laconic.train import History, fit
from laconic.weights import weights_origin

REPORT_KEYS = (
    "val_accuracy",
    "test_accuracy",
    "prompt_counts",
    "learned_params",
    "backbone_params",
    "method",
    "training_seconds",
    "converged",
    "epochs",
)
"""What a result says of each model in it."""
STATE = ".run"
"""Folder with the state of an unfinished run, inside its output folder."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run does; two runs with equal settings on equal data end with equal numbers.

    Args:
        data: Image folder, or None for the bundled task.
        backbone: timm name.
        weights: File with other weights than those that the name stands for; see `laconic.creation.create_backbone`.
        method: One of `laconic.methods.METHOD_NAMES`.
        prompts: Prompts per block (deep, E2VPT) or in all (shallow).
        kv_prompts: Key-value prompts per block, for E2VPT.
        share: What those have in common; see `laconic.E2VPT`.
        layers: Of the head, for `mlp`.
        blocks: How many of the last are learned, for `partial`.
        reduction: For `adapter`; see `laconic.Adapter`.
        rank: For `lora`; see `laconic.LoRA`.
        side_width: For `side`; see `laconic.Side`.
        head_init: See `laconic.attach`.
        condense: Share of the prompts to keep after training; None keeps all.
        fine_tune: Whether condensed prompts are fine-tuned.
        fine_tune_epochs: For how long.
        criterion: See `laconic.score`.
        scope: See `laconic.select`.
        prune: How to prune after training, by the criterion and scope in it; None does not.
        rewind_epoch: Epoch of the training after which the values are recorded that pruned prompts are trained from; 0
            is before the first step.
        recipe: How to train.
        resize: How images are brought to the backbone's size.
        img_size: Input size in pixels where it should differ from the backbone's own.
        split_seed: Cuts the splits that a folder does not have; apart from the recipe's seed, so that several seeds
            share their splits.
        skip_bad: Go on without images that cannot be used.
    """

    data: str | None = None
    backbone: str
    weights: str | None = None
    method: str = "vpt-deep"
    prompts: int = 20
    kv_prompts: int = 5
    share: Share = "key-value"
    layers: int = 2
    blocks: int = 1
    reduction: int = 8
    rank: int = 8
    side_width: int = 32
    head_init: HeadInit = "zero"
    condense: float | None = None
    fine_tune: bool = True
    fine_tune_epochs: int = 20
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    prune: PruneSettings | None = None
    rewind_epoch: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    resize: Resize = "squash"
    img_size: int | None = None
    split_seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.make_method(), Promptless) and self.condense is not None:
            raise LaconicError(f"The method {self.method!r} has no prompts to condense; leave out --condense.")
        if self.prune is not None:
            self._check_pruning()
        if self.resize not in ("squash", "crop"):
            raise LaconicError(f"Images are resized by 'squash' or 'crop', not {self.resize!r}.")
        if self.img_size is not None and self.img_size < 1:
            raise LaconicError(f"The image size must be at least 1 pixel, not {self.img_size}.")
        _check_condensing(self.condense, self.criterion, self.scope)
        self.recipe.for_fine_tuning(epochs=self.fine_tune_epochs)

    def _check_pruning(self) -> None:
        if self.condense is not None:
            raise LaconicError("Prompts are condensed or pruned, not both; leave out --condense or --prune.")
        if not sum(self.make_method().initial_counts(1)):
            raise LaconicError("There is nothing to prune: this method has no prompts that pass the projections.")
        if not 0 <= self.rewind_epoch <= self.recipe.epochs:
            raise LaconicError(
                f"The epoch to rewind to lies between 0 and the {self.recipe.epochs} of the training, not at "
                f"{self.rewind_epoch}."
            )

    def make_method(self) -> Method:
        """What these settings attach."""
        return method_from_name(
            self.method,
            num_prompts=self.prompts,
            num_kv_prompts=self.kv_prompts,
            share=self.share,
            layers=self.layers,
            blocks=self.blocks,
            reduction=self.reduction,
            rank=self.rank,
            side_width=self.side_width,
        )


@dataclass(frozen=True, kw_only=True)
class CondenseSettings:
    """What the condensation of a saved adapter does.

    Args:
        adapter: Folder or Hub id.
        weights: File with the backbone's weights, where `laconic.load` cannot find them by itself.
        data: Image folder it was trained on, or None for the bundled task.
        ratio: Share of the prompts to keep.
        criterion: See `laconic.score`.
        scope: See `laconic.select`.
        fine_tune: Whether the kept prompts are fine-tuned.
        fine_tune_epochs: For how long.
        seed: Seeds order and random scores.
        split_seed: See `Settings`.
        skip_bad: Go on without images that cannot be used.
    """

    adapter: str
    weights: str | None = None
    data: str | None = None
    ratio: float = 0.3
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    fine_tune: bool = True
    fine_tune_epochs: int = 20
    seed: int = 0
    split_seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        _check_condensing(self.ratio, self.criterion, self.scope)
        Recipe(epochs=self.fine_tune_epochs, seed=self.seed)


def _check_condensing(ratio: float | None, criterion: str, scope: str) -> None:
    if ratio is not None and not 0 < ratio <= 1:
        raise LaconicError(f"The share of prompts to keep must be above 0 and at most 1, not {ratio}.")
    if criterion not in CRITERIA:
        raise LaconicError(f"There is no criterion called {criterion!r}; there are {', '.join(CRITERIA)}.")
    if scope not in SCOPES:
        raise LaconicError(f"The scope is 'global', 'local' or 'shared', not {scope!r}.")


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
            check_segments(settings.prune.num_segments, info)
        stages = _Stages(folder, settings, preprocessing, progress)
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
    return {
        "tokens": found.choice.tokens,
        "segments": found.choice.segments,
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


def provenance(model: PromptedModel, task: Task, weights: dict[str, str] | None) -> dict[str, Any]:
    """Where a result comes from: data, preprocessing, weights, versions, machine."""
    splits = {"train": task.train, "val": task.val, "test": task.test}
    return {
        "data": {
            "source": task.source,
            "fingerprint": task.fingerprint(),
            "classes": list(task.classes),
            "images": {name: None if split is None else len(split) for name, split in splits.items()},
            "skipped": list(task.skipped),
        },
        "preprocessing": asdict(task.preprocessing),
        "backbone_fingerprint": fingerprint(model.backbone),
        "weights": weights,
        "epoch_rule": "last epoch; test data read once, at the end",
        "versions": {
            "laconic": __version__,
            "torch": torch.__version__,
            **{name: version(name) for name in ("timm", "accelerate", "numpy")},
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": next(model.parameters()).device.type,
    }
