"""Accuracy against the epochs of fine-tuning after condensation, and what scoring and fine-tuning take in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vprompt.analysis.study import TITLES, About, Result, Runs, Study, make_plan, tested
from vprompt.experiments.bench.plan import Plan, PlanError
from vprompt.experiments.bench.store import Store
from vprompt.utils.statistics import Seeds, difference, seeds_of

EPOCHS = (0, 2, 5, 10, 20, 40)

PAPER_EPOCHS = 20


@dataclass(frozen=True, kw_only=True)
class Point:
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
class Curve:
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
    points: tuple[Point, ...]
    full_test: Seeds
    full_validation: Seeds
    late: Seeds | None


@dataclass(frozen=True, kw_only=True)
class Time:
    """What condensation took, as a share of the time that the training with all prompts took.

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
class Schedule:
    """What `read` returns.

    Args:
        about: What was run.
        method: `"vpt-deep"` or `"vpt-shallow"`.
        prompts: All of them, or `"paper"`.
        ratio: Share that is kept.
        curves: The mean over all tasks, where there are several, and each of them.
        times: One for each number of epochs; over all tasks and seeds.
        training_seconds: Of the training with all prompts, mean.
        scoring_seconds: Of scoring, mean; None where it was not recorded.
    """

    about: About
    method: str
    prompts: int | str
    ratio: float
    curves: tuple[Curve, ...]
    times: tuple[Time, ...]
    training_seconds: float | None
    scoring_seconds: float | None


def plan_of(
    study: Study,
    *,
    method: str = "vpt-deep",
    prompts: int | str = 20,
    ratio: float = 0.1,
    fine_tune_epochs: Sequence[int] = EPOCHS,
    criterion: str = "taylor",
    scope: str = "global",
) -> Plan:
    """The plan: all prompts, and condensed with each number of epochs of fine-tuning; validation images are kept out.

    Args:
        study: Tasks and recipe.
        method: `"vpt-deep"` or `"vpt-shallow"`.
        prompts: All of them, per block (deep) or in all (shallow); `"paper"` for what the papers have for each task.
        ratio: Share of the prompts to keep.
        fine_tune_epochs: Numbers of epochs; 0 is without fine-tuning.
        criterion: See `vprompt.score`.
        scope: See `vprompt.select`.

    Raises:
        PlanError: If it cannot be meant.

    Example:
        >>> [method.label for method in plan_of(Study(), fine_tune_epochs=(0, 20)).methods]
        ['VPT-Deep', 'PC, not fine-tuned', 'PC, 20 epochs']

    Source: Prompt Condensation (arXiv 2305.17223), Figure 8.
    """
    if method not in TITLES:
        raise PlanError(f"What is condensed is 'vpt-deep' or 'vpt-shallow', not {method!r}.")
    if not fine_tune_epochs or min(fine_tune_epochs) < 0:
        raise PlanError("The numbers of epochs of fine-tuning are at least 0, and there is at least one.")
    condensed = {"method": method, "condense": ratio}
    tables: list[dict[str, Any]] = [{"label": TITLES[method], "method": method}]
    for epochs in sorted(set(fine_tune_epochs)):
        if epochs:
            tables.append(
                {"label": f"PC, {epochs} epoch{'s' * (epochs != 1)}", **condensed, "fine_tune_epochs": epochs}
            )
        else:
            tables.append({"label": "PC, not fine-tuned", **condensed, "fine_tune": False})
    return make_plan(
        "schedule",
        study,
        tables,
        title="Accuracy against the epochs of fine-tuning",
        description="All prompts, and the best of them, fine-tuned for several numbers of epochs. Nothing is trained "
        "on the validation images.",
        source="Prompt Condensation (arXiv 2305.17223), Figure 8",
        settings={"prompts": prompts, "train_on": "train", "criterion": criterion, "scope": scope},
    )


def read(plan: Plan, store: Store) -> Schedule:
    """Accuracies and times, from the results that are there.

    Args:
        plan: What `plan_of` returned.
        store: Where it was run, as far as it was.

    Raises:
        PlanError: If the plan cannot be meant.

    Example:
        >>> from vprompt.experiments.bench.store import open_store
        >>> found = read(plan_of(Study(seeds=2), fine_tune_epochs=(0, 5)), open_store("nowhere"))
        >>> found.curves[0].points[1].test.values, found.times[1].fine_tuning
        ((None, None), None)
    """
    runs = Runs(plan, store)
    full, *condensed = plan.methods
    labels = {_epochs(one.settings): one.label for one in condensed}
    all_results = {epochs: _all(runs, label) for epochs, label in labels.items()}
    every = [result for results in all_results.values() for result in results]
    return Schedule(
        about=runs.about(),
        method=full.settings["method"],
        prompts=plan.settings["prompts"],
        ratio=condensed[0].settings["condense"],
        curves=tuple(_curve(runs, task, full.label, labels) for task in runs.places),
        times=tuple(_time(epochs, results) for epochs, results in all_results.items()),
        training_seconds=_mean([result["training_seconds"] for result in _all(runs, full.label)]),
        scoring_seconds=_mean([result["scoring_seconds"] for result in every if "scoring_seconds" in result]),
    )


def _epochs(settings: Any) -> int:
    return settings["fine_tune_epochs"] if settings.get("fine_tune", True) else 0


def _all(runs: Runs, label: str) -> list[Result]:
    return [result for task in runs.tasks for result in runs.results(task.task, label)]


def _curve(runs: Runs, task: str | None, full: str, labels: dict[int, str]) -> Curve:
    points = [
        Point(epochs=epochs, test=runs.seeds(task, label, tested), validation=runs.seeds(task, label, _validated))
        for epochs, label in labels.items()
    ]
    paper = next((point for point in points[:-1] if point.epochs == PAPER_EPOCHS), None)
    return Curve(
        task=task,
        points=tuple(points),
        late=None if paper is None else difference(points[-1].validation, paper.validation),
        full_test=runs.seeds(task, full, tested),
        full_validation=runs.seeds(task, full, _validated),
    )


def _validated(result: Result) -> float | None:
    return result.get("val_accuracy")


def _time(epochs: int, results: Sequence[Result]) -> Time:
    return Time(
        epochs=epochs,
        scoring=_mean([_share(result, result.get("scoring_seconds")) for result in results]),
        fine_tuning=_mean([_share(result, result["training_seconds"]) for result in results]),
        seconds=_mean([result["training_seconds"] for result in results]),
        runs=len(results),
    )


def _share(result: Result, seconds: float | None) -> float | None:
    """Of the time of the training before."""
    whole = result["before"]["training_seconds"]
    return None if seconds is None or not whole else seconds / whole


def _mean(values: Sequence[float | None]) -> float | None:
    return seeds_of(values).mean
