"""The report of the rank of attention with prompts and without, and of the law of its growth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vprompt.analysis.base import Result, View
from vprompt.analysis.plots import handle, legend_above, plus_minus
from vprompt.report.document import Block, Table, simple_table
from vprompt.report.plots import COLOURS, MARKERS, side_by_side
from vprompt.utils.text import amount, line, percent

UNCHANGED = 0.05
"""Within it, the share that a quarter of the singular values holds counts as unchanged by prompts."""

ALIKE = 0.99
"""R² of a straight line on an exact logarithm, from which on the two laws can hardly be told apart."""

_WORDS = {
    "logarithmic": "the logarithmic law holds",
    "linear": "a straight line fits better than the logarithmic law",
    "neither": "neither the logarithmic law nor a straight line holds",
    "none": "the rank does not grow",
    "open": "there are too few numbers of prompts to tell",
}

_VERDICTS = {"logarithmic": "log", "linear": "line", "neither": "neither", "none": "none", "open": "open"}


def answer(result: Result) -> str:
    """Whether attention stays low-rank, and what law its rank follows."""
    bare, full = result["points"][0], result["points"][-1]
    before, after = bare["sums"]["25"], full["sums"]["25"]
    same = abs(after - before) <= UNCHANGED
    first = (
        f"Beside {amount(bare['tokens'])} tokens, {amount(full['prompts'])} prompts change the share of the sum that a "
        f"quarter of the singular values of attention holds from {percent(before)} to {percent(after)} %: the spectrum "
        f"{'hardly changes, as in the paper' if same else 'does change, unlike in the paper'}."
    )
    laws: list[tuple[str, Any]] = list(result["laws"].items())
    laws_text = "; ".join(f"at ε = {name} {_WORDS[law['verdict']]}{_fits(law)}" for name, law in laws)
    likeness = laws[0][1]["likeness"]
    alike = ""
    told = any(law["verdict"] in ("logarithmic", "linear") for _, law in laws)
    if told and likeness is not None and likeness >= ALIKE:
        alike = (
            " With so few prompts to the tokens a straight line fits an exact logarithm with R² "
            f"{likeness:.3f}, so that the two can hardly be told apart."
        )
    return f"{first} As for the growth of the rank, {laws_text}.{alike}"


def _fits(law: Any) -> str:
    if law["verdict"] in ("none", "open"):
        return ""
    return f" (R² {_r2(law['log_r2'])}, straight line {_r2(law['linear_r2'])})"


def _r2(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value > -10 else "< -10"


def tables(result: Result) -> list[Block]:
    """Ranks, shares and laws by number of prompts; ranks by block; ranks by adapter where there are several."""
    names = list(result["laws"])
    points = result["points"]
    blocks: list[Block] = [_ranks(result, names), _shares(points), _laws(result), _by_block(points, names)]
    if len(result["names"]) > 1:
        blocks.append(_by_adapter(result, names))
    return blocks


def _ranks(result: Result, names: Sequence[str]) -> Table:
    several = len(result["names"]) > 1
    over = " (mean ± standard deviation over adapters)" if several else ""
    rows = [
        [
            amount(point["prompts"]),
            *([str(point["adapters"])] if several else []),
            amount(point["prompts"] + point["tokens"]),
            *(plus_minus(point["ranks"][name], point["stds"][name]) for name in names),
        ]
        for point in result["points"]
    ]
    return simple_table(
        f"Numerical rank of attention matrices at relative error ε, mean over images, heads and blocks{over}; prompts "
        f"{'each adapter was trained with' if result['varied'] == 'trained' else 'kept in each block'}",
        ["Prompts", *(["Adapters"] if several else []), "Rows", *(f"ε = {name}" for name in names)],
        rows,
    )


def _shares(points: Sequence[Any]) -> Table:
    parts = list(points[0]["sums"])
    rows = [
        [amount(point["prompts"]), *(percent(point[key][part]) for key in ("sums", "energies") for part in parts)]
        for point in points
    ]
    return simple_table(
        "Share (%) that the largest singular values have of the sum of all, and of the sum of their squares",
        ["Prompts", *(f"{what} {part} %" for what in ("Sum", "Sq.") for part in parts)],
        rows,
    )


def _laws(result: Result) -> Table:
    keys = ("log_slope", "log_r2", "linear_slope", "linear_r2")
    rows = [[name, *(_r2(law[key]) for key in keys), _VERDICTS[law["verdict"]]] for name, law in result["laws"].items()]
    return simple_table(
        "Growth of the rank fitted by C · (log(n + m) - log n) and by C · m; a law holds if its R² is the higher one "
        "and at least 0.9",
        ["ε", "C (log)", "R² (log)", "C (straight)", "R² (straight)", "Verdict"],
        rows,
    )


def _by_block(points: Sequence[Any], names: Sequence[str]) -> Table:
    bare, full = points[0], points[-1]
    rows = [
        [str(block), *(f"{point['block_ranks'][name][block]:.1f}" for name in names for point in (bare, full))]
        for block in range(len(bare["block_ranks"][names[0]]))
    ]
    head = ["Block", *(f"{name}, {amount(point['prompts'])}" for name in names for point in (bare, full))]
    return simple_table(f"Numerical rank by block, without prompts and with {amount(full['prompts'])}", head, rows)


def _by_adapter(result: Result, names: Sequence[str]) -> Table:
    rows: list[list[str]] = []
    trained = result["varied"] == "trained"
    for name, ranks in zip(result["names"], result["adapters"], strict=True):
        most = amount(ranks["points"][-1]["prompts"])
        rows.append([line(f"{most}: {name}" if trained else name, 28), *(_grown(ranks, epsilon) for epsilon in names)])
    caption = "Numerical rank without prompts and with all, and what law it follows, by adapter"
    caption += " (before its name the prompts of a block)" if trained else ""
    return simple_table(caption, ["Adapter", *(f"ε = {name}" for name in names)], rows)


def _grown(ranks: Any, name: str) -> str:
    first, last = (point["ranks"][name] for point in (ranks["points"][0], ranks["points"][-1]))
    return f"{first:.1f}-{last:.1f} {_VERDICTS[ranks['laws'][name]['verdict']]}"


def figure(result: Result) -> Figure:
    """Left: cumulative singular values. Right: ranks against prompts, with both laws."""
    made, (left, right) = side_by_side(11.0, 4.4, 2)
    _curves(left, result["points"])
    _growth(right, result)
    return made


def _curves(axes: Axes, points: Sequence[Any]) -> None:
    chosen = sorted({0, len(points) // 2, len(points) - 1})
    for number, index in enumerate(chosen):
        shares = [0.0, *points[index]["cumulative"]]
        label = f"{amount(points[index]['prompts'])} prompts" if index else "no prompts"
        style = ("-", "-.", "--")[number]
        axes.plot(range(len(shares)), [100 * s for s in shares], style, color=COLOURS[number], label=label, zorder=3)
    axes.set(xlabel="number of singular values, largest first", ylabel="share of the sum of all (%)", ylim=(0, 103))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right")


def _growth(axes: Axes, result: Result) -> None:
    points = result["points"]
    counts = [point["prompts"] for point in points]
    most, top = max(counts), 1.0
    grid = [most * step / 100 for step in range(101)]
    handles: list[Artist] = []
    for number, (name, law) in enumerate(result["laws"].items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        ranks = [point["ranks"][name] for point in points]
        stds = [point["stds"][name] or 0.0 for point in points]
        axes.errorbar(
            counts, ranks, yerr=stds if any(stds) else None, fmt=marker, color=colour, ms=5, capsize=3, lw=1, zorder=4
        )
        top = max(top, *(rank + std for rank, std in zip(ranks, stds, strict=True)))
        handles.append(handle(f"ε = {name}", colour, marker))
        if result["varied"] == "trained":
            last = [ranks["points"][-1] for ranks in result["adapters"]]
            axes.scatter([p["prompts"] for p in last], [p["ranks"][name] for p in last], s=10, color=colour, alpha=0.4)
        if law["verdict"] == "open":
            continue
        start = ranks[0]
        bent = [start + law["log_slope"] * math.log1p(m / law["tokens"]) for m in grid]
        straight = [start + law["linear_slope"] * m for m in grid]
        axes.plot(grid, bent, "-", color=colour, linewidth=1.2, zorder=3)
        axes.plot(grid, straight, ":", color=colour, linewidth=1.4, zorder=3)
        top = max(top, *bent, *straight)
    if any(law["verdict"] != "open" for law in result["laws"].values()):
        handles += [handle("logarithmic law", style="-"), handle("straight line", style=":")]
    axes.set(xlabel="prompts in each block", ylabel="numerical rank of attention", ylim=(0, 1.08 * top))
    axes.set_xlim(-0.04 * max(most, 1), 1.04 * max(most, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_above(axes, handles, columns=5)


def alt(result: Result) -> str:
    """The picture in words."""
    bare, full = result["points"][0], result["points"][-1]
    name = next(iter(result["laws"]))
    return (
        f"Left: cumulative singular values of attention with 0 to {amount(full['prompts'])} prompts. Right: its "
        f"numerical rank against the number of prompts, at ε = {name} from {bare['ranks'][name]:.1f} to "
        f"{full['ranks'][name]:.1f}, with a logarithm and a straight line fitted."
    )


VIEW = View(
    title="Rank of attention against the number of prompts", answer=answer, tables=tables, figure=figure, alt=alt
)
