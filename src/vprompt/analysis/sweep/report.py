"""Accuracy against the number of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vprompt.analysis.base import Result, View
from vprompt.analysis.plots import (
    METHODS,
    accuracy,
    caveats,
    change,
    draw,
    every,
    legend,
    origin,
    panel_title,
    panels,
    signed,
    title_of,
)
from vprompt.report.document import Block, Body, Fold, Table
from vprompt.report.plots import COLOURS
from vprompt.utils.text import count

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
    curves, straight = result["curves"], result["linearity"]
    if not curves or not straight:
        return "There is nothing to say yet." + caveats(result)
    first = straight[0]
    parts = [_linear(result, first), _condensed(result, first)]
    return " ".join(part for part in parts if part) + caveats(result)


def _linear(result: Result, one: Mapping[str, Any]) -> str:
    at = {point["share"]: point["accuracy"]["mean"] for point in _curve(result, "scratch", one)["points"]}
    name = f"{METHODS.get(one['method'], one['method'])}, {title_of(result, one['task'])}"
    full = at.get(1.0)
    if full is None:
        return f"{name}: no seed has a result with all prompts{' on all tasks' if one['task'] is None else ''}."
    said = f"{name}: {100 * full:.1f} % with all prompts"
    if at.get(0.0) is not None:
        said += f", {100 * at[0.0]:.1f} % with none"
    drops, bend = (one["first"], one["second"]), one["bend"]
    if bend is None or any(drop is None or drop["mean"] is None for drop in drops) or bend["mean"] is None:
        return f"{said}."
    half, low = f"{100 * one['half']:g} %", f"{100 * one['low']:g} %"
    said += f"; trained from scratch with {half} of them {signed(-drops[0]['mean'])} points, from there to {low} "
    said += f"{signed(-drops[1]['mean'])}: "
    clear = abs(bend["mean"]) > (bend["std"] or 0.0)
    said += "" if bend["std"] is not None else "by one seed, "
    if bend["mean"] > 0 and clear:
        return said + "not linear, the fewer prompts the more each counts, as the paper says."
    if not clear:
        return said + "no clear bend beside the spread of the seeds, so the paper's claim is not confirmed here."
    return said + "the paper's claim that most is lost below a half does not hold here."


def _condensed(result: Result, place: Mapping[str, Any]) -> str:
    changes = {
        kind: {point["share"]: point["change"]["mean"] for point in _curve(result, kind, place)["points"]}
        for kind in KINDS
    }
    low = min((share for share, change in changes["condensed"].items() if change is not None), default=None)
    if low is None:
        return ""
    found = [(words, changes[kind].get(low)) for kind, words in KINDS.items()]
    said = ", ".join(f"{signed(change)} {words}" for words, change in found if change is not None)
    return f"With {100 * low:g} % of the prompts, points against all of them: {said}."


def _curve(result: Result, kind: str, place: Mapping[str, Any]) -> Mapping[str, Any]:
    for curve in result["curves"]:
        if (curve["kind"], curve["method"], curve["task"]) == (kind, place["method"], place["task"]):
            return curve
    return {"points": []}


def _places(result: Result) -> list[tuple[str, str | None]]:
    """Methods and tasks, each of which is a panel and a table."""
    return list(dict.fromkeys((curve["method"], curve["task"]) for curve in result["curves"]))


def _heading(result: Result, place: tuple[str, str | None]) -> str:
    return f"{METHODS.get(place[0], place[0])}, {title_of(result, place[1])}"


def _tables(result: Result) -> Sequence[Block]:
    places = _places(result)
    means = [place for place in places if place[1] is None]
    shown = means if means and len(places) > FEW_TASKS else places
    found: list[Block] = [*(_table(result, place) for place in shown), *_linearity(result, shown)]
    rest = [place for place in places if place not in shown]
    if rest:
        found.append(Fold("Every task", [*(_table(result, place) for place in rest), *_linearity(result, rest)]))
    found.append(Fold("Every seed", [_seeds(result, place) for place in places if place[1] is not None]))
    return [*found, *origin(result)]


def _table(result: Result, place: tuple[str, str | None]) -> Table:
    where = {"method": place[0], "task": place[1]}
    curves = {kind: _curve(result, kind, where)["points"] for kind in KINDS}
    by_share = {kind: {point["share"]: point for point in points} for kind, points in curves.items()}
    rows: list[list[str]] = []
    for share in sorted({point["share"] for points in curves.values() for point in points}):
        points = {kind: table[share] for kind, table in by_share.items() if share in table}
        of_scratch = points.get("scratch", {})
        prompts, rate = of_scratch.get("prompts"), of_scratch.get("lr")
        rows.append(
            [
                f"{100 * share:g} %" if share else "none",
                "–" if prompts is None else f"{prompts:g}",
                *(accuracy(points[kind]["accuracy"]) if kind in points else "" for kind in KINDS),
                "–" if rate is None else f"{rate:g}",
            ]
        )
    tuned = count(result["fine_tune_epochs"], "epoch")
    return Table(
        caption=f"{_heading(result, place)}: test accuracy (%); fine-tuned for {tuned}",
        head=["prompts", "each", "scratch", "condensed", "not tuned", "lr"],
        bodies=[Body(rows=rows)],
    )


def _linearity(result: Result, places: Sequence[tuple[str, str | None]]) -> list[Table]:
    shown = [one for one in result["linearity"] if one["half"] is not None and (one["method"], one["task"]) in places]
    if not shown:
        return []
    half, low = (f"{100 * shown[0][key]:g} %" for key in ("half", "low"))
    rows = [
        [
            _heading(result, (one["method"], one["task"])),
            change(one["first"]).removeprefix("+"),
            change(one["second"]).removeprefix("+"),
            "–" if one["gain"] is None else f"{100 * one['gain']:.0f} %",
            "–" if one["r2"] is None else f"{one['r2']:.2f}",
        ]
        for one in shown
    ]
    return [
        Table(
            caption=f"From scratch: points lost to {half} of the prompts, then to {low}; share of the gain over the "
            f"linear probe that is there at {half}; R² of a straight line",
            head=["", f"to {half}", f"to {low}", "gain", "R²"],
            bodies=[Body(rows=rows)],
        )
    ]


def _seeds(result: Result, place: tuple[str, str | None]) -> Table:
    where = {"method": place[0], "task": place[1]}
    rows = [
        [f"{KINDS[kind]}, {100 * point['share']:g} %", *every(point["accuracy"])]
        for kind in KINDS
        for point in _curve(result, kind, where)["points"]
    ]
    seeds = [f"seed {seed}" for seed in result["about"]["seeds"]]
    return Table(caption=f"{_heading(result, place)}: test accuracy (%)", head=["", *seeds], bodies=[Body(rows=rows)])


def _figure(result: Result) -> Figure:
    places = _places(result)
    several = len({method for method, _ in places}) > 1
    figure, axes = panels(len(places))
    for one, place in zip(axes, places, strict=False):
        _panel(one, result, place)
        panel_title(one, _heading(result, place) if several else title_of(result, place[1]))
    axes[0].set_ylabel("test accuracy (%)")
    hollow = any(point["accuracy"]["unconverged"] for curve in result["curves"] for point in curve["points"])
    legend(figure, {KINDS[kind]: STYLES[kind] for kind in KINDS}, hollow=hollow)
    return figure


def _panel(axes: Axes, result: Result, place: tuple[str, str | None]) -> None:
    where = {"method": place[0], "task": place[1]}
    scratch = _curve(result, "scratch", where)["points"]
    full = [point for point in scratch if point["share"] == 1.0]
    if _far_below(axes, [point for kind in KINDS for point in _curve(result, kind, where)["points"]]):
        scratch = [point for point in scratch if point["share"]]
    for kind, (colour, marker, style) in STYLES.items():
        points = scratch if kind == "scratch" else [*_curve(result, kind, where)["points"], *full]
        xs = [100 * point["share"] + (DODGE[kind] if 0 < point["share"] < 1 else 0) for point in points]
        if len(points) > len(full) or kind == "scratch":
            draw(axes, xs, [point["accuracy"] for point in points], colour=colour, marker=marker, style=style)
    axes.set_xlabel("prompts (% of all)")
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlim(-4, 104)


def _far_below(axes: Axes, points: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the linear probe lies so far below that nothing else could be told apart; it is then put in words."""
    trained = [point["accuracy"] for point in points if point["share"] and point["accuracy"]["mean"] is not None]
    none = [point["accuracy"]["mean"] for point in points if not point["share"]]
    if not trained or not none or none[0] is None:
        return False
    low, high = min(one["mean"] for one in trained), max(one["mean"] for one in trained)
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
