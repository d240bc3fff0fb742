"""Recipes of training, and the records of condensing and pruning that are saved with a model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import ADDED, PLACE, brief, check_fields

if TYPE_CHECKING:
    from vprompt.methods.base import Method

Precision = Literal["fp32", "bf16", "auto"]

Balance = Literal["none", "loss", "sampler", "logit-adjustment"]

AUTO = "auto"
"""A number that `vprompt.training.settle` finds before the training."""

DEFAULT_LR = {"adamw": 5e-3, "sgd": 5.0}

MAX_RATE = 1e30
"""Beyond it, a step is more than a number in single precision can hold."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training; the schedule is linear warm-up, then cosine to zero, stepped at every batch.

    Args:
        epochs: Passes over the training data; 0 leaves the model as it is. auto: as many as suit the number of images,
            100 of a few and 20 of many (`schedule_for`); the papers take 100.
        batch_size: Images per step, over all processes. auto: as many as memory has room for, 8 to 256 and at most a
            tenth of the images.
        optimizer: `"adamw"`, or `"sgd"` with momentum as in the VPT paper.
        lr: Peak learning rate. For SGD it is the paper's base rate, used times batch_size / 256. When not given, 0.005
            for AdamW and 5.0 for SGD; of which `fit` takes the method's share (`lr_factor`): all of it for prompts,
            biases and a linear head, 0.04 for full fine-tuning, 0.2 for `Partial` and `MLP`, 0.4 for the others. auto:
            the best of five around that, in short trainings on the validation images.
        weight_decay: Not applied to the bias of the head.
        warmup: Share of the steps in which the rate rises; the paper's 10 of 100 epochs.
        momentum: For SGD.
        precision: `"fp32"`; `"bf16"` for autocast; or `"auto"`: bf16 where the machine is faster in it, as measured.
        seed: Seeds the order of the images and prompt dropout.
        workers: Processes that load a data set which is not held in memory.
        cache_gb: The input of the first block in which something is learned is computed once for every image and
            cached, if that takes no more than so many gigabytes (10^9 bytes); 0 computes it anew in every epoch. Not
            for images that are augmented, or of a data set that is neither an `ImageDataset` nor a `TensorDataset`.
        grad_checkpointing: Compute the blocks' activations again in the backward pass instead of keeping them: less
            memory, more time, the same numbers.
        time: As many epochs as fit into this time, such as 90s, 10m or 1h, instead of a number of them.
        balance: Classes of unequal size. loss: weigh each image by how rare its class is; sampler: draw images of all
            classes equally often; logit-adjustment: add the logarithms of the classes' shares to the logits in the
            training loss.
        mixup: Mix pairs of images and their losses, by shares from a beta distribution with this parameter (0.2, say).
        cutmix: Cut a box of one image into another, its size from a beta distribution with this parameter (1.0, say).
        label_smoothing: Share of the loss that goes to all classes alike.
        ema: Evaluate and save a moving average of the learned weights with this decay (0.999, say), which rises to it.
        early_stopping: Stop after so many validations without a gain; about ten are made in a training.
        best_epoch: Keep the weights of the best validation instead of those of the last epoch.
        accumulate: Make a step of so many batches, adding up their gradients.
        clip: Largest norm of the gradient of a step; 0 for any.
        stochastic_depth: Share of the images for which attention and MLP of the last block are each left out in
            training, 0 to below 1; it falls linearly to none in the first. Blocks before all that is learned stay
            whole. When not given, that of the method: 0.2 for LoRA, 0.1 for Adapter+, none for the others.
        layer_decay: Rate of a block, as a share of that of the next one (0.75, say), for methods that learn the
            backbone's own weights.

    Raises:
        VPromptError: If a value is out of range.

    Example:
        >>> Recipe(epochs=10, optimizer="sgd", lr=2.5, batch_size=128).peak_lr
        1.25

    Source: VPT (arXiv 2203.12119), appendix A; Menon et al. (arXiv 2007.07314) for logit adjustment.
    """

    epochs: int | Literal["auto"] = "auto"
    batch_size: int | Literal["auto"] = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | Literal["auto"] | None = None
    weight_decay: float = 1e-4
    warmup: float = 0.1
    momentum: float = 0.9
    precision: Precision = "fp32"
    seed: int = 0
    workers: int = field(default=0, metadata=PLACE)
    cache_gb: float = field(default=2.0, metadata=PLACE)
    grad_checkpointing: bool = field(default=False, metadata=PLACE)
    time: str | None = field(default=None, metadata=ADDED)
    balance: Balance = field(default="none", metadata=ADDED)
    mixup: float = field(default=0.0, metadata=ADDED)
    cutmix: float = field(default=0.0, metadata=ADDED)
    label_smoothing: float = field(default=0.0, metadata=ADDED)
    ema: float = field(default=0.0, metadata=ADDED)
    early_stopping: int = field(default=0, metadata=ADDED)
    best_epoch: bool = field(default=False, metadata=ADDED)
    accumulate: int = field(default=1, metadata=ADDED)
    clip: float = field(default=0.0, metadata=ADDED)
    stochastic_depth: float | None = field(default=None, metadata=ADDED)
    layer_decay: float = field(default=1.0, metadata=ADDED)

    __repr__ = brief

    def __post_init__(self) -> None:
        check_fields(self)
        checks = [
            (
                self.epochs == AUTO or 0 <= self.epochs <= 10**6,
                f"epochs must be at least 0 and at most a million, not {self.epochs}",
            ),
            (
                self.batch_size == AUTO or 1 <= self.batch_size <= 10**6,
                f"the batch size must be 1 to a million, not {self.batch_size}",
            ),
            (
                self.lr is None or self.lr == AUTO or 0 < self.lr <= MAX_RATE,
                f"the learning rate must be above 0 and at most {MAX_RATE:g}, not {self.lr}",
            ),
            (0 <= self.weight_decay <= 10_000, f"weight decay must be 0 to 10,000, not {self.weight_decay}"),
            (0 <= self.warmup <= 1, f"warm-up is a share of the steps, 0 to 1, not {self.warmup}"),
            (0 <= self.momentum < 1, f"momentum must be at least 0 and below 1, not {self.momentum}"),
            (0 <= self.seed < 2**32, f"the seed must be at least 0 and below 2^32, not {self.seed}"),
            (0 <= self.workers <= 1024, f"the number of workers must be 0 to 1024, not {self.workers}"),
            (0 <= self.cache_gb < math.inf, f"the cache takes at least 0 gigabytes, not {self.cache_gb}"),
            (
                self.time is None or 0 < self.budget < math.inf,
                f"time must be a number with s, m or h, such as 90s, 10m or 1h, not {self.time!r}",
            ),
            (self.time is None or self.epochs == AUTO, "a time stands instead of a number of epochs; give one of them"),
            (0 <= self.mixup <= 1000, f"mixup must be 0 to 1000, not {self.mixup}"),
            (0 <= self.cutmix <= 1000, f"cutmix must be 0 to 1000, not {self.cutmix}"),
            (0 <= self.label_smoothing < 1, f"label smoothing is a share below 1, not {self.label_smoothing}"),
            (0 <= self.ema < 1, f"the decay of the average must be at least 0 and below 1, not {self.ema}"),
            (0 <= self.early_stopping <= 10**6, f"early stopping takes 0 to a million, not {self.early_stopping}"),
            (1 <= self.accumulate <= 10**4, f"1 to 10,000 batches make a step, not {self.accumulate}"),
            (0 <= self.clip < math.inf, f"the norm to clip to must be at least 0 and finite, not {self.clip}"),
            (
                self.stochastic_depth is None or 0 <= self.stochastic_depth < 1,
                f"stochastic depth is a share of the images below 1, not {self.stochastic_depth}",
            ),
            (0 < self.layer_decay <= 1, f"layer decay must be above 0 and at most 1, not {self.layer_decay}"),
        ]
        for holds, problem in checks:
            if not holds:
                raise VPromptError(f"In the recipe, {problem}.")

    @property
    def fixed(self) -> bool:
        """Whether all numbers are given, and none are to be found on the data."""
        return self.time is None and AUTO not in (self.epochs, self.batch_size, self.lr)

    @property
    def num_epochs(self) -> int:
        """Number of epochs; a `VPromptError` where it is still to be found."""
        if isinstance(self.epochs, str) or self.time is not None:
            raise VPromptError("Here a number of epochs is needed, not auto or a time; give --epochs.")
        return self.epochs

    def scheduled(self, images: int) -> Recipe:
        """The same recipe with a number of epochs that suits so many training images, where that is auto."""
        if self.epochs != AUTO or self.time is not None:
            return self
        return replace(self, epochs=schedule_for(math.ceil(images / (self.batch * self.accumulate))))

    @property
    def batch(self) -> int:
        """Images computed at once, over all processes; a `VPromptError` where the number is still to be found."""
        if isinstance(self.batch_size, str):
            raise VPromptError("Here a batch size is needed, not auto; give --batch-size.")
        return self.batch_size

    @property
    def budget(self) -> float:
        """Seconds of `time`; 0 where it is none.

        Example:
            >>> Recipe(time="1.5h").budget, Recipe(time="90s").budget
            (5400.0, 90.0)
        """
        parts = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([smh])", self.time or "")
        return float(parts[1]) * {"s": 1, "m": 60, "h": 3600}[parts[2]] if parts else 0.0

    @property
    def watches(self) -> bool:
        """Whether validation images decide which epoch is kept, or when the training stops."""
        return self.best_epoch or self.early_stopping > 0

    def unwatched(self) -> Recipe:
        """The same recipe without what needs validation images."""
        return replace(self, best_epoch=False, early_stopping=0)

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def validates(self, epoch: int) -> bool:
        """Whether the validation images are looked at after this epoch, counted from 1: ten times, and at the end."""
        return epoch % max(1, self.num_epochs // 10) == 0 or epoch == self.num_epochs

    @property
    def peak_lr(self) -> float:
        """The highest learning rate in force."""
        base = self.lr if isinstance(self.lr, float) else DEFAULT_LR[self.optimizer]
        return base * self.batch * self.accumulate / 256 if self.optimizer == "sgd" else base

    def with_rate(self, share: float) -> Recipe:
        """The same recipe with its learning rate spelt out: as given, or a share of the default.

        Example:
            >>> Recipe().with_rate(0.1).lr, Recipe(lr=0.3).with_rate(0.1).lr
            (0.0005, 0.3)
        """
        return self if self.lr is not None else replace(self, lr=DEFAULT_LR[self.optimizer] * share)

    def suited(self, method: Method) -> Recipe:
        """The same recipe with its rate and its stochastic depth spelt out: as given, or those of a method.

        Example:
            >>> from vprompt.methods.lora import LoRA
            >>> Recipe(lr=0.3).suited(LoRA()).lr, Recipe().suited(LoRA()).lr
            (0.3, 0.002)
        """
        own = method.stochastic_depth or None
        depth = own if self.stochastic_depth is None else self.stochastic_depth
        return replace(self.with_rate(method.lr_factor), stochastic_depth=depth)

    def for_fine_tuning(self, *, epochs: int = 20, lr_factor: float = 0.1) -> Recipe:
        """The recipe with which condensed prompts are fine-tuned: fewer epochs at a tenth of the rate.

        Source: Prompt Condensation (arXiv 2305.17223), Algorithm 1 and section 6.1; the tenth is ours.
        """
        base = self.lr if isinstance(self.lr, float) else DEFAULT_LR[self.optimizer]
        return replace(self, epochs=epochs, time=None, lr=base * lr_factor)


def schedule_for(steps: int) -> int:
    """Number of epochs of so many steps that suit an unknown task: about 800 steps, in 20 to 100 epochs.

    Chosen on the validation images of four development tasks (docs/training.md).

    Example:
        >>> schedule_for(2), schedule_for(16), schedule_for(79)
        (100, 50, 20)
    """
    return min(100, max(20, round(800 / steps)))


def learning_rate(step: int, total: int, *, peak: float, warmup: float) -> float:
    """Rate of step `step` (from 0) of `total`: a linear rise over the share `warmup`, then half a cosine to zero.

    Example:
        >>> [round(learning_rate(s, 10, peak=1.0, warmup=0.2), 3) for s in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    rising = round(total * warmup)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


@dataclass(frozen=True, kw_only=True)
class Condensation:
    """Scores and choice of `condense`, saved with the adapter.

    Args:
        criterion: Name of the score.
        scope: `"global"`, `"local"` or `"shared"`.
        ratio: Share of the prompts that was retained.
        merge: Whether the other prompts of a block were merged into the retained ones.
        scores: Score of every prompt there was, block by block.
        kept: Indices of the retained prompts, block by block.
        tuned: Whether the model was trained since then.
    """

    criterion: str
    scope: str
    ratio: float
    scores: tuple[tuple[float, ...], ...]
    kept: tuple[tuple[int, ...], ...]
    merge: bool = False
    tuned: bool = True

    __repr__ = brief

    @property
    def peak(self) -> dict[str, float]:
        """How peaked the scores are, by their size, and how many `tied` prompts were retained by place alone.

        `effective` is the number of equal scores that would be spread as evenly, out of `prompts`; `kept_share` is what
        the retained ones have of the sum. A tied prompt scores no higher than a removed one that it was compared with.

        Example:
            >>> Condensation(criterion="taylor", scope="global", ratio=0.5, scores=((0.0,) * 4,), kept=((0, 1),)).peak
            {'prompts': 4, 'effective': 4.0, 'kept_share': 0.5, 'tied': 2}
        """
        scores = self.scores
        if self.scope == "shared":  # which compares sums over the blocks that have any
            sums = tuple(map(math.fsum, zip(*filter(None, scores), strict=True)))
            scores = tuple(sums if own else () for own in scores)
        blocks = zip(scores, self.kept, strict=True)
        rows = [[(score, n in kept) for n, score in enumerate(own)] for own, kept in blocks]
        every = [each for row in rows for each in row]
        total = math.fsum(abs(score) for score, _ in every)
        shares = [(abs(score) / total if total else 1 / len(every), kept) for score, kept in every]
        tied = 0
        for row in [every] if self.scope == "global" else rows:
            best = max((score for score, kept in row if not kept), default=-math.inf)
            tied += sum(kept and score <= best for score, kept in row)
        return {
            "prompts": len(every),
            "effective": math.exp(-math.fsum(share * math.log(share) for share, _ in shares if share)),
            "kept_share": math.fsum(share for share, kept in shares if kept),
            "tied": tied,
        }


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Shares that `prune` removed and how the rest was trained, saved with the adapter beside the `Condensation`.

    Args:
        tokens: Pruned share of the prompts, 0 to below 1.
        segments: Pruned share of the other prompts' segments, 0 to below 1.
        rewind_epoch: Epoch of the rewind weights that the rest was trained from; None where it was not trained again,
            or from the trained weights.
    """

    tokens: float
    segments: float
    rewind_epoch: int | None


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """A criterion that one pass forward and backward gives, to first order.

    Args:
        of: The changing quantity: the loss with the labels, that with the labels that the model predicts, or the pooled
            features.
        along: The change of the prompt: `"scaling"` to zero, or `"removal"` from attention.
        signed: Whether images cancel.
    """

    of: Literal["loss", "predicted-loss", "features"] = "loss"
    along: Literal["scaling", "removal"] = "scaling"
    signed: bool = False
