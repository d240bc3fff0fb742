"""Plan of a schedule of fine-tuning, its accuracies and its times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vprompt.analysis.options import depth_title
from vprompt.analysis.schedule import PAPER_EPOCHS, Schedule
from vprompt.analysis.study import RunResult, Runs, StudySummary, check_choice, check_shares, make_plan, tested
from vprompt.experiments.bench.plan import Plan, PlanError
from vprompt.experiments.bench.store import Store
from vprompt.utils.statistics import Seeds, difference, seeds_of
from vprompt.utils.text import count


@dataclass(frozen=True, kw_only=True)
class EpochPoint:
    """One number of epochs.

    Args:
        epochs: Of fine-tuning; 0 is without.
        test: Accuracy on the test images.
        validation: Accuracy on the validation images, which nothing was trained on.
    """

    epochs: int
    test: Seeds
    validation: Seeds


@dataclass(frozen=True, kw_only=True)
class EpochCurve:
    """Accuracies after several numbers of epochs.

    Args:
        task: None is the mean over all tasks.
        points: Fewest epochs first.
        full_test: Accuracy with all prompts, on the test images.
        full_validation: On the validation images.
        late: Accuracy on the validation images after the most epochs less that after the paper's 20; None where there
            are no more than these.
    """

    task: str | None
    points: tuple[EpochPoint, ...]
    full_test: Seeds
    full_validation: Seeds
    late: Seeds | None


@dataclass(frozen=True, kw_only=True)
class CondensingTime:
    """Time of condensation, as a share of the time that the training with all prompts took.

    Args:
        epochs: Of fine-tuning.
        scoring: Share for scoring; None where it was not recorded.
        fine_tuning: Share for fine-tuning.
        seconds: Of fine-tuning, mean.
        runs: That these are means over.
    """

    epochs: int
    scoring: float | None
    fine_tuning: float | None
    seconds: float | None
    runs: int


@dataclass(frozen=True, kw_only=True)
class ScheduleResult:
    """Accuracies and times of a schedule.

    Args:
        about: What was run.
        method: `"vpt-deep"` or `"vpt-shallow"`.
        prompts: All of them, or `"paper"`.
        ratio: Share of the prompts that is retained.
        curves: The mean over all tasks, where there are several, and each of them.
        times: One for each number of epochs; over all tasks and seeds.
        training_seconds: Of the training with all prompts, mean.
        scoring_seconds: Of scoring, mean; None where it was not recorded.
    """

    about: StudySummary
    method: str
    prompts: int | str
    ratio: float
    curves: tuple[EpochCurve, ...]
    times: tuple[CondensingTime, ...]
    training_seconds: float | None
    scoring_seconds: float | None


def plan_of(options: Schedule) -> Plan:
    """The plan: all prompts, and condensed with each number of epochs of fine-tuning; validation images are held out.

    Raises:
        PlanError: If it cannot be meant.

    Example:
        >>> [method.label for method in plan_of(Schedule(fine_tune_epochs=(0, 20))).methods]
        ['VPT-Deep', 'PC, not fine-tuned', 'PC, 20 epochs']

    Source: Prompt Condensation (arXiv 2305.17223), Figure 8.
    """
    if not options.fine_tune_epochs or min(options.fine_tune_epochs) < 0:
        raise PlanError("The numbers of epochs of fine-tuning are at least 0, and there is at least one.")
    check_shares("share of prompts to keep", [options.ratio])
    check_choice(options, "method", options.method)
    method = options.method
    tables: list[dict[str, Any]] = [{"label": depth_title(method), "method": method}]
    for epochs, label in _labels(options).items():
        tuning = {"fine_tune_epochs": epochs} if epochs else {"fine_tune": False}
        tables.append({"label": label, "method": method, "condense": options.ratio, **tuning})
    return make_plan(
        options,
        tables,
        title="Accuracy against the epochs of fine-tuning",
        description="All prompts, and the best of them, fine-tuned for several numbers of epochs. Nothing is trained "
        "on the validation images.",
        source="Prompt Condensation (arXiv 2305.17223), Figure 8",
        settings={**vars(options.condensing), "train_on": "train"},
    )


def _labels(options: Schedule) -> dict[int, str]:
    """Label of what is condensed and fine-tuned for each number of epochs."""
    return {
        epochs: f"PC, {count(epochs, 'epoch')}" if epochs else "PC, not fine-tuned"
        for epochs in sorted(set(options.fine_tune_epochs))
    }


def read(options: Schedule, store: Store) -> ScheduleResult:
    """Accuracies and times of a plan, from the results that are there.

    Example:
        >>> from vprompt.analysis.options import Training
        >>> from vprompt.experiments.bench.store import open_store
        >>> options = Schedule(training=Training(seeds=2), fine_tune_epochs=(0, 5))
        >>> result = read(options, open_store("nowhere"))
        >>> result.curves[0].points[1].test.values, result.times[1].fine_tuning
        ((None, None), None)
    """
    runs, full, labels = Runs(plan_of(options), store), depth_title(options.method), _labels(options)
    condensed = {epochs: _all(runs, label) for epochs, label in labels.items()}
    scoring = [result.get("scoring_seconds") for results in condensed.values() for result in results]
    return ScheduleResult(
        about=runs.about(),
        method=options.method,
        prompts=options.condensing.prompts,
        ratio=options.ratio,
        curves=tuple(_curve(runs, task, full, labels) for task in runs.places),
        times=tuple(_time(epochs, results) for epochs, results in condensed.items()),
        training_seconds=_mean([result["training_seconds"] for result in _all(runs, full)]),
        scoring_seconds=_mean(scoring),
    )


def _all(runs: Runs, label: str) -> list[RunResult]:
    return [result for task in runs.tasks for result in runs.results(task.task, label)]


def _curve(runs: Runs, task: str | None, full: str, labels: dict[int, str]) -> EpochCurve:
    points = [
        EpochPoint(epochs=epochs, test=runs.seeds(task, label, tested), validation=runs.seeds(task, label, _validated))
        for epochs, label in labels.items()
    ]
    paper = next((point for point in points[:-1] if point.epochs == PAPER_EPOCHS), None)
    return EpochCurve(
        task=task,
        points=tuple(points),
        late=None if paper is None else difference(points[-1].validation, paper.validation),
        full_test=runs.seeds(task, full, tested),
        full_validation=runs.seeds(task, full, _validated),
    )


def _validated(result: RunResult) -> float | None:
    return result.get("val_accuracy")


def _time(epochs: int, results: Sequence[RunResult]) -> CondensingTime:
    return CondensingTime(
        epochs=epochs,
        scoring=_mean([_share(result, result.get("scoring_seconds")) for result in results]),
        fine_tuning=_mean([_share(result, result["training_seconds"]) for result in results]),
        seconds=_mean([result["training_seconds"] for result in results]),
        runs=len(results),
    )


def _share(result: RunResult, seconds: float | None) -> float | None:
    """Of the time of the training before."""
    whole = result["before"]["training_seconds"]
    return None if seconds is None or not whole else seconds / whole


def _mean(values: Sequence[float | None]) -> float | None:
    return seeds_of(values).mean
