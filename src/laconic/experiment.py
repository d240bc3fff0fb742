"""A whole run: data, training, condensation, one look at the test data, adapter and result on disk; resumable."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from laconic.adapter import load
from laconic.backbone import create_backbone, describe, fingerprint
from laconic.batches import ImageLabels
from laconic.condensation import Criterion, Scope, condense
from laconic.data import Task, open_task
from laconic.errors import DataError, LaconicError, TrainingError
from laconic.files import write_json
from laconic.methods import method_from_name
from laconic.model import HeadInit, PromptedModel, attach
from laconic.preprocessing import Preprocessing, Resize
from laconic.progress import bar
from laconic.recipe import Recipe
from laconic.train import History, evaluate, fit

RESULT = "result.json"
REPORT_KEYS = (
    "val_accuracy",
    "test_accuracy",
    "prompt_counts",
    "learned_params",
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
        method: `vpt-deep`, `vpt-shallow` or `linear`.
        prompts: Prompts per block (deep) or in all (shallow).
        head_init: See `laconic.attach`.
        condense: Share of the prompts to keep after training; None keeps all.
        fine_tune: Whether condensed prompts are fine-tuned.
        fine_tune_epochs: For how long.
        criterion: See `laconic.score`.
        scope: See `laconic.select`.
        recipe: How to train.
        resize: How images are brought to the backbone's size.
        img_size: Input size in pixels where it should differ from the backbone's own.
        split_seed: Cuts the splits that a folder does not have; apart from the recipe's seed, so that several seeds
            share their splits.
        skip_bad: Go on without images that cannot be used.
    """

    data: str | None = None
    backbone: str
    method: str = "vpt-deep"
    prompts: int = 20
    head_init: HeadInit = "zero"
    condense: float | None = None
    fine_tune: bool = True
    fine_tune_epochs: int = 20
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    recipe: Recipe = field(default_factory=Recipe)
    resize: Resize = "squash"
    img_size: int | None = None
    split_seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.condense is not None and not 0 < self.condense <= 1:
            raise LaconicError(f"The share of prompts to keep must be above 0 and at most 1, not {self.condense}.")
        if self.condense is not None and self.method == "linear":
            raise LaconicError("A linear probe has no prompts to condense; leave out --condense.")
        method_from_name(self.method, num_prompts=self.prompts)


@dataclass(frozen=True, kw_only=True)
class CondenseSettings:
    """What the condensation of a saved adapter does.

    Args:
        adapter: Folder or Hub id.
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
    data: str | None = None
    ratio: float = 0.3
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    fine_tune: bool = True
    fine_tune_epochs: int = 20
    seed: int = 0
    split_seed: int = 0
    skip_bad: bool = False


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
    backbone = create_backbone(settings.backbone, img_size=settings.img_size)
    preprocessing = replace(describe(backbone).preprocessing, resize=settings.resize)
    stages = _Stages(folder, settings, preprocessing, progress)
    torch.manual_seed(settings.recipe.seed)
    model = attach(
        backbone,
        method_from_name(settings.method, num_prompts=settings.prompts),
        num_classes=len(stages.task.classes),
        head_init=settings.head_init,
        classes=stages.task.classes,
        preprocessing=preprocessing,
    )
    history = stages.train(model, settings.recipe, "training")
    before: dict[str, Any] = {}
    if settings.condense is not None:
        before = {"before": stages.report(model, history)}
        recipe = settings.recipe.for_fine_tuning(epochs=settings.fine_tune_epochs)
        model, history = stages.condense(model, settings.condense, recipe)
    return stages.finish(model, history, {**before, "backbone": settings.backbone, "seed": settings.recipe.seed})


def run_condense(
    settings: CondenseSettings, out: Path, *, resume: bool = False, progress: bool = False
) -> dict[str, Any]:
    """Condenses a saved adapter into another folder; arguments and errors as those of `run`."""
    folder = RunFolder(out, asdict(settings))
    if (finished := folder.claim(resume=resume)) is not None:
        return finished
    model = load(settings.adapter)
    stages = _Stages(folder, settings, model.preprocessing, progress)
    if model.classes is not None and model.classes != stages.task.classes:
        raise DataError(
            f"The classes of {stages.task.source} are not those of the adapter {settings.adapter}; give the data that "
            "it was trained on."
        )
    before = _earlier_report(settings.adapter, stages.task) or stages.report(model, History())
    recipe = (model.recipe or Recipe()).for_fine_tuning(epochs=settings.fine_tune_epochs)
    small, history = stages.condense(model, settings.ratio, replace(recipe, seed=settings.seed))
    return stages.finish(small, history, {"before": before, "backbone": model.info.name, "seed": settings.seed})


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

    def train(self, model: PromptedModel, recipe: Recipe, stage: str) -> History:
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
        )

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
            "method": model.method.name,
            "training_seconds": round(history.seconds, 1),
            "converged": history.converged,
            "epochs": history.rows,
        }

    def finish(self, model: PromptedModel, history: History, facts: dict[str, Any]) -> dict[str, Any]:
        """Writes adapter and result."""
        result = {
            **self.report(model, history),
            **facts,
            "settings": self.folder.document,
            "provenance": provenance(model, self.task),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        self.folder.finish(model, result)
        return result

    def _accuracy(self, model: PromptedModel, data: ImageLabels | None, name: str) -> float | None:
        if data is None:
            return None
        with bar(f"evaluating ({name})", enabled=self.progress) as report:
            return evaluate(model, data, report=report).accuracy


def _earlier_report(adapter: str, task: Task) -> dict[str, Any] | None:
    """The numbers that the adapter's own run left beside it, if that run was on the same data."""
    path = Path(adapter) / RESULT
    if not path.is_file():
        return None
    result = _read_json(path)
    if result.get("provenance", {}).get("data", {}).get("fingerprint") != task.fingerprint():
        return None
    return {key: result[key] for key in REPORT_KEYS if key in result}


class RunFolder:
    """The output folder of a run: claimed at the start, whole at the end.

    While the run goes on its state lies in a hidden folder; adapter and result.json appear when it is done.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out = out
        self.document: dict[str, Any] = json.loads(json.dumps(settings))
        self.is_main = int(os.environ.get("RANK", "0")) == 0  # set by torchrun

    def checkpoint(self, stage: str) -> Path:
        """Where a stage keeps its state."""
        return self.out / STATE / f"{stage}.safetensors"

    def claim(self, *, resume: bool) -> dict[str, Any] | None:
        """Makes the folder this run's own; returns the result when resuming a run that is finished.

        Raises:
            TrainingError: If something else is in the way.
        """
        if not self.is_main:
            return None
        out, settings = self.out, self.out / STATE / "settings.json"
        if out.exists() and not out.is_dir():
            raise TrainingError(f"The output folder {out} is a file; choose another --out.")
        if (out / RESULT).exists():
            result = _read_json(out / RESULT)
            if resume:
                self._compare(result.get("settings", {}), "finished")
                return result
            raise TrainingError(f"{out} holds a finished run; choose another --out (its numbers are in {RESULT}).")
        if settings.exists():
            if not resume:
                raise TrainingError(f"{out} holds an unfinished run; add --resume to go on, or choose another --out.")
            self._compare(_read_json(settings), "unfinished")
        elif (out / "adapter_config.json").exists():
            raise TrainingError(f"{out} holds an adapter; choose another --out.")
        try:
            write_json(settings, self.document)
        except OSError as error:
            raise TrainingError(f"The output folder {out} cannot be written ({error.strerror}).") from error
        return None

    def finish(self, model: PromptedModel, result: dict[str, Any]) -> None:
        """Writes the adapter, then the result, then forgets the state."""
        if self.is_main:
            model.save_pretrained(self.out)
            write_json(self.out / RESULT, result)
            shutil.rmtree(self.out / STATE)

    def _compare(self, earlier: dict[str, Any], state: str) -> None:
        changed = sorted(key for key in self.document if earlier.get(key) != self.document[key])
        if changed:
            raise TrainingError(
                f"The {state} run in {self.out} has other settings ({', '.join(changed)}); give the same, or choose "
                "another --out."
            )


def provenance(model: PromptedModel, task: Task) -> dict[str, Any]:
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
        "epoch_rule": "last epoch; test data read once, at the end",
        "versions": {name: version(name) for name in ("laconic", "torch", "timm", "accelerate", "numpy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": next(model.parameters()).device.type,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingError(f"{path} is damaged; choose another --out.") from error
