"""Means and spreads over seeds, tasks and groups; pure numbers, of measured runs only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vprompt.experiments.report.study import Model, Run, Study, read
from vprompt.utils.statistics import mean, std

Metric = Literal["test", "validation"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over seeds, as a share of one.

    Args:
        mean: None where there is nothing to take a mean of.
        std: Sample standard deviation; None with fewer than two values.
        n: Over how many seeds.
        runs: How many there should be.
        failed: How many of them failed.
        unconverged: How many of those that finished had a training that had not converged.
        lacking: Of a mean over tasks, how many tasks have no result at all.
    """

    mean: float | None
    std: float | None = None
    n: int = 0
    runs: int = 0
    failed: int = 0
    unconverged: int = 0
    lacking: int = 0


@dataclass(frozen=True, kw_only=True)
class Aggregates:
    """The numbers of a study; keys are the labels and names that the study gives.

    A mean over tasks is taken for every seed that has all of them, then over these seeds, and there is none where a
    task has no result.

    Args:
        metric: `"test"`, or `"validation"` where no run was tested.
        tasks: By method and task.
        groups: By method and group.
        group_mean: Mean of the group means, by method.
        plain_mean: Mean over all tasks, by method.
    """

    metric: Metric
    tasks: dict[tuple[str, str], Spread]
    groups: dict[tuple[str, str], Spread]
    group_mean: dict[str, Spread]
    plain_mean: dict[str, Spread]


def aggregate(document: Mapping[str, Any]) -> Aggregates:
    """The numbers of a study, from its plain document."""
    return aggregate_study(read(document))


def aggregate_study(study: Study) -> Aggregates:
    """The numbers of a study."""
    metric: Metric = "test"
    if not any(run.model is not None and run.model.test_accuracy is not None for run in study.runs):
        metric = "validation" if any(run.model and run.model.val_accuracy is not None for run in study.runs) else "test"
    table = by_place(study)
    tasks: dict[tuple[str, str], Spread] = {}
    groups: dict[tuple[str, str], Spread] = {}
    group_mean: dict[str, Spread] = {}
    plain_mean: dict[str, Spread] = {}
    for method in study.methods:
        found = {task.key: table[method.key, task.key] for task in study.tasks}
        for key, runs in found.items():
            tasks[method.key, key] = over_seeds(runs, metric)
        sets = {group: [task.key for task in members] for group, members in study.groups.items()}
        for group, keys in sets.items():
            groups[method.key, group] = over_tasks([found[key] for key in keys], metric)
        all_runs = [found[key] for keys in sets.values() for key in keys]
        plain_mean[method.key] = over_tasks(all_runs, metric)
        weights = [1 / (len(sets) * len(keys)) for keys in sets.values() for _ in keys]
        group_mean[method.key] = over_tasks(all_runs, metric, weights)
    return Aggregates(metric=metric, tasks=tasks, groups=groups, group_mean=group_mean, plain_mean=plain_mean)


def by_place(study: Study) -> dict[tuple[str, str], list[Run]]:
    """The runs of every method on every task, in the order of the seeds."""
    table: dict[tuple[str, str], list[Run]] = {}
    for run in study.runs:
        table.setdefault((run.method.key, run.task.key), []).append(run)
    return table


def accuracy(run: Run, metric: Metric) -> float | None:
    """What a run counts with."""
    if run.model is None:
        return None
    return run.model.test_accuracy if metric == "test" else run.model.val_accuracy


def over_seeds(runs: Sequence[Run], metric: Metric) -> Spread:
    """Of the runs of one method on one task."""
    return _spread([value for run in runs if (value := accuracy(run, metric)) is not None], runs)


def over_tasks(table: Sequence[Sequence[Run]], metric: Metric, weights: Sequence[float] | None = None) -> Spread:
    """Of the runs of one method on some tasks: for every seed the mean over tasks, then over the seeds.

    Args:
        table: For every task, a run for every seed.
        metric: Which accuracy.
        weights: Of the tasks, with a sum of one; all the same when left out.
    """
    runs = [run for row in table for run in row]
    lacking = sum(all(accuracy(run, metric) is None for run in row) for row in table)
    weights = [1 / len(table)] * len(table) if weights is None else weights
    means: list[float] = []
    for seed in zip(*table, strict=True):
        values = [value for run in seed if (value := accuracy(run, metric)) is not None]
        if len(values) == len(table):
            means.append(math.fsum(w * v for w, v in zip(weights, values, strict=True)))
    return _spread(means, runs, lacking, len(table[0]) if table else 0)


def mean_of(runs: Sequence[Run], quantity: Callable[[Model], float | None]) -> float | None:
    """The mean of a quantity over the runs that have it."""
    values = [value for run in runs if run.model is not None and (value := quantity(run.model)) is not None]
    return mean(values)


def _spread(values: Sequence[float], runs: Sequence[Run], lacking: int = 0, seeds: int | None = None) -> Spread:
    return Spread(
        mean=mean(values),
        std=std(values),
        n=len(values),
        runs=len(runs) if seeds is None else seeds,
        failed=sum(run.state == "failed" for run in runs),
        unconverged=sum(run.unconverged for run in runs),
        lacking=lacking,
    )
