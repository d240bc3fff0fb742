"""The table of accuracies by task, the means, and the published numbers below them, visually apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vprompt.experiments.report.aggregate import Aggregates, Spread
from vprompt.experiments.report.study import GROUPS, Method, Study, Task
from vprompt.report import published
from vprompt.report.document import Block, Body, Bullets, Cell, Fold, Paragraph, Section, Table, Warn
from vprompt.utils.text import count, line, listed, spread

FEW = 6
"""Up to so many tasks stand in one table."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: a task, or a mean over some groups of tasks."""

    head: str
    kind: str
    key: str = ""
    groups: Sequence[Sequence[Task]] = ()


def section(study: Study, numbers: Aggregates) -> Section:
    """Accuracy by task and its means."""
    blocks: list[Block] = [Paragraph(_legend(study, numbers))]
    said = Said(study)
    for caption, columns, over in layout(study):
        head = ["Method", *(column.head for column in columns)]
        bodies = [Body(rows=[_row(study, numbers, method, columns) for method in study.methods])]
        if rows := said.rows(columns):
            bodies.append(Body(rows=rows, label=said.label, published=True))
        blocks.append(Table(caption=caption, head=head, bodies=bodies, over=over))
        if rest := said.rows(columns, rest=True):
            bodies = [Body(rows=rest, label=said.label, published=True)]
            more = Table(caption=f"{caption}: more published numbers", head=head, bodies=bodies, over=over)
            blocks.append(Fold(f"{count(len(rest), 'more published row')}", [more]))
    if said.sources:
        blocks.append(Paragraph(f"Sources of the published numbers: {'; '.join(said.sources)}."))
    return Section(key="accuracy", title="Accuracy by task", blocks=[*blocks, *_notes(study)])


def layout(study: Study) -> list[tuple[str, list[Column], list[tuple[str, int]]]]:
    """The tables: one if there are few tasks, or one for each group and one of the means; with heads above heads."""
    groups = study.groups
    by_group = {
        group: [Column(head=task.title, kind="task", key=task.key, groups=[[task]]) for task in tasks]
        for group, tasks in groups.items()
    }
    group_means = {
        group: Column(head=f"Mean of {GROUPS[group]}", kind="group", key=group, groups=[tasks])
        for group, tasks in groups.items()
    }
    everything = [list(tasks) for tasks in groups.values()]
    means = [
        Column(head=f"Mean of {count(len(groups), 'group mean')}", kind="group mean", groups=everything),
        Column(
            head=f"Mean of {count(len(study.tasks), 'task')}",
            kind="plain mean",
            groups=[[task for tasks in everything for task in tasks]],
        ),
    ]
    if len(study.tasks) <= FEW:
        tasks = [column for columns in by_group.values() for column in columns]
        over = [(GROUPS[group], len(columns)) for group, columns in by_group.items()] + [("Means", len(groups) + 2)]
        return [("Accuracy, %", [*tasks, *group_means.values(), *means], over)]
    tables = [(f"{GROUPS[group]}, accuracy in %", [*by_group[group], group_means[group]], []) for group in groups]
    return [*tables, ("Means, accuracy in %", [*group_means.values(), *means], [])]


def value_of(numbers: Aggregates, method: str, column: Column) -> Spread:
    """What a method reaches in a column."""
    if column.kind == "task":
        return numbers.tasks[method, column.key]
    if column.kind == "group":
        return numbers.groups[method, column.key]
    return (numbers.group_mean if column.kind == "group mean" else numbers.plain_mean)[method]


def best_methods(study: Study, numbers: Aggregates, column: Column) -> set[str]:
    """Who has the highest mean of those that have all seeds; nobody where there is none to compare with."""
    means = {method.key: value_of(numbers, method.key, column) for method in study.methods}
    whole = {key: found.mean for key, found in means.items() if found.mean is not None and found.n == found.runs}
    if len(whole) < 2:
        return set()
    highest = max(whole.values())
    return {key for key, mean in whole.items() if mean == highest}


def cell_of(found: Spread, *, best: bool = False) -> Cell:
    """How a spread stands in a table."""
    notes = [f"n = {found.n}"] * (found.mean is not None and found.n != found.runs)
    if found.failed:
        notes.append(f"{found.failed} failed")
    if found.mean is None:
        if found.lacking:
            return Cell(text="–", note=f"no result on {count(found.lacking, 'task')}", muted=True)
        all_failed = found.failed and found.failed == found.runs
        return Cell(text="failed" if all_failed else "–", note="" if all_failed else ", ".join(notes), muted=True)
    dagger = " †" * (found.unconverged > 0)
    return Cell(text=spread(found.mean, found.std) + dagger, note=", ".join(notes), best=best)


class Said:
    """What is published on the tasks of a study, and where.

    Args:
        study: Its backbone decides the family; for one without published numbers, that of ViT-B/16.
    """

    def __init__(self, study: Study) -> None:
        tasks = {task.published for task in study.tasks if task.published is not None}
        family = published.family_of(study.backbone)
        words = "ViT-B/16, ImageNet-21k; another backbone, not comparable" if family is None else family
        self.label = f"published, {words}; not measured here"
        self._rows = published.rows(family or published.VIT, tasks) if tasks else []
        self._numbers = {source: n for n, source in enumerate(dict.fromkeys(row.source for row in self._rows), 1)}
        self.sources = [f"[{n}] {source}" for source, n in self._numbers.items()]

    def rows(self, columns: Sequence[Column], *, rest: bool = False) -> list[list[Cell | str]]:
        """Rows under some columns that have numbers of half of the tasks, or the others; never marked as the best."""
        found: list[list[Cell | str]] = []
        for row in self._rows:
            values = [_published_value(row, column) for column in columns]
            of_tasks = [v for v, c in zip(values, columns, strict=True) if c.kind == "task" or _only_means(columns)]
            enough = 2 * sum(value is not None for value in of_tasks) >= len(of_tasks)
            if any(value is not None for value in values) and enough is not rest:
                cells = [Cell(text="–", muted=True) if v is None else Cell(text=_published(v)) for v in values]
                found.append([f"{line(row.label, 60)} [{self._numbers[row.source]}]", *cells])
        return found


def _only_means(columns: Sequence[Column]) -> bool:
    return all(column.kind != "task" for column in columns)


def _published_value(row: published.PublishedRow, column: Column) -> float | None:
    groups = [[task.published for task in tasks if task.published is not None] for tasks in column.groups]
    if [len(names) for names in groups] != [len(tasks) for tasks in column.groups]:
        return None
    return row.mean_of_groups(groups) if column.kind == "group mean" else row.mean(groups[0])


def _published(value: float) -> str:
    return f"{value:.1f}" if abs(value - round(value, 1)) < 1e-9 else f"{value:.2f}"


def _row(study: Study, numbers: Aggregates, method: Method, columns: Sequence[Column]) -> list[Cell | str]:
    key = method.key
    cells = [cell_of(value_of(numbers, key, c), best=key in best_methods(study, numbers, c)) for c in columns]
    return [method.label, *cells]


def _legend(study: Study, numbers: Aggregates) -> str:
    words = [
        f"{numbers.metric.capitalize()} accuracy in percent: mean ± sample standard deviation over "
        f"{count(len(study.seeds), 'seed')}; n is given where fewer finished.",
        "A mean over tasks is taken for each seed that finished all of them, then over these seeds; there is none "
        "where a task has no result.",
        "Bold: the highest of those with all seeds.",
    ]
    if any(run.unconverged for run in study.runs):
        words.append("†: a training had not converged, its loss was still falling at the end.")
    return " ".join(words)


def _notes(study: Study) -> list[Block]:
    """Why published numbers cannot be compared, task by task."""
    blocks: list[Block] = []
    odd = [task for task in study.tasks if task.published is not None and not task.comparable]
    if odd:
        names = listed([task.title for task in odd])
        blocks.append(
            Warn(
                f"Published numbers cannot be compared with those measured on {names}: "
                "the data are not the benchmark's own."
            )
        )
    for words, named in (("How the data differ from the benchmark's:", True), ("About the data:", False)):
        tasks = [task for task in study.tasks if task.differences and (task.published is not None) is named]
        if tasks:
            blocks += [Paragraph(words), Bullets([f"{task.title}: {' '.join(task.differences)}" for task in tasks])]
    return blocks
