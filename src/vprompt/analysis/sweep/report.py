"""Accuracy against the number of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vprompt.analysis import plots
from vprompt.analysis.base import Result, View
from vprompt.report.document import Block, Table, simple_table
from vprompt.report.plots import COLOURS
from vprompt.utils.text import count

Place = tuple[str, str | None]
"""Method and task; no task is the mean over all."""

KINDS = {"scratch": "from scratch", "condensed": "condensed, fine-tuned", "selected": "condensed, not fine-tuned"}

STYLES = {
    "scratch": (COLOURS[0], "o", "-"),
    "condensed": (COLOURS[1], "s", "-"),
    "selected": (COLOURS[2], "^", "--"),
}

DODGE = {"scratch": 0.0, "condensed": 0.8, "selected": -0.8}
"""Percent of the prompts by which curves are moved aside, so that error bars do not hide each other."""

FAR = 1.5
"""Times the range of all others."""

FEW_TASKS = 4
"""Have a table each in a terminal."""


def _answer(result: Result) -> str:
    if not result["curves"] or not result["linearity"]:
        return "There is nothing to say yet." + plots.caveats(result)
    first = result["linearity"][0]
    parts = [_linear(result, first), _condensed(result, _place(first))]
    return " ".join(part for part in parts if part) + plots.caveats(result)


def _place(entry: Mapping[str, Any]) -> Place:
    return entry["method"], entry["task"]


def _linear(result: Result, one: Mapping[str, Any]) -> str:
    place = _place(one)
    at = {point["share"]: point["accuracy"]["mean"] for point in _points(result, "scratch", place)}
    name, full = _heading(result, place), at.get(1.0)
    if full is None:
        return f"{name}: no seed has a result with all prompts{' on all tasks' if place[1] is None else ''}."
    found = f"{name}: {100 * full:.1f} % with all prompts"
    if at.get(0.0) is not None:
        found += f", {100 * at[0.0]:.1f} % with none"
    drops, bend = (one["first"], one["second"]), one["bend"]
    if any(seeds is None or seeds["mean"] is None for seeds in (*drops, bend)):
        return f"{found}."
    half, low = f"{100 * one['half']:g} %", f"{100 * one['low']:g} %"
    to_half, to_low = (plots.signed(-drop["mean"]) for drop in drops)
    found += f"; trained from scratch with {half} of them {to_half} points, from there to {low} {to_low}: "
    found += "" if bend["std"] is not None else "by one seed, "
    if abs(bend["mean"]) <= (bend["std"] or 0.0):
        return found + "no clear bend beside the spread of the seeds, so the paper's claim is not confirmed here."
    if bend["mean"] > 0:
        return found + "not linear, the fewer prompts the more each counts, as the paper says."
    return found + "the paper's claim that most is lost below a half does not hold here."


def _condensed(result: Result, place: Place) -> str:
    changes = {
        kind: {point["share"]: point["change"]["mean"] for point in _points(result, kind, place)} for kind in KINDS
    }
    low = min((share for share, change in changes["condensed"].items() if change is not None), default=None)
    if low is None:
        return ""
    at_low = [(words, changes[kind].get(low)) for kind, words in KINDS.items()]
    points = ", ".join(f"{plots.signed(change)} {words}" for words, change in at_low if change is not None)
    return f"With {100 * low:g} % of the prompts, points against all of them: {points}."


def _points(result: Result, kind: str, place: Place) -> Sequence[Mapping[str, Any]]:
    curves = (c for c in result["curves"] if (c["kind"], c["method"], c["task"]) == (kind, *place))
    return next(curves, {"points": []})["points"]


def _places(result: Result) -> list[Place]:
    """Methods and tasks, each of which is a panel and a table."""
    return list(dict.fromkeys((curve["method"], curve["task"]) for curve in result["curves"]))


def _heading(result: Result, place: Place) -> str:
    return f"{plots.METHODS.get(place[0], place[0])}, {plots.title_of(result, place[1])}"


def _tables(result: Result) -> Sequence[Block]:
    places = _places(result)
    means = [place for place in places if place[1] is None]
    shown = means if means and len(places) > FEW_TASKS else places
    rest = [place for place in places if place not in shown]
    first, tasks = ([*(_table(result, place) for place in some), *_linearity(result, some)] for some in (shown, rest))
    seeds = [
        plots.seed_table(
            result,
            _heading(result, place),
            [
                (f"{words}, {100 * point['share']:g} %", point["accuracy"])
                for kind, words in KINDS.items()
                for point in _points(result, kind, place)
            ],
        )
        for place in places
        if place[1] is not None
    ]
    return plots.study_blocks(result, first, tasks, seeds)


def _table(result: Result, place: Place) -> Table:
    by_share = {kind: {point["share"]: point for point in _points(result, kind, place)} for kind in KINDS}
    rows: list[list[str]] = []
    for share in sorted({share for points in by_share.values() for share in points}):
        scratch = by_share["scratch"].get(share, {})
        prompts, rate = scratch.get("prompts"), scratch.get("lr")
        rows.append(
            [
                f"{100 * share:g} %" if share else "none",
                "–" if prompts is None else f"{prompts:g}",
                *(plots.accuracy(points[share]["accuracy"]) if share in points else "" for points in by_share.values()),
                "–" if rate is None else f"{rate:g}",
            ]
        )
    tuned = count(result["fine_tune_epochs"], "epoch")
    return simple_table(
        f"{_heading(result, place)}: test accuracy (%); fine-tuned for {tuned}",
        ["prompts", "each", "scratch", "condensed", "not tuned", "lr"],
        rows,
    )


def _linearity(result: Result, places: Sequence[Place]) -> list[Table]:
    shown = [each for each in result["linearity"] if each["half"] is not None and _place(each) in places]
    if not shown:
        return []
    half, low = (f"{100 * shown[0][key]:g} %" for key in ("half", "low"))
    rows = [
        [
            _heading(result, _place(each)),
            *(plots.change(each[key]).removeprefix("+") for key in ("first", "second")),
            "–" if each["gain"] is None else f"{100 * each['gain']:.0f} %",
            "–" if each["r2"] is None else f"{each['r2']:.2f}",
        ]
        for each in shown
    ]
    return [
        simple_table(
            f"From scratch: points lost to {half} of the prompts, then to {low}; share of the gain over the linear "
            f"probe that is there at {half}; R² of a straight line",
            ["", f"to {half}", f"to {low}", "gain", "R²"],
            rows,
        )
    ]


def _figure(result: Result) -> Figure:
    places = _places(result)
    several = len({method for method, _ in places}) > 1
    figure, axes = plots.panels(len(places))
    for panel, place in zip(axes, places, strict=False):
        _panel(panel, result, place)
        plots.panel_title(panel, _heading(result, place) if several else plots.title_of(result, place[1]))
    axes[0].set_ylabel("test accuracy (%)")
    hollow = any(point["accuracy"]["unconverged"] for curve in result["curves"] for point in curve["points"])
    plots.study_legend(figure, [plots.handle(KINDS[kind], *STYLES[kind]) for kind in KINDS], hollow=hollow)
    return figure


def _panel(axes: Axes, result: Result, place: Place) -> None:
    points = {kind: _points(result, kind, place) for kind in KINDS}
    full = [point for point in points["scratch"] if point["share"] == 1.0]
    if _far_below(axes, [point for row in points.values() for point in row]):
        points["scratch"] = [point for point in points["scratch"] if point["share"]]
    for kind, (colour, marker, style) in STYLES.items():
        shown = points[kind] if kind == "scratch" else [*points[kind], *full]
        xs = [100 * point["share"] + (DODGE[kind] if 0 < point["share"] < 1 else 0) for point in shown]
        if points[kind]:
            plots.draw(axes, xs, [point["accuracy"] for point in shown], colour=colour, marker=marker, style=style)
    axes.set_xlabel("prompts (% of all)")
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlim(-4, 104)


def _far_below(axes: Axes, points: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the linear probe lies so far below that nothing else could be told apart; it is then put in words."""
    trained = [point["accuracy"] for point in points if point["share"] and point["accuracy"]["mean"] is not None]
    none = [point["accuracy"]["mean"] for point in points if not point["share"]]
    if not trained or not none or none[0] is None:
        return False
    low, high = min(each["mean"] for each in trained), max(each["mean"] for each in trained)
    if none[0] > low - FAR * max(high - low, 0.02):
        return False
    axes.margins(y=0.18)
    text = f"no prompts: {100 * none[0]:.1f} %"
    axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=8, color=STYLES["scratch"][0])
    return True


def _alt(result: Result) -> str:
    return (
        f"Test accuracy against the share of the prompts in {count(len(_places(result)), 'panel')}: trained from "
        f"scratch, condensed, and condensed without fine-tuning. {_answer(result)}"
    )


VIEW = View(title="Accuracy against the number of prompts", answer=_answer, tables=_tables, figure=_figure, alt=_alt)
