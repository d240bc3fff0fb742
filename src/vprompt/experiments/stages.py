"""Stages of a run: backbone and images, training, pruning, condensing, the numbers of each model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import BackboneInfo, num_parameters
from vprompt.compression.choices import PruneSettings
from vprompt.compression.condense import condense
from vprompt.compression.prune import prune
from vprompt.compression.search import Pruned
from vprompt.data.benchmarks.tasks import transforms_of
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.preprocessing import Augment, Preprocessing
from vprompt.data.tasks import open_task
from vprompt.experiments.folder import RESULT, RunFolder
from vprompt.experiments.provenance import provenance
from vprompt.experiments.settings import CondenseSettings, Condensing, Settings
from vprompt.model.cost import folded_gmacs
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.training.checkpoint import load_tensors, save_tensors
from vprompt.training.evaluate import Evaluation, evaluate
from vprompt.training.loader import ImageLabels
from vprompt.training.trainer import History, fit
from vprompt.utils.distributed import is_main_process
from vprompt.utils.errors import DataError
from vprompt.utils.io import read_json
from vprompt.utils.progress import Report, bar


class Sources:
    """Makes backbones and opens tasks for runs; a subclass may keep them from one run to the next."""

    def backbone(self, settings: Settings) -> nn.Module:
        """The backbone that settings name, with its weights; runs leave it as it is."""
        return create_backbone(settings.backbone, img_size=settings.img_size, weights=settings.weights)

    def task(self, settings: Settings | CondenseSettings, preprocessing: Preprocessing, report: Report) -> Task:
        """The images that settings name, checked and decoded."""
        return open_task(
            settings.data,
            preprocessing,
            root=settings.root,
            split_seed=settings.split_seed,
            skip_bad=settings.skip_bad,
            progress=report,
        )


class CachedSources(Sources):
    """Keeps the last backbone and the last task; the old one goes before the next is made, as both might not fit."""

    def __init__(self) -> None:
        self._backbone: tuple[object, nn.Module] | None = None
        self._task: tuple[object, Task] | None = None

    def backbone(self, settings: Settings) -> nn.Module:
        """See `Sources`."""
        key = (settings.backbone, settings.img_size, settings.weights)
        if self._backbone is None or self._backbone[0] != key:
            self._backbone = None
            self._backbone = (key, super().backbone(settings))
        return self._backbone[1]

    def task(self, settings: Settings | CondenseSettings, preprocessing: Preprocessing, report: Report) -> Task:
        """See `Sources`."""
        key = (settings.data, settings.root, settings.split_seed, settings.skip_bad, preprocessing)
        if self._task is None or self._task[0] != key:
            self._task = None
            self._task = (key, super().task(settings, preprocessing, report))
        return self._task[1]


def preprocessing_of(settings: Settings, info: BackboneInfo) -> Preprocessing:
    """Preprocessing of every image: as the backbone was trained, resized as the settings or the task say."""
    return replace(info.preprocessing, resize=settings.resize or transforms_of(settings.data).resize)


REPORT_KEYS = (
    "val_accuracy",
    "val_loss",
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
"""Keys of a result for each model in it."""


class Stages:
    """The stages of one run, each of which goes on where its checkpoint stands."""

    def __init__(
        self,
        folder: RunFolder,
        settings: Settings | CondenseSettings,
        preprocessing: Preprocessing,
        progress: bool | Report,
        sources: Sources,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.bars = progress is True
        self.progress = progress
        self.started = time.monotonic()
        self.scoring_seconds: float | None = None
        with bar("reading images", enabled=self.bars) as report:
            self.task = sources.task(settings, preprocessing, report)
        self.train_images, self.val = training_images(self.task, settings)

    def train(
        self,
        model: PromptedModel,
        recipe: Recipe,
        stage: str,
        at_epoch: Callable[[int], None] | None = None,
        *,
        checkpoint: Path | None = None,
        until: int | None = None,
    ) -> History:
        """Trains what there is to learn, or up to an epoch; the state is kept in the run's folder by default."""
        return fit(
            model,
            self.train_images,
            self.val,
            recipe=recipe,
            checkpoint=checkpoint or self.folder.state(f"{stage}.safetensors"),
            resume=True,
            progress=self.progress,
            label=stage,
            at_epoch=at_epoch,
            until=until,
        )

    def train_and_record(self, model: PromptedModel, recipe: Recipe, rewind_epoch: int) -> History:
        """Trains with all prompts and records on the way the values to rewind to."""
        early = self._early

        def record(epochs: int) -> None:
            if epochs == rewind_epoch and is_main_process():
                save_tensors(early, model.state(), {})

        return self.train(model, recipe, "training", record)

    def prune(
        self,
        model: PromptedModel,
        recipe: Recipe,
        settings: PruneSettings,
        rewind_epoch: int,
        early: dict[str, torch.Tensor] | None = None,
    ) -> Pruned:
        """Prunes a trained model and trains what is left from its early values; those recorded where none are given."""
        return prune(
            model,
            self.train_images,
            self.val,
            early=load_tensors(self._early, "start the run anew in another --out")[0] if early is None else early,
            rewind_epoch=rewind_epoch,
            settings=settings,
            recipe=recipe,
            folder=self.folder.state("pruning") / "search",
            resume=True,
            progress=self.bars,
        )

    @property
    def _early(self) -> Path:
        return self.folder.state("pruning") / "early.safetensors"

    def condense(self, model: PromptedModel, settings: Condensing, recipe: Recipe) -> tuple[PromptedModel, History]:
        """The model with the prompts that are kept, fine-tuned if the settings say so."""
        started = time.monotonic()
        small = condense(
            model,
            self.train_images,
            ratio=settings.ratio,
            criterion=settings.criterion,
            scope=settings.scope,
            merge=settings.merge,
            fine_tune=False,
            recipe=recipe,
            progress=self.bars,
        )
        self.scoring_seconds = round(time.monotonic() - started, 3)
        return small, self.train(small, recipe, "fine-tuning") if settings.fine_tune else History()

    def report(self, model: PromptedModel, history: History) -> dict[str, Any]:
        """The numbers of one model; the only place where test data is read."""
        val = self._evaluated(model, self.val, "validation")
        test = self._evaluated(model, self.task.test if self._tests else None, "test")
        return {
            "val_accuracy": None if val is None else val.accuracy,
            "val_loss": None if val is None or not math.isfinite(val.loss) else val.loss,
            "test_accuracy": None if test is None else test.accuracy,
            "prompt_counts": model.prompt_counts,
            "learned_params": model.num_learned,
            "backbone_params": num_parameters(model.backbone),
            "folded_gmacs": round(folded_gmacs(model), 6),
            "method": model.method.name,
            "training_seconds": round(history.seconds, 1),
            "converged": history.converged,
            "epochs": history.rows,
        }

    def report_in(self, folder: Path) -> dict[str, Any] | None:
        """The numbers that a run left in a folder; None where there are none, or those of other images."""
        path = folder / RESULT
        result = read_json(path) if path.is_file() else {}
        if result.get("provenance", {}).get("data", {}).get("fingerprint") != self.task.fingerprint():
            return None
        return {key: result[key] for key in REPORT_KEYS if key in result}

    def finish(
        self, model: PromptedModel, history: History, facts: dict[str, Any], weights: dict[str, str] | None
    ) -> dict[str, Any]:
        """Writes adapter and result."""
        result = {
            **self.report(model, history),
            **facts,
            "settings": self.folder.document,
            "provenance": provenance(model, self.train_images, self.task, weights, tested=self._tests),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        if self.scoring_seconds is not None:
            result["scoring_seconds"] = self.scoring_seconds
        result = json.loads(json.dumps(result))
        self.folder.finish(model, result)
        return result

    @property
    def _tests(self) -> bool:
        return not isinstance(self.settings, Settings) or self.settings.test

    def _evaluated(self, model: PromptedModel, data: ImageLabels | None, name: str) -> Evaluation | None:
        if data is None:
            return None
        with bar(f"evaluating ({name})", enabled=self.bars) as report:
            return evaluate(model, data, report=report)


def training_images(task: Task, settings: Settings | CondenseSettings) -> tuple[ImageDataset, ImageDataset | None]:
    """Images that a run trains on, and those left to validate on."""
    train, val = task.train, task.val
    if isinstance(settings, Settings) and settings.train_on == "train+val":
        if val is None:
            raise DataError(f"{task.source} has no validation images to train on as well.")
        train, val = train.joined(val), None
    return train.with_augment(augment_of(settings)), val


def augment_of(settings: Settings | CondenseSettings) -> Augment:
    """Random augmentation of training images: as the settings say, or as the task's results are made."""
    given = settings.augment if isinstance(settings, Settings) else None
    return given or transforms_of(settings.data).augment
