"""Importance of each block's prompts, and how many of them are retained, shown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vprompt.analysis.base import Result, View
from vprompt.analysis.plots import legend_above, plus_minus, signed, table
from vprompt.report.document import Block, Table, simple_table
from vprompt.report.plots import COLOURS, MARKERS, short, side_by_side
from vprompt.utils.text import count, line, percent

SHOWN = 5
"""Tasks that have lines of their own in the picture, and that stand side by side in a table, at most."""


def answer(result: Result) -> str:
    """Blocks whose prompts matter most and least, and whether early blocks retain few."""
    drops = result["every"]["drops"]["means"]
    most, least = _worst(drops), min(range(len(drops)), key=drops.__getitem__)
    over = f" (means over {count(len(result['adapters']), 'adapter')})" if len(result["adapters"]) > 1 else ""
    removal = (
        f"Without the prompts of block {most} accuracy changes by {signed(-drops[most])} points, without those of "
        f"block {least} by {signed(-drops[least])}, and without any by {signed(-result['every']['bare_drop'])}{over}."
    )
    if not result["kept"] or len(drops) < 3:
        return removal
    fewest = min(result["kept"], key=lambda kept: kept["ratio"])
    shares, third = fewest["shares"]["means"], len(drops) // 3
    early, late = statistics.fmean(shares[:third]), statistics.fmean(shares[-third:])
    holds = "few, as the paper found" if early < late else "no fewer than late ones, unlike in the paper"
    return (
        f"{removal} Of {percent(fewest['ratio'])} % of all prompts that are kept, the first {count(third, 'block')} "
        f"{'keep' if third > 1 else 'keeps'} {percent(early)} % of theirs and the last {percent(late)} %: early blocks "
        f"keep {holds}."
    )


def _worst(drops: Sequence[float]) -> int:
    """The block without whose prompts most is lost."""
    return max(range(len(drops)), key=drops.__getitem__)


def tables(result: Result) -> list[Block]:
    """Accuracy and loss without each block's prompts; by task where there are several; prompts retained."""
    blocks: list[Block] = [_removal(result["every"])]
    tasks = result["tasks"]
    if tasks:
        blocks.append(_tasks(tasks))
        blocks += [_task_blocks(tasks[start : start + SHOWN]) for start in range(0, len(tasks), SHOWN)]
    if len(result["adapters"]) > 1:
        blocks.append(_adapters(result["adapters"]))
    return blocks + [_kept(result, key) for key in ("counts", "shares") if result["kept"]]


def _removal(group: Any) -> Table:
    drops, rises = group["drops"], group["rises"]
    several = drops["stds"] is not None
    rows = [
        [str(block), signed(-drop), *_std(drops, block, 100), f"{rise:+.3f}", *_std(rises, block, 1, 3)]
        for block, (drop, rise) in enumerate(zip(drops["means"], rises["means"], strict=True))
    ]
    dash = ["–"] if several else []
    std = ["Std"] if several else []
    rows.append(["all", signed(-group["bare_drop"]), *dash, f"{group['bare_rise']:+.3f}", *dash])
    over = f", means over {count(group['adapters'], 'adapter')} with their standard deviation" if several else ""
    return simple_table(
        f"Change when the prompts of one block, or of all, are removed: accuracy in points (with all prompts "
        f"{percent(group['full'])} %) and mean loss{over}",
        ["Block", "Accuracy", *std, "Loss", *std],
        rows,
    )


def _std(spread: Any, block: int, factor: float, digits: int = 1) -> list[str]:
    """A column of its own, where there are several adapters."""
    return [] if spread["stds"] is None else [f"{factor * spread['stds'][block]:.{digits}f}"]


def _tasks(groups: Sequence[Any]) -> Table:
    return table(
        "By task: accuracy (%) with all prompts, its change in points without any, and the block whose removal costs "
        "most",
        groups,
        ("Task", lambda group: line(group["name"], 24)),
        ("Adapters", lambda group: str(group["adapters"])),
        ("Accuracy", lambda group: percent(group["full"])),
        ("Without any", lambda group: signed(-group["bare_drop"])),
        ("Block", lambda group: str(_worst(group["drops"]["means"]))),
        ("Without it", lambda group: signed(-max(group["drops"]["means"]))),
    )


def _task_blocks(groups: Sequence[Any]) -> Table:
    columns = [[str(block) for block in range(len(groups[0]["drops"]["means"]))]]
    columns += [[signed(-drop) for drop in group["drops"]["means"]] for group in groups]
    head = ["Block", *(line(_task(group["name"]), 12) for group in groups)]
    return simple_table(
        "By task: change of accuracy in points without the prompts of one block", head, list(zip(*columns, strict=True))
    )


def _task(name: str) -> str:
    """The name of a task without its collection or the folders above it."""
    return name.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1] or name


def _adapters(adapters: Sequence[Any]) -> Table:
    def without(adapter: Any) -> list[float]:
        return [evaluated["accuracy"] for evaluated in adapter["ablation"]["without"]]

    return table(
        "By adapter: images it was measured on, accuracy (%) with all prompts, without any, and without the block that "
        "costs most",
        adapters,
        ("Adapter", lambda adapter: line(adapter["name"], 32)),
        ("Images", lambda adapter: f"{adapter['ablation']['images']} {line(adapter['split'], 8)}"),
        ("All", lambda adapter: percent(adapter["ablation"]["full"]["accuracy"])),
        ("None", lambda adapter: percent(adapter["ablation"]["bare"]["accuracy"])),
        ("Block", lambda adapter: str(without(adapter).index(min(without(adapter))))),
        ("Without it", lambda adapter: percent(min(without(adapter)))),
    )


def _kept(result: Result, key: str) -> Table:
    factor = 100 if key == "shares" else 1
    columns = [[str(block) for block in range(len(result["every"]["drops"]["means"]))]]
    for kept in result["kept"]:
        means, stds = kept[key]["means"], kept[key]["stds"] or [None] * len(kept[key]["means"])
        columns.append([plus_minus(mean, std, 1, factor=factor) for mean, std in zip(means, stds, strict=True)])
    if result["kept"][0][key]["stds"] is not None:
        spreads = [f"± {factor * statistics.fmean(kept[key]['stds']):.1f}" for kept in result["kept"]]
        for column, text in zip(columns, ["mean spread", *spreads], strict=True):
            column.append(text)
    what = "Prompts that each block keeps" if key == "counts" else "Share (%) of its prompts that each block keeps"
    over = ", mean ± standard deviation over adapters" if len(result["adapters"]) > 1 else ""
    return simple_table(
        f"{what} when the best of all blocks are chosen by the criterion {line(result['criterion'], 20)}{over}",
        ["Block", *(f"{100 * kept['ratio']:g} % kept" for kept in result["kept"])],
        list(zip(*columns, strict=True)),
    )


def figure(result: Result) -> Figure:
    """Left: accuracy without each block's prompts. Right: prompts that each block retains."""
    drawn, panels = side_by_side(11.0 if result["kept"] else 6.4, 4.4, 2 if result["kept"] else 1)
    _draw_removed(panels[0], result)
    if result["kept"]:
        _draw_shares(panels[1], result["kept"])
    blocks = len(result["every"]["drops"]["means"])
    for axes in panels:
        axes.set_xlabel("block")
        axes.set_xticks(range(0, blocks, 1 + (blocks - 1) // 16))
    return drawn


def _draw_removed(axes: Axes, result: Result) -> None:
    drops = result["every"]["drops"]
    blocks, several = range(len(drops["means"])), drops["stds"] is not None
    axes.bar(
        blocks,
        [-100 * drop for drop in drops["means"]],
        yerr=[100 * std for std in drops["stds"]] if several else None,
        capsize=2 if len(blocks) <= 24 else 0,
        color="#BBBBBB",
        ecolor="#777777",
        label="mean and standard deviation over adapters" if several else None,
        zorder=2,
    )
    for number, group in enumerate(result["tasks"] if len(result["tasks"]) <= SHOWN else []):
        changes = [-100 * drop for drop in group["drops"]["means"]]
        name, marker = short(line(_task(group["name"])), 24), MARKERS[number]
        axes.plot(blocks, changes, marker, ls="-", color=COLOURS[number], lw=1, ms=4, label=name, zorder=3)
    axes.axhline(0, color="#444444", linewidth=0.8, zorder=4)
    axes.set_ylabel("change of accuracy without\nthe block's prompts (points)")
    if several:
        legend_above(axes)


def _draw_shares(axes: Axes, retained: Sequence[Any]) -> None:
    for number, each in enumerate(retained):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        means, stds = each["shares"]["means"], each["shares"]["stds"]
        shift = 0.16 * (number - (len(retained) - 1) / 2) if stds is not None else 0.0
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
    legend_above(axes, columns=3)


def alt(result: Result) -> str:
    """The picture in words."""
    drops = result["every"]["drops"]["means"]
    removal = (
        f"Change of accuracy when the prompts of one of {len(drops)} blocks are removed, from "
        f"{signed(-max(drops))} to {signed(-min(drops))} points"
    )
    if not result["kept"]:
        return f"{removal}."
    ratios = ", ".join(f"{100 * kept['ratio']:g}" for kept in result["kept"])
    return f"{removal}; and the share of its prompts that each block keeps when {ratios} % of all are kept."


VIEW = View(title="What each block's prompts are worth", answer=answer, tables=tables, figure=figure, alt=alt)
