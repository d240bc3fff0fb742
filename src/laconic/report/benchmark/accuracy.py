"""The table of accuracies by task, the means, and the published numbers below them, visually apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laconic.report import published
from laconic.report.benchmark.aggregate import Aggregates, Spread
from laconic.report.benchmark.document import Block, Body, Bullets, Cell, Paragraph, Section, Table, Warn
from laconic.report.benchmark.study import GROUPS, Study, Task
from laconic.report.benchmark.text import count, line, listed, spread

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
    family, rows = published_rows(study)
    for caption, columns, over in layout(study):
        bodies = [Body(rows=[_row(study, numbers, method.key, columns) for method in study.methods])]
        lines = [row for row in (published_row(row, columns) for row in rows) if row is not None]
        if lines:
            bodies.append(Body(rows=lines, label=f"published, {family}; not measured here", published=True))
        blocks.append(Table(caption=caption, head=["Method", *(c.head for c in columns)], bodies=bodies, over=over))
    blocks += _notes(study)
    return Section(key="accuracy", title="Accuracy by task", blocks=blocks)


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
        Column(head=f"Mean of {count(len(study.tasks), 'task')}", kind="plain mean", groups=[sum(everything, [])]),
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
            return Cell(text="–", note=f"{count(found.lacking, 'task')} to go", muted=True)
        all_failed = found.failed and found.failed == found.runs
        return Cell(text="failed" if all_failed else "–", note="" if all_failed else ", ".join(notes), muted=True)
    dagger = " †" * (found.unconverged > 0)
    return Cell(text=spread(found.mean, found.std) + dagger, note=", ".join(notes), best=best)


def published_rows(study: Study) -> tuple[str, list[published.PublishedRow]]:
    """The family that numbers are published of, in words, and the rows on the study's tasks."""
    tasks = {task.published for task in study.tasks if task.published is not None}
    own = published.family_of(study.backbone)
    family = published.VIT if own is None else own
    words = family if own is not None else "ViT-B/16, ImageNet-21k; another backbone, not comparable"
    return words, published.rows(family, tasks) if tasks else []


def published_row(row: published.PublishedRow, columns: Sequence[Column]) -> list[Cell | str] | None:
    """A published row under some columns, None where it has none of them; never marked as the best."""
    values = [_published_value(row, column) for column in columns]
    if all(value is None for value in values):
        return None
    cells = [Cell(text="–", muted=True) if value is None else Cell(text=_published(value)) for value in values]
    return [Cell(text=line(row.label, 60), note=row.source), *cells]


def _published_value(row: published.PublishedRow, column: Column) -> float | None:
    groups = [[task.published for task in tasks if task.published is not None] for tasks in column.groups]
    if [len(names) for names in groups] != [len(tasks) for tasks in column.groups]:
        return None
    return row.mean_of_groups(groups) if column.kind == "group mean" else row.mean(groups[0])


def _published(value: float) -> str:
    return f"{value:.1f}" if abs(value - round(value, 1)) < 1e-9 else f"{value:.2f}"


def _row(study: Study, numbers: Aggregates, method: str, columns: Sequence[Column]) -> list[Cell | str]:
    label = next(entry.label for entry in study.methods if entry.key == method)
    cells = [
        cell_of(value_of(numbers, method, column), best=method in best_methods(study, numbers, column))
        for column in columns
    ]
    return [label, *cells]


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
                f"Published numbers cannot be compared with those measured on {names}: the data are not the benchmark's own."
            )
        )
    different = [f"{task.title}: {' '.join(task.differences)}" for task in study.tasks if task.differences]
    if different:
        blocks += [Paragraph("How the data differ from the benchmark's:"), Bullets(different)]
    return blocks
