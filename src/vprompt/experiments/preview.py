"""Preview of a run: what was found, what will be learned on what, and how long that will take."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from vprompt.backbones.info import num_parameters
from vprompt.backbones.quantise import precision_held
from vprompt.compression.condense import SHARES
from vprompt.data.benchmarks.tasks import transforms_of
from vprompt.data.dataset import ImageDataset, Task, usual_augment
from vprompt.data.preprocessing import Augment
from vprompt.data.scan import in_words
from vprompt.experiments.settings import CondenseSettings, Condensing, Settings
from vprompt.model.model import PromptedModel
from vprompt.model.records import AUTO, Recipe
from vprompt.model.windows import OVERLAP
from vprompt.training.precision import in_bf16
from vprompt.training.settle import FACTORS, pace, search_epochs
from vprompt.utils.devices import device_named
from vprompt.utils.text import count, duration

MANY_WINDOWS = 50
"""In which an image with a mask is seen, from which on that is worth a word."""

MOST_CLASSES = 6
"""To be named one by one."""


def preview(
    model: PromptedModel, task: Task, images: ImageDataset, settings: Settings | CondenseSettings, recipe: Recipe
) -> list[str]:
    """Five lines: classes and images, files passed over, backbone, what is learned, and the time and memory for that.

    Args:
        model: What is to be trained.
        task: Its data.
        images: Those to train on, as they are augmented.
        settings: Of the run.
        recipe: Its recipe, with numbers of epochs and images.
    """
    train, val, test = (0 if split is None else len(split) for split in (task.train, task.val, task.test))
    if isinstance(settings, Settings):
        learned, seen = passes(replace(settings, recipe=recipe), train, val, test, cached=not task.target.dense)
    else:
        learned, seen = train * _tuning_passes(settings.condense), 2.0 * (val + test)
    if task.target.dense:
        seen = (seen + val * min(9, recipe.num_epochs)) * windows_of(images)
    step = pace(model, images, recipe)
    seconds = step.seconds * (learned + seen / (1 + model.method.backward_cost))
    device, (height, width) = device_named("auto"), model.preprocessing.size
    numbers, held = "bf16" if in_bf16(recipe.precision, device) else "fp32", precision_held(model.backbone)
    numbers += f", held in {held}" * (held != "fp32")
    where = f"{device.type}, {count(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else str(device)
    whole = num_parameters(model.backbone)
    return [
        *found(task),
        f"Backbone: {model.info.name}, {whole / 1e6:.1f} M parameters, {height} x {width} pixels, {where}, {numbers}.",
        f"To learn: {model.method.name}, {model.method.summary()}; {model.num_learned:,} parameters "
        f"({100 * model.num_learned / whole:.2g} %); {count(recipe.num_epochs, 'epoch')}, batches of {recipe.batch}.",
        f"Time: about {duration(seconds)}: {count(round(learned + seen), 'image')} at {1 / step.seconds:,.0f} a second."
        f" Memory: about {step.memory / 1e9:.1f} GB.",
    ]


def found(task: Task) -> list[str]:
    """Two lines on the images of a task: classes, images per class and split; and what was passed over."""
    splits = {"train": task.train, "val": task.val, "test": task.test}
    splits = {name: split for name, split in splits.items() if split}
    counts = [task.target.counts(split.labels) for split in splits.values()]
    order = sorted(counts[0], key=lambda name: sum(count[name] for count in counts))
    shown = order if len(order) <= MOST_CLASSES else [*order[:3], *order[-2:]]
    each = ", ".join(f"{name} {'/'.join(str(count[name]) for count in counts)}" for name in shown)
    by = f"; by {task.target.unit} ({'/'.join(splits)}): {each}{' among others' * (shown is not order)}" if each else ""
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in splits.items())
    total = count(sum(map(len, splits.values())), "image")
    passed = [in_words(task.summary.passed_over)] if task.summary.passed_over else []
    passed += [sentence.rstrip(".") for sentence in task.skipped[:2]] + ["and more"] * (len(task.skipped) > 2)
    return [
        f"Data: {task.source}, {task.target.size}, {total} ({sizes}){by}.",
        f"Passed over: {'; '.join(passed) or 'nothing'}.",
    ]


def passes(
    settings: Settings,
    train: int,
    val: int,
    test: int,
    *,
    until: int | None = None,
    trained: bool = False,
    cached: bool = True,
) -> tuple[float, float]:
    """Images that a run learns from, counted anew in every epoch, and those that it only looks at.

    Args:
        settings: Of the run.
        train: Training images.
        val: Validation images.
        test: Test images.
        until: The epoch after which it stops.
        trained: Whether the training with all prompts is there already.
        cached: Whether features that never change are computed once.
    """
    learning = train + val if settings.train_on == "train+val" else train
    whole = settings.recipe.scheduled(learning).num_epochs
    epochs = whole if until is None else until
    if settings.recipe.lr == AUTO and not trained:
        epochs += len(FACTORS) * search_epochs(epochs)
    learned, seen = float(learning * epochs * (not trained)), 0.0
    if cached and settings.method.caches_features and augment_of(settings) == "none" and not settings.recipe.mixes:
        learned, seen = 0.0, float(learning)  # features are computed once
    if settings.condense is not None:
        learned += learning * _tuning_passes(settings.condense)
    if settings.prune is not None:
        learned += learning * (1 + whole * (4 if settings.prune.searched else 1))
    seen += val if settings.train_on == "train" else 0
    return learned, seen + (test if settings.test and until is None else 0)


def windows_of(images: ImageDataset) -> float:
    """About in how many windows one of some images with masks is seen."""
    preprocessing, pixels = images.preprocessing, float(images.labels.sum(1).mean())
    part = pixels / math.prod(preprocessing.size) / (1 - OVERLAP) ** 2
    return max(1.0, part) if preprocessing.resize == "keep" else 1.0


def _tuning_passes(settings: Condensing) -> int:
    """Of scoring, and of fine-tuning once or for every share that is tried."""
    tunings = len(SHARES) if settings.ratio == "auto" else 1
    return 1 + settings.fine_tune * tunings * settings.fine_tune_epochs


def augment_of(settings: Settings | CondenseSettings, images: ImageDataset | None = None) -> Augment:
    """Random augmentation of training images: as the settings say, or as the task's results are made."""
    usual = transforms_of(settings.data).augment
    return settings.augment or (usual if images is None else usual_augment(usual, images))
