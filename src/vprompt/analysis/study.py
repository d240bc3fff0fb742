"""What the plans of the studies have in common: tasks, backbone, recipe, and how learning rates are chosen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.data.sources.bundled import SOURCE
from vprompt.experiments.bench.collect import cells_in
from vprompt.experiments.bench.grid import tasks_of
from vprompt.experiments.bench.plan import Plan, PlanError, parse_plan
from vprompt.experiments.bench.store import Store
from vprompt.experiments.bench.tasks import about_task
from vprompt.utils.statistics import Seeds, over_tasks, seeds_of

LINEAR_EPOCHS = 100
"""At least so many for the linear probe, which learns on features that are computed once."""

RUNGS = (0.25,)
"""After a quarter of the epochs the worse half of the learning rates is given up."""

TITLES = {"vpt-deep": "VPT-Deep", "vpt-shallow": "VPT-Shallow"}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all runs of a study share.

    Args:
        tasks: Specs, as `vprompt.data.open_task` takes them, or groups of them (`vtab`).
        backbone: timm name.
        weights: File with other weights.
        img_size: Input size in pixels, where it should differ from the backbone's own.
        seeds: How many runs of each: seeds 0, 1, ...
        epochs: Of every training; the linear probe has at least 100.
        batch_size: Images per step.
        optimizer: `"adamw"` or `"sgd"`.
        lrs: Learning rates; of several, the one is taken that validates best, for every method and count by itself.
        precision: `"fp32"` or `"bf16"`.
        workers: Runs at the same time.
    """

    tasks: Sequence[str] = (SOURCE,)
    backbone: str = BUNDLED_BACKBONE
    weights: str | None = None
    img_size: int | None = None
    seeds: int = 3
    epochs: int = 100
    batch_size: int = 64
    optimizer: str = "adamw"
    lrs: Sequence[float] = ()
    precision: str = "fp32"
    workers: int = 1

    @property
    def linear(self) -> dict[str, Any]:
        """The linear probe, as a method of a plan."""
        return {"label": "Linear", "method": "linear", "epochs": max(LINEAR_EPOCHS, self.epochs)}


def make_plan(
    name: str,
    study: Study,
    methods: Sequence[Mapping[str, Any]],
    *,
    title: str,
    description: str,
    source: str,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """A plan whose text is what a TOML file of it would be.

    Args:
        name: Its name.
        study: Tasks and recipe.
        methods: Tables, as a plan has them.
        title: A line for people.
        description: What it is to show.
        source: The paper it follows.
        settings: Of every run, besides those of the study.

    Raises:
        PlanError: If it cannot be meant.

    Example:
        >>> plan = make_plan("p", Study(lrs=(0.1, 0.01)), [Study().linear], title="", description="", source="")
        >>> plan.search.space, parse_plan(plan.text, name="") == plan
        ({'lr': (0.1, 0.01)}, True)
    """
    if not study.tasks:
        raise PlanError("A study needs at least one task.")
    shared: dict[str, Any] = {
        "backbone": study.backbone,
        "weights": study.weights,
        "img_size": study.img_size,
        "epochs": study.epochs,
        "batch_size": study.batch_size,
        "optimizer": study.optimizer,
        "precision": study.precision,
        "lr": study.lrs[0] if len(study.lrs) == 1 else None,
        **(settings or {}),
    }
    document: dict[str, Any] = {
        "name": name,
        "title": title,
        "description": description,
        "source": source,
        "tasks": list(study.tasks),
        "seeds": study.seeds,
        "settings": {key: value for key, value in shared.items() if value is not None},
        "methods": list(methods),
        "workers": {"number": study.workers},
    }
    if len(study.lrs) > 1:
        document["search"] = {"rungs": list(RUNGS), "space": {"lr": list(study.lrs)}}
    return parse_plan(toml(document), name=name)


def toml(document: Mapping[str, Any]) -> str:
    """Plain data as TOML: text, numbers, true and false, lists of these, tables and lists of tables.

    Example:
        >>> print(toml({"a": 1, "b": [0.5, "x"], "c": {"d": True}, "e": [{"f": 2}]}), end="")
        a = 1
        b = [0.5, "x"]
        <BLANKLINE>
        [c]
        d = true
        <BLANKLINE>
        [[e]]
        f = 2
    """
    return "\n".join(_table(document, "")) + "\n"


def _table(table: Mapping[str, Any], above: str) -> list[str]:
    lines = [f"{key} = {_value(value)}" for key, value in table.items() if not _is_table(value)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{above}{key}]", *_table(value, f"{above}{key}.")]
        elif _is_table(value):
            for entry in value:
                lines += ["", f"[[{above}{key}]]", *_table(entry, f"{above}{key}.")]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PlanError(f"The name {value!a} is not text; a plan can only have names that are.") from None
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


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
