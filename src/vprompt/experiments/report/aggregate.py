"""Means and spreads of a study over seeds, tasks and groups; pure numbers, of measured runs only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vprompt.experiments.report.study import Method, Metric, Model, Run, Study, Task, read
from vprompt.utils import statistics
from vprompt.utils.statistics import Seeds, mean, over_tasks, seeds_of


@dataclass(frozen=True, kw_only=True)
class Spread(Seeds):
    """A mean over seeds of a score, of which 1 is the best.

    Args:
        n: Over how many seeds.
        runs: How many there should be.
        lacking: Of a mean over tasks, how many tasks have no result at all.
    """

    n: int = 0
    runs: int = 0
    lacking: int = 0


@dataclass(frozen=True, kw_only=True)
class Aggregates:
    """Scores of one method; keys are the names that the study gives.

    A mean over tasks is taken for every seed that has all of them, then over these seeds, and there is none where a
    task has no result.

    Args:
        method: Its label.
        tasks: By task.
        groups: By group of tasks.
        group_mean: Mean of the group means.
        plain_mean: Mean over all tasks.
    """

    method: str
    tasks: dict[str, Spread]
    groups: dict[str, Spread]
    group_mean: Spread
    plain_mean: Spread


def aggregate(document: Mapping[str, Any]) -> list[Aggregates]:
    """The numbers of a study, from its plain document."""
    study = read(document)
    return [
        Aggregates(
            method=method.key,
            tasks={task.key: on_task(study, method, task) for task in study.tasks},
            groups={group: over_groups(study, method, [tasks]) for group, tasks in study.groups.items()},
            group_mean=over_groups(study, method, list(study.groups.values())),
            plain_mean=over_groups(study, method, [study.tasks]),
        )
        for method in study.methods
    ]


def on_task(study: Study, method: Method, task: Task) -> Spread:
    """The score of a method on a task."""
    return _spread(_seeds(study, method, task))


def over_groups(study: Study, method: Method, groups: Sequence[Sequence[Task]]) -> Spread:
    """The mean of a method's mean accuracies over groups of tasks; with one group, the mean over its tasks."""
    means = [[_seeds(study, method, task) for task in tasks] for tasks in groups]
    lacking = sum(seeds.mean is None for tasks in means for seeds in tasks)
    return _spread(over_tasks([over_tasks(tasks) for tasks in means]), lacking)


def _spread(seeds: Seeds, lacking: int = 0) -> Spread:
    n = sum(value is not None for value in seeds.values)
    return Spread(**vars(seeds), n=n, runs=len(seeds.values), lacking=lacking)


def _seeds(study: Study, method: Method, task: Task) -> Seeds:
    runs = study.table.get((method.key, task.key), [])
    return seeds_of(
        [score(run, study.metric) for run in runs],
        failed=sum(run.state == "failed" for run in runs),
        unconverged=sum(run.unconverged for run in runs),
    )


def score(run: Run, metric: Metric) -> float | None:
    """The score of a run that counts."""
    if run.model is None:
        return None
    return run.model.test_score if metric == "test" else run.model.val_score


def mean_of(
    study: Study, method: Method, tasks: Sequence[Task], quantity: Callable[[Model], float | None]
) -> float | None:
    """The mean over tasks of the mean over the seeds of a quantity; None where a task has none."""
    models = [[run.model for run in study.table[method.key, task.key] if run.model is not None] for task in tasks]
    means = [mean([value for model in row if (value := quantity(model)) is not None]) for row in models]
    return statistics.mean_of(means) if means else None
