"""Studies: analyses that train are plans of the bench, read from the results of their runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import tomli_w

from vprompt.analysis.base import Study
from vprompt.analysis.options import Training
from vprompt.data.sources.bundled import SOURCE
from vprompt.data.tasks import find_listing
from vprompt.experiments.bench.bench import changed_images
from vprompt.experiments.bench.collect import cells_in
from vprompt.experiments.bench.grid import tasks_of
from vprompt.experiments.bench.plan import Plan, PlanError, parse_plan
from vprompt.experiments.bench.store import Store
from vprompt.experiments.bench.tasks import about_task
from vprompt.experiments.folder import converged_in, target_of
from vprompt.tasks.base import Target, kind_of
from vprompt.utils.errors import DataError, VPromptError
from vprompt.utils.statistics import Seeds, difference, over_tasks, seeds_of
from vprompt.utils.text import line

LINEAR_EPOCHS = 100
"""At least so many for the linear probe, which learns on features that are computed once."""

RUNGS = (0.25,)
"""After a quarter of the epochs the worse half of the learning rates is given up."""

LINEAR = "Linear"
"""Label of the linear probe."""


def linear_probe(training: Training) -> dict[str, Any]:
    """The linear probe, as a method of a plan."""
    return {"label": LINEAR, "method": "linear", "epochs": max(LINEAR_EPOCHS, training.epochs)}


def check_choice(options: Study, option: str, value: str) -> None:
    """Raises a `PlanError` for a value that the option does not list."""
    listed = get_args(get_type_hints(type(options))[option])
    if value not in listed:
        raise PlanError(f"The {option} is {' or '.join(map(repr, listed))}, not {value!r}.")


def check_shares(what: str, shares: Sequence[float]) -> None:
    """Raises a `PlanError` for shares that are not above 0 and at most 1."""
    if wrong := [share for share in shares if not 0 < share <= 1]:
        raise PlanError(f"The {what} must be above 0 and at most 1, not {wrong[0]}.")


def make_plan(
    study: Study,
    methods: Sequence[Mapping[str, Any]],
    *,
    title: str,
    description: str,
    source: str,
    settings: Mapping[str, Any],
) -> Plan:
    """A plan whose text is what a TOML file of it would be.

    Args:
        study: Its name, tasks and recipe.
        methods: Tables, as a plan has them.
        title: A line for people.
        description: What it is to show.
        source: The paper it follows.
        settings: Of every run, besides those of the study.

    Raises:
        PlanError: If it cannot be meant.
        VPromptError: If a task is not about classes.
    """
    training = study.training
    for task in training.tasks:
        with suppress(DataError):  # what is not there is said of its runs
            listing = find_listing(task, root=training.root)
            labels = [item.label for items in listing.splits.values() for item in items]
            _check_classes(kind_of(labels, listing.label_names))
    names = ("backbone", "img_size", "epochs", "batch_size", "optimizer", "precision")
    shared: dict[str, Any] = {
        **{name: getattr(training, name) for name in names},
        "weights": None if training.weights is None else os.path.abspath(training.weights),
        "lr": training.lrs[0] if len(training.lrs) == 1 else None,
        **settings,
    }
    document: dict[str, Any] = {
        "name": study.name,
        "title": title,
        "description": description,
        "source": source,
        "tasks": list(dict.fromkeys(training.tasks)) or [SOURCE],
        "seeds": training.seeds,
        "settings": {key: value for key, value in shared.items() if value is not None},
        "methods": list(methods),
        "workers": {"number": training.workers},
    }
    if len(training.lrs) > 1:
        document["search"] = {"rungs": list(RUNGS), "space": {"lr": list(training.lrs)}}
    text = tomli_w.dumps(document)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PlanError(f"The tasks {training.tasks!a} are not text; a plan can only have names that are.") from None
    return parse_plan(text, name=study.name)


RunResult = Mapping[str, Any]
"""The plain data of a finished run."""


@dataclass(frozen=True, kw_only=True)
class StudyTask:
    """A task, and what it is called."""

    task: str
    title: str


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Accuracy on the test images, and that less the accuracy of what it is compared with, seed by seed."""

    accuracy: Seeds
    change: Seeds


@dataclass(frozen=True, kw_only=True)
class MissingRun:
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
class StudySummary:
    """Runs of a study, and what came of them as a whole.

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
        unconverged: How many of these had not converged.
        unknown: Of how many this is not known; None where they were told by the falling of the loss, an older rule.
        changed_images: Tasks whose images are not the same in all runs, which cannot be compared then.
    """

    plan: str
    tasks: tuple[StudyTask, ...]
    backbone: str
    img_size: int | None
    epochs: int
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    runs: int
    problems: tuple[MissingRun, ...]
    trainings: int
    unconverged: int
    changed_images: tuple[str, ...]
    unknown: int | None = None

    def title(self, task: str | None) -> str:
        """Title of a task; None is the mean over all."""
        if task is None:
            return f"mean of {len(self.tasks)} tasks"
        return line(next((each.title for each in self.tasks if each.task == task), task), 40)


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
        self.tasks = tuple(StudyTask(task=task, title=about_task(task)["title"]) for task in tasks_of(plan)[0])
        self.cells: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for cell in cells_in(plan, store):
            self.cells.setdefault((cell["task"], cell["method"]), []).append(cell)

    def about(self) -> StudySummary:
        """Runs of a study, and what came of them as a whole."""
        plan, cells = self.plan, [cell for row in self.cells.values() for cell in row]
        results = [cell["result"] for cell in cells if cell["result"] is not None]
        trained = [result for result in results if result.get("epochs")]
        settings = plan.settings
        return StudySummary(
            plan=plan.name,
            tasks=self.tasks,
            backbone=settings["backbone"],
            img_size=settings.get("img_size"),
            epochs=settings["epochs"],
            lrs=tuple(plan.search.space["lr"]) if plan.search else (),
            seeds=plan.seeds,
            runs=len(cells),
            problems=tuple(
                MissingRun(task=cell["task"], method=cell["method"], seed=cell["seed"], why=cell["failure"])
                for cell in cells
                if cell["result"] is None
            ),
            trainings=len(trained),
            unconverged=sum(converged_in(result) is False for result in trained),
            unknown=sum(converged_in(result) is None for result in trained),
            changed_images=tuple(changed_images(cells)),
        )

    def results(self, task: str, label: str) -> list[RunResult]:
        """The results that are there, in the order of the seeds."""
        return [cell["result"] for cell in self.cells[task, label] if cell["result"] is not None]

    def seeds(self, task: str | None, label: str, value: Callable[[RunResult], float | None]) -> Seeds:
        """A value of all runs of a method on a task, or of its mean over all tasks (None)."""
        if task is None:
            return over_tasks([self.seeds(each.task, label, value) for each in self.tasks])
        cells = self.cells[task, label]
        return seeds_of(
            [None if cell["result"] is None else value(cell["result"]) for cell in cells],
            failed=sum(cell["state"] == "failed" for cell in cells),
            missing=sum(cell["state"] == "missing" for cell in cells),
            unconverged=sum(_unconverged(cell["result"]) for cell in cells),
        )

    def compared(self, task: str | None, label: str, other: str) -> Compared:
        """Test accuracy of a method against another's."""
        accuracy = self.seeds(task, label, tested)
        return Compared(accuracy=accuracy, change=difference(accuracy, self.seeds(task, other, tested)))

    @property
    def places(self) -> list[str | None]:
        """Parts shown by themselves: the mean over all tasks (None) where there are several, and every task."""
        tasks = [task.task for task in self.tasks]
        return [None, *tasks] if len(tasks) > 1 else list(tasks)


def tested(result: RunResult) -> float | None:
    """Test accuracy of a run, which must be about classes; its test images were read once."""
    _check_classes(target_of(result))
    return result.get("test_accuracy")


def _check_classes(target: Target | type[Target]) -> None:
    if not target.grouped:
        raise VPromptError(f"Studies are about accuracies; there is none of {target.name}: take images with classes.")


def _unconverged(result: RunResult | None) -> bool:
    """Whether a training of a run had not converged, also that before prompts were removed."""
    stages = [] if result is None else [result, result.get("before") or {}]
    return any(stage.get("epochs") and converged_in(stage) is False for stage in stages)
