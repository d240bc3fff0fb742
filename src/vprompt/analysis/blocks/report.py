"""Importance of each block's prompts, and how many of them are retained, shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from vprompt.analysis.base import View
from vprompt.analysis.blocks.measure import AdapterBlocks, BlockStudy, Group, MeanCounts, Spread
from vprompt.analysis.tables import signed
from vprompt.report.document import Block, Chart, Charts, Column, Dot, Series, Table, columns, simple_table, table
from vprompt.report.plots import short
from vprompt.utils.text import count, line, percent, show, spread

SHOWN = 5
"""Tasks that have lines of their own in the picture, and that stand side by side in a table, at most."""

ALL = 6
"""Style of the mean over all adapters."""


def answer(study: BlockStudy) -> str:
    """Blocks whose prompts matter most and least, and whether early blocks retain few."""
    drops = study.every.drops.means
    most, least = drops.index(max(drops)), drops.index(min(drops))
    over = f" (means over {count(len(study.adapters), 'adapter')})" if len(study.adapters) > 1 else ""
    removal = (
        f"Without the prompts of block {most} accuracy changes by {signed(-drops[most])} points, without those of "
        f"block {least} by {signed(-drops[least])}, and without any by {signed(-study.every.bare_drop)}{over}."
    )
    if not study.kept or len(drops) < 3:
        return removal
    fewest = min(study.kept, key=lambda kept: kept.ratio)
    shares, third = fewest.shares.means, len(drops) // 3
    early, late = statistics.fmean(shares[:third]), statistics.fmean(shares[-third:])
    holds = "few, as the paper found" if early < late else "no fewer than late ones, unlike in the paper"
    return (
        f"{removal} Of {percent(fewest.ratio)} % of all prompts that are kept, the first {count(third, 'block')} "
        f"{'keep' if third > 1 else 'keeps'} {percent(early)} % of theirs and the last {percent(late)} %: early blocks "
        f"keep {holds}."
    )


def tables(study: BlockStudy) -> list[Block]:
    """Accuracy and loss without each block's prompts; by task where there are several; prompts retained."""
    blocks: list[Block] = [_removal(study.every)]
    tasks, numbers = study.tasks, range(len(study.every.drops.means))
    if tasks:
        blocks.append(_tasks(tasks))
    for some in (tasks[start : start + SHOWN] for start in range(0, len(tasks), SHOWN)):
        caption = "By task: change of accuracy in points without the prompts of one block"
        of_tasks = columns(
            some, lambda group: line(_task(group.name), 12), lambda group, block: signed(-group.drops.means[block])
        )
        blocks.append(table(caption, numbers, ("Block", str), *of_tasks))
    if len(study.adapters) > 1:
        blocks.append(_adapters(study.adapters))
    return blocks + [_kept(study, key) for key in ("counts", "shares") if study.kept]


def _removal(group: Group) -> Table:
    drops, rises = group.drops, group.rises
    over = f", means over {count(group.adapters, 'adapter')} with their standard deviation" if drops.stds else ""

    def stds_of(stds: Sequence[float] | None, factor: float, form: str) -> list[Column]:
        """A column of its own, where there are several adapters."""
        return [("Std", lambda block: show(stds[block], form, factor=factor))] if stds else []

    made = table(
        f"Change when the prompts of one block, or of all, are removed: accuracy in points (with all prompts "
        f"{percent(group.full)} %) and mean loss{over}",
        range(len(drops.means)),
        ("Block", str),
        ("Accuracy", lambda block: signed(-drops.means[block])),
        *stds_of(drops.stds, 100, ".1f"),
        ("Loss", lambda block: f"{rises.means[block]:+.3f}"),
        *stds_of(rises.stds, 1, ".3f"),
    )
    dash = ["–"] if drops.stds else []
    total = ["all", signed(-group.bare_drop), *dash, f"{group.bare_rise:+.3f}", *dash]
    return simple_table(made.caption, made.head, [*made.texts, total])


def _tasks(groups: Sequence[Group]) -> Table:
    return table(
        "By task: accuracy (%) with all prompts, its change in points without any, and the block whose removal costs "
        "most",
        groups,
        ("Task", lambda group: line(group.name, 24)),
        ("Adapters", lambda group: str(group.adapters)),
        ("Accuracy", lambda group: percent(group.full)),
        ("Without any", lambda group: signed(-group.bare_drop)),
        ("Block", lambda group: str(group.drops.means.index(max(group.drops.means)))),
        ("Without it", lambda group: signed(-max(group.drops.means))),
    )


def _task(name: str) -> str:
    """The name of a task without its collection or the folders above it."""
    return name.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1] or name


def _adapters(adapters: Sequence[AdapterBlocks]) -> Table:
    def without(adapter: AdapterBlocks) -> list[float]:
        return [evaluated.accuracy for evaluated in adapter.ablation.without]

    return table(
        "By adapter: images it was measured on, accuracy (%) with all prompts, without any, and without the block that "
        "costs most",
        adapters,
        ("Adapter", lambda adapter: line(adapter.name, 32)),
        ("Images", lambda adapter: f"{adapter.ablation.images} {line(adapter.split, 8)}"),
        ("All", lambda adapter: percent(adapter.ablation.full.accuracy)),
        ("None", lambda adapter: percent(adapter.ablation.bare.accuracy)),
        ("Block", lambda adapter: str(without(adapter).index(min(without(adapter))))),
        ("Without it", lambda adapter: percent(min(without(adapter)))),
    )


def _kept(study: BlockStudy, key: Literal["counts", "shares"]) -> Table:
    factor, several = 100 if key == "shares" else 1, len(study.adapters) > 1
    blocks = len(study.every.drops.means)

    def shown(kept: MeanCounts, block: int) -> str:
        of_key = getattr(kept, key)
        if block == blocks:
            return f"± {factor * statistics.fmean(of_key.stds):.1f}"
        return spread(of_key.means[block], of_key.stds and of_key.stds[block], factor=factor)

    what = "Prompts that each block keeps" if key == "counts" else "Share (%) of its prompts that each block keeps"
    over = ", mean ± standard deviation over adapters" if several else ""
    return table(
        f"{what} when the best of all blocks are chosen by the criterion {line(study.criterion, 20)}{over}",
        range(blocks + several),
        ("Block", lambda block: "mean spread" if block == blocks else str(block)),
        *columns(study.kept, lambda kept: f"{100 * kept.ratio:g} % kept", shown),
    )


def figure(study: BlockStudy) -> Charts:
    """Left: accuracy without each block's prompts. Right: prompts that each block retains."""
    groups = [*(study.tasks if len(study.tasks) <= SHOWN else []), study.every]
    names = [short(line(_task(group.name)), 24) for group in groups]
    changes = [
        Series(name=name, dots=_dots(group.drops, -100), style=style, line="-")
        for (style, name), group in zip([*enumerate(names[:-1]), (ALL, names[-1])], groups, strict=True)
    ]
    kept = [
        Series(name=f"{100 * kept.ratio:g} % of all kept", dots=_dots(kept.shares, 100), style=style, line="--")
        for style, kept in enumerate(study.kept, ALL + 1)
    ]
    charts = [
        Chart(title="", x="block", y="change of accuracy without\nthe block's prompts (points)", series=changes),
        Chart(title="", x="block", y="kept of the block's prompts (%)", series=kept, zero=True),
    ]
    legend = [(series.style, series.name) for series in (*changes, *kept)]
    return Charts(charts if kept else charts[:1], legend)


def _dots(spread: Spread, factor: float) -> list[Dot]:
    stds = spread.stds or [None] * len(spread.means)
    return [
        Dot(x=block, y=factor * mean, error=None if std is None else abs(factor) * std)
        for block, (mean, std) in enumerate(zip(spread.means, stds, strict=True))
    ]


VIEW = View(title="What each block's prompts are worth", answer=answer, tables=tables, figure=figure, result=BlockStudy)
