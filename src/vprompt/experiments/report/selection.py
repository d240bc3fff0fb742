"""Data sets that need their prompts: those on which a tenth of them, trained from scratch, loses more than a point."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from vprompt.compression.criteria import whole
from vprompt.experiments.report.aggregate import score
from vprompt.experiments.report.study import Method, Run, Study, Task
from vprompt.report.document import Block, Paragraph, Section, simple_table
from vprompt.utils.statistics import Paired, Seeds, paired, seeds_of
from vprompt.utils.text import capital, count, spread

SHARE, DROP = 0.1, 0.01
"""Of the prompts; and what no trivial loss exceeds."""


@dataclass(frozen=True, kw_only=True)
class TaskDrop:
    """A task: scores with all prompts and with a tenth, what that loses seed by seed, and if it is at most a point."""

    task: str
    title: str
    full: Seeds
    low: Seeds
    drop: Paired
    trivial: bool


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Tasks that a method was trained on with all prompts and, as `low`, with a tenth.

    `nontrivial` and `trivial` have the scores with all prompts of those that lose more than a point, and of the others.
    """

    method: str
    low: str
    tasks: tuple[TaskDrop, ...]
    nontrivial: Seeds
    trivial: Seeds


def selections(study: Study) -> list[Selection]:
    """Of each method that was trained with all prompts and with a tenth.

    Source: Prompt Condensation (arXiv 2305.17223), section 6.1.
    """
    found: list[Selection] = []
    for method, low in itertools.permutations(study.methods, 2):
        drops = [drop for task in study.tasks if (drop := _drop(study, task, method, low)) is not None]
        needed, other = (seeds_of([d.full.mean for d in drops if d.trivial is kind]) for kind in (False, True))
        if drops:
            names = {"method": method.label, "low": low.label}
            found.append(Selection(**names, tasks=tuple(drops), nontrivial=needed, trivial=other))
    return found


def _drop(study: Study, task: Task, method: Method, low: Method) -> TaskDrop | None:
    """Over seeds that have both; None without any, or where the prompts of the second are no tenth of the first's."""
    runs = zip(*(study.table[each.key, task.key] for each in (method, low)), strict=True)
    scores = [[score(run, study.metric) for run in pair] for pair in runs if _tenth(*pair)]
    known = [(full, few) for full, few in scores if full is not None and few is not None]
    if not known:
        return None
    full, few = (seeds_of(column) for column in zip(*known, strict=True))
    drop = paired([[first - second for first, second in known]])
    trivial = round(drop.mean, 9) <= DROP
    return TaskDrop(task=task.key, title=task.title, full=full, low=few, drop=drop, trivial=trivial)


def _tenth(run: Run, low: Run) -> bool:
    """Whether both were trained as they are, by one method, the second with a tenth of the prompts."""
    if run.model is None or low.model is None or run.before is not None or low.before is not None:
        return False
    most, few = (max(model.prompt_counts or (0,)) for model in (run.model, low.model))
    same = run.facts.get("settings.method") == low.facts.get("settings.method")
    return same and few == whole(SHARE, most) and most >= 1 / SHARE


def section(study: Study) -> Section | None:
    """Tasks by what a tenth of the prompts loses; None where no method was trained with both."""
    blocks: list[Block] = []
    for each in selections(study):
        rows = [
            [
                *(drop.title, spread(drop.full.mean, drop.full.std), spread(drop.low.mean, drop.low.std)),
                f"{100 * drop.drop.mean:.1f}",
                "–" if drop.drop.interval is None else " to ".join(f"{100 * end:.1f}" for end in drop.drop.interval),
                "no" if drop.trivial else "yes",
            ]
            for drop in each.tasks
        ]
        caption = f"{each.method} against {each.low}, {study.score} in %; 95 % of the difference, seed by seed"
        blocks.append(simple_table(caption, ["Task", "all", "a tenth", "lost", "95 %", "needed"], rows))
        groups = (
            f"{spread(group.mean, group.std)} on {count(len(group.values), 'task')} that {word} them"
            for group, word in ((each.nontrivial, "need"), (each.trivial, "do not need"))
        )
        blocks.append(Paragraph(f"{capital(study.score)} with all prompts, mean over tasks: {', '.join(groups)}."))
    rule = Paragraph("A data set needs its prompts where a tenth of them, trained from scratch, loses over a point.")
    title = "Data sets that need their prompts"
    return Section(key="selection", title=title, blocks=[rule, *blocks]) if blocks else None
