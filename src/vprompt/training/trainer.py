"""The training loop, one for all methods."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vprompt.backbones.info import fingerprint
from vprompt.data.dataset import ImageDataset, Task
from vprompt.methods.layers.head import starts_as_in_the_paper
from vprompt.methods.registry import to_config
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe, learning_rate
from vprompt.model.split import first_learned
from vprompt.model.wrappers import checkpointed_parts
from vprompt.training.checkpoint import History, State, load_checkpoint, save_checkpoint
from vprompt.training.evaluate import evaluate
from vprompt.training.feature_cache import Cache, cached
from vprompt.training.loader import (
    ImageLabels,
    TrainingEpoch,
    augmentation,
    check_batch,
    check_kind,
    dataset_in,
    epoch_order,
    identity,
    iterate,
    size_of,
)
from vprompt.training.precision import attention_for_training, autocast, in_bf16
from vprompt.utils.devices import FAST_BF16, device_named
from vprompt.utils.distributed import launcher_checked
from vprompt.utils.errors import DivergedError, TrainingError
from vprompt.utils.progress import Report, bar
from vprompt.utils.signals import deferred_interrupt

SAVE_EVERY_SECONDS = 10.0
"""A kill costs at most about this much work."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; the message says how to go on."""


def fit(
    model: PromptedModel,
    train: ImageLabels | Task,
    val: ImageLabels | None = None,
    *,
    recipe: Recipe | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool | Report = False,
    label: str = "training",
    at_epoch: Callable[[int], None] | None = None,
    until: int | None = None,
) -> History:
    """Trains the learned part of a model, such as prompts, and its head, in place; the backbone stays as it is.

    On a CPU the same seed and number of threads give the same numbers bit for bit, also when a run was killed and
    resumed. Under `torchrun` the batch is shared by the processes.

    The frozen trunk, which is all before the first block that learns, is computed once for every image, unless the
    images are augmented (`ImageDataset.with_augment`); see `Recipe.cache_gb`. Results are the same but for rounding. A
    model that learns nothing but its head always trains that on features computed once, on any data set.

    Args:
        model: From `vprompt.attach`.
        train: Items are (normalised float image (3, H, W), label); or a data set made by `vprompt.data`; or a task from
            `vprompt.open_data`, with its images to validate on.
        val: Evaluated ten times on the way and at the end, and used for nothing.
        recipe: `Recipe()` when not given; without a learning rate, the method's own is taken and recorded.
        checkpoint: File that holds the state of the run, written atomically.
        resume: Go on from `checkpoint` where it exists.
        progress: Show a bar on standard error, or report to this.
        label: Text of the bar.
        at_epoch: Called with the number of epochs that are done, 0 before the first step. A resumed run calls it again
            only for what a kill took back.
        until: Stop after this many of the recipe's epochs; `resume` goes on from there as without the stop. With
            such a stop, a checkpoint is needed.

    Returns:
        A `History`.

    Raises:
        DataError: If the data does not fit.
        TrainingError: If the loss is no longer a number, the checkpoint belongs to another run, or the model's numbers
            are of a precision in which nothing is learned.
        Interrupted: On Ctrl-C, after the state was saved.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> len(vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=3)).rows)
        3
    """
    check_kind(model, PromptedModel, "A model from vprompt.attach")
    check_kind(recipe, Recipe | None, "A vprompt.Recipe")
    recipe = (recipe or Recipe()).with_rate(model.method.lr_factor)
    if isinstance(train, Task):
        train, val = train.train, val or train.val
    train, val = dataset_in(train), None if val is None else dataset_in(val)
    if isinstance(train, ImageDataset):  # the model is to see all other images as it sees these
        model.preprocessing = replace(model.preprocessing, white=train.preprocessing.white)
    _check_start(model, recipe)
    run = _Run(model, train, val, recipe, None if checkpoint is None else Path(checkpoint), at_epoch, until)
    default = bar(label, enabled=bool(progress) and run.is_main, unit="img", keep=True)
    with nullcontext(progress) if callable(progress) else default as report, torch.random.fork_rng():
        run.train(report, resume=resume)
    model.recipe = recipe
    model.eval()
    return run.history


def _check_start(model: PromptedModel, recipe: Recipe) -> None:
    """Refuses what cannot be trained, and says what is known to train badly."""
    if (held := model.head.weight.dtype) == torch.float16:
        raise TrainingError(
            f"The model's numbers are {held}, too coarse for the steps of a training; attach to the backbone in "
            "float32 (backbone.float()), with precision='bf16' in the recipe to be fast, and halve the trained model."
        )
    if recipe.optimizer == "adamw" and recipe.epochs and starts_as_in_the_paper(model.head):
        warnings.warn(
            "The head starts from the VPT paper's random values, which suit its SGD, and AdamW does not forget them in "
            "a short training; attach with head_init='zero', or train with optimizer='sgd'.",
            stacklevel=3,
        )


class _Run:
    """One training: its model, optimiser, data and progress."""

    def __init__(
        self,
        model: PromptedModel,
        train: ImageLabels,
        val: ImageLabels | None,
        recipe: Recipe,
        checkpoint: Path | None,
        at_epoch: Callable[[int], None] | None,
        until: int | None = None,
    ) -> None:
        # Without an accelerator, say so: accelerate would otherwise look for one in the environment of `torchrun`.
        with launcher_checked():
            self.accelerator = Accelerator(cpu=device_named("auto").type == "cpu")
        self.model = model.to(self.accelerator.device)
        self.val = val
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.at_epoch = at_epoch
        self.epochs = recipe.epochs if until is None else min(until, recipe.epochs)
        self.learned = model.learned
        self.length = size_of(train)
        self.steps_per_epoch = math.ceil(self.length / recipe.batch_size)
        self.step = 0
        self.sums = torch.zeros(2, dtype=torch.float64)  # loss and hits of this epoch
        self.history = History()
        self.optimizer = _optimizer(self.learned, model, recipe)
        self.train_data = train
        self.facts = {
            "recipe": asdict(recipe),
            "method": to_config(model.method),
            "prompt_counts": model.prompt_counts,
            "copies": model.prompts.multiplicity if model.prompts.merged else None,
            "backbone": None if checkpoint is None else fingerprint(model.backbone),
            "images": self.length,
            "data": None if checkpoint is None else identity(train),
            "augment": augmentation(train),
        }
        self.cache: Cache | None = None

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """The step at which this call stops, which may be before the end of the schedule."""
        return self.epochs * self.steps_per_epoch

    def train(self, report: Report, *, resume: bool) -> None:
        if resume and self.checkpoint is not None and self.checkpoint.exists():
            self._restore(self.checkpoint)
        if self.step == 0 and self.at_epoch is not None:
            self.at_epoch(0)
        if self.step >= self.last_step:
            return
        self.model.train()
        with deferred_interrupt(enabled=self.checkpoint is not None) as interrupted, self._checkpointed():
            started = time.monotonic()
            self._fill_cache(report, interrupted)
            self.history.seconds += time.monotonic() - started
            trained = self.accelerator.prepare(self.model if self.cache is None else self.cache.trainable)
            with attention_for_training(self.model, self.recipe):
                self._loop(trained, report, interrupted)
        self._save()

    def _checkpointed(self) -> AbstractContextManager[None]:
        if not self.recipe.grad_checkpointing:
            return nullcontext()
        return self.model.exchanged(checkpointed_parts(self.model, first_learned(self.model)))

    def _fill_cache(self, report: Report, interrupted: Callable[[], bool]) -> None:
        """Computes the feature cache; the same at every point of a resumed run."""

        def on_images(done: int) -> None:
            report(self.step, self.last_step, cached=done)
            if interrupted():
                self._save()
                epoch = self.step // self.steps_per_epoch + 1
                raise Interrupted(f"Stopped before epoch {epoch} of {self.recipe.epochs}; the state was saved.")

        torch.manual_seed(self._seed(0))
        processes = self.accelerator.num_processes
        self.cache = cached(self.model, self.train_data, self.recipe, processes=processes, on_images=on_images)

    def _loop(self, trained: nn.Module, report: Report, interrupted: Callable[[], bool]) -> None:
        saved = started = time.monotonic()
        before = self.history.seconds
        first = self.step
        while self.step < self.last_step:
            epoch = self.step // self.steps_per_epoch
            for batch, inputs, labels in self._epoch_batches(epoch):
                self._step(trained, inputs, labels, batch)
                self.step += 1
                now = time.monotonic()
                self.history.seconds = before + now - started
                rate = (self.step - first) * self.recipe.batch_size / max(now - started, 1e-9)
                seen = min(self.length, (self.step - epoch * self.steps_per_epoch) * self.recipe.batch_size)
                loss, hits = (self.sums / seen).tolist()
                figures = {"loss": loss, self.model.target.hit: hits, "rate": rate}
                report(self.step, self.last_step, epoch=epoch + 1, **figures)
                if self.step % self.steps_per_epoch == 0:
                    self._finish_epoch(epoch, report)
                if interrupted() or now - saved > SAVE_EVERY_SECONDS:
                    self._save()
                    saved = now
                if interrupted():
                    raise Interrupted(f"Stopped in epoch {epoch + 1} of {self.recipe.epochs}; the state was saved.")

    def _epoch_batches(self, epoch: int) -> Iterator[tuple[int, tuple[Tensor, ...], Tensor]]:
        """The rest of an epoch: size of the global batch, and this process's inputs to the model and labels."""
        order = epoch_order(self.length, seed=self.recipe.seed, epoch=epoch)
        batches = list(order.split(self.recipe.batch_size))[self.step - epoch * self.steps_per_epoch :]
        shares = [self._share(batch) for batch in batches]
        device, workers, cache = self.accelerator.device, self.recipe.workers, self.cache
        training = TrainingEpoch(seed=self.recipe.seed, epoch=epoch)
        source = self.train_data if cache is None or cache.with_images else cast("ImageLabels", cache.data)
        data = iterate(source, shares, device=device, workers=workers, seed=self._seed(self.step), training=training)
        for batch, rows in zip(batches, shares, strict=True):
            # Seeded anew for every step, before its images are fetched: random augmentation and dropout then depend
            # on the step alone, and a resumed run repeats them.
            torch.manual_seed(self._seed(self.step))
            images, labels = next(data)
            if cache is None:
                check_batch(images, labels, self.model)
            beside = () if cache is None or not cache.with_images else (cache.rows[rows].to(device),)
            yield len(batch), (*beside, images), labels

    def _seed(self, step: int) -> int:
        return (self.recipe.seed * 1_000_003 + step) * 1024 + self.accelerator.process_index

    def _share(self, batch: Tensor) -> Tensor:
        """This process's part of a global batch; never empty, see `_step`."""
        share = batch[self.accelerator.process_index :: self.accelerator.num_processes]
        return share if len(share) else batch[:1]

    def _step(self, trained: nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, batch: int) -> None:
        recipe, processes, rank = self.recipe, self.accelerator.num_processes, self.accelerator.process_index
        lr = learning_rate(self.step, self.total_steps, peak=recipe.peak_lr, warmup=recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with autocast(self.model, recipe):
            logits = trained(*inputs).float()
        # A process left without images in a short last batch computes one whose weight is zero.
        weight = 1.0 if rank < batch else 0.0
        target = self.model.target
        loss_sum = weight * target.loss(logits, labels).sum()
        self.optimizer.zero_grad()
        # Data-parallel training averages gradients over processes; the batch's mean is wanted.
        self.accelerator.backward(loss_sum * processes / batch)
        hits = weight * target.hits(logits.detach(), labels).sum()
        sums = torch.stack([loss_sum.detach(), hits])
        if processes > 1:
            sums = cast("Tensor", self.accelerator.reduce(sums, reduction="sum"))
        if not math.isfinite(float(sums[0])):
            epoch, step = divmod(self.step, self.steps_per_epoch)
            base = cast("float", recipe.lr)  # set by `fit`
            raise DivergedError(
                f"The loss became {float(sums[0])} in epoch {epoch + 1}, step {step + 1}, at learning rate {lr:.3g}; "
                f"try a lower rate, such as --lr {base / 10:.1g}, or fp32 instead of bf16."
            )
        self.optimizer.step()
        self.sums += sums.cpu()

    def _finish_epoch(self, epoch: int, report: Report) -> None:
        loss, hits = (self.sums / self.length).tolist()
        target = self.model.target
        row: dict[str, float] = {"epoch": epoch + 1, "loss": loss, target.hit: hits}
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        interval = max(1, self.recipe.epochs // 10)
        if self.val is not None and ((epoch + 1) % interval == 0 or epoch + 1 == self.recipe.epochs):
            evaluation = evaluate(self.model, self.val, workers=self.recipe.workers)
            row[key := f"val_{target.headline}"] = evaluation.score
            if math.isfinite(evaluation.loss):  # JSON has no other numbers
                row["val_loss"] = evaluation.loss
            report(self.step, self.last_step, **{key: row[key]})
        self.history.rows.append(row)
        self.sums.zero_()
        if self.at_epoch is not None:
            self.at_epoch(epoch + 1)

    def _save(self) -> None:
        if self.checkpoint is None or not self.is_main:
            return
        bf16 = in_bf16(self.recipe.precision, self.accelerator.device)
        state = State(step=self.step, sums=tuple(self.sums.tolist()), history=self.history, bf16=bf16)
        save_checkpoint(self.checkpoint, self.learned, self.optimizer, run=self.facts, state=state)

    def _restore(self, path: Path) -> None:
        sizes = {"epochs": self.recipe.epochs, "steps_per_epoch": self.steps_per_epoch}
        state = load_checkpoint(path, self.learned, self.optimizer, run=self.facts, **sizes)
        self.step, self.history = state.step, state.history
        self.sums = torch.tensor(state.sums, dtype=torch.float64)
        if state.bf16 is not None and self.recipe.precision == "auto":  # a busy machine may measure another
            FAST_BF16[self.accelerator.device.type] = state.bf16


def _optimizer(learned: dict[str, nn.Parameter], model: PromptedModel, recipe: Recipe) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in learned.values() if p is not model.head.bias], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learned.values() if p is model.head.bias], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.peak_lr)
