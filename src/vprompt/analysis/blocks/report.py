"""What each block's prompts are worth, and how many of them are kept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vprompt.analysis.base import Result, View
from vprompt.report.document import Block, Body, Cell, Table
from vprompt.report.plots import COLOURS, MARKERS, short, side_by_side
from vprompt.utils.text import count, line, percent

SHOWN = 5
"""Tasks that have lines of their own in the picture, and that stand side by side in a table, at most."""


def answer(result: Result) -> str:
    """Which blocks' prompts matter most and least, and whether early blocks keep few."""
    drops = result["every"]["drops"]["means"]
    most, least = max(range(len(drops)), key=drops.__getitem__), min(range(len(drops)), key=drops.__getitem__)
    over = f" (means over {count(len(result['adapters']), 'adapter')})" if len(result["adapters"]) > 1 else ""
    said = (
        f"Without the prompts of block {most} accuracy changes by {_points(-drops[most])} points, without those of "
        f"block {least} by {_points(-drops[least])}, and without any by {_points(-result['every']['bare_drop'])}{over}."
    )
    if not result["kept"] or len(drops) < 3:
        return said
    fewest = min(result["kept"], key=lambda kept: kept["ratio"])
    shares, third = fewest["shares"]["means"], len(drops) // 3
    early, late = statistics.fmean(shares[:third]), statistics.fmean(shares[-third:])
    holds = "few, as the paper found" if early < late else "no fewer than late ones, unlike in the paper"
    return (
        f"{said} Of {percent(fewest['ratio'])} % of all prompts that are kept, the first {count(third, 'block')} "
        f"{'keep' if third > 1 else 'keeps'} {percent(early)} % of theirs and the last {percent(late)} %: early blocks "
        f"keep {holds}."
    )


def _points(share: float) -> str:
    """A change in percentage points, with its sign."""
    shown = f"{100 * share:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown


def tables(result: Result) -> list[Block]:
    """Accuracy and loss without each block's prompts; by task where there are several; prompts kept."""
    found: list[Block] = [_removal(result["every"])]
    tasks = result["tasks"]
    if tasks:
        found.append(_tasks(tasks))
        found += [_task_blocks(tasks[start : start + SHOWN]) for start in range(0, len(tasks), SHOWN)]
    if len(result["adapters"]) > 1:
        found.append(_adapters(result["adapters"]))
    return found + [_kept(result, key) for key in ("counts", "shares") if result["kept"]]


def _removal(group: Any) -> Table:
    drops, rises = group["drops"], group["rises"]
    several = drops["stds"] is not None
    rows: list[list[Cell | str]] = []
    for block, (drop, rise) in enumerate(zip(drops["means"], rises["means"], strict=True)):
        row = [str(block), _points(-drop), f"{rise:+.3f}"]
        if several:
            row = [*row[:2], f"{100 * drops['stds'][block]:.1f}", row[2], f"{rises['stds'][block]:.3f}"]
        rows.append([*row])
    dash = ["–"] if several else []
    rows.append(["all", _points(-group["bare_drop"]), *dash, f"{group['bare_rise']:+.3f}", *dash])
    std = ["Std"] if several else []
    over = f", means over {count(group['adapters'], 'adapter')} with their standard deviation" if several else ""
    return Table(
        caption=f"Change when the prompts of one block, or of all, are removed: accuracy in points (with all prompts "
        f"{percent(group['full'])} %) and mean loss{over}",
        head=["Block", "Accuracy", *std, "Loss", *std],
        bodies=[Body(rows=rows)],
    )


def _tasks(groups: Sequence[Any]) -> Table:
    rows: list[list[str]] = []
    for group in groups:
        drops = group["drops"]["means"]
        worst = max(range(len(drops)), key=drops.__getitem__)
        row = [line(group["name"], 24), str(group["adapters"]), percent(group["full"]), _points(-group["bare_drop"])]
        rows.append([*row, str(worst), _points(-drops[worst])])
    return Table(
        caption="By task: accuracy (%) with all prompts, its change in points without any, and the block whose removal "
        "costs most",
        head=["Task", "Adapters", "Accuracy", "Without any", "Block", "Without it"],
        bodies=[Body(rows=rows)],
    )


def _task_blocks(groups: Sequence[Any]) -> Table:
    rows = [
        [str(block), *(_points(-group["drops"]["means"][block]) for group in groups)]
        for block in range(len(groups[0]["drops"]["means"]))
    ]
    return Table(
        caption="By task: change of accuracy in points without the prompts of one block",
        head=["Block", *(line(_task(group["name"]), 12) for group in groups)],
        bodies=[Body(rows=rows)],
    )


def _task(name: str) -> str:
    """The name of a task without its collection or the folders above it."""
    return name.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1] or name


def _adapters(adapters: Sequence[Any]) -> Table:
    rows: list[list[str]] = []
    for adapter in adapters:
        found = adapter["ablation"]
        worst = min(range(len(found["without"])), key=lambda block: found["without"][block]["accuracy"])
        accuracies = (found["full"], found["bare"], found["without"][worst])
        full, bare, without = (percent(each["accuracy"]) for each in accuracies)
        row = [line(adapter["name"], 32), f"{found['images']} {line(adapter['split'], 8)}", full, bare]
        rows.append([*row, str(worst), without])
    return Table(
        caption="By adapter: images it was measured on, accuracy (%) with all prompts, without any, and without the "
        "block that costs most",
        head=["Adapter", "Images", "All", "None", "Block", "Without it"],
        bodies=[Body(rows=rows)],
    )


def _kept(result: Result, key: str) -> Table:
    factor = 100 if key == "shares" else 1
    columns: list[list[str]] = []
    for kept in result["kept"]:
        means, stds = kept[key]["means"], kept[key]["stds"]
        columns.append([f"{factor * mean:.1f}" for mean in means])
        if stds is not None:
            columns[-1] = [f"{text} ± {factor * std:.1f}" for text, std in zip(columns[-1], stds, strict=True)]
            columns[-1].append(f"± {factor * statistics.fmean(stds):.1f}")
    blocks = [str(block) for block in range(len(result["every"]["drops"]["means"]))]
    if len(columns[0]) > len(blocks):
        blocks.append("mean spread")
    what = "Prompts that each block keeps" if key == "counts" else "Share (%) of its prompts that each block keeps"
    over = ", mean ± standard deviation over adapters" if len(result["adapters"]) > 1 else ""
    return Table(
        caption=f"{what} when the best of all blocks are chosen by the criterion {line(result['criterion'], 20)}{over}",
        head=["Block", *(f"{100 * kept['ratio']:g} % kept" for kept in result["kept"])],
        bodies=[Body(rows=list(zip(blocks, *columns, strict=True)))],
    )


def figure(result: Result) -> Figure:
    """Left: accuracy without each block's prompts. Right: prompts that each block keeps."""
    made, panels = side_by_side(11.0 if result["kept"] else 6.4, 4.4, 2 if result["kept"] else 1)
    _removed(panels[0], result)
    if result["kept"]:
        _shares(panels[1], result["kept"])
    for axes in panels:
        axes.set_xlabel("block")
        blocks = len(result["every"]["drops"]["means"])
        ticks = range(0, blocks, 1 + (blocks - 1) // 16)
        axes.set_xticks(list(ticks), [str(block) for block in ticks])
    return made


def _removed(axes: Axes, result: Result) -> None:
    every = result["every"]
    blocks = range(len(every["drops"]["means"]))
    stds = every["drops"]["stds"]
    several = stds is not None
    axes.bar(
        blocks,
        [-100 * drop for drop in every["drops"]["means"]],
        yerr=[100 * std for std in stds] if several else None,
        capsize=2 if len(blocks) <= 24 else 0,
        color="#BBBBBB",
        ecolor="#777777",
        label="mean and standard deviation over adapters" if several else None,
        zorder=2,
    )
    shown: Sequence[Any] = result["tasks"] if len(result["tasks"]) <= SHOWN else ()
    for number, group in enumerate(shown):
        changes = [-100 * drop for drop in group["drops"]["means"]]
        name, marker = short(line(_task(group["name"])), 24), MARKERS[number]
        axes.plot(blocks, changes, marker, ls="-", color=COLOURS[number], lw=1, ms=4, label=name, zorder=3)
    axes.axhline(0, color="#444444", linewidth=0.8, zorder=4)
    axes.set_ylabel("change of accuracy without\nthe block's prompts (points)")
    if several:
        legend = axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        for text in legend.get_texts():
            text.set_parse_math(False)


def _shares(axes: Axes, kept: Sequence[Any]) -> None:
    for number, each in enumerate(kept):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        means, stds = each["shares"]["means"], each["shares"]["stds"]
        shift = 0.16 * (number - (len(kept) - 1) / 2) if stds is not None else 0.0
        axes.errorbar(
            [block + shift for block in range(len(means))],
            [100 * mean for mean in means],
            yerr=None if stds is None else [100 * std for std in stds],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2 if len(means) <= 24 else 0,
            label=f"{100 * each['ratio']:g} % of all kept",
            zorder=3,
        )
        axes.axhline(100 * each["ratio"], color=colour, linestyle=":", linewidth=0.9, zorder=2)
    axes.set_ylabel("kept of the block's prompts (%)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def alt(result: Result) -> str:
    """What the picture shows."""
    drops = result["every"]["drops"]["means"]
    said = (
        f"Change of accuracy when the prompts of one of {len(drops)} blocks are removed, from "
        f"{_points(-max(drops))} to {_points(-min(drops))} points"
    )
    if not result["kept"]:
        return f"{said}."
    ratios = ", ".join(f"{100 * kept['ratio']:g}" for kept in result["kept"])
    return f"{said}; and the share of its prompts that each block keeps when {ratios} % of all are kept."


VIEW = View(title="What each block's prompts are worth", answer=answer, tables=tables, figure=figure, alt=alt)
