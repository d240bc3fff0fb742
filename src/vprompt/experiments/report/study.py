"""A study as typed values: the one place where the plain document is read, and where odd values become None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar, cast

from vprompt.experiments.folder import converged_in, score_key, target_of
from vprompt.tasks.base import Target
from vprompt.tasks.single_label import SingleLabel
from vprompt.utils.text import line, lines, number, paragraphs

State = Literal["finished", "failed", "missing"]

Metric = Literal["test", "validation"]

GROUPS = {
    "natural": "Natural",
    "specialized": "Specialized",
    "structured": "Structured",
    "fgvc": "FGVC",
    "other": "Other",
}
"""Groups of tasks in the order in which they are shown, and their titles."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task: its key in the study, what it is called, and how it stands to the published one."""

    key: str
    title: str
    group: str
    published: str | None
    comparable: bool
    differences: tuple[str, ...]
    classes: int
    images: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method: its key in the study, what it is called, and the number of its colour and marker."""

    key: str
    label: str
    style: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """The numbers of one trained model, as a result has them; `losses` has one for each epoch."""

    target: type[Target]
    test_score: float | None
    val_score: float | None
    prompt_counts: tuple[int, ...] | None
    learned_params: float | None
    folded_gmacs: float | None
    training_seconds: float | None
    converged: bool | None
    losses: tuple[float | None, ...]

    @property
    def prompts(self) -> float | None:
        """In all blocks."""
        return None if self.prompt_counts is None else float(sum(self.prompt_counts))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One cell of the study: a task, a method and a seed, and what came of it; of pruning, its cost in trainings."""

    task: Task
    method: Method
    seed: Any
    state: State
    failure: str = ""
    model: Model | None = None
    before: Model | None = None
    pruning: float | None = None
    seconds: float | None = None
    name: str = ""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    search: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """Its task, method and seed in words."""
        return f"{self.task.title}, {self.method.label}, seed {line(self.seed, 20)}"

    @property
    def trainings(self) -> list[Model]:
        """The models that were trained, one after the other: also that before prompts were removed."""
        return [model for model in (self.before, self.model) if model is not None and model.losses]

    @property
    def unconverged(self) -> bool:
        """Whether one of its trainings had not converged, as one of twice the epochs told."""
        return any(model.converged is False for model in self.trainings)

    @property
    def unknown(self) -> bool:
        """Whether nothing told of one of its trainings if it had converged."""
        return not self.unconverged and any(model.converged is None for model in self.trainings)

    @property
    def training_seconds(self) -> float | None:
        """Of the training and of what came before it, or of the whole search for how much to prune."""
        if self.pruning is not None and self.before is not None and self.before.training_seconds is not None:
            return self.before.training_seconds * self.pruning
        models = [model for model in (self.before, self.model) if model is not None]
        times = [model.training_seconds for model in models if model.training_seconds is not None]
        return sum(times) if times else None


@dataclass(frozen=True, kw_only=True)
class Study:
    """All there is to report."""

    name: str
    title: str
    description: list[str]
    source: str
    departures: list[str]
    plan: str
    hours_planned: float | None
    made: str
    tasks: list[Task]
    methods: list[Method]
    seeds: list[Any]
    backbone: str
    backbone_params: float | None
    bare_gmacs: float | None
    runs: list[Run]
    unread: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, list[Task]]:
        """Tasks by group, in the order of `GROUPS`."""
        groups = {group: [task for task in self.tasks if task.group == group] for group in GROUPS}
        return {group: tasks for group, tasks in groups.items() if tasks}

    @property
    def finished(self) -> list[Run]:
        """Runs that have a result."""
        return [run for run in self.runs if run.model is not None]

    @cached_property
    def table(self) -> dict[tuple[str, str], list[Run]]:
        """The runs of every method (by its key) on every task (by its key), in the order of the seeds."""
        table: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            table.setdefault((run.method.key, run.task.key), []).append(run)
        return table

    @cached_property
    def metric(self) -> Metric:
        """The score that counts: on validation images where no run was tested."""
        models = [run.model for run in self.runs if run.model is not None]
        tested = any(model.test_score is not None for model in models)
        return "test" if tested or all(model.val_score is None for model in models) else "validation"

    @cached_property
    def target(self) -> type[Target] | None:
        """The target of all runs; None where they have several."""
        kinds = {run.model.target for run in self.finished if run.model is not None} or {SingleLabel}
        return kinds.pop() if len(kinds) == 1 else None

    @property
    def score(self) -> str:
        """What models are compared by, in words."""
        return "score" if self.target is None else self.target.title


_Named = TypeVar("_Named", Task, Method)


def read(document: Mapping[str, Any]) -> Study:
    """Reads a study.

    Args:
        document: As a bench writes it.

    Returns:
        Every cell of tasks × methods × seeds once, in that order; those that the document lacks are missing.
    """
    tasks = _unlike([_task(entry) for entry in document["tasks"]], "title")
    labels = [str(entry["label"]) for entry in document["methods"]]
    methods = [Method(key=label, label=line(label, 60), style=style) for style, label in enumerate(labels)]
    methods = _unlike(methods, "label")
    seeds = list(document["seeds"])
    cells = {(str(cell["task"]), str(cell["method"]), cell["seed"]): cell for cell in document["cells"]}
    backbone = _mapping(document.get("backbone"))
    return Study(
        name=line(document.get("name") or "study", 80),
        title=line(document.get("title") or document.get("name") or "study", 160),
        description=paragraphs(document.get("description")),
        source=line(document.get("source") or "", 300),
        departures=[line(departure, 300) for departure in _list(document.get("departures"))],
        plan=lines(document.get("plan")),
        hours_planned=number(document.get("hours_planned")),
        made=line(document.get("made") or "", 40),
        tasks=tasks,
        methods=methods,
        seeds=seeds,
        backbone=line(backbone.get("name") or "unknown", 120),
        backbone_params=number(backbone.get("parameters")),
        bare_gmacs=number(backbone.get("bare_gmacs")),
        runs=[
            _run(task, method, seed, cells.get((task.key, method.key, seed), {}))
            for task in tasks
            for method in methods
            for seed in seeds
        ],
        unread=tuple(line(name, 120) for name in document.get("unread") or ()),
    )


def flat(facts: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested settings as names with dots and short texts.

    Example:
        >>> flat({"recipe": {"lr": 0.1, "seed": 0}, "mean": [0.5, 0.5]})
        {'recipe.lr': '0.1', 'recipe.seed': '0', 'mean': '0.5, 0.5'}
    """
    texts: dict[str, str] = {}
    for key, value in facts.items():
        name = f"{above}{line(key, 60)}"
        if isinstance(value, Mapping) and value:
            texts |= flat(cast("Mapping[str, Any]", value), f"{name}.")
        elif isinstance(value, list | tuple):
            entries = cast("Sequence[Any]", value)
            texts[name] = line(", ".join(line(entry, 60) for entry in entries[:12]) or "none", 160)
            if len(entries) > 12:
                texts[name] += f" and {len(entries) - 12:,} more"
        else:
            texts[name] = line(value, 160)
    return texts


def _unlike(entries: Sequence[_Named], name: str) -> list[_Named]:
    """Entries that are all called something else: folders may have one name, and long names may begin alike."""
    shown: set[str] = set()
    renamed: list[_Named] = []
    for entry in entries:
        called = before = str(getattr(entry, name))
        number = 1
        while called in shown:
            number += 1
            called = f"{before} ({number})"
        shown.add(called)
        renamed.append(replace(entry, **{name: called}))
    return renamed


def _task(entry: Mapping[str, Any]) -> Task:
    group = entry.get("group")
    return Task(
        key=str(entry["task"]),
        title=line(entry.get("title") or entry["task"], 60),
        group=group if group in GROUPS else "other",
        published=None if entry.get("published") is None else str(entry["published"]),
        comparable=bool(entry.get("comparable")) and not entry.get("differences"),
        differences=tuple(line(sentence, 400) for sentence in _list(entry.get("differences"))),
        classes=len(_list(entry.get("classes"))),
        images={name: number(value) for name, value in _mapping(entry.get("images")).items()},
    )


def _run(task: Task, method: Method, seed: Any, cell: Mapping[str, Any]) -> Run:
    result = _mapping(cell.get("result"))
    search = _mapping(cell.get("search")) or None
    if cell.get("state") != "finished" or not result:
        failed = cell.get("state") == "failed"
        failure = line(cell.get("failure") or "It failed without saying why.", 600) if failed else ""
        state: State = "failed" if failed else "missing"
        return Run(task=task, method=method, seed=seed, state=state, failure=failure, search=search)
    provenance = dict(_mapping(result.get("provenance")))
    data = {key: value for key, value in _mapping(provenance.pop("data", None)).items() if key != "classes"}
    before = _mapping(result.get("before"))
    return Run(
        task=task,
        method=method,
        seed=seed,
        state="finished",
        model=_model(result),
        before=_model(before) if before else None,
        pruning=_positive(_mapping(result.get("pruning")).get("trainings")),
        seconds=_positive(result.get("seconds")),
        name=line(result.get("name") or "", 200),
        facts=flat({"settings": result.get("settings"), **provenance, "data": data}),
        search=search,
    )


def _model(result: Mapping[str, Any]) -> Model:
    counts = result.get("prompt_counts")
    whole = isinstance(counts, list | tuple) and all(type(c) is int and 0 <= c < 10**9 for c in _list(counts))
    amounts = ("learned_params", "folded_gmacs", "training_seconds")
    return Model(
        target=target_of(result),
        test_score=_score(result, "test"),
        val_score=_score(result, "val"),
        **{name: _positive(result.get(name)) for name in amounts},
        prompt_counts=tuple(_list(counts)) if whole else None,
        converged=converged_in(result),
        losses=tuple(number(_mapping(epoch).get("loss")) for epoch in _list(result.get("epochs"))),
    )


def _score(result: Mapping[str, Any], split: str) -> float | None:
    """The score of a result on a split: 1 at most, and a share where it is that of classes."""
    score, target = number(result.get(score_key(result, split))), target_of(result)
    return None if score is None or score > 1 or (score < 0 and target.grouped) else score


def _positive(value: Any) -> float | None:
    finite = number(value)
    return finite if finite is not None and finite >= 0 else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return cast("Sequence[Any]", value) if isinstance(value, list | tuple) else ()
