"""The training loop, one for all methods."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from timm.models import group_parameters
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from vprompt.backbones.info import classifier_parameters, fingerprint
from vprompt.data.dataset import ImageDataset, Task
from vprompt.methods.base import Move
from vprompt.methods.layers.head import starts_as_in_the_paper
from vprompt.methods.registry import to_config
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe, learning_rate
from vprompt.model.split import first_learned
from vprompt.model.wrappers import checkpointed_parts
from vprompt.training import relocation
from vprompt.training.checkpoint import History, State, load_checkpoint, save_checkpoint
from vprompt.training.evaluate import evaluate
from vprompt.training.feature_cache import Cache, cached
from vprompt.training.loader import (
    ImageLabels,
    TrainingEpoch,
    augmentation,
    check_kind,
    dataset_in,
    identity,
    iterate,
    size_of,
)
from vprompt.training.objective import Objective
from vprompt.training.precision import accelerator, attention_for_training, autocast, in_bf16
from vprompt.training.settle import settled
from vprompt.training.stochastic_depth import Branches, branches, left_out
from vprompt.utils.devices import FAST_BF16, moved
from vprompt.utils.errors import DivergedError, TrainingError
from vprompt.utils.progress import Report, bar
from vprompt.utils.serialization import flat
from vprompt.utils.signals import deferred_interrupt

Log = Callable[[Sequence[Mapping[str, float]]], None]
"""Is given the rows of a training's history, at the start and after every epoch."""

SAVE_EVERY_SECONDS = 10.0
"""A kill costs at most about this much work."""


READ_EVERY = 20
"""On a device that computes while the CPU goes on, loss and hits are read after the first steps and then this often:
to read is to wait for it."""


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
    log: Log | None = None,
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
        checkpoint: File that holds the state of the run, written atomically; what is found on the data (epochs, rate,
            batch size) lies beside it, with `.settled.json` behind its name.
        resume: Go on from `checkpoint` where it exists.
        progress: Show a bar on standard error, or report to this.
        label: Text of the bar.
        at_epoch: Called with the number of epochs that are done, 0 before the first step. A resumed run calls it again
            only for what a kill took back.
        until: Stop after this many of the recipe's epochs; `resume` goes on from there as without the stop. With
            such a stop, a checkpoint is needed.
        log: Called with the rows of the history: those of a resumed run at the start, and all after every epoch.

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
    recipe = (recipe or Recipe()).suited(model.method)
    if isinstance(train, Task):
        train, val = train.train, val or train.val
    train, val = dataset_in(train), None if val is None else dataset_in(val)
    if isinstance(train, ImageDataset):  # the model is to see all other images as it sees these
        model.preprocessing = replace(model.preprocessing, white=train.preprocessing.white)
    _check_start(model, recipe)
    _check_watched(recipe, val)
    file = None if checkpoint is None else Path(f"{checkpoint}.settled.json")
    recipe = settled(fit, model, train, val, recipe, file=file, resume=resume, progress=progress)[0]
    run = _Run(model, train, val, recipe, None if checkpoint is None else Path(checkpoint), at_epoch, until, log)
    default = bar(label, enabled=bool(progress) and run.is_main, unit="img", keep=True)
    with nullcontext(progress) if callable(progress) else default as report, torch.random.fork_rng():
        run.train(report, resume=resume)
    model.recipe = recipe
    if model.condensation is not None and recipe.epochs:
        model.condensation = replace(model.condensation, tuned=True)
    model.eval()
    return run.history


def _check_watched(recipe: Recipe, val: ImageLabels | None) -> None:
    """Refuses a recipe that needs validation images where there are none."""
    if val is None and recipe.watches:
        raise TrainingError(
            "There are no validation images to see the best epoch by, or when to stop; leave out best_epoch and "
            "early_stopping."
        )


def given_or_own(recipe: Recipe | None, own: Recipe, val: ImageLabels | None) -> Recipe:
    """The recipe that is given, or a model's own, without what needs validation images where there are none."""
    recipe = recipe or (own if val is not None else own.unwatched())
    _check_watched(recipe, val)
    return recipe


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
        log: Log | None = None,
    ) -> None:
        self.accelerator = accelerator()
        self.model = model.to(self.accelerator.device)
        self.val = val
        self.recipe = recipe
        self.checkpoint = checkpoint
        self.at_epoch = at_epoch
        self.log = log
        self.epochs = recipe.num_epochs if until is None else min(until, recipe.num_epochs)
        self.learned = model.learned
        self.length = size_of(train)
        self.step_images = recipe.batch * recipe.accumulate
        self.steps_per_epoch = math.ceil(self.length / self.step_images)
        self.step = 0
        self.sums = torch.zeros(2, dtype=torch.float64)  # loss and hits of this epoch
        self.unread: list[Tensor] = []  # those of steps since they were last read
        self.counted = self.reads = 0  # steps in the sums, and how often they were read
        self.history = History()
        self.optimizer = _optimizer(self.learned, model, recipe)
        self.train_data = train
        self.objective = Objective(model, train, recipe)
        self.parameters = nn.ParameterList(self.learned.values())
        self.ema = ModelEmaV3(self.parameters, recipe.ema, use_warmup=True) if recipe.ema else None
        self.best: dict[str, Tensor] = {}
        self.planted = [0] * len(model.prompts)
        self.branches: Branches = ()
        self.facts = {
            "recipe": flat(recipe),
            "method": to_config(model.method),
            "prompt_counts": [sum(model.prompt_counts)] if model.relocates else model.prompt_counts,
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
        return self.recipe.num_epochs * self.steps_per_epoch

    @property
    def stopped(self) -> bool:
        """Whether the validation images have seen no gain for long enough."""
        return 0 < self.recipe.early_stopping <= self.history.waited

    @property
    def averages(self) -> dict[str, Tensor]:
        """The moving average of what is learned, by name; empty where there is none."""
        if self.ema is None:
            return {}
        others = {name: value.clone() for name, value in self.model.values.items() if name not in self.learned}
        return {**dict(zip(self.learned, self.ema.module.parameters(), strict=True)), **others}

    @property
    def last_step(self) -> int:
        """The step at which this call stops, which may be before the end of the schedule."""
        return self.epochs * self.steps_per_epoch

    def train(self, report: Report, *, resume: bool) -> None:
        if resume and self.checkpoint is not None and self.checkpoint.exists():
            self._restore(self.checkpoint)
        if self.step == 0 and self.at_epoch is not None:
            self.at_epoch(0)
        if self.log is not None:
            self.log(self.history.rows)
        if self.step < self.last_step and not self.stopped:
            self._train(report)
        self._fill(self.best or self.averages)

    def _train(self, report: Report) -> None:
        self.model.train()
        if self.recipe.stochastic_depth:
            self.branches = branches(self.model, self.recipe.stochastic_depth)
        with deferred_interrupt(enabled=self.checkpoint is not None) as interrupted, self._checkpointed():
            started = time.monotonic()
            self._fill_cache(report, interrupted)
            self.history.seconds += time.monotonic() - started
            with attention_for_training(self.model, self.recipe):
                self._loop(report, interrupted)
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
                raise Interrupted(f"Stopped before epoch {epoch} of {self.recipe.num_epochs}; the state was saved.")

        torch.manual_seed(self._seed(0))
        processes = self.accelerator.num_processes
        if not self.recipe.mixes:
            self.cache = cached(self.model, self.train_data, self.recipe, processes=processes, on_images=on_images)

    def _prepared(self) -> nn.Module:
        """What is trained, as accelerate runs it in one or several processes."""
        trained = self.model if self.cache is None else self.cache.trainable
        still = {id(buffer) for buffer in self.model.backbone.buffers()}
        # A frozen backbone is the same in every process: its codes need not be sent at every step, nor can fp8 be.
        ignored = [name for name, buffer in trained.named_buffers() if id(buffer) in still]
        trained.__dict__["_ddp_params_and_buffers_to_ignore"] = ignored
        return self.accelerator.prepare(trained)

    def _loop(self, report: Report, interrupted: Callable[[], bool]) -> None:
        saved = started = time.monotonic()
        before = self.history.seconds
        first, trained = self.step, self._prepared()
        while self.step < self.last_step and not self.stopped:
            epoch = self.step // self.steps_per_epoch
            # Behind the last epoch nothing moves, and a checkpoint there is of before.
            if self.step == epoch * self.steps_per_epoch >= max(1, round(self.total_steps * self.recipe.warmup)):
                moves = relocation.chosen(self.model, self.train_data, self.recipe, self.planted)
                if moves:
                    del trained  # with its hooks on parameters that are no more
                    self.accelerator.free_memory()
                    self._relocate(moves, epoch)
                    trained = self._prepared()
            for batches, data in self._epoch_batches(epoch):
                self._step(trained, batches, data)
                self.step += 1
                now = time.monotonic()
                self.history.seconds = before + now - started
                rate = (self.step - first) * self.step_images / max(now - started, 1e-9)
                seen = min(self.length, (self.step - epoch * self.steps_per_epoch) * self.step_images)
                figures: dict[str, float] = {}
                if not self.unread:
                    loss, hits = (self.sums / seen).tolist()
                    figures = {"loss": loss, self.model.target.hit: hits, "rate": rate}
                report(self.step, self.last_step, epoch=epoch + 1, **figures)
                if self.step % self.steps_per_epoch == 0:
                    self._finish_epoch(epoch, report)
                if interrupted() or now - saved > SAVE_EVERY_SECONDS:
                    self._save()
                    saved = now
                if interrupted():
                    raise Interrupted(f"Stopped in epoch {epoch + 1} of {self.recipe.num_epochs}; the state was saved.")

    def _relocate(self, moves: Sequence[Move], epoch: int) -> None:
        """Moves prompts between blocks, with the optimiser's state and the moving average of each."""
        prompts, state = self.model.prompts, self.optimizer.state
        old = list(prompts)
        fresh = relocation.fresh(self.model, moves, seed=self.recipe.seed, epoch=epoch)
        blank = [torch.zeros_like(row) for row in fresh]
        if self.ema is not None:
            averages = [self.averages[f"prompts.{block}"] for block in range(len(old))]
            for average, value in zip(averages, relocation.moved(averages, moves, fresh), strict=True):
                average.data = value
        slots = {key: [state[p][key] for p in old] for key in state[old[0]]}
        self.model.replace_prompts(relocation.moved(old, moves, fresh))
        for key, values in slots.items():
            rows = isinstance(values[0], Tensor) and values[0].shape == old[0].shape
            after = relocation.moved(values, moves, blank) if rows else values
            for parameter, value in zip(prompts, after, strict=True):
                state[parameter][key] = value
        self._rebind()
        self.planted = [sum(move.target == block for move in moves) for block in range(len(old))]

    def _rebind(self) -> None:
        """Trains the model's parameters as they are now in the place of those of before."""
        before, self.learned = self.learned, self.model.learned
        now = {id(parameter): self.learned[name] for name, parameter in before.items()}
        for group in self.optimizer.param_groups:
            group["params"] = [now[id(parameter)] for parameter in group["params"]]
        for name, parameter in before.items():
            if parameter is not self.learned[name]:
                self.optimizer.state.pop(parameter, None)
        self.parameters = nn.ParameterList(self.learned.values())

    def _epoch_batches(self, epoch: int) -> Iterator[tuple[tuple[Tensor, ...], Iterator[tuple[Tensor, Tensor]]]]:
        """The rest of an epoch, step by step: indices of the batches that make a step, and what yields their images."""
        order = self.objective.order(self.length, epoch=epoch)
        steps = [step.split(self.recipe.batch) for step in order.split(self.step_images)]
        steps = steps[self.step - epoch * self.steps_per_epoch :]
        shares = [self._share(batch) for batches in steps for batch in batches]
        device, workers, cache = self.accelerator.device, self.recipe.workers, self.cache
        training = TrainingEpoch(seed=self.recipe.seed, epoch=epoch)
        source = self.train_data if cache is None or cache.with_images else cast("ImageLabels", cache.data)
        data = iterate(
            source,
            shares,
            device=device,
            workers=workers,
            seed=self._seed(self.step),
            training=training,
            model=self.model if cache is None else None,
        )
        for batches in steps:
            # Seeded anew for every step, before its images are fetched: random augmentation and dropout then depend
            # on the step alone, and a resumed run repeats them.
            torch.manual_seed(self._seed(self.step))
            yield batches, data

    def _seed(self, step: int) -> int:
        return (self.recipe.seed * 1_000_003 + step) * 1024 + self.accelerator.process_index

    def _share(self, batch: Tensor) -> Tensor:
        """This process's part of a global batch; never empty, see `_step`."""
        share = batch[self.accelerator.process_index :: self.accelerator.num_processes]
        return share if len(share) else batch[:1]

    def _step(self, trained: nn.Module, batches: Sequence[Tensor], data: Iterator[tuple[Tensor, Tensor]]) -> None:
        recipe, size = self.recipe, sum(map(len, batches))
        lr = learning_rate(self.step, self.total_steps, peak=recipe.peak_lr, warmup=recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.zero_grad()
        with left_out(self.branches):
            sums = torch.stack([self._backward(trained, batch, size, *next(data)) for batch in batches]).sum(0)
        if self.accelerator.num_processes > 1:
            sums = cast("Tensor", self.accelerator.reduce(sums, reduction="sum"))
        self.unread.append(sums)
        if sums.device.type == "cpu" or len(self.unread) > min(self.reads, READ_EVERY - 1):
            self._read()
        if recipe.clip:
            nn.utils.clip_grad_norm_(self.parameters, recipe.clip)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.parameters, self.step + 1)

    def _read(self) -> None:
        """Adds up what the steps since the last call came to; the first whose loss is no number ends the training.

        Nothing is saved, evaluated or told of an epoch before this was called.
        """
        if not self.unread:
            return
        rows, self.unread = torch.stack(self.unread).cpu(), []
        self.reads += 1
        wrong = rows[:, 0].isfinite().logical_not().nonzero()
        if len(wrong):
            row, recipe = int(wrong[0]), self.recipe
            number = self.counted + row
            lr = learning_rate(number, self.total_steps, peak=recipe.peak_lr, warmup=recipe.warmup)
            epoch, step = divmod(number, self.steps_per_epoch)
            base = cast("float", recipe.lr)  # set by `fit`
            raise DivergedError(
                f"The loss became {float(rows[row, 0])} in epoch {epoch + 1}, step {step + 1}, at learning rate "
                f"{lr:.3g}; try a lower rate, such as --lr {base / 10:.1g}, or fp32 instead of bf16."
            )
        for row in rows:
            self.sums += row
        self.counted += len(rows)

    def _backward(self, trained: nn.Module, batch: Tensor, size: int, images: Tensor, labels: Tensor) -> Tensor:
        """Adds the gradients of a batch to those of its step, of `size` images; returns its sums of loss and hits."""
        cache, processes, rank = self.cache, self.accelerator.num_processes, self.accelerator.process_index
        inputs, shares = (images,), None
        if cache is not None and cache.with_images:
            inputs = (moved(cache.rows[self._share(batch)], images.device), images)
        if self.recipe.mixes:
            images, shares = self.objective.mixed(images, seed=int(torch.randint(2**31, ())))
            inputs = (images,)
        with autocast(self.model, self.recipe):
            logits = trained(*inputs).float()
        # A process left without images in a short last batch computes one whose weight is zero.
        weight = 1.0 if rank < len(batch) else 0.0
        loss_sum = weight * self.objective.losses(logits, labels, shares).sum()
        # Data-parallel training averages gradients over processes; the step's mean is wanted.
        loss, penalty = loss_sum * processes / size, self.model.prompts.penalty()
        # Of the penalty, which all processes compute, every batch of a step adds its share.
        self.accelerator.backward(loss if penalty is None else loss + penalty * (len(batch) / size))
        hits = weight * self.model.target.hits(logits.detach(), labels).sum()
        return torch.stack([loss_sum.detach(), hits])

    def _finish_epoch(self, epoch: int, report: Report) -> None:
        self._read()
        target, recipe = self.model.target, self.recipe
        loss, hits = (self.sums / self.length).tolist()
        row: dict[str, float] = {"epoch": epoch + 1, "loss": loss, target.hit: hits}
        row["lr"] = learning_rate(self.step - 1, self.total_steps, peak=recipe.peak_lr, warmup=recipe.warmup)
        self.history.rows.append(row)
        if self.val is not None and recipe.validates(epoch + 1):
            with self._averaged():
                evaluation = evaluate(self.model, self.val, workers=recipe.workers)
                found = {(key := f"val_{target.headline}"): evaluation.score, "val_loss": evaluation.loss}
                row |= {name: value for name, value in found.items() if math.isfinite(value)}  # JSON has no others
                if recipe.best_epoch and self.history.best is row:
                    self.best = {name: value.detach().clone() for name, value in self.model.values.items()}
            report(self.step, self.last_step, **{key: row[key]} if key in row else {})
        self.sums.zero_()
        if self.log is not None:
            self.log(self.history.rows)
        if self.at_epoch is not None:
            self.at_epoch(epoch + 1)

    @contextmanager
    def _averaged(self) -> Generator[None]:
        """Inside, the model has the moving average of its weights, where there is one."""
        now = {name: p.detach().clone() for name, p in self.learned.items()} if self.ema is not None else {}
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(now)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        self.model.take_counts(values)
        own = self.model.values
        for name, value in values.items():
            own[name].copy_(value)

    def _save(self) -> None:
        if self.checkpoint is None or not self.is_main:
            return
        self._read()
        bf16 = in_bf16(self.recipe.precision, self.accelerator.device)
        planted = tuple(self.planted)
        state = State(step=self.step, sums=tuple(self.sums.tolist()), history=self.history, bf16=bf16, planted=planted)
        copies = {"ema": self.averages, "best": self.best}
        save_checkpoint(self.checkpoint, self.model.values, self.optimizer, run=self.facts, state=state, copies=copies)

    def _restore(self, path: Path) -> None:
        averages: dict[str, Tensor] = {}

        def take_counts(saved: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            self.model.take_counts(saved)
            self._rebind()
            return self.model.values

        state = load_checkpoint(
            path,
            self.model.values,
            self.optimizer,
            run=self.facts,
            epochs=self.recipe.num_epochs,
            steps_per_epoch=self.steps_per_epoch,
            copies={"ema": averages, "best": self.best},
            take_counts=take_counts if self.model.relocates else None,
        )
        for name, value in self.averages.items():
            value.data = averages[name].to(value)
        self.planted = list(state.planted) or self.planted
        self.step = self.counted = state.step
        self.history = state.history
        self.sums = torch.tensor(state.sums, dtype=torch.float64)
        if state.bf16 is not None and self.recipe.precision == "auto":  # a busy machine may measure another
            FAST_BF16[self.accelerator.device.type] = state.bf16


def _optimizer(learned: dict[str, nn.Parameter], model: PromptedModel, recipe: Recipe) -> torch.optim.Optimizer:
    scales = _rate_shares(learned, model, recipe.layer_decay)
    groups = [
        {
            "params": [p for name, p in learned.items() if (p is model.head.bias) == bias and scales[name] == scale],
            "weight_decay": 0.0 if bias else recipe.weight_decay,
            "lr_scale": scale,
        }
        for scale in sorted(set(scales.values()), reverse=True)
        for bias in (False, True)
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.peak_lr)


def _rate_shares(learned: dict[str, nn.Parameter], model: PromptedModel, decay: float) -> dict[str, float]:
    """Parameter -> share of the learning rate: less, the further below the head it is, by timm's order of layers.

    Raises:
        TrainingError: If nothing of the backbone's own is learned.

    Source: BEiT (arXiv 2106.08254), as in `timm.optim.param_groups_layer_decay`.
    """
    if decay == 1:
        return dict.fromkeys(learned, 1.0)
    backbone = cast("Any", model.backbone)
    layers = cast("dict[str, int]", group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True))
    classifier = classifier_parameters(backbone)  # which is ours, one layer above whatever there is
    top = 1 + max(layers[name] for name, p in backbone.named_parameters() if id(p) not in classifier)
    own = {f"tuned.{name}": layer for name, layer in layers.items()}
    known = {name: own[name] for name in learned if name in own}
    if not known:
        raise TrainingError(
            f"The method {model.method.name} learns no weights of the backbone's own, whose rates could differ by "
            "layer; leave out --layer-decay, or take --method full."
        )
    return {name: decay ** (top - known.get(name, top)) for name in learned}
