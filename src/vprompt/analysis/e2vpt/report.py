"""E2VPT's ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vprompt.analysis.base import Result, View
from vprompt.analysis.plots import accuracy, caveats, change, every, hollow_handle, origin, signed, title_of
from vprompt.report.document import Block, Body, Fold, Table
from vprompt.report.plots import COLOURS, MARKERS, legend_below
from vprompt.utils.text import amount, line

TITLES = {
    "parts": "Kinds of prompts",
    "sharing": "What key-value prompts share",
    "lengths": "Numbers of prompts",
    "pruning": "Pruning",
}

MOST_TASKS = 6
"""Have a colour each; of more, only the mean is drawn."""

LEAST = 1.0
"""Points on both sides of the default."""

FEW_ROWS = 3
"""Are all in the answer."""

LINEAR = "Linear"
"""The linear probe is too far away from all others to stand in one picture with them."""


def _answer(result: Result) -> str:
    ablations = result["ablations"]
    if not ablations:
        return "There is no ablation." + caveats(result)
    default = ablations[0]["rows"][0]["entries"][0]
    where = title_of(result, default["task"])
    name = f"E2VPT with {result['prompts']} visual and {result['kv_prompts']} key-value prompts"
    if default["accuracy"]["mean"] is None:
        return f"{name}, {where}: there is no result yet." + caveats(result)
    said = f"{name}, {where}: {100 * default['accuracy']['mean']:.1f} %"
    said += f", {_share(default)} of the backbone's parameters learned" if default["share"] is not None else ""
    return f"{said}. {_changes(ablations)}{caveats(result)}"


def _changes(ablations: Sequence[Mapping[str, Any]]) -> str:
    """What all rows of an ablation change, or where they are many those that change most."""
    said: list[str] = []
    for ablation in ablations:
        rows = [row for row in _drawn(ablation) if row["entries"][0]["change"]["mean"] is not None]
        if not rows:
            continue
        rows.sort(key=lambda row: row["entries"][0]["change"]["mean"])
        few = len(rows) <= FEW_ROWS
        shown = [
            f"{signed(row['entries'][0]['change']['mean'])} ({line(row['label'], 40)})"
            for row in (rows if few else [rows[0], rows[-1]])
        ]
        said.append(f"{TITLES[ablation['part']].lower()} {(', ' if few else ' to ').join(shown)}")
    return f"Points against it: {'; '.join(said)}." if said else ""


def _share(entry: Mapping[str, Any]) -> str:
    return "–" if entry["share"] is None else f"{100 * entry['share']:.2f} %"


def _tables(result: Result) -> Sequence[Block]:
    tasks = [entry["task"] for entry in result["ablations"][0]["rows"][0]["entries"]] if result["ablations"] else []
    by_task = [[_table(result, ablation, number) for ablation in result["ablations"]] for number in range(len(tasks))]
    found: list[Block] = [*by_task[0]] if by_task else []
    if len(by_task) > 1:
        found.append(Fold("Every task", [table for tables in by_task[1:] for table in tables]))
    if result["ablations"]:
        found.append(Fold("Every seed", [_seeds(result, n) for n, task in enumerate(tasks) if task is not None]))
    return [*found, *origin(result)]


def _table(result: Result, ablation: Mapping[str, Any], number: int) -> Table:
    entries = [(row["label"], row["entries"][number]) for row in ablation["rows"]]
    rows = [
        [line(label, 40), accuracy(entry["accuracy"]), change(entry["change"]), amount(entry["learned"]), _share(entry)]
        for label, entry in entries
    ]
    rows[0][2] = ""
    return Table(
        caption=f"{TITLES[ablation['part']]}, {title_of(result, entries[0][1]['task'])}: test accuracy (%), change to "
        "the default, numbers learned (with the head), of the backbone's",
        head=["", "accuracy", "change", "learned", "of all"],
        bodies=[Body(rows=rows)],
    )


def _seeds(result: Result, number: int) -> Table:
    seen = {row["label"]: row["entries"][number] for ablation in result["ablations"] for row in ablation["rows"]}
    rows = [[line(label, 40), *every(entry["accuracy"])] for label, entry in seen.items()]
    heads = [f"seed {seed}" for seed in result["about"]["seeds"]]
    title = title_of(result, next(iter(seen.values()))["task"])
    return Table(caption=f"{title}: test accuracy (%)", head=["", *heads], bodies=[Body(rows=rows)])


def _figure(result: Result) -> Figure:
    ablations = result["ablations"]
    rows = [max(1, len(_drawn(ablation))) for ablation in ablations] or [1]
    each = 0.18 + 0.07 * max([1, *(len(_shown(row["entries"])) for one in ablations for row in one["rows"])])
    figure = Figure(figsize=(7.2, 1.2 + each * sum(rows) + 0.7 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=[n + 0.6 for n in rows])[:, 0]
    for one, ablation in zip(axes, ablations, strict=False):
        _panel(one, ablation)
        one.set_title(TITLES[ablation["part"]] + _linear(ablation), loc="left", fontsize=10)
    axes[-1].set_xlabel("change of test accuracy against the default (points)")
    _key(figure, result)
    return figure


def _drawn(ablation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in ablation["rows"] if not row["default"] and row["label"] != LINEAR]


def _linear(ablation: Mapping[str, Any]) -> str:
    """The linear probe in words."""
    changes = [row["entries"][0]["change"] for row in ablation["rows"] if row["label"] == LINEAR]
    there = [one["mean"] for one in changes if one["mean"] is not None]
    return f" (linear probe, not drawn: {signed(there[0])})" if there else ""


def _shown(entries: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Which entries of a row are drawn, and the number of their style."""
    tasks = [entry for entry in entries if entry["task"] is not None]
    mean = [(-1, entry) for entry in entries if entry["task"] is None]
    return mean if mean and len(tasks) > MOST_TASKS else [*enumerate(tasks), *mean]


def _style(number: int) -> tuple[str, str, int]:
    """Colour, marker and size; the mean over tasks is black and larger."""
    return (COLOURS[-1], "D", 6) if number < 0 else (COLOURS[number], MARKERS[number], 5)


def _panel(axes: Axes, ablation: Mapping[str, Any]) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", color="#EEEEEE", zorder=0)
    axes.axvline(0.0, color="#777777", linewidth=1, zorder=1)
    rows = _drawn(ablation)
    for place, row in enumerate(rows):
        shown = _shown(row["entries"])
        for order, (number, entry) in enumerate(shown):
            mean, std = entry["change"]["mean"], entry["change"]["std"]
            if mean is None:
                continue
            colour, marker, size = _style(number)
            hollow = bool(entry["accuracy"]["unconverged"])
            axes.errorbar(
                100 * mean,
                place + (order - (len(shown) - 1) / 2) * 0.62 / max(1, len(shown) - 1),
                xerr=None if std is None else 100 * std,
                color=colour,
                marker=marker,
                markersize=size,
                markerfacecolor="white" if hollow else colour,
                elinewidth=1,
                capsize=2,
                zorder=3,
            )
    axes.set_yticks(range(len(rows)), [line(row["label"], 40) for row in rows], fontsize=9)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -LEAST), max(high, LEAST))


def _key(figure: Figure, result: Result) -> None:
    entries = result["ablations"][0]["rows"][0]["entries"] if result["ablations"] else []
    shown = _shown(entries)
    handles: list[Line2D] = []
    for number, entry in shown:
        colour, marker, size = _style(number)
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                marker=marker,
                markersize=size,
                linestyle="",
                label=title_of(result, entry["task"]),
            )
        )
    rows = [row for ablation in result["ablations"] for row in ablation["rows"]]
    if any(entry["accuracy"]["unconverged"] for row in rows for _, entry in _shown(row["entries"])):
        handles.append(hollow_handle())
    legend_below(figure, handles)


def _alt(result: Result) -> str:
    names = ", ".join(TITLES[ablation["part"]].lower() for ablation in result["ablations"])
    return f"Changes of test accuracy against the default of E2VPT, a dot for every task: {names}. {_answer(result)}"


VIEW = View(title="E2VPT's ablations", answer=_answer, tables=_tables, figure=_figure, alt=_alt)
