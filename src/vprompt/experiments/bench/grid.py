"""Cells of a plan: one for every task, method and seed, with all its settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vprompt.compression.criteria import whole
from vprompt.experiments.bench.plan import MethodPlan, Plan, PlanError, Search, check_number
from vprompt.experiments.bench.store import NamedPath
from vprompt.experiments.bench.tasks import paper_prompts, task_names
from vprompt.experiments.settings import DEFAULT_METHOD, Condensing, Pruning, Settings, settings_from
from vprompt.methods.registry import METHODS
from vprompt.model.records import AUTO
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import options_of

PROTOCOL = {"train_on": "train+val", "epochs": 100}
"""Settings of a plan's runs unless it says otherwise: what served to choose settings is trained on in the end, and the
papers' schedule is that of all tasks."""

AFTERWARDS = frozenset({"prune", *options_of(Condensing), *options_of(Pruning)})
"""Settings of what follows the training; they are chosen after those of the training."""


RATES = (1.0, 0.3, 3.0, 0.1, 10.0, 0.03)
"""Shares of a method's own learning rate that a search with equal effort tries; methods with sizes fewer, the first."""

DECAYS = (1e-4, 1e-2)
"""Weight decays that it tries."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of the table that a plan makes: a method on a task with a seed.

    Args:
        task: Spec.
        method: Label.
        seed: Of the run.
        values: Flat settings, without what a search chooses.
        search: How that is chosen; None where nothing is.
        names: See `Job`.
    """

    task: str
    method: str
    seed: int
    values: Mapping[str, Any]
    search: Search | None = None
    names: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    def settings(self, **others: Any) -> Settings:
        """The settings of a run of this cell, with some that differ."""
        return settings_from({**self.values, **others})


def cells_of(
    plan: Plan, tasks: Sequence[str], *, root: str | None = None, paths: Mapping[str, NamedPath] | None = None
) -> list[Cell]:
    """All cells of a plan on some tasks: task by task, method by method, seed by seed.

    Args:
        plan: The plan.
        tasks: What `tasks_of` gives, or fewer.
        root: Folder that holds the benchmarks' tasks.
        paths: Folders and files that runs read, and what they are called in the names of runs.

    Raises:
        PlanError: If the settings of a cell do not go together.
    """
    check_number(len(tasks) * len(plan.methods) * len(plan.seeds), f"runs in the plan {plan.name}")
    cells: list[Cell] = []
    names = {path: about["name"] for path, about in (paths or {}).items()}
    for task, method in itertools.product(tasks, plan.methods):
        try:
            of_seeds = [replace(_cell(plan, method, task, seed, root), names=names) for seed in plan.seeds]
            of_seeds[0].settings()  # what goes with one seed goes with all
            for name, choices in (of_seeds[0].search.space if of_seeds[0].search else {}).items():
                for choice in choices:
                    of_seeds[0].settings(**{name: choice})
        except PlanError:
            raise
        except VPromptError as error:
            raise PlanError(f"In the plan {plan.name}, {method.label} on {task}: {error}") from error
        cells += of_seeds
    return cells


def tasks_of(plan: Plan) -> tuple[list[str], list[str]]:
    """The tasks of a plan and its optional ones; `vtab`, `vtab:structured` and so on stand for all tasks of theirs.

    Raises:
        PlanError: If it has settings for a task that is none of them.
    """
    both = plan.tasks, plan.optional_tasks
    tasks, optional = (list(dict.fromkeys(name for entry in part for name in task_names(entry))) for part in both)
    for own in (plan.task, *(method.task for method in plan.methods)):
        if unknown := next((name for name in own if name not in (*tasks, *optional)), None):
            raise PlanError(
                f"In the plan {plan.name}, there are settings for {unknown!r}, which is none of its tasks; write each "
                "task as it is in the list."
            )
    return tasks, [name for name in optional if name not in tasks]


def _cell(plan: Plan, method: MethodPlan, task: str, seed: int, root: str | None) -> Cell:
    values: dict[str, Any] = {**PROTOCOL, **plan.settings}
    values |= plan.task.get(task, {})
    values |= method.settings
    values |= method.task.get(task, {})
    if values.get("prompts") == "paper":
        values["prompts"] = paper_prompts(task)
    if method.share is not None:
        options = METHODS.get(values.get("method", DEFAULT_METHOD)).options
        count = values.get("prompts", options["prompts"].default if "prompts" in options else 1)
        values["prompts"] = whole(method.share, count)
    values |= {"data": task, "root": root, "seed": seed}
    space = method.space if method.space is not None else plan.search.space if plan.search else {}
    search = None
    if plan.search and plan.search.same and method.search and method.space is None:
        space = {**same_space(settings_from(values)), **space}
    space = _own(space, values.get("method", DEFAULT_METHOD), method.share)
    if method.search and space:
        search = replace(plan.search, space=space) if plan.search else Search(space=space)
    return Cell(task=task, method=method.label, seed=seed, values=values, search=search)


def same_space(settings: Settings) -> dict[str, tuple[Any, ...]]:
    """Twelve choices for a method, as many as for any other: rates around its own, weight decays and its sizes.

    Example:
        >>> same_space(settings_from({"backbone": "test_vit", "method": "adapter-plus"}))
        {'lr': (0.0006, 0.002, 0.006), 'weight_decay': (0.0001, 0.01), 'rank': (8, 32)}
    """
    method, recipe = settings.method, settings.recipe
    rate = (replace(recipe, lr=None) if recipe.lr == AUTO else recipe).with_rate(method.lr_factor).lr
    many = math.prod(map(len, method.sizes.values()))
    if many not in (1, 2, 3):
        raise VPromptError(
            f"A search of equal effort tries one to three sizes of a method, not {many}; mend its `sizes`."
        )
    rates = (float(f"{float(rate or 0) * share:.6g}") for share in sorted(RATES[: len(RATES) // many]))
    return {"lr": tuple(rates), "weight_decay": DECAYS, **method.sizes}


def _own(space: Mapping[str, Sequence[Any]], method: str, share: float | None) -> dict[str, tuple[Any, ...]]:
    """A search space without what a method does not read, and with its share of the prompts."""
    methods = {flag for kind in METHODS for flag in kind.options}
    unread = methods - METHODS.get(method).options.keys()
    own = {name: tuple(choices) for name, choices in space.items() if name not in unread}
    if share is not None and "prompts" in own:
        own["prompts"] = tuple(dict.fromkeys(whole(share, count) for count in own["prompts"]))
    return own
