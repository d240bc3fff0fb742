"""Settings of pruning, the shares that a search tries, its budget, and the order of what it tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from vprompt.compression.criteria import Criterion, Scope, check_name, check_segments_by
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import check_fields

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares that are tried for prompts and for segments; 0 prunes none."""

TRAININGS = 6
"""Most that scoring, search and all trainings cost, in trainings of the whole schedule, the first one included."""

LOW = 0.01
"""Cross-entropy that is as good as none."""

FEWEST = 16
"""At least so many choices are evaluated, also where validation data is plenty and training short."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Shares to prune; they are rounded to whole prompts and segments.

    Args:
        tokens: Share of the prompts to remove, 0 to below 1.
        segments: Share of the segments of the retained prompts to remove, 0 to below 1.

    Raises:
        VPromptError: If a share is out of range.
    """

    tokens: float = 0.0
    segments: float = 0.0

    def __post_init__(self) -> None:
        for share, parts in ((self.tokens, "prompts"), (self.segments, "segments")):
            if not 0 <= share < 1:
                raise VPromptError(f"The share of {parts} to prune must be at least 0 and below 1, not {share}.")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Result of a choice on validation data.

    Args:
        choice: What was pruned.
        kept: Retained share: the mean of that of the prompts, which cost time, and of their numbers, which are stored.
        epochs: How long it was trained after rewinding; 0 for the trained prompts without their pruned part.
        accuracy: On validation data, 0 to 1; 0 where the training diverged.
        loss: Mean cross-entropy there; None where it is no number.
    """

    choice: Choice
    kept: float
    epochs: int
    accuracy: float
    loss: float | None


def grid(tokens: float | None = None, segments: float | None = None) -> list[Choice]:
    """All choices of `SHARES`, or those with a given share of one kind or both.

    Example:
        >>> len(grid()), len(grid(tokens=0.5)), grid(0.5, 0.0)
        (100, 10, [Choice(tokens=0.5, segments=0.0)])
    """
    return [
        Choice(tokens=t, segments=s)
        for t in (SHARES if tokens is None else (tokens,))
        for s in (SHARES if segments is None else (segments,))
    ]


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """Settings of pruning.

    Args:
        tokens: Prune this share of the prompts (0.5 halves them), 0 to below 1; searched on validation data when not
            given.
        segments: Prune this share of the segments of the retained prompts; searched when not given.
        num_segments: Segments that a prompt is cut into; must divide the widths of the backbone.
        criterion: See `vprompt.score`.
        scope: See `vprompt.select`; `"shared"` is one mask for all blocks.
        saving: Share of the validation loss that removing all prompts may cost: with 0.08, removing half of them may
            cost 4 %.

    Raises:
        VPromptError: If a value is out of range.
    """

    tokens: float | None = field(default=None, metadata={"flag": "prune_tokens"})
    segments: float | None = field(default=None, metadata={"flag": "prune_segments"})
    num_segments: int = 16
    criterion: Criterion = "taylor"
    scope: Scope = "global"
    saving: float = 0.08

    def __post_init__(self) -> None:
        check_name(self.criterion)
        check_fields(self)
        grid(self.tokens, self.segments)
        check_segments_by(self.criterion)
        if self.num_segments < 1:
            raise VPromptError(f"A prompt has at least one segment, not {self.num_segments}.")
        if not 0 <= self.saving <= 1:
            raise VPromptError(f"The saving (loss that removing all prompts may cost) is 0 to 1, not {self.saving}.")

    @property
    def searched(self) -> bool:
        """True where a share is not given but searched."""
        return self.tokens is None or self.segments is None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Numbers of evaluations and trainings of a search.

    Args:
        evaluations: Choices to evaluate without training them again.
        trainings: Choices to train on the whole schedule.
    """

    evaluations: int
    trainings: int

    @staticmethod
    def of(choices: int, *, epochs: int, train: int, val: int) -> Budget:
        """The budget for so many choices, epochs and images, with which all of it costs at most `TRAININGS`.

        Scoring takes two passes over the training images, a forward pass a third of a training step.

        Example:
            >>> Budget.of(100, epochs=100, train=800, val=200)
            Budget(evaluations=100, trainings=3)
        """
        price = max(1, val) / (3 * train * epochs)  # of an evaluation, in trainings
        evaluations = min(choices, max(FEWEST, int(0.5 / price)))
        left = TRAININGS - 1 - 2 / epochs - evaluations * price
        return Budget(evaluations=evaluations, trainings=max(1, min(3, int(left / (1 + price)))))


def spread(ordered: Sequence[Choice], number: int) -> list[Choice]:
    """As many of the choices as `number` says, at equal distances, the first and the last among them.

    Example:
        >>> [choice.tokens for choice in spread(grid(segments=0.0), 4)]
        [0.0, 0.3, 0.6, 0.9]
    """
    if len(ordered) <= number:
        return list(ordered)
    return [ordered[round(n * (len(ordered) - 1) / (number - 1))] for n in range(number)]


def best_of_each_size(trials: Sequence[Trial], number: int, *, saving: float) -> list[Choice]:
    """The best choice of each of `number` groups of neighbouring sizes, the largest first.

    Without training again, trials of different sizes cannot be compared: the smaller ones lack more.
    """
    ordered = sorted(trials, key=lambda trial: (-trial.kept, trial.choice.tokens))
    number = min(number, len(ordered))
    if not number:
        return []
    edges = [round(n * len(ordered) / number) for n in range(number + 1)]
    return [ranked(ordered[a:b], saving=saving)[0].choice for a, b in pairwise(edges)]


def ranked(trials: Sequence[Trial], *, saving: float) -> list[Trial]:
    """The trials, the best first: by the logarithm of the loss less `saving` times the share removed, then by accuracy.

    With a few hundred images the loss tells choices apart that accuracy, in steps of half a point, does not. Losses
    below `LOW` are equal.

    Example:
        >>> half = Trial(choice=Choice(tokens=0.5), kept=0.5, epochs=1, accuracy=0.80, loss=1.01)
        >>> none = Trial(choice=Choice(), kept=1.0, epochs=1, accuracy=0.80, loss=1.0)
        >>> ranked([none, half], saving=0.08)[0] is half, ranked([none, half], saving=0.0)[0] is half
        (True, False)
    """

    def key(trial: Trial) -> tuple[float, float, float]:
        if trial.loss is None:
            return math.inf, 0.0, trial.kept
        # Rounded, so that equal losses are not told apart by the last bit.
        objective = round(math.log(max(trial.loss, LOW)) - saving * (1 - trial.kept), 12)
        return objective, -trial.accuracy, trial.kept

    return sorted(trials, key=key)
