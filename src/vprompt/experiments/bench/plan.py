"""A benchmark's plan: which methods are compared on which tasks, how each is trained and how settings are chosen."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast, get_args

import tomli_w

from vprompt.experiments.settings import check_setting
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import build, check_known, options_of

By = Literal["accuracy", "loss"]


class PlanError(VPromptError):
    """A plan cannot be meant."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """How settings are chosen: by validation images, each choice trained on the others, hopeless ones stopped early.

    Args:
        space: Setting -> values to try; every combination is one training.
        by: What is compared: `"accuracy"` (the loss decides between equals) or `"loss"`.
        rungs: After these shares of the epochs only the better ones go on; none trains all to the end.
        keep: Share that goes on.
        seed: Of these trainings.

    Raises:
        PlanError: If a value is out of range.
    """

    space: Mapping[str, tuple[Any, ...]]
    by: By = "accuracy"
    rungs: tuple[float, ...] = (0.25, 0.5)
    keep: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise PlanError(f"A search goes by 'accuracy' or 'loss', not {self.by!r}.")
        if not all(0 < share < 1 for share in self.rungs):
            raise PlanError(f"The rungs of a search are shares of the epochs, between 0 and 1, not {self.rungs}.")
        if not 0 < self.keep < 1:
            raise PlanError(f"The share of a search that goes on lies between 0 and 1, not at {self.keep}.")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What a plan wants of the machines: how many runs at once, and what each may use.

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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a benchmark runs.

    Args:
        name: Short; the folder of its results is called after it.
        title: A line for people.
        description: What it is to show.
        source: The paper it follows, if any.
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
    hours: float | None = None
    hours_on: str = ""
    tasks: tuple[str, ...]
    optional_tasks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    settings: Mapping[str, Any]
    task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    methods: tuple[MethodPlan, ...]
    search: Search | None = None
    workers: Workers = field(default_factory=Workers)
    text: str = ""

    def to_toml(self) -> str:
        """The plan as TOML text, from which `parse_plan` makes the same plan; what it was read from, if anything."""
        return self.text or tomli_w.dumps(_without_none(to_document(self)))


def to_document(plan: Plan) -> dict[str, Any]:
    """A plan as plain data, laid out as in its file."""
    document = {
        entry.name: getattr(plan, entry.name) for entry in fields(Plan) if entry.name not in ("text", "methods")
    }
    document["search"] = None if plan.search is None else asdict(plan.search)
    document["workers"] = asdict(plan.workers)
    document["methods"] = [
        {"label": m.label, **m.settings, "share": m.share, "search": m.search, "space": m.space, "task": m.task}
        for m in plan.methods
    ]
    return document


def _without_none(value: Any) -> Any:
    """Plain data that TOML can hold: without what is None, lists for tuples, dicts for mappings."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value)
        return {key: _without_none(item) for key, item in items.items() if item is not None}
    if isinstance(value, tuple | list):
        return [_without_none(item) for item in cast("Sequence[Any]", value)]
    return value


def shipped_plans() -> dict[str, str]:
    """The texts of the plans that come with vprompt, by name."""
    folder = resources.files("vprompt.experiments.plans")
    found = {file.name: file for file in folder.iterdir() if file.name.endswith(".toml")}
    return {name[:-5]: found[name].read_text(encoding="utf-8") for name in sorted(found)}


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
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"The plan {name} is not TOML: {error}.") from error
    try:
        return _plan(document, name, text)
    except VPromptError as error:
        raise PlanError(f"In the plan {name}: {error}") from error


def _plan(document: dict[str, Any], name: str, text: str) -> Plan:
    known = {entry.name for entry in fields(Plan)} - {"text"}
    _refuse_unknown(document, known, "the plan")
    given: dict[str, Any] = {}
    for key in ("name", "title", "description", "source", "hours_on"):
        if key in document:
            given[key] = _checked(document[key], str, key)
    if "hours" in document:
        given["hours"] = _number(document["hours"], "hours")
    tasks, optional = _names(document, "tasks"), _names(document, "optional_tasks")
    if not tasks and not optional:
        raise PlanError('It names no tasks; give tasks = ["vtab:svhn", ...].')
    settings = _settings(document.get("settings", {}), "settings")
    per_task = _per_task(document.get("task", {}), "task")
    methods: list[MethodPlan] = []
    for entry in _checked(document.get("methods", []), list, "methods"):
        methods += _methods(_checked(entry, dict, "an entry of methods"))
    if not methods:
        raise PlanError("It names no methods; give a [[methods]] table for each.")
    labels = [method.label for method in methods]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise PlanError(f"Two methods are labelled {twice!r}; give each a label of its own.")
    plan_name = given.pop("name", name)
    if not plan_name or plan_name.startswith(".") or "/" in plan_name:
        raise PlanError(f"A plan cannot be called {plan_name!r}; its results go to a folder of that name.")
    return Plan(
        name=plan_name,
        **given,
        tasks=tasks,
        optional_tasks=optional,
        seeds=_seeds(document.get("seeds", 3)),
        settings=settings,
        task=per_task,
        methods=tuple(methods),
        search=_search(document["search"]) if "search" in document else None,
        workers=_workers(document.get("workers", {})),
        text=text,
    )


def _methods(entry: dict[str, Any]) -> list[MethodPlan]:
    """The methods of one entry: one for every combination of the settings that are lists."""
    own = {"label", "share", "search", "space", "task"}
    label = _checked(entry.get("label", entry.get("method", "")), str, "label")
    if not label:
        raise PlanError("A method has neither a label nor a method.")
    values = {key: value for key, value in entry.items() if key not in own - {"share"}}
    spread = {key: value for key, value in values.items() if isinstance(value, list)}
    if empty := next((key for key, value in spread.items() if not value), None):
        raise PlanError(f"The list of {empty} of {label} is empty; that would leave the method out.")
    found: list[MethodPlan] = []
    for chosen in combinations(spread):
        both = {key: chosen.get(key, value) for key, value in values.items()}
        # A number is a share of the prompts; a word is E2VPT's setting of that name.
        share = None if isinstance(both.get("share"), str) else both.pop("share", None)
        if share is not None and not 0 < _number(share, "share") <= 1:
            raise PlanError(f"The share of a method's prompts must be above 0 and at most 1, not {share}.")
        found.append(
            MethodPlan(
                label=_label(label, chosen, both if share is None else {**both, "share": share}),
                settings=_settings(both, label),
                share=share,
                search=_checked(entry.get("search", True), bool, f"search of {label}"),
                space=_space(entry["space"]) if "space" in entry else None,
                task=_per_task(entry.get("task", {}), f"task of {label}"),
            )
        )
    return found


def combinations(space: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of several settings; of none, the one that has none.

    Example:
        >>> combinations({"lr": [1, 2], "prompts": [5]})
        [{'lr': 1, 'prompts': 5}, {'lr': 2, 'prompts': 5}]
    """
    found: list[dict[str, Any]] = [{}]
    for name, values in space.items():
        found = [{**one, name: value} for one in found for value in values]
    return found


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
    found: dict[str, Any] = {}
    for name, value in _checked(values, dict, where).items():
        if name in reserved:
            raise PlanError(f"{name} is no setting of a plan's {where}; that is what {reserved[name]} says.")
        method = values.get("method") if isinstance(values.get("method"), str) else None
        found[name] = value if (name, value) == ("prompts", "paper") else check_setting(name, value, method)
    return found


def _per_task(values: Any, where: str) -> dict[str, dict[str, Any]]:
    return {task: _settings(own, f"{where}, {task}") for task, own in _checked(values, dict, where).items()}


def _space(values: Any) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for name, choices in _checked(values, dict, "space").items():
        if name in ("data", "root", "seed", "test", "train_on", "backbone", "weights", "img_size"):
            raise PlanError(f"{name} is nothing that a search may choose.")
        found[name] = tuple(check_setting(name, value) for value in _checked(choices, list, f"space of {name}"))
        if not found[name]:
            raise PlanError(f"The search space of {name} is empty.")
    return found


def _search(values: Any) -> Search:
    table = dict(_checked(values, dict, "search"))
    _refuse_unknown(table, {entry.name for entry in fields(Search)}, "search")
    return build(Search, {**table, "space": _space(table.get("space", {}))})


def _workers(values: Any) -> Workers:
    table = _checked(values, dict, "workers")
    check_known(table, options_of(Workers))
    return build(Workers, table)


def _seeds(value: Any) -> tuple[int, ...]:
    """A number of seeds, from 0, or the seeds themselves."""
    seeds = list(range(value)) if type(value) is int else _checked(value, list, "seeds")
    if not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise PlanError(f"seeds is how many there are, or a list of different whole numbers from 0; not {value!r}.")
    return tuple(seeds)


def _names(document: dict[str, Any], key: str) -> tuple[str, ...]:
    names = _checked(document.get(key, []), list, key)
    for name in names:
        if type(name) is not str or not name:
            raise PlanError(f"{key} lists names in quotes, not {name!r}.")
    return tuple(names)


def _checked(value: Any, kind: type, where: str) -> Any:
    words = {str: "text in quotes", list: "a list in [...]", dict: "a table", bool: "true or false"}
    if type(value) is not kind:
        raise PlanError(f"{where} must be {words[kind]}, not {value!r}.")
    return value


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise PlanError(f"{where} must be a number, not {value!r}.")
    return float(value)


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it knows {', '.join(sorted(known))}."
            raise PlanError(f"{where} knows no {key!r}; {hint}")
