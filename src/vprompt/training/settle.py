"""Numbers of a recipe that are found on the data: batch size, epochs and learning rate; and the pace of a training."""

from __future__ import annotations

import json
import math
import time
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from accelerate.utils import find_executable_batch_size
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vprompt.methods.registry import to_config
from vprompt.model.model import PromptedModel
from vprompt.model.records import AUTO, DEFAULT_LR, Recipe
from vprompt.model.split import first_learned
from vprompt.model.wrappers import checkpointed_parts
from vprompt.training.checkpoint import History, merit
from vprompt.training.feature_cache import free_memory
from vprompt.training.loader import ImageLabels, TrainingEpoch, identity, iterate, size_of
from vprompt.training.precision import accelerator, attention_for_training, autocast
from vprompt.utils.devices import device_named
from vprompt.utils.distributed import gathered, is_main_process
from vprompt.utils.errors import DivergedError, TrainingError
from vprompt.utils.io import read_json, write_json
from vprompt.utils.progress import Report
from vprompt.utils.serialization import flat

Trial = Callable[..., History]
"""`vprompt.fit`, which is above this module."""

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Learning rates that are tried, as shares of the method's default."""

SHARE = 10
"""A rate is tried for one part in so many of the epochs."""

FIRST_SECONDS = 1.0
"""A measured batch has as many images as are likely to take so long."""

PROBE, MOST_SECONDS = 0.1, 30.0
"""Share of a time budget in which the pace of a training is measured, but for its beginning, and at most so long."""

LEAST_BATCH, MOST_BATCH = 8, 256
"""Images in a batch whose size is found, as far as memory and data allow."""


class _Enough(Exception):  # noqa: N818
    """The pace is known: nothing is wrong."""


def settled(
    trial: Trial,
    model: PromptedModel,
    train: ImageLabels,
    val: ImageLabels | None,
    recipe: Recipe,
    *,
    file: Path | None = None,
    resume: bool = False,
    progress: bool | Report = False,
    search: bool = True,
    spent: float = 0.0,
    after: int = 0,
) -> tuple[Recipe, dict[str, Any]]:
    """Finds the numbers of a recipe that are `auto`, or that a time leaves open; the model stays as it is.

    Args:
        trial: `vprompt.fit`.
        model: What is to be trained.
        train: The images to train on.
        val: Images to choose a learning rate by.
        recipe: What is given.
        file: Numbers that were found are kept here, and the state of the search beside it.
        resume: Go on from `file` and with the numbers there, where it was for the same.
        progress: As of `vprompt.fit`; shows a line for each rate.
        search: Whether to search for the learning rate, which takes half as long as the training.
        spent: Seconds of the time budget that are gone.
        after: Images to be evaluated once the training is done, in the same budget.

    Returns:
        The recipe without `auto` and `time`, and what was found, as plain data: `batch_size`, `num_epochs` and
        `lr_search`.

    Raises:
        TrainingError: If there are no validation images to choose a learning rate by, or no rate that trains.
    """
    if recipe.lr == AUTO and val is None:
        raise TrainingError("A learning rate is chosen on validation images, and there are none; give --lr a number.")
    if recipe.fixed:
        return recipe, {}
    accelerator()  # makes the processes of one training know each other
    data = None if file is None else identity(train)
    learns = {"method": to_config(model.method), "prompts": model.prompt_counts, "backbone": model.info.name}
    given = json.loads(json.dumps({**flat(recipe, places=False), "images": size_of(train), "data": data, **learns}))
    known: dict[str, Any] = read_json(file) if resume and file is not None and file.is_file() else {}
    # Another process may find the file not yet written, or already.
    facts: dict[str, Any] = gathered(known.get("facts", {}) if known.get("given") == given else {})[0]

    def record(**found: Any) -> None:
        facts.update(gathered(found)[0])
        if file is not None and is_main_process():
            write_json(file, {"given": given, "facts": facts})

    def short(recipe: Recipe, images: ImageLabels | None, **options: Any) -> History:
        return trial(model.copy(), train, images, recipe=recipe.unwatched(), **options)

    if recipe.batch_size == AUTO:
        if "batch_size" not in facts:
            record(batch_size=_largest_batch(model, train, recipe))
        recipe = replace(recipe, batch_size=facts["batch_size"])
    rates = 0 if recipe.lr != AUTO else len(FACTORS)
    if recipe.time is not None or recipe.epochs == AUTO:
        steps = math.ceil(size_of(train) / (recipe.batch * recipe.accumulate))
        if recipe.time is None:
            record(num_epochs=recipe.scheduled(size_of(train)).num_epochs)
        elif "num_epochs" not in facts:
            started, (start, step) = time.monotonic(), _pace_of(short, recipe)
            look = pace(model, train, recipe).seconds / (1 + model.method.backward_cost)
            # The preview measures as long again.
            left = recipe.budget - spent - after * look - (time.monotonic() - started) - FIRST_SECONDS
            record(num_epochs=_fitting(left, start, steps * step, look * (0 if val is None else size_of(val)), rates))
        recipe = replace(recipe, epochs=facts["num_epochs"], time=None)
    if rates and search:
        if "lr_search" not in facts:
            share, options = model.method.lr_factor, {"resume": resume, "progress": progress}
            record(lr_search=_tried(short, val, recipe, share, file=file, **options))
        tried = [row for row in facts["lr_search"] if "diverged" not in row]
        if not tried:
            raise TrainingError(f"No learning rate trains: {facts['lr_search'][0]['diverged']}")
        recipe = replace(recipe, lr=max(tried, key=merit)["lr"])
    return recipe, facts


def search_epochs(epochs: int) -> int:
    """Epochs in which a learning rate is tried, for a training of so many."""
    return max(1, -(-epochs // SHARE))


def _tried(
    short: Trial, val: ImageLabels | None, recipe: Recipe, share: float, *, file: Path | None, **options: Any
) -> list[dict[str, Any]]:
    """Each rate, with its figures on the validation images after a short training from the same start."""
    rows: list[dict[str, Any]] = []
    for factor in FACTORS:
        rate = float(f"{DEFAULT_LR[recipe.optimizer] * share * factor:.2g}")
        few = replace(recipe, lr=rate, epochs=search_epochs(recipe.num_epochs))
        state = None if file is None else file.with_name(f"{file.stem}-lr-{rate:g}.safetensors")
        try:
            last = short(few, val, checkpoint=state, label=f"lr {rate:g}", **options).rows[-1]
            rows.append({"lr": rate, **{name: value for name, value in last.items() if name not in ("lr", "epoch")}})
        except DivergedError as error:
            rows.append({"lr": rate, "diverged": str(error)})
    return rows


def _pace_of(short: Trial, recipe: Recipe) -> tuple[float, float]:
    """Seconds before the second step of a training, and of a step, by the first ones."""
    started, marks = time.monotonic(), list[tuple[int, float]]()

    def watch(done: int, total: int, **figures: float) -> None:
        if "loss" in figures:
            marks.append((done, time.monotonic()))
            long = marks[-1][1] - marks[0][1] > min(PROBE * recipe.budget, MOST_SECONDS)
            if gathered(len(marks) > 2 and long)[0]:
                raise _Enough

    with suppress(_Enough):
        rate = None if recipe.lr == AUTO else recipe.lr
        short(replace(recipe, time=None, epochs=SHARE, lr=rate), None, progress=watch)
    (first, begun), (last, ended) = marks[0], marks[-1]
    return begun - started, (ended - begun) / max(1, last - first)


def _fitting(seconds: float, start: float, epoch: float, validation: float, rates: int) -> int:
    """Number of epochs, at least one, that fit into a time with their validations and the search for a rate."""

    def cost(epochs: int) -> float:
        return start + epochs * epoch + -(-epochs // max(1, epochs // 10)) * validation

    most = min(10**6, 1 + max(0, int(seconds / max(epoch, 1e-6))))
    fitting = bisect_right(range(1, most + 1), seconds, key=lambda n: cost(n) + rates * cost(search_epochs(n)))
    return max(1, fitting)


def _largest_batch(model: PromptedModel, train: ImageLabels, recipe: Recipe) -> int:
    """The images for which there is memory, a power of two where that is no limit."""
    most = max(min(LEAST_BATCH, size_of(train)), min(MOST_BATCH, size_of(train) // 10))
    start = 2 ** (most.bit_length() - 1)
    if device_named("auto").type != "cpu":

        def fits(batch_size: int) -> int:
            _step(model, train, recipe, batch_size)
            return batch_size

        return find_executable_batch_size(fits, starting_batch_size=start)()
    each = _kept(model, train, recipe)
    while start > 1 and start * each > free_memory() / 2:
        start //= 2
    return start


class Pace(NamedTuple):
    """What a step of a training takes: seconds for each image, and bytes of memory in all."""

    seconds: float
    memory: int


def pace(model: PromptedModel, data: ImageLabels, recipe: Recipe) -> Pace:
    """Measures steps on one image and on a batch, and counts the memory; nothing is learned."""
    kept = _kept(model, data, recipe)
    first = _step(model, data, recipe, 1)
    seconds = _step(model, data, recipe, max(1, min(size_of(data), recipe.batch, int(FIRST_SECONDS / first))))
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    whole = sum(sizes.values()) + sum(buffer.nbytes for buffer in model.buffers())
    held = psutil.Process().memory_info().rss if model.device.type == "cpu" else whole
    # Gradients and two moments of the optimiser come to what is held.
    return Pace(seconds, held + 3 * sum(sizes[name] for name in model.learned) + kept * recipe.batch)


def _kept(model: PromptedModel, data: ImageLabels, recipe: Recipe) -> int:
    """Bytes that the forward pass of an image keeps for the backward pass, without weights; counted."""
    there = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    # Storages are held, so that no other comes to lie at an address.
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        _step(model, data, recipe, 1)
    return sum(storage.nbytes() for place, storage in storages.items() if place not in there)


def _step(model: PromptedModel, data: ImageLabels, recipe: Recipe, size: int) -> float:
    """Seconds an image of a forward and a backward pass of so many; the first is with what it costs to begin."""
    device, training = device_named("auto"), model.training
    model.to(device).train()
    before = [buffer.clone() for buffer in model.head.buffers()]  # statistics of a batch norm
    parts = checkpointed_parts(model, first_learned(model)) if recipe.grad_checkpointing else {}
    occasion = TrainingEpoch(seed=recipe.seed, epoch=0)
    try:
        with torch.random.fork_rng():
            images, labels = next(iterate(data, [torch.arange(size)], device=device, training=occasion))
            started = time.perf_counter()
            with autocast(model, recipe), attention_for_training(model, recipe), model.exchanged(parts):
                loss = model.target.loss(model(images).float(), labels).mean()
                loss.backward()
            float(loss.detach())  # waits for the device
        return (time.perf_counter() - started) / size
    finally:  # also where there was no memory for so many
        model.zero_grad()
        model.train(training)
        for buffer, value in zip(model.head.buffers(), before, strict=True):
            buffer.copy_(value)
