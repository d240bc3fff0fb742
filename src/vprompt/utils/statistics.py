"""Means and spreads: of values, over seeds, over tasks, of differences seed by seed, and of ranks over tasks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

DOUBLED = "twice the epochs change the loss on the validation images by more than its standard error"
"""Says of a training that it had not converged."""

UNKNOWN = "they had converged: no training of twice the epochs was made (check_convergence)"
"""Says why that is not known of trainings."""

FELL = "by the falling of the loss, an older rule, which says little"
"""Says of figures in documents of earlier versions what was meant by convergence."""

Z_95 = 1.959964
"""Standard deviations of a normal distribution on both sides that hold 95 % of it."""


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of no values.

    Example:
        >>> mean([0.5, 0.7]), mean([])
        (0.6, None)
    """
    return statistics.fmean(values) if values else None


def mean_of(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of objects and lists of them entry by entry; None where one is no number.

    Example:
        >>> mean_of([{"a": [1, 2], "b": None}, {"a": [3, 4], "b": 1}])
        {'a': [2.0, 3.0], 'b': None}
    """
    first = values[0]
    if None in values:
        return None
    if isinstance(first, Mapping):
        return {key: mean_of([value.get(key) for value in values]) for key in cast("Mapping[str, Any]", first)}
    if isinstance(first, list | tuple):
        return type(first)(mean_of(column) for column in zip(*values, strict=False))
    return statistics.fmean(values) if all(isinstance(value, float | int) for value in values) else None


def std(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None of fewer than two values.

    Example:
        >>> std([1.0, 3.0, 5.0]), std([1.0])
        (2.0, None)
    """
    return statistics.stdev(values) if len(values) > 1 else None


def wilson(right: float, images: int) -> tuple[float, float]:
    """The 95 % interval of a share, from how many of the images were right; sound for few images and for 0 and 1.

    Example:
        >>> [round(end, 3) for end in wilson(8, 10)], [round(end, 3) for end in wilson(0, 10)]
        ([0.49, 0.943], [0.0, 0.278])

    Source: Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    share, extra = right / images, Z_95**2 / images
    middle = (share + extra / 2) / (1 + extra)
    half = Z_95 / (1 + extra) * math.sqrt(share * (1 - share) / images + extra / (4 * images))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(gained: int, lost: int, images: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two accuracies on the same images, the second minus the first.

    Args:
        gained: Images that only the second has right.
        lost: Images that only the first has right.
        images: All of them.

    Example:
        >>> [round(end, 3) for end in paired_interval(2, 10, 100)]
        [-0.146, -0.011]

    Source: Agresti and Min (2005), Simple improved confidence intervals for comparing matched proportions: half an
    image more in each cell.
    """
    images, gained_, lost_ = images + 2, gained + 0.5, lost + 0.5
    middle = (gained_ - lost_) / images
    half = Z_95 * math.sqrt(gained_ + lost_ - (gained_ - lost_) ** 2 / images) / images
    return max(-1.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """A result of the runs of one method, one value for each seed.

    Args:
        mean: Over the seeds that have a value; None where none has.
        std: Sample standard deviation; None with fewer than two values.
        values: In the order of the plan's seeds; None where there is none.
        failed: Runs that failed.
        missing: Runs that were not done.
        unconverged: Runs with a training that had not converged, also that before prompts were removed.
    """

    mean: float | None
    std: float | None
    values: tuple[float | None, ...]
    failed: int = 0
    missing: int = 0
    unconverged: int = 0


def seeds_of(values: Sequence[float | None], *, failed: int = 0, missing: int = 0, unconverged: int = 0) -> Seeds:
    """Mean and sample standard deviation of values.

    Example:
        >>> seeds_of([0.5, None, 0.7]).mean, seeds_of([None]).mean, seeds_of([1.0]).std
        (0.6, None, None)
    """
    known = [value for value in values if value is not None]
    return Seeds(
        mean=mean(known),
        std=std(known),
        values=tuple(values),
        failed=failed,
        missing=missing,
        unconverged=unconverged,
    )


def over_tasks(table: Sequence[Seeds]) -> Seeds:
    """For every seed that all tasks have, the mean over the tasks; then over these seeds.

    Example:
        >>> over_tasks([seeds_of([0.2, 0.4]), seeds_of([0.6, None])]).values
        (0.4, None)
    """
    by_seed = zip(*(row.values for row in table), strict=True)
    return seeds_of(
        [statistics.fmean(known) if (known := _complete(values)) else None for values in by_seed],
        failed=sum(row.failed for row in table),
        missing=sum(row.missing for row in table),
        unconverged=sum(row.unconverged for row in table),
    )


def difference(first: Seeds, second: Seeds) -> Seeds:
    """The first minus the second, seed by seed: what seeds share drops out of the spread.

    Example:
        >>> difference(seeds_of([0.75, 1.0]), seeds_of([0.5, None])).values
        (0.25, None)
    """
    pairs = zip(first.values, second.values, strict=True)
    return seeds_of([known[0] - known[1] if (known := _complete(pair)) else None for pair in pairs])


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A difference that was measured several times on each of some tasks.

    Args:
        mean: Over the tasks, of the mean over the seeds.
        interval: 95 % of it, for these tasks and other seeds; None where no task has two seeds.
        detectable: The difference that such seeds would have shown with a chance of 80 %, or None.
    """

    mean: float
    interval: tuple[float, float] | None
    detectable: float | None


def paired(tasks: Sequence[Sequence[float]]) -> Paired:
    """The mean of paired differences, for each task a row of one for each seed, by Student's t with the spread pooled.

    Example:
        >>> found = paired([[1.0, 2.0, 3.0]])
        >>> found.mean, [round(end, 3) for end in found.interval], round(found.detectable, 3)
        (2.0, [-0.484, 4.484], 3.097)

    Raises:
        statistics.StatisticsError: If a task has no value.
    """
    mean = statistics.fmean(statistics.fmean(row) for row in tasks)
    freedom = sum(len(row) - 1 for row in tasks)
    if not freedom:
        return Paired(mean=mean, interval=None, detectable=None)
    squares = sum((len(row) - 1) * statistics.variance(row) for row in tasks if len(row) > 1)
    error = math.sqrt(squares / freedom * sum(1 / len(row) for row in tasks)) / len(tasks)
    half = student_t(0.95, freedom) * error
    return Paired(mean=mean, interval=(mean - half, mean + half), detectable=half + student_t(0.6, freedom) * error)


def student_t(share: float, freedom: int) -> float:
    """How far from 0 on both sides Student's t, with so many degrees of freedom, stays with this chance.

    Example:
        >>> round(student_t(0.95, 4), 3), round(student_t(0.95, 9), 3)
        (2.776, 2.262)

    Source: Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.
    """

    def within(t: float) -> float:
        angle, odd = math.atan2(t, math.sqrt(freedom)), freedom % 2
        term = math.cos(angle) if odd else 1.0
        total = 0.0
        for n in range(1 + odd, freedom, 2):
            total += term
            term *= math.cos(angle) ** 2 * n / (n + 1)
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, 1e4
    while high - low > 1e-9 * (1 + low):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < share else (low, middle)
    return high


def _complete(values: Sequence[float | None]) -> list[float]:
    """The values; none of them if one is missing."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def r_squared(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """The share of the variance of y that a line in x explains; None with fewer than three points, or no variance.

    Example:
        >>> r_squared([1, 2, 3], [2, 4, 6]), r_squared([1, 2], [1, 2]), r_squared([1, 2, 3], [1, 1, 1])
        (1.0, None, None)
    """
    if len(xs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    correlation = statistics.correlation(xs, ys)
    return min(1.0, correlation**2) if math.isfinite(correlation) else None


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats, from left to right: none is as far left and as high, and better in one.

    Example:
        >>> front([(1, 5), (2, 4), (3, 7), (3, 6)])
        [(1, 5), (3, 7)]
    """
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Ranks of methods over tasks, with Friedman's test and Nemenyi's critical difference.

    Args:
        means: Mean rank of each method; 1 is the best.
        statistic: Friedman's chi-squared, corrected for ties.
        p: Chance of one as large where all methods are alike.
        critical: Mean ranks that are further apart differ at the 5 % level.
        cliques: Methods that cannot be told apart, best first, without sets that are part of another.
    """

    means: tuple[float, ...]
    statistic: float
    p: float
    critical: float
    cliques: tuple[tuple[int, ...], ...]


def ranks_of(tasks: Sequence[Sequence[float]]) -> Ranks:
    """Compares methods by their ranks over tasks.

    Args:
        tasks: Of each task a score of every method; more is better, and equal scores share the mean of their ranks.

    Example:
        >>> ranks_of([[0.9, 0.8, 0.7], [0.6, 0.5, 0.5], [0.8, 0.9, 0.7]]).means
        (1.3333333333333333, 1.8333333333333333, 2.8333333333333335)

    Source: Demšar (2006), Statistical comparisons of classifiers over multiple data sets, JMLR 7, section 3.2.
    """
    many, number = len(tasks[0]), len(tasks)
    ranks = [
        [sum(other > score for other in row) + (row.count(score) + 1) / 2 for score in map(float, row)] for row in tasks
    ]
    sums = [sum(column) for column in zip(*ranks, strict=True)]
    middle = (many + 1) / 2
    spread = sum((rank - middle) ** 2 for row in ranks for rank in row)
    statistic = (many - 1) * sum((total - number * middle) ** 2 for total in sums) / spread if spread else 0.0
    means = tuple(total / number for total in sums)
    critical = studentized_range(many) / math.sqrt(2) * math.sqrt(many * (many + 1) / (6 * number))
    order = sorted(range(many), key=means.__getitem__)
    sets = [tuple(m for m in order[first:] if means[m] - means[order[first]] <= critical) for first in range(many)]
    cliques = tuple(s for n, s in enumerate(sets) if len(s) > 1 and not (n and sets[n - 1][-1] == s[-1]))
    return Ranks(
        means=means, statistic=statistic, p=chi_squared(statistic, many - 1), critical=critical, cliques=cliques
    )


def chi_squared(value: float, freedom: int) -> float:
    """The chance that a chi-squared variable is larger.

    Example:
        >>> round(chi_squared(3.841459, 1), 4), round(chi_squared(5.991465, 2), 4)
        (0.05, 0.05)
    """
    half, first = value / 2, (freedom % 2) / 2
    powers = (half**power / math.gamma(power + 1) for power in (first + n for n in range(freedom // 2)))
    return (math.erfc(math.sqrt(half)) if first else 0.0) + math.exp(-half) * sum(powers)


def studentized_range(many: int) -> float:
    """The range of so many standard normal variables that is exceeded with a chance of 5 %.

    Example:
        >>> [round(studentized_range(many) / 2**0.5, 3) for many in (2, 10)]  # Demšar's Table 5
        [1.96, 3.164]
    """
    normal, step = statistics.NormalDist(), 0.05
    lefts = [-8 + step * n for n in range(321)]
    weights = [step * many * normal.pdf(left) for left in lefts]
    below = [normal.cdf(left) for left in lefts]

    def within(width: float) -> float:
        return sum(
            weight * (normal.cdf(left + width) - share) ** (many - 1)
            for weight, left, share in zip(weights, lefts, below, strict=True)
        )

    low, high = 0.0, 20.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return high
