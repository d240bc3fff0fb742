"""Accuracy against the number of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vprompt.analysis import plots
from vprompt.analysis.base import Result, View
from vprompt.analysis.options import depth_title
from vprompt.analysis.plots import share_of, show, signed
from vprompt.report.document import Block, Table
from vprompt.report.plots import COLOURS
from vprompt.utils.text import count

Place = tuple[str, str | None]
"""Method and task; no task is the mean over all. Each is a panel and a table."""

Point = Mapping[str, Any]

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


def _points(result: Result) -> dict[Place, dict[str, dict[float, Point]]]:
    """Method and task -> kind of curve -> share -> point."""
    places: dict[Place, dict[str, dict[float, Point]]] = {}
    for curve in result["curves"]:
        kinds = places.setdefault((curve["method"], curve["task"]), {kind: {} for kind in KINDS})
        kinds[curve["kind"]] = {point["share"]: point for point in curve["points"]}
    return places


def _answer(result: Result) -> str:
    if not result["curves"] or not result["linearity"]:
        return "There is nothing to say yet." + plots.caveats(result)
    first = result["linearity"][0]
    points = _points(result)[first["method"], first["task"]]
    parts = [_linear(result, first, points["scratch"]), _condensed(points)]
    return " ".join(part for part in parts if part) + plots.caveats(result)


def _linear(result: Result, linearity: Mapping[str, Any], scratch: Mapping[float, Point]) -> str:
    at = {share: point["accuracy"]["mean"] for share, point in scratch.items()}
    name, full = _heading(result, linearity["method"], linearity["task"]), at.get(1.0)
    if full is None:
        return f"{name}: no seed has a result with all prompts{' on all tasks' if linearity['task'] is None else ''}."
    text = f"{name}: {100 * full:.1f} % with all prompts"
    if at.get(0.0) is not None:
        text += f", {100 * at[0.0]:.1f} % with none"
    drops, bend = (linearity["first"], linearity["second"]), linearity["bend"]
    if any(seeds is None or seeds["mean"] is None for seeds in (*drops, bend)):
        return f"{text}."
    to_half, to_low = (signed(-drop["mean"]) for drop in drops)
    half, low = share_of(linearity["half"], "g"), share_of(linearity["low"], "g")
    text += f"; trained from scratch with {half} of them {to_half} points, from there to {low} {to_low}: "
    text += "" if bend["std"] is not None else "by one seed, "
    if abs(bend["mean"]) <= (bend["std"] or 0.0):
        return text + "no clear bend beside the spread of the seeds, so the paper's claim is not confirmed here."
    if bend["mean"] > 0:
        return text + "not linear, the fewer prompts the more each counts, as the paper says."
    return text + "the paper's claim that most is lost below a half does not hold here."


def _condensed(points: Mapping[str, Mapping[float, Point]]) -> str:
    """All kinds at the smallest share to which was condensed."""
    low = min((s for s, point in points["condensed"].items() if point["change"]["mean"] is not None), default=None)
    if low is None:
        return ""
    at_low = [(words, points[kind][low]["change"]["mean"]) for kind, words in KINDS.items() if low in points[kind]]
    changes = ", ".join(f"{signed(change)} {words}" for words, change in at_low if change is not None)
    return f"With {share_of(low, 'g')} of the prompts, points against all of them: {changes}."


def _heading(result: Result, method: str, task: str | None) -> str:
    return f"{depth_title(method)}, {plots.title_of(result, task)}"


def _tables(result: Result) -> Sequence[Block]:
    places = list(_points(result))
    means = [place for place in places if place[1] is None]
    shown = means if means and len(places) > FEW_TASKS else places
    rest = [place for place in places if place not in shown]
    first, tasks = ([*(_table(result, place) for place in some), *_linearity(result, some)] for some in (shown, rest))
    seeds = [_seeds(result, place) for place in places if place[1] is not None]
    return plots.study_blocks(result, first, tasks, seeds)


def _seeds(result: Result, place: Place) -> Table:
    rows = [
        (f"{words}, {share_of(share, 'g')}", point["accuracy"])
        for kind, words in KINDS.items()
        for share, point in _points(result)[place][kind].items()
    ]
    return plots.seed_table(result, _heading(result, *place), rows)


def _table(result: Result, place: Place) -> Table:
    kinds = _points(result)[place]

    def accuracy(kind: str, share: float) -> str:
        return plots.accuracy(kinds[kind][share]["accuracy"]) if share in kinds[kind] else ""

    return plots.table(
        f"{_heading(result, *place)}: test accuracy (%); fine-tuned for {count(result['fine_tune_epochs'], 'epoch')}",
        sorted({share for points in kinds.values() for share in points}),
        ("prompts", lambda share: share_of(share, "g") if share else "none"),
        ("each", lambda share: show(kinds["scratch"].get(share, {}).get("prompts"))),
        ("scratch", lambda share: accuracy("scratch", share)),
        ("condensed", lambda share: accuracy("condensed", share)),
        ("not tuned", lambda share: accuracy("selected", share)),
        ("lr", lambda share: show(kinds["scratch"].get(share, {}).get("lr"))),
    )


def _linearity(result: Result, places: Sequence[Place]) -> list[Table]:
    rows = [row for row in result["linearity"] if row["half"] is not None and (row["method"], row["task"]) in places]
    if not rows:
        return []
    half, low = (share_of(rows[0][key], "g") for key in ("half", "low"))
    return [
        plots.table(
            f"From scratch: points lost to {half} of the prompts, then to {low}; share of the gain over the linear "
            f"probe that is there at {half}; R² of a straight line",
            rows,
            ("", lambda row: _heading(result, row["method"], row["task"])),
            (f"to {half}", lambda row: plots.change(row["first"]).removeprefix("+")),
            (f"to {low}", lambda row: plots.change(row["second"]).removeprefix("+")),
            ("gain", lambda row: share_of(row["gain"], ".0f")),
            ("R²", lambda row: show(row["r2"], ".2f")),
        )
    ]


def _figure(result: Result) -> Figure:
    places = _points(result)
    several = len({method for method, _ in places}) > 1
    figure, axes = plots.panels(len(places))
    for panel, (place, kinds) in zip(axes, places.items(), strict=False):
        _panel(panel, kinds)
        plots.panel_title(panel, _heading(result, *place) if several else plots.title_of(result, place[1]))
    axes[0].set_ylabel("test accuracy (%)")
    hollow = any(point["accuracy"]["unconverged"] for curve in result["curves"] for point in curve["points"])
    plots.study_legend(figure, [plots.handle(KINDS[kind], *STYLES[kind]) for kind in KINDS], hollow=hollow)
    return figure


def _panel(axes: Axes, kinds: Mapping[str, Mapping[float, Point]]) -> None:
    far = _far_below(axes, [point for points in kinds.values() for point in points.values()])
    full = [point for share, point in kinds["scratch"].items() if share == 1]
    for kind, (colour, marker, style) in STYLES.items():
        points = [point for share, point in kinds[kind].items() if share or not far]
        shown = points if kind == "scratch" or not points else [*points, *full]
        xs = [100 * point["share"] + (DODGE[kind] if 0 < point["share"] < 1 else 0) for point in shown]
        plots.draw(axes, xs, [point["accuracy"] for point in shown], colour=colour, marker=marker, style=style)
    axes.set(xlabel="prompts (% of all)", xticks=range(0, 101, 20), xlim=(-4, 104))


def _far_below(axes: Axes, points: Sequence[Point]) -> bool:
    """Whether the linear probe lies so far below that nothing else could be told apart; it is then put in words."""
    trained = [p["accuracy"]["mean"] for p in points if p["share"] and p["accuracy"]["mean"] is not None]
    none = next((point["accuracy"]["mean"] for point in points if not point["share"]), None)
    if not trained or none is None or none > min(trained) - FAR * max(max(trained) - min(trained), 0.02):
        return False
    axes.margins(y=0.18)
    text = f"no prompts: {100 * none:.1f} %"
    axes.text(0.02, 0.02, text, transform=axes.transAxes, fontsize=8, color=STYLES["scratch"][0])
    return True


def _alt(result: Result) -> str:
    return (
        f"Test accuracy against the share of the prompts in {count(len(_points(result)), 'panel')}: trained from "
        f"scratch, condensed, and condensed without fine-tuning. {_answer(result)}"
    )


VIEW = View(title="Accuracy against the number of prompts", answer=_answer, tables=_tables, figure=_figure, alt=_alt)
