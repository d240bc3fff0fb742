"""A number with every seed's value: means and spreads over seeds, means over tasks, differences seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """What the runs of one method came to, one value for each seed.

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
    there = [value for value in values if value is not None]
    return Seeds(
        mean=statistics.fmean(there) if there else None,
        std=statistics.stdev(there) if len(there) > 1 else None,
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
    return seeds_of(
        [_seed_wise(statistics.fmean, values) for values in zip(*(one.values for one in table), strict=True)],
        failed=sum(one.failed for one in table),
        missing=sum(one.missing for one in table),
        unconverged=sum(one.unconverged for one in table),
    )


def difference(one: Seeds, other: Seeds) -> Seeds:
    """How much larger the first is, seed by seed: what seeds share drops out of the spread.

    Example:
        >>> difference(seeds_of([0.75, 1.0]), seeds_of([0.5, None])).values
        (0.25, None)
    """
    return seeds_of(
        [_seed_wise(lambda two: two[0] - two[1], pair) for pair in zip(one.values, other.values, strict=True)]
    )


def _seed_wise(of: Callable[[Sequence[float]], float], values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return of(there) if len(there) == len(values) else None


def r_squared(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Which part of the variance of y a straight line in x explains; None with fewer than three points, or no variance.

    Example:
        >>> r_squared([1, 2, 3], [2, 4, 6]), r_squared([1, 2], [1, 2]), r_squared([1, 2, 3], [1, 1, 1])
        (1.0, None, None)
    """
    if len(xs) < 3 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    correlation = statistics.correlation(xs, ys)
    return min(1.0, correlation**2) if math.isfinite(correlation) else None
