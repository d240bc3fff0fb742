"""Plan of a benchmark: methods and tasks to compare, settings to train with, and the search for settings."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w

from vprompt.experiments.settings import check_setting
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import build, check_known, typed

MOST = 100_000
"""Runs of a plan, and choices of a search: more could not be done in years, and only to list them takes gigabytes."""

By = Literal["accuracy", "loss"]


class PlanError(VPromptError):
    """A plan cannot be meant."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Search for settings by successive halving: by validation images, the worse choices stopped early.

    Args:
        space: Setting -> values to try; every combination is one training.
        same: Try twelve choices of every method: rates around its own, two weight decays, and its sizes. What `space`
            has joins them, or takes the place of their own.
        by: What is compared: `"accuracy"` (of another target its score; the loss decides between equals) or `"loss"`.
        rungs: After these shares of the epochs only the better ones go on; none trains all to the end.
        keep: Share that goes on.
        seed: Of these trainings.

    Raises:
        VPromptError: If a value is out of range.
    """

    space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    same: bool = False
    by: By = "accuracy"
    rungs: tuple[float, ...] = (0.25, 0.5)
    keep: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        typed("by", self.by, By)
        if not all(0 < share < 1 for share in self.rungs):
            raise PlanError(f"The rungs of a search are shares of the epochs, between 0 and 1, not {self.rungs}.")
        if not 0 < self.keep < 1:
            raise PlanError(f"The share of a search that goes on lies between 0 and 1, not at {self.keep}.")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Workers that a plan asks for: how many runs at once, and what each may use.

    Args:
        number: Runs at the same time; for Ray as many as the cluster has room for when not given.
        cpus: Processor cores of each.
        gpus: Of each; 0.25 lets four share one. One where there is one when not given.
        memory_gb: Of each, for Ray to plan with.
        retries: How often a run starts again whose process died.
    """

    number: int | None = None
    cpus: float = 1.0
    gpus: float | None = None
    memory_gb: float | None = None
    retries: int = 2

    def __post_init__(self) -> None:
        if self.number is not None and self.number < 1:
            raise PlanError(f"There must be at least one worker, not {self.number}.")
        sizes = (self.cpus, self.gpus or 0, self.memory_gb or 0)
        if not all(0 <= size < math.inf for size in sizes):
            raise PlanError("What a worker may use is at least 0.")
        if self.retries < 0:
            raise PlanError(f"The number of retries is at least 0, not {self.retries}.")


@dataclass(frozen=True, kw_only=True)
class MethodPlan:
    """One row of the plan: a label, the settings it differs by, and its own search space if it has one.

    Args:
        label: What it is called in tables.
        settings: Flat names, as `vprompt.experiments.settings.settings_from` takes them.
        share: Of the task's prompts, for a training from scratch with fewer.
        search: False for settings that are used as they are.
        space: Instead of the plan's own.
        task: Task -> settings of this method on that task alone.
    """

    label: str
    settings: Mapping[str, Any]
    share: float | None = None
    search: bool = True
    space: Mapping[str, tuple[Any, ...]] | None = None
    task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share <= 1:
            raise PlanError(f"The share of a method's prompts must be above 0 and at most 1, not {self.share}.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a benchmark.

    Args:
        name: Short; the folder of its results is called after it.
        title: A line for people.
        description: What it is to show.
        source: The paper it follows, if any.
        departures: What it does otherwise than that, a sentence each.
        hours: How long it takes, as whoever wrote it knows.
        hours_on: On what.
        tasks: Specs such as `vtab:svhn`.
        optional_tasks: More of them, left out where they are not on disk.
        seeds: Of the runs that are tested.
        settings: Of every run.
        task: Task -> settings of every run on it.
        methods: What is compared.
        search: How settings are chosen; None uses them as they are.
        workers: What the runs may use.
        text: The plan as it was written.
    """

    name: str
    title: str = ""
    description: str = ""
    source: str = ""
    departures: tuple[str, ...] = ()
    hours: float | None = None
    hours_on: str = ""
    tasks: tuple[str, ...] = ()
    optional_tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    settings: Mapping[str, Any]
    task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    methods: tuple[MethodPlan, ...]
    search: Search | None = None
    workers: Workers = field(default_factory=Workers)
    text: str = ""

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or "/" in self.name:
            raise PlanError(f"A plan cannot be called {self.name!r}; its results go to a folder of that name.")
        if not self.tasks + self.optional_tasks or "" in self.tasks + self.optional_tasks:
            raise PlanError('It names no tasks, or one by no name; give tasks = ["vtab:svhn", ...].')
        if not self.methods:
            raise PlanError("It names no methods; give a [[methods]] table for each.")
        labels = [method.label for method in self.methods]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise PlanError(f"Two methods are labelled {twice!r}; give each a label of its own.")
        seeds = set(self.seeds)
        if not seeds or len(seeds) < len(self.seeds) or not all(0 <= seed < 2**32 for seed in seeds):
            raise PlanError(
                "seeds is how many there are, or a list of different whole numbers from 0; not "
                f"{list(self.seeds) or 'none'}."
            )
        if self.hours is not None and not 0 <= self.hours < math.inf:
            raise PlanError(f"hours is a number from 0, not {self.hours}.")

    def to_toml(self) -> str:
        """The plan as TOML text, from which `parse_plan` makes the same plan; what it was read from, if anything."""
        tables = [({**asdict(method), "settings": None}, method.settings) for method in self.methods]
        methods = [_without_none(about) | _without_none(settings) for about, settings in tables]
        about = {**asdict(self), "methods": methods, "text": None, "departures": self.departures or None}
        return self.text or tomli_w.dumps(_without_none(about))


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table without what is None, for which TOML has no word."""
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def shipped_plans() -> dict[str, str]:
    """The texts of the plans that come with vprompt, by name."""
    folder = resources.files("vprompt.experiments.plans")
    files = {file.name: file for file in folder.iterdir() if file.name.endswith(".toml")}
    return {name[:-5]: files[name].read_text(encoding="utf-8") for name in sorted(files)}


def load_plan(place: str) -> Plan:
    """Reads a plan from a file, or one that comes with vprompt, by its name.

    Raises:
        PlanError: If there is none, or it cannot be meant.

    Example:
        >>> load_plan("plans/small.toml").name
        'small'
    """
    path = Path(place)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"The plan {place} cannot be read ({error}).") from error
        return parse_plan(text, name=path.stem)
    shipped = shipped_plans()
    if path.stem in shipped and path.parent.as_posix() in (".", "plans"):
        return parse_plan(shipped[path.stem], name=path.stem)
    raise PlanError(
        f"There is no plan {place}: no such file, and of those that come with vprompt ({', '.join(shipped)})."
    )


def parse_plan(text: str, *, name: str) -> Plan:
    """A plan from its text.

    Args:
        text: TOML.
        name: Where it gives itself none.

    Raises:
        PlanError: One sentence that names the first thing that cannot be meant.

    Example:
        >>> plan = parse_plan('''
        ... tasks = ["synthetic:counting"]
        ... settings = {backbone = "test_vit", epochs = 2}
        ... [[methods]]
        ... label = "PC {condense%}"
        ... method = "vpt-deep"
        ... condense = [0.1, 0.3]
        ... ''', name="tiny")
        >>> [method.label for method in plan.methods]
        ['PC 10 %', 'PC 30 %']
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise PlanError(f"The plan {name} is not TOML: {error}.") from error
    try:
        return _plan(document, name, text)
    except VPromptError as error:
        raise PlanError(f"In the plan {name}: {error}") from error


def _plan(document: dict[str, Any], name: str, text: str) -> Plan:
    given = {"name": name, **document}
    search = typed("search", given.get("search", {}), dict[str, Any])
    seeds = typed("seeds", given.get("seeds", 3), int | tuple[int, ...])
    if isinstance(seeds, int):
        seeds = tuple(range(check_number(seeds, "seeds")))
    return _read(
        Plan,
        given,
        "the plan",
        seeds=seeds,
        settings=_settings(given.get("settings", {}), "settings"),
        task=_per_task(given.get("task", {}), "task"),
        methods=tuple(
            method
            for entry in typed("methods", given.get("methods", []), list[dict[str, Any]])
            for method in _methods(entry)
        ),
        search=_read(Search, search, "search", space=_space(search.get("space", {}))) if "search" in given else None,
        workers=_read(Workers, given.get("workers", {}), "workers"),
        text=text,
    )


def _read(kind: type, values: Any, where: str, **ready: Any) -> Any:
    """A table as a dataclass, some of whose fields are made already; a key that it does not have is refused."""
    table = typed(where, values, dict[str, Any])
    check_known(table, {entry.name: entry for entry in fields(kind) if entry.name != "text"}, f"key of {where}")
    return build(kind, table, **ready)


def _methods(entry: dict[str, Any]) -> list[MethodPlan]:
    """The methods of one entry: one for every combination of the settings that are lists."""
    label = typed("label", entry.get("label", entry.get("method", "")), str)
    if not label:
        raise PlanError("A method has neither a label nor a method.")
    values = {key: value for key, value in entry.items() if key not in ("label", "search", "space", "task")}
    spread = {key: value for key, value in values.items() if isinstance(value, list)}
    if empty := next((key for key, value in spread.items() if not value), None):
        raise PlanError(f"The list of {empty} of {label} is empty; that would leave the method out.")
    methods: list[MethodPlan] = []
    for chosen in combinations(spread):
        settings = {**values, **chosen}
        # A number is a share of the prompts; a word is E2VPT's setting of that name.
        share = None if isinstance(settings.get("share"), str) else settings.pop("share", None)
        methods.append(
            MethodPlan(
                label=_label(label, chosen, settings if share is None else {**settings, "share": share}),
                settings=_settings(settings, label),
                share=typed("share", share, float | None),
                search=typed("search", entry.get("search", True), bool),
                space=_space(entry["space"]) if "space" in entry else None,
                task=_per_task(entry.get("task", {}), f"task of {label}"),
            )
        )
    return methods


def combinations(space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of several settings; of none, the one that has none.

    Example:
        >>> combinations({"lr": [1, 2], "prompts": [5]})
        [{'lr': 1, 'prompts': 5}, {'lr': 2, 'prompts': 5}]
    """
    check_number(math.prod(map(len, space.values())), "combinations of settings")
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def check_number(many: int, what: str) -> int:
    """The number; raises a `PlanError` for more of something than can ever be done."""
    if many > MOST:
        raise PlanError(f"There are {many:,} {what}, of at most {MOST:,}; ask for fewer.")
    return many


def _label(template: str, chosen: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """A label with `{setting}` and `{setting%}` filled in; what tells several apart is added where it names nothing."""
    label = template
    for name, value in values.items():
        label = label.replace(f"{{{name}}}", f"{value:g}" if isinstance(value, float) else str(value))
        if isinstance(value, int | float):
            label = label.replace(f"{{{name}%}}", f"{100 * value:g} %")
    if chosen and label == template:
        label += f" ({', '.join(f'{name} {value}' for name, value in chosen.items())})"
    return label


def _settings(values: Any, where: str) -> dict[str, Any]:
    """Flat settings of the right types; `prompts = "paper"` is filled in once the task is known."""
    reserved = {"data": "tasks", "root": "--root", "seed": "seeds", "test": "nothing: runs that are chosen are tested"}
    settings = typed(where, values, dict[str, Any])
    if taken := next((name for name in settings if name in reserved), None):
        raise PlanError(f"{taken} is no setting of a plan's {where}; that is what {reserved[taken]} says.")
    method = settings["method"] if isinstance(settings.get("method"), str) else None
    return {
        name: value if (name, value) == ("prompts", "paper") else check_setting(name, value, method)
        for name, value in settings.items()
    }


def _per_task(values: Any, where: str) -> dict[str, dict[str, Any]]:
    return {task: _settings(own, f"{where}, {task}") for task, own in typed(where, values, dict[str, Any]).items()}


def _space(values: Any) -> dict[str, tuple[Any, ...]]:
    space = typed("space", values, dict[str, tuple[Any, ...]])
    for name, choices in space.items():
        if name in ("data", "root", "seed", "test", "train_on", "backbone", "weights", "img_size"):
            raise PlanError(f"{name} is nothing that a search may choose.")
        if not choices:
            raise PlanError(f"The search space of {name} is empty.")
    return {name: tuple(check_setting(name, value) for value in choices) for name, choices in space.items()}
