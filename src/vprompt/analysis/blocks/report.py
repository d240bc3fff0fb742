"""Importance of each block's prompts, and how many of them are retained, shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from vprompt.analysis.base import View
from vprompt.analysis.blocks.measure import AdapterBlocks, BlockStudy, Group, Spread
from vprompt.analysis.words import signed
from vprompt.report.document import Block, Chart, Charts, Curve, Dot, Table, simple_table
from vprompt.utils.text import count, line, percent, spread

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
    tasks = study.tasks
    if tasks:
        blocks.append(_tasks(tasks))
        blocks += [_task_blocks(tasks[start : start + SHOWN]) for start in range(0, len(tasks), SHOWN)]
    if len(study.adapters) > 1:
        blocks.append(_adapters(study.adapters))
    return blocks + [_kept(study, key) for key in ("counts", "shares") if study.kept]


def _removal(group: Group) -> Table:
    drops, rises = group.drops, group.rises
    std, dash = (["Std"], ["–"]) if drops.stds else ([], [])
    rows = [
        [str(block), signed(-drop), *_std(drops, block, 100), f"{rise:+.3f}", *_std(rises, block, 1, 3)]
        for block, (drop, rise) in enumerate(zip(drops.means, rises.means, strict=True))
    ]
    rows.append(["all", signed(-group.bare_drop), *dash, f"{group.bare_rise:+.3f}", *dash])
    over = f", means over {count(group.adapters, 'adapter')} with their standard deviation" if drops.stds else ""
    return simple_table(
        f"Change when the prompts of one block, or of all, are removed: accuracy in points (with all prompts "
        f"{percent(group.full)} %) and mean loss{over}",
        ["Block", "Accuracy", *std, "Loss", *std],
        rows,
    )


def _std(spread: Spread, block: int, factor: float, digits: int = 1) -> list[str]:
    """A column of its own, where there are several adapters."""
    return [f"{factor * spread.stds[block]:.{digits}f}"] if spread.stds else []


def _tasks(groups: Sequence[Group]) -> Table:
    rows = [
        [
            line(group.name, 24),
            str(group.adapters),
            percent(group.full),
            signed(-group.bare_drop),
            str(group.drops.means.index(max(group.drops.means))),
            signed(-max(group.drops.means)),
        ]
        for group in groups
    ]
    return simple_table(
        "By task: accuracy (%) with all prompts, its change in points without any, and the block whose removal costs "
        "most",
        ["Task", "Adapters", "Accuracy", "Without any", "Block", "Without it"],
        rows,
    )


def _task_blocks(groups: Sequence[Group]) -> Table:
    rows = [
        [str(block), *(signed(-drop) for drop in drops)]
        for block, drops in enumerate(zip(*(group.drops.means for group in groups), strict=True))
    ]
    head = ["Block", *(line(_task(group.name), 12) for group in groups)]
    return simple_table("By task: change of accuracy in points without the prompts of one block", head, rows)


def _task(name: str) -> str:
    """The name of a task without its collection or the folders above it."""
    return name.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1] or name


def _adapters(adapters: Sequence[AdapterBlocks]) -> Table:
    rows: list[list[str]] = []
    for adapter in adapters:
        ablation = adapter.ablation
        without = [evaluated.accuracy for evaluated in ablation.without]
        accuracies = [percent(ablation.full.accuracy), percent(ablation.bare.accuracy)]
        costly = [str(without.index(min(without))), percent(min(without))]
        rows.append([line(adapter.name, 32), f"{ablation.images} {line(adapter.split, 8)}", *accuracies, *costly])
    return simple_table(
        "By adapter: images it was measured on, accuracy (%) with all prompts, without any, and without the block that "
        "costs most",
        ["Adapter", "Images", "All", "None", "Block", "Without it"],
        rows,
    )


def _kept(study: BlockStudy, key: Literal["counts", "shares"]) -> Table:
    factor = 100 if key == "shares" else 1
    spreads: list[Spread] = [getattr(kept, key) for kept in study.kept]
    rows = [
        [str(block), *(spread(s.means[block], s.stds[block] if s.stds else None, factor=factor) for s in spreads)]
        for block in range(len(study.every.drops.means))
    ]
    if len(study.adapters) > 1:
        rows.append(["mean spread", *(f"± {factor * statistics.fmean(s.stds or [0.0]):.1f}" for s in spreads)])
    what = "Prompts that each block keeps" if key == "counts" else "Share (%) of its prompts that each block keeps"
    over = ", mean ± standard deviation over adapters" if len(study.adapters) > 1 else ""
    return simple_table(
        f"{what} when the best of all blocks are chosen by the criterion {line(study.criterion, 20)}{over}",
        ["Block", *(f"{100 * kept.ratio:g} % kept" for kept in study.kept)],
        rows,
    )


def figure(study: BlockStudy) -> Charts:
    """Left: accuracy without each block's prompts. Right: prompts that each block retains."""
    groups = [*(study.tasks if len(study.tasks) <= SHOWN else []), study.every]
    names = [line(_task(group.name), 24) for group in groups]
    changes = [
        Curve(name=name, dots=_dots(group.drops, -100), style=style, line="-")
        for (style, name), group in zip([*enumerate(names[:-1]), (ALL, names[-1])], groups, strict=True)
    ]
    kept = [
        Curve(name=f"{100 * kept.ratio:g} % of all kept", dots=_dots(kept.shares, 100), style=style, line="--")
        for style, kept in enumerate(study.kept, ALL + 1)
    ]
    charts = [
        Chart(title="", x="block", y="change of accuracy without\nthe block's prompts (points)", curves=changes),
        Chart(title="", x="block", y="kept of the block's prompts (%)", curves=kept, zero=True),
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
