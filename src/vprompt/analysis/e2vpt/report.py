"""E2VPT's ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vprompt.analysis import plots
from vprompt.analysis.base import Result, View
from vprompt.analysis.plots import share_of
from vprompt.report.document import Block, Table
from vprompt.report.plots import COLOURS, MARKERS
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
        return "There is no ablation." + plots.caveats(result)
    default = ablations[0]["rows"][0]["entries"][0]
    where = plots.title_of(result, default["task"])
    name = f"E2VPT with {result['prompts']} visual and {result['kv_prompts']} key-value prompts"
    if default["accuracy"]["mean"] is None:
        return f"{name}, {where}: there is no result yet." + plots.caveats(result)
    learned = (
        f", {share_of(default['share'], '.2f')} of the backbone's parameters learned"
        if default["share"] is not None
        else ""
    )
    text = f"{name}, {where}: {100 * default['accuracy']['mean']:.1f} %{learned}."
    return f"{text} {_changes(ablations)}{plots.caveats(result)}"


def _changes(ablations: Sequence[Mapping[str, Any]]) -> str:
    """Settings that all rows of an ablation change, or where they are many those that change most."""
    changes: list[str] = []
    for ablation in ablations:
        rows = [row for row in _drawn(ablation) if row["entries"][0]["change"]["mean"] is not None]
        if not rows:
            continue
        rows.sort(key=lambda row: row["entries"][0]["change"]["mean"])
        few = len(rows) <= FEW_ROWS
        shown = [
            f"{plots.signed(row['entries'][0]['change']['mean'])} ({line(row['label'], 40)})"
            for row in (rows if few else [rows[0], rows[-1]])
        ]
        changes.append(f"{TITLES[ablation['part']].lower()} {(', ' if few else ' to ').join(shown)}")
    return f"Points against it: {'; '.join(changes)}." if changes else ""


def _tables(result: Result) -> Sequence[Block]:
    ablations = result["ablations"]
    tasks = [entry["task"] for entry in ablations[0]["rows"][0]["entries"]] if ablations else []
    tables = [[_table(result, ablation, number) for ablation in ablations] for number in range(len(tasks))] or [[]]
    seeds = [_seeds(result, number) for number, task in enumerate(tasks) if task is not None]
    return plots.study_blocks(result, tables[0], [table for of_task in tables[1:] for table in of_task], seeds)


def _table(result: Result, ablation: Mapping[str, Any], number: int) -> Table:
    rows = [{**row["entries"][number], **row} for row in ablation["rows"]]
    return plots.table(
        f"{TITLES[ablation['part']]}, {plots.title_of(result, rows[0]['task'])}: test accuracy (%), change to the "
        "default, numbers learned (with the head), of the backbone's",
        rows,
        ("", lambda row: line(row["label"], 40)),
        ("accuracy", lambda row: plots.accuracy(row["accuracy"])),
        ("change", lambda row: "" if row["default"] else plots.change(row["change"])),
        ("learned", lambda row: amount(row["learned"])),
        ("of all", lambda row: share_of(row["share"], ".2f")),
    )


def _seeds(result: Result, number: int) -> Table:
    entries = {row["label"]: row["entries"][number] for ablation in result["ablations"] for row in ablation["rows"]}
    title = plots.title_of(result, next(iter(entries.values()))["task"])
    return plots.seed_table(result, title, [(line(label, 40), entry["accuracy"]) for label, entry in entries.items()])


def _figure(result: Result) -> Figure:
    ablations = result["ablations"]
    rows = [max(1, len(_drawn(ablation))) for ablation in ablations] or [1]
    all_rows = [row for ablation in ablations for row in ablation["rows"]]
    row_height = 0.18 + 0.07 * max([1, *(len(_shown(row["entries"])) for row in all_rows)])
    figure = Figure(figsize=(7.2, 1.2 + row_height * sum(rows) + 0.7 * len(rows)))
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=[n + 0.6 for n in rows])[:, 0]
    for axes, ablation in zip(panels, ablations, strict=False):
        _panel(axes, ablation)
        axes.set_title(TITLES[ablation["part"]] + _linear(ablation))
    panels[-1].set_xlabel("change of test accuracy against the default (points)")
    hollow = any(entry["accuracy"]["unconverged"] for row in all_rows for _, entry in _shown(row["entries"]))
    handles: list[Line2D] = []
    for number, entry in _shown(all_rows[0]["entries"] if all_rows else []):
        colour, marker, size = _style(number)
        handles.append(plots.handle(plots.title_of(result, entry["task"]), colour, marker, size=size))
    plots.study_legend(figure, handles, hollow=hollow)
    return figure


def _drawn(ablation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in ablation["rows"] if not row["default"] and row["label"] != LINEAR]


def _linear(ablation: Mapping[str, Any]) -> str:
    """The linear probe in words."""
    changes = [row["entries"][0]["change"] for row in ablation["rows"] if row["label"] == LINEAR]
    means = [each["mean"] for each in changes if each["mean"] is not None]
    return f" (linear probe, not drawn: {plots.signed(means[0])})" if means else ""


def _shown(entries: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """Entries of a row that are drawn, and the number of their style."""
    tasks = [entry for entry in entries if entry["task"] is not None]
    mean = [(-1, entry) for entry in entries if entry["task"] is None]
    return mean if mean and len(tasks) > MOST_TASKS else [*enumerate(tasks), *mean]


def _style(number: int) -> tuple[str, str, int]:
    """Colour, marker and size; the mean over tasks is black and larger."""
    return (COLOURS[-1], "D", 6) if number < 0 else (COLOURS[number], MARKERS[number], 5)


def _panel(axes: Axes, ablation: Mapping[str, Any]) -> None:
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.axvline(0.0, color="#777777", linewidth=1, zorder=1)
    rows = _drawn(ablation)
    for place, row in enumerate(rows):
        shown = _shown(row["entries"])
        for order, (number, entry) in enumerate(shown):
            if entry["change"]["mean"] is None:
                continue
            colour, marker, size = _style(number)
            plots.dot(
                axes,
                100 * entry["change"]["mean"],
                place + (order - (len(shown) - 1) / 2) * 0.62 / max(1, len(shown) - 1),
                xerr=entry["change"]["std"],
                colour=colour,
                marker=marker,
                hollow=bool(entry["accuracy"]["unconverged"]),
                size=size,
            )
    axes.set_yticks(range(len(rows)), [line(row["label"], 40) for row in rows], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -LEAST), max(high, LEAST))


def _alt(result: Result) -> str:
    names = ", ".join(TITLES[ablation["part"]].lower() for ablation in result["ablations"])
    return f"Changes of test accuracy against the default of E2VPT, a dot for every task: {names}. {_answer(result)}"


VIEW = View(title="E2VPT's ablations", answer=_answer, tables=_tables, figure=_figure, alt=_alt)
