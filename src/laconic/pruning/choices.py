"""How much to prune: the choices there are, which of them are worth a training, and how long to train them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from laconic.errors import LaconicError

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares that are tried for prompts and for segments; 0 prunes none."""

FINALISTS = 2
"""Choices that are trained on the whole schedule."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How much to prune.

    Args:
        tokens: Share of the prompts to remove, 0 to below 1.
        segments: Share of the segments of the prompts that stay to remove, 0 to below 1.

    Raises:
        LaconicError: If a share is out of range.

    Example:
        >>> Choice(tokens=0.5, segments=0.2).kept
        0.45
    """

    tokens: float = 0.0
    segments: float = 0.0

    def __post_init__(self) -> None:
        for share, what in ((self.tokens, "prompts"), (self.segments, "segments")):
            if not 0 <= share < 1:
                raise LaconicError(f"The share of {what} to prune must be at least 0 and below 1, not {share}.")

    @property
    def kept(self) -> float:
        """What stays: the mean of the share of the prompts, which cost time, and of the numbers, which are stored."""
        prompts = 1 - self.tokens
        return (prompts + prompts * (1 - self.segments)) / 2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of a choice on validation data.

    Args:
        choice: What was pruned.
        epochs: How long it was trained after rewinding; 0 for the trained prompts without their pruned part.
        accuracy: On validation data, 0 to 1.
        loss: Mean cross-entropy there.
    """

    choice: Choice
    epochs: int
    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A round of the search: so many choices, each trained for so many epochs."""

    choices: int
    epochs: int


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


def rungs(epochs: int) -> list[Rung]:
    """Rounds of successive halving for a schedule of so many epochs; each costs at most one training, the last two.

    Example:
        >>> rungs(100)
        [Rung(choices=8, epochs=12), Rung(choices=4, epochs=25), Rung(choices=2, epochs=100)]
        >>> rungs(5)
        [Rung(choices=5, epochs=1), Rung(choices=2, epochs=5)]

    Source: Jamieson and Talwalkar, Non-stochastic best arm identification (arXiv 1502.07943).
    """
    short = {max(1, epochs // parts): parts for parts in (4, 8)}  # where both are one epoch, the eight stay
    found = [Rung(choices=min(most, epochs // each), epochs=each) for each, most in short.items() if each < epochs]
    return [*sorted(found, key=lambda rung: rung.epochs), Rung(choices=FINALISTS, epochs=epochs)]


def affordable(choices: Sequence[Choice], *, epochs: int, train: int, val: int) -> list[Choice]:
    """Those choices, spread over all sizes, whose evaluation costs at most half a training of so many images.

    A forward pass takes a third of a training step. Pruning nothing stays among them.
    """
    most = max(FINALISTS, 3 * epochs * train // (2 * max(1, val)))
    if len(choices) <= most:
        return list(choices)
    ordered = by_size(choices)
    return [ordered[round(n * (len(ordered) - 1) / (most - 1))] for n in range(most)]


def by_size(choices: Sequence[Choice]) -> list[Choice]:
    """The choices, those that keep most first."""
    return sorted(choices, key=lambda choice: (-choice.kept, choice.tokens))


def best_of_each_size(trials: Sequence[Trial], number: int, *, saving: float) -> list[Choice]:
    """So many choices: the best one of each of so many groups of neighbouring sizes.

    Without training again, trials of different sizes say little about each other: they all lose by what they lack.
    """
    at = {trial.choice: trial for trial in trials}
    ordered = by_size(list(at))
    number = min(number, len(ordered))
    edges = [round(n * len(ordered) / number) for n in range(number + 1)]
    groups = [ordered[low:high] for low, high in pairwise(edges)]
    return [ranked([at[choice] for choice in group], saving=saving)[0].choice for group in groups]


def ranked(trials: Sequence[Trial], *, saving: float) -> list[Trial]:
    """The trials, the best first: by accuracy and `saving` times the share removed, then by loss.

    Example:
        >>> half = Trial(choice=Choice(tokens=0.5), epochs=1, accuracy=0.80, loss=1.0)
        >>> none = Trial(choice=Choice(), epochs=1, accuracy=0.805, loss=1.0)
        >>> ranked([none, half], saving=0.02)[0] is half, ranked([none, half], saving=0.0)[0] is half
        (True, False)
    """

    def merit(trial: Trial) -> tuple[float, float, float]:
        # Rounded, so that equal accuracies are not told apart by the last bit.
        worth = round(trial.accuracy + saving * (1 - trial.choice.kept), 12)
        return -worth, trial.loss, trial.choice.kept

    return sorted(trials, key=merit)
