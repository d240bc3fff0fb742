"""The table of scores by task, the means, and the published numbers below them, visually apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vprompt.experiments.report.aggregate import Spread, on_task, over_groups
from vprompt.experiments.report.study import GROUPS, Method, Study, Task
from vprompt.report import published
from vprompt.report.document import Block, Body, Bullets, Cell, Fold, Paragraph, Section, Table, Warn
from vprompt.utils.statistics import DOUBLED
from vprompt.utils.text import capital, count, line, listed, spread

FEW = 6
"""Up to so many tasks stand in one table."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: a task, or a mean of the means over groups of tasks."""

    head: str
    groups: Sequence[Sequence[Task]]
    mean: bool = True

    def value(self, study: Study, method: Method) -> Spread:
        """The accuracy of a method in it."""
        return over_groups(study, method, self.groups) if self.mean else on_task(study, method, self.groups[0][0])

    def published(self, row: published.PublishedRow) -> float | None:
        """The published number; None where a task of it is not one of a benchmark."""
        return row.mean([[task.published or "" for task in tasks] for tasks in self.groups])


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A table to be filled: its caption, its columns, and heads above heads."""

    caption: str
    columns: Sequence[Column]
    over: Sequence[tuple[str, int]] = ()


class Publications:
    """Published numbers on the tasks of a study, and their sources.

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

    def bodies(self, columns: Sequence[Column], *, rest: bool = False) -> list[Body]:
        """At most one body: rows with numbers of half of the tasks, or the others; never marked as the best."""
        tasks = [not column.mean or all(column.mean for column in columns) for column in columns]
        rows: list[list[Cell | str]] = []
        for row in self._rows:
            values = [column.published(row) for column in columns]
            there = sum(value is not None for value, counts in zip(values, tasks, strict=True) if counts)
            if any(value is not None for value in values) and (2 * there >= sum(tasks)) is not rest:
                cells = [Cell(text="–", muted=True) if v is None else Cell(text=_published(v)) for v in values]
                rows.append([f"{line(row.label, 60)} [{self._numbers[row.source]}]", *cells])
        return [Body(rows=rows, label=self.label, published=True)] if rows else []


def section(study: Study) -> Section:
    """Accuracy by task and its means."""
    blocks: list[Block] = [Paragraph(_legend(study))]
    publications = Publications(study)
    for layout, table in zip(layouts(study), tables(study, publications), strict=True):
        blocks.append(table)
        for body in publications.bodies(layout.columns, rest=True):
            caption = f"{table.caption}: more published numbers"
            more = Table(caption=caption, head=table.head, bodies=[body], over=table.over)
            blocks.append(Fold(f"{count(len(body.rows), 'more published row')}", [more]))
    if publications.sources:
        blocks.append(Paragraph(f"Sources of the published numbers: {'; '.join(publications.sources)}."))
    return Section(key="accuracy", title=f"{capital(study.score)} by task", blocks=[*blocks, *_notes(study)])


def tables(study: Study, publications: Publications) -> list[Table]:
    """A row for each method and each publication."""
    return [
        Table(
            caption=layout.caption,
            head=["Method", *(column.head for column in layout.columns)],
            bodies=[Body(rows=_measured(study, layout.columns)), *publications.bodies(layout.columns)],
            over=layout.over,
        )
        for layout in layouts(study)
    ]


def layouts(study: Study) -> list[Layout]:
    """One table if there are few tasks, or else one for each group and one of the means."""
    groups = study.groups
    of_tasks = {
        group: [Column(head=task.title, groups=[[task]], mean=False) for task in tasks]
        for group, tasks in groups.items()
    }
    of_groups = {group: Column(head=f"Mean of {GROUPS[group]}", groups=[tasks]) for group, tasks in groups.items()}
    everything = list(groups.values())
    means = [
        *of_groups.values(),
        Column(head=f"Mean of {count(len(groups), 'group mean')}", groups=everything),
        Column(
            head=f"Mean of {count(len(study.tasks), 'task')}", groups=[[task for tasks in everything for task in tasks]]
        ),
    ]
    if len(study.tasks) <= FEW:
        columns = [column for columns in of_tasks.values() for column in columns]
        over = [(GROUPS[group], len(columns)) for group, columns in of_tasks.items()] + [("Means", len(means))]
        return [Layout(caption=f"{capital(study.score)}, %", columns=[*columns, *means], over=over)]
    by_group = [
        Layout(caption=f"{GROUPS[group]}, {study.score} in %", columns=[*of_tasks[group], of_groups[group]])
        for group in groups
    ]
    return [*by_group, Layout(caption=f"Means, {study.score} in %", columns=means)]


def _measured(study: Study, columns: Sequence[Column]) -> list[list[Cell | str]]:
    rows: list[list[Cell | str]] = [[method.label] for method in study.methods]
    for column in columns:
        values = [column.value(study, method) for method in study.methods]
        # Only those with all seeds can be the best, and one alone is not.
        whole = [value.mean for value in values if value.mean is not None and value.n == value.runs]
        for row, value in zip(rows, values, strict=True):
            best = len(whole) > 1 and value.n == value.runs and value.mean == max(whole)
            row.append(_cell(value, best=best))
    return rows


def _cell(value: Spread, *, best: bool) -> Cell:
    notes = [f"n = {value.n}"] * (value.mean is not None and value.n != value.runs)
    if value.failed:
        notes.append(f"{value.failed} failed")
    if value.mean is None:
        if value.lacking:
            return Cell(text="–", note=f"no result on {count(value.lacking, 'task')}", muted=True)
        all_failed = value.failed and value.failed == value.runs
        return Cell(text="failed" if all_failed else "–", note="" if all_failed else ", ".join(notes), muted=True)
    dagger = " †" * (value.unconverged > 0)
    return Cell(text=spread(value.mean, value.std) + dagger, note=", ".join(notes), best=best)


def _published(value: float) -> str:
    return f"{value:.1f}" if abs(value - round(value, 1)) < 1e-9 else f"{value:.2f}"


def _legend(study: Study) -> str:
    words = [
        f"{study.metric.capitalize()} {study.score} in percent: mean ± sample standard deviation over "
        f"{count(len(study.seeds), 'seed')}; n is given where fewer finished.",
        "A mean over tasks is taken for each seed that finished all of them, then over these seeds; there is none "
        "where a task has no result.",
        "Bold: the highest of those with all seeds.",
    ]
    if any(run.unconverged for run in study.runs):
        words.append(f"†: a training had not converged: {DOUBLED}.")
    return " ".join(words)


def _notes(study: Study) -> list[Block]:
    """Why published numbers cannot be compared, task by task."""
    blocks: list[Block] = []
    odd = [task.title for task in study.tasks if task.published is not None and not task.comparable]
    if odd:
        blocks.append(
            Warn(
                f"Published numbers cannot be compared with those measured on {listed(odd)}: "
                "the data are not the benchmark's own."
            )
        )
    for words, named in (("How the data differ from the benchmark's:", True), ("About the data:", False)):
        tasks = [task for task in study.tasks if task.differences and (task.published is not None) is named]
        if tasks:
            blocks += [Paragraph(words), Bullets([f"{task.title}: {' '.join(task.differences)}" for task in tasks])]
    return blocks
