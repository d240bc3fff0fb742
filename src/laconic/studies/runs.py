"""The runs of a study's plan, by task and method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from laconic.bench.cells import tasks_of
from laconic.bench.collect import cells_in
from laconic.bench.plan import Plan
from laconic.bench.store import Store
from laconic.bench.tasks import about_task
from laconic.studies.seeds import Seeds, over_tasks, seeds_of

Result = Mapping[str, Any]
Cell = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, and what it is called."""

    task: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A run that has no result.

    Args:
        task: Spec.
        method: Label.
        seed: Of the run.
        why: It failed; None where it was not done.
    """

    task: str
    method: str
    seed: int
    why: str | None


@dataclass(frozen=True, kw_only=True)
class About:
    """What was run, and what came of it as a whole.

    Args:
        plan: Name of the plan, whose runs these are.
        tasks: In the plan's order.
        backbone: timm name.
        img_size: Input size in pixels; None for the backbone's own.
        epochs: Of a training.
        lrs: What the learning rate was chosen from; empty where it was not chosen.
        seeds: Of the runs.
        runs: How many there should be.
        problems: Those that have no result.
        trainings: How many trainings, fine-tunings among them, the others are made of.
        unconverged: How many of these had not converged: their loss still fell at the end.
        changed_images: Tasks whose images are not the same in all runs, which cannot be compared then.
    """

    plan: str
    tasks: tuple[Task, ...]
    backbone: str
    img_size: int | None
    epochs: int
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    runs: int
    problems: tuple[Problem, ...]
    trainings: int
    unconverged: int
    changed_images: tuple[str, ...]


class Runs:
    """Results of a plan, by task and label.

    Args:
        plan: The plan.
        store: Where it was run.

    Raises:
        PlanError: If the plan cannot be meant.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.tasks = tuple(Task(task=task, title=about_task(task)["title"]) for task in tasks_of(plan)[0])
        self.cells: dict[tuple[str, str], list[Cell]] = {}
        for cell in cells_in(plan, store):
            self.cells.setdefault((cell["task"], cell["method"]), []).append(cell)

    def about(self) -> About:
        """What was run, and what came of it as a whole."""
        plan, cells = self.plan, [cell for row in self.cells.values() for cell in row]
        results = [(cell["task"], cell["result"]) for cell in cells if cell["result"] is not None]
        trained = [result for _, result in results if result.get("epochs")]
        seen: dict[str, set[str]] = {}
        for task, result in results:
            seen.setdefault(task, set()).add(result["provenance"]["data"]["fingerprint"])
        settings = plan.settings
        return About(
            plan=plan.name,
            tasks=self.tasks,
            backbone=settings["backbone"],
            img_size=settings.get("img_size"),
            epochs=settings["epochs"],
            lrs=tuple(plan.search.space["lr"]) if plan.search else (),
            seeds=plan.seeds,
            runs=len(cells),
            problems=tuple(
                Problem(task=cell["task"], method=cell["method"], seed=cell["seed"], why=cell["failure"])
                for cell in cells
                if cell["result"] is None
            ),
            trainings=len(trained),
            unconverged=sum(not result["converged"] for result in trained),
            changed_images=tuple(task for task, fingerprints in seen.items() if len(fingerprints) > 1),
        )

    def results(self, task: str, label: str) -> list[Result]:
        """The results that are there, in the order of the seeds."""
        return [cell["result"] for cell in self.cells[task, label] if cell["result"] is not None]

    def seeds(self, task: str | None, label: str, value: Callable[[Result], float | None]) -> Seeds:
        """A value of all runs of a method on a task, or of its mean over all tasks (None)."""
        if task is None:
            return over_tasks([self.seeds(one.task, label, value) for one in self.tasks])
        cells = self.cells[task, label]
        return seeds_of(
            [None if cell["result"] is None else value(cell["result"]) for cell in cells],
            failed=sum(cell["state"] == "failed" for cell in cells),
            missing=sum(cell["state"] == "missing" for cell in cells),
            unconverged=sum(_unconverged(cell["result"]) for cell in cells),
        )

    @property
    def places(self) -> list[str | None]:
        """What is shown by itself: the mean over all tasks (None) where there are several, and every task."""
        tasks = [task.task for task in self.tasks]
        return [None, *tasks] if len(tasks) > 1 else list(tasks)


def tested(result: Result) -> float | None:
    """What is shown of a run; its test images were read once."""
    return result.get("test_accuracy")


def _unconverged(result: Result | None) -> bool:
    """Whether a training of a run had not converged, also that before prompts were removed."""
    stages = [] if result is None else [result, result.get("before") or {}]
    return any(stage.get("epochs") and not stage.get("converged") for stage in stages)
