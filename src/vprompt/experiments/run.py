"""A whole run: data, training, condensation, one look at the test data, adapter and result on disk; resumable."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vprompt.backbones.factory import describe_name
from vprompt.compression.condense import fine_tuning_recipe
from vprompt.compression.criteria import check_criterion, check_prompts, check_riding, check_target
from vprompt.compression.merge import check_merge
from vprompt.data.dataset import Task
from vprompt.experiments.folder import RunFolder, result_of
from vprompt.experiments.settings import CondenseSettings, Settings
from vprompt.experiments.stages import Page, Sources, Stages, preprocessing_of
from vprompt.methods.layers.prompts import check_segments
from vprompt.model.attach import attach
from vprompt.model.load import load
from vprompt.model.model import PromptedModel
from vprompt.model.tensors import TENSORS_FILE
from vprompt.tasks.columns import Columns
from vprompt.training.checkpoint import History
from vprompt.training.evaluate import evaluate
from vprompt.utils.errors import DataError, DivergedError
from vprompt.utils.io import checksum
from vprompt.utils.progress import Report, silent


def run(
    settings: Settings,
    out: Path,
    *,
    resume: bool = False,
    progress: bool | Report = False,
    trained: Path | None = None,
    sources: Sources | None = None,
    page: Page | None = None,
) -> dict[str, Any]:
    """Trains, condenses or prunes if asked, evaluates, and writes adapter and result.json to a folder.

    Under `torchrun`, every process calls it and the first one writes.

    Args:
        settings: What to do.
        out: Where to; must not hold a run yet unless `resume`.
        resume: Go on with the unfinished run in `out`, or start it where there is none; a finished one is left alone.
        progress: Show bars on standard error, or report the training to this.
        trained: Folder of the finished run of the same settings without condensing or pruning, whose training is
            then not done again; see `first_stage`.
        sources: Where backbone and images come from; made anew when not given.
        page: Leaves report.html, such as `vprompt.experiments.report.outcome.write_page`.

    Returns:
        The document in result.json.

    Raises:
        VPromptError: Or one of its kinds, whatever goes wrong that a sentence explains.
        Interrupted: On Ctrl-C; the run can be resumed.
    """
    sources = sources or Sources()

    def data_fingerprint() -> str:
        preprocessing = preprocessing_of(
            settings, describe_name(settings.backbone, img_size=settings.img_size, in_chans=settings.in_chans)
        )
        return sources.task(settings, preprocessing, settings.target, silent).fingerprint()

    fingerprints = {"data": data_fingerprint, "weights": partial(_file_fingerprint, settings.weights)}
    folder = RunFolder(out, settings.to_flat(), fingerprints=fingerprints)
    with folder.opened(resume=resume) as finished:
        if finished is not None:
            return finished
        stages, model = _prepare(settings, folder, progress, sources, page)
        folder.record(data=stages.task.fingerprint())
        if model.prompts.settled() is not model.prompts:  # saved as what they make, from which nothing goes on
            trained = None
        facts: dict[str, Any] = {"backbone": settings.backbone, "seed": settings.recipe.seed}
        recipe = stages.settle(model) if trained is None else settings.recipe
        if settings.condense is None and settings.prune is None:
            return stages.finish(model, stages.train(model, recipe, "training"), facts)
        early = None
        if trained is not None:
            early, history, before = _take_over(model, trained, stages)
            recipe = recipe if recipe.fixed else model.recipe or recipe
            if settings.prune is not None and settings.prune.rewind_epoch:
                early = model.state()
        else:
            if settings.prune is not None:
                history = stages.train_and_record(model, recipe, settings.prune.rewind_epoch)
            else:
                history = stages.train(model, recipe, "training")
            before = stages.report(model, history)
            stages.keep(model, before, settings)
        if settings.prune is not None:
            if settings.prune.fresh_start:
                torch.manual_seed(2**32 - 1 - settings.recipe.seed)  # of which torch reads 32 bits
                early = attached(settings, model.backbone, stages.task).state()
            pruned = stages.prune(model, recipe, settings.prune, early)
            pruning = {"tokens": 0.0, "segments": 0.0, "trainings": round(1 + pruned.trainings, 2)}
            if (record := pruned.model.pruning) is not None:
                pruning |= {"tokens": record.tokens, "segments": record.segments}
            facts |= {"before": before, "pruning": pruning | {"trials": [asdict(trial) for trial in pruned.trials]}}
            return stages.finish(pruned.model, pruned.history or history, facts)
        assert settings.condense is not None
        fine_tuning = recipe.for_fine_tuning(epochs=settings.condense.fine_tune_epochs)
        small, tuning = stages.condense(model, settings.condense, fine_tuning, keep=trained is None)
        return stages.finish(small, tuning, {"before": before, **facts})


def first_stage(settings: Settings) -> Settings | None:
    """The training that a condensing or pruning run starts from and may share with others; None where it cannot."""
    recipe, prune = settings.recipe, settings.prune
    if settings.condense is None:
        last = None if recipe.ema or recipe.watches else recipe.epochs
        if prune is None or prune.rewind_epoch not in (0, last):
            return None  # values to rewind to, other than the first and the last ones, are recorded while training
    return replace(settings, condense=None, prune=None)


def try_settings(
    settings: Settings,
    checkpoint: Path,
    *,
    until: int,
    progress: bool | Report = False,
    sources: Sources | None = None,
) -> dict[str, Any]:
    """Trains up to an epoch of the recipe's and validates, to choose settings by; goes on from its checkpoint.

    The schedule is that of the whole training, so that going on later is the same as never having stopped. Test images
    are not read.

    Args:
        settings: What to train; neither condensed nor pruned.
        checkpoint: File with the state of the training.
        until: How many epochs.
        progress: See `run`.
        sources: See `run`.

    Returns:
        `val_accuracy` (or the score of another target) and `val_loss` after that epoch, the `epochs` done, `seconds` in
        all; with `diverged`, a sentence, and no figures, where a loss became no number.

    Raises:
        DataError: If there are no validation images.
    """
    sources = sources or Sources()
    folder = RunFolder(checkpoint.parent, settings.to_flat())
    stages, model = _prepare(settings, folder, progress, sources)
    if stages.val is None:
        raise DataError(f"{stages.task.source} has no validation images to choose settings by.")
    score = f"val_{model.target.headline}"
    none = {"target": model.target.name, score: None, "val_loss": None}
    try:
        history = stages.train(model, settings.recipe, "training", checkpoint=checkpoint, until=until)
    except DivergedError as error:
        return {**none, "epochs": until, "diverged": str(error)}
    evaluation = evaluate(model, stages.val)
    if not math.isfinite(evaluation.loss):
        why = f"The loss on the validation images became {evaluation.loss}."
        return {**none, "epochs": until, "diverged": why}
    return {
        "target": model.target.name,
        score: evaluation.score,
        "val_loss": evaluation.loss,
        "epochs": len(history.rows),
        "seconds": round(history.seconds, 1),
        "data_fingerprint": stages.task.fingerprint(),
    }


def _prepare(
    settings: Settings, folder: RunFolder, progress: bool | Report, sources: Sources, page: Page | None = None
) -> tuple[Stages, PromptedModel]:
    """Looks at the data before any weights are fetched, but after weights that are here already."""
    info = describe_name(settings.backbone, img_size=settings.img_size, in_chans=settings.in_chans)
    given = None if settings.weights is None else sources.backbone(settings)
    preprocessing = preprocessing_of(settings, info)
    if settings.condense is not None:
        check_criterion(settings.condense.criterion, info)
    if settings.prune is not None:
        check_criterion(settings.prune.criterion, info)
        check_segments(settings.prune.num_segments, info.widths)
    stages = Stages(folder, settings, preprocessing, settings.target, progress, sources, page)
    for part in (settings.condense, settings.prune):
        if part is not None:
            check_target(part.criterion, stages.task.target)
    if settings.prune is not None and settings.prune.searched and stages.val is None:
        raise DataError(
            "There are no validation images on which to search how much to prune; give --prune-tokens and "
            "--prune-segments."
        )
    backbone: nn.Module = sources.backbone(settings) if given is None else given
    torch.manual_seed(settings.recipe.seed)
    model = attached(settings, backbone, stages.task)
    stages.introduce(model, stages.settle(model, search=False))
    return stages, model


def attached(settings: Settings, backbone: nn.Module, task: Task) -> PromptedModel:
    """A backbone with what a run learns, as it begins."""
    return attach(backbone, settings.method, data=task, head_init=settings.head_init, head=settings.head)


def _take_over(
    model: PromptedModel, trained: Path, stages: Stages
) -> tuple[dict[str, torch.Tensor], History, dict[str, Any]]:
    """Gives a model the values of its finished training; returns the initial ones, and what is known of it."""
    before = stages.report_in(trained)
    if before is None:
        raise DataError(
            f"The images of {stages.task.source} have changed since the training in {trained}; remove that to train "
            "anew."
        )
    early = model.state()
    adapter = load(trained, model.backbone)
    model.restore(adapter.state())
    model.recipe = adapter.recipe
    return early, History(rows=before["epochs"], seconds=before["training_seconds"]), before


def run_condense(
    settings: CondenseSettings,
    out: Path,
    *,
    resume: bool = False,
    progress: bool | Report = False,
    page: Page | None = None,
) -> dict[str, Any]:
    """Condenses a saved adapter into another folder; arguments and errors as those of `run`."""
    trained_by = result_of(settings.adapter)["settings"]
    seed = trained_by.get("split_seed", 0) if settings.split_seed is None else settings.split_seed
    settings = replace(
        settings,
        columns=settings.columns.over(Columns.among(trained_by)),
        split_seed=seed,
        train_on=settings.train_on or trained_by.get("train_on", "train"),
        augment=settings.augment or trained_by.get("augment"),
    )
    condensing = settings.condense
    sources = Sources()

    def data_fingerprint() -> str:
        adapter = load(settings.adapter, weights=settings.weights)
        return sources.task(settings, adapter.preprocessing, adapter.target.name, silent).fingerprint()

    fingerprints = {
        "data": data_fingerprint,
        "weights": partial(_file_fingerprint, settings.weights),
        "adapter": partial(_file_fingerprint, f"{settings.adapter}/{TENSORS_FILE}"),
    }
    folder = RunFolder(out, settings.to_flat(), flags={"condense": "ratio"}, fingerprints=fingerprints)
    with folder.opened(resume=resume) as finished:
        if finished is not None:
            return finished
        model = load(settings.adapter, weights=settings.weights, backbone_precision=settings.backbone_precision)
        check_prompts(model.prompt_counts, "condense")
        check_criterion(condensing.criterion, model.info)
        check_riding(condensing.criterion, model.method)
        check_target(condensing.criterion, model.target)
        if condensing.merge:
            check_merge(model)
        stages = Stages(folder, settings, model.preprocessing, model.target.name, progress, sources, page)
        folder.record(data=stages.task.fingerprint())
        if model.classes is not None and model.target.names != stages.task.target.names:
            raise DataError(
                f"The classes of {stages.task.source} are not those of the adapter {settings.adapter}; give the data "
                "that it was trained on."
            )
        earlier = stages.report_in(Path(settings.adapter))  # first: a damaged one is said before any work
        recipe = replace(fine_tuning_recipe(model), epochs=condensing.fine_tune_epochs, seed=settings.seed)
        stages.introduce(model, recipe)
        before = stages.report(model, History()) | (earlier or {})
        small, history = stages.condense(model, condensing, recipe, keep=True)
        facts = {"before": before, "backbone": model.info.name, "seed": settings.seed}
        facts |= {"fingerprints": {"adapter": fingerprints["adapter"]()}}
        return stages.finish(small, history, facts)


def _file_fingerprint(file: str | None) -> str | None:
    """Sixteen hex digits of a file's bytes; None where there is none."""
    return checksum(Path(file))[:16] if file is not None and os.path.isfile(file) else None
