"""Data sets that need their prompts: those on which a tenth of them, trained from scratch, loses more than a point."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vprompt.experiments.report.aggregate import score
from vprompt.experiments.report.study import Method, Run, Study, Task, read
from vprompt.report.document import Block, Paragraph, Section, simple_table
from vprompt.utils.statistics import Paired, Seeds, difference, paired, seeds_of
from vprompt.utils.text import count, percent, spread

SHARE = 0.1
"""Of the prompts."""

DROP = 0.01
"""More than so much is no trivial loss."""


@dataclass(frozen=True, kw_only=True)
class TaskDrop:
    """A task (its key and title), scores with all prompts and with a tenth of them.

    Args:
        drop: What the tenth loses, seed by seed.
        trivial: Whether that is at most a point, in the mean.
    """

    task: str
    title: str
    full: Seeds
    low: Seeds
    drop: Paired
    trivial: bool


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Tasks of one method by what a tenth of its prompts loses.

    Args:
        method: With all prompts.
        low: With a tenth of them.
        tasks: Those that have both for some seed.
        nontrivial: Scores with all prompts of the tasks that lose more than a point: mean and spread over tasks.
        trivial: Of the others.
    """

    method: str
    low: str
    tasks: tuple[TaskDrop, ...]
    nontrivial: Seeds
    trivial: Seeds


def selections(document: Mapping[str, Any]) -> list[Selection]:
    """Of each method of a study that was trained with all prompts and with a tenth, from its plain document.

    Source: Prompt Condensation (arXiv 2305.17223), section 6.1.
    """
    return _selections(read(document))


def _selections(study: Study) -> list[Selection]:
    found: list[Selection] = []
    for method, low in itertools.permutations(study.methods, 2):
        drops = [drop for task in study.tasks if (drop := _drop(study, task, method, low)) is not None]
        if drops:
            full = {group: [drop.full.mean for drop in drops if drop.trivial is group] for group in (False, True)}
            groups = {"nontrivial": seeds_of(full[False]), "trivial": seeds_of(full[True])}
            found.append(Selection(method=method.label, low=low.label, tasks=tuple(drops), **groups))
    return found


def _drop(study: Study, task: Task, method: Method, low: Method) -> TaskDrop | None:
    """Over seeds that have both; None without any, or where the prompts of the second are no tenth of the first's."""
    runs = zip(*(study.table[each.key, task.key] for each in (method, low)), strict=True)
    scores = [[score(run, study.metric) for run in pair] for pair in runs if _tenth(*pair)]
    known = [pair for pair in scores if None not in pair]
    if not known:
        return None
    full, few = (seeds_of(column) for column in zip(*known, strict=True))
    drop = paired([[value for value in difference(full, few).values if value is not None]])
    trivial = round(drop.mean, 9) <= DROP
    return TaskDrop(task=task.key, title=task.title, full=full, low=few, drop=drop, trivial=trivial)


def _tenth(run: Run, low: Run) -> bool:
    """Whether both were trained as they are, by one method, the second with a tenth of the prompts."""
    if run.model is None or low.model is None or run.before is not None or low.before is not None:
        return False
    most, few = (max(model.prompt_counts or (0,)) for model in (run.model, low.model))
    same = run.facts.get("settings.method") == low.facts.get("settings.method")
    return same and few == round(SHARE * most) and most >= 1 / SHARE


def section(study: Study) -> Section | None:
    """Tasks by what a tenth of the prompts loses; None where no method was trained with both."""
    if not (found := _selections(study)):
        return None
    blocks: list[Block] = [
        Paragraph(
            f"A data set needs its prompts where a tenth of them, trained from scratch, loses more than "
            f"{percent(DROP)} points (Prompt Condensation, section 6.1); the interval is that of the paired difference."
        )
    ]
    for each in found:
        rows = [
            [
                drop.title,
                *(spread(seeds.mean, seeds.std) for seeds in (drop.full, drop.low)),
                f"{100 * drop.drop.mean:.1f}",
                "–" if drop.drop.interval is None else " to ".join(f"{100 * end:.1f}" for end in drop.drop.interval),
                "no" if drop.trivial else "yes",
            ]
            for drop in each.tasks
        ]
        texts = [
            f"{count(len(group.values), 'task')} {words}: {spread(group.mean, group.std)}"
            for group, words in ((each.nontrivial, "that need them"), (each.trivial, "that do not"))
        ]
        head = ["Task", "all", "a tenth", "lost", "95 %", "needed"]
        blocks += [simple_table(f"{each.method} against {each.low}, {study.score} in %", head, rows)]
        blocks += [Paragraph(f"{study.score} with all prompts, mean ± standard deviation over {'; '.join(texts)} %.")]
    return Section(key="selection", title="Data sets that need their prompts", blocks=blocks)
