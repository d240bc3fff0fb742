"""Accuracy against the epochs of fine-tuning, and what condensation takes in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vprompt.analysis.base import Result, View
from vprompt.analysis.plots import accuracy, caveats, change, draw, every, legend, origin, panel_title, panels, title_of
from vprompt.report.document import Block, Body, Fold, Paragraph, Table
from vprompt.report.plots import COLOURS
from vprompt.utils.text import count, duration

CLAIMED_EPOCHS, CLAIMED_OF, CLAIMED_SHARE = 20, 100, 0.25
"""The paper fine-tunes for 20 epochs after 100 of training, and says that it takes less than 25 % of the time."""

NEXT_TO_NOTHING = 0.005
"""Of a gain in accuracy."""

STYLES = {"test": (COLOURS[0], "o", "-"), "validation": (COLOURS[1], "s", "--")}

SCORING, TUNING = "#777777", COLOURS[0]


def _answer(result: Result) -> str:
    said = [_plateau(result), _time(result)]
    return " ".join(part for part in said if part) + caveats(result)


def _plateau(result: Result) -> str:
    curve = result["curves"][0]
    means = [(point["epochs"], point["validation"]["mean"]) for point in curve["points"]]
    there = [(epochs, mean) for epochs, mean in means if mean is not None]
    if not there:
        return f"Condensed to {100 * result['ratio']:g} %: there is no result yet."
    full, late = curve["full_validation"]["mean"], curve["late"]
    said = f"Condensed to {100 * result['ratio']:g} %, {title_of(result, curve['task'])}, validation accuracy: "
    said += ", ".join(f"{100 * mean:.1f} % {_after(epochs)}" for epochs, mean in _ends(there))
    said += "" if full is None else f" ({100 * full:.1f} % with all prompts)"
    if late is None or late["mean"] is None:
        return f"{said}."
    if late["mean"] <= max(NEXT_TO_NOTHING, late["std"] or 0.0):
        return (
            f"{said}; more than {CLAIMED_EPOCHS} change it by {change(late)} points, the plateau that the paper found."
        )
    return f"{said}; more than {CLAIMED_EPOCHS} still bring {change(late)} points, so there is no plateau yet."


def _after(epochs: int) -> str:
    return f"after {count(epochs, 'epoch')}" if epochs else "without fine-tuning"


def _ends(there: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """The first, the paper's choice and the last."""
    chosen = [there[0], *(pair for pair in there if pair[0] == CLAIMED_EPOCHS), there[-1]]
    return list(dict.fromkeys(chosen))


def _time(result: Result) -> str:
    times = [time for time in result["times"] if time["scoring"] is not None and time["fine_tuning"] is not None]
    if not times:
        return "How long scoring took was not recorded."
    time = next((one for one in times if one["epochs"] == CLAIMED_EPOCHS), times[-1])
    share, epochs = time["scoring"] + time["fine_tuning"], result["about"]["epochs"]
    tuned = f" and {count(time['epochs'], 'epoch')}" if time["epochs"] else ""
    said = f"Scoring{tuned} took {100 * share:.0f} % of the time of the training"
    if epochs != CLAIMED_OF:
        share *= epochs / CLAIMED_OF
        said += f" of {count(epochs, 'epoch')}, which is {100 * share:.0f} % of one of {CLAIMED_OF}"
    if time["epochs"] != CLAIMED_EPOCHS:
        return f"{said}."
    if share < CLAIMED_SHARE:
        return f"{said}: less than 25 %, as the paper says."
    return f"{said}: the paper's claim of less than 25 % does not hold here."


def _tables(result: Result) -> Sequence[Block]:
    curves = result["curves"]
    found: list[Block] = [_accuracies(result, curve) for curve in curves[:1]]
    found.append(_times(result))
    if len(curves) > 1:
        found.append(Fold("Every task", [_accuracies(result, curve) for curve in curves[1:]]))
    found.append(Fold("Every seed", [_seeds(result, curve) for curve in curves if curve["task"] is not None]))
    found.append(Paragraph("Nothing was trained on the validation images."))
    return [*found, *origin(result)]


def _accuracies(result: Result, curve: Mapping[str, Any]) -> Table:
    rows = [[str(point["epochs"]), accuracy(point["validation"]), accuracy(point["test"])] for point in curve["points"]]
    rows.append(["all prompts", accuracy(curve["full_validation"]), accuracy(curve["full_test"])])
    return Table(
        caption=f"{title_of(result, curve['task'])}: accuracy (%), condensed to {100 * result['ratio']:g} %",
        head=["epochs", "validation", "test"],
        bodies=[Body(rows=rows)],
    )


def _times(result: Result) -> Table:
    rows = [
        [
            str(time["epochs"]),
            _percent(time["scoring"]),
            _percent(time["fine_tuning"]),
            _percent(_sum(time["scoring"], time["fine_tuning"])),
            duration(time["seconds"]),
            str(time["runs"]),
        ]
        for time in result["times"]
    ]
    return Table(
        caption=f"Time as a share of the training with all prompts ({duration(result['training_seconds'])}); scoring "
        f"{_seconds(result['scoring_seconds'])}; as measured, whatever else ran at the time",
        head=["epochs", "scoring", "fine-tuning", "both", "fine-tuning", "runs"],
        bodies=[Body(rows=rows)],
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _seconds(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.2g} s" if value < 10 else duration(value)


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _seeds(result: Result, curve: Mapping[str, Any]) -> Table:
    points = [(str(point["epochs"]), point["validation"], point["test"]) for point in curve["points"]]
    points.append(("all prompts", curve["full_validation"], curve["full_test"]))
    rows = [
        [f"{name}, {what}", *every(seeds)]
        for name, validation, test in points
        for what, seeds in (("validation", validation), ("test", test))
    ]
    heads = [f"seed {seed}" for seed in result["about"]["seeds"]]
    caption = f"{title_of(result, curve['task'])}: accuracy (%)"
    return Table(caption=caption, head=["epochs", *heads], bodies=[Body(rows=rows)])


def _figure(result: Result) -> Figure:
    curves = result["curves"]
    figure, axes = panels(len(curves) + 1, width=3.6, height=3.0)
    for one, curve in zip(axes, curves, strict=False):
        _panel(one, curve)
        panel_title(one, title_of(result, curve["task"]))
    axes[0].set_ylabel("accuracy (%)")
    _bars(axes[-1], result["times"])
    seen = [one for curve in curves for point in curve["points"] for one in (point["test"], point["validation"])]
    hollow = any(seeds["unconverged"] for seeds in seen)
    lines = {"all prompts": ("#555555", "", ":")}
    legend(figure, {**STYLES, **lines}, hollow=hollow)
    return figure


def _panel(axes: Axes, curve: Mapping[str, Any]) -> None:
    for name, (colour, marker, style) in STYLES.items():
        full = curve[f"full_{name}"]["mean"]
        if full is not None:
            axes.axhline(100 * full, color=colour, linestyle=":", linewidth=1.2, zorder=1)
        xs = [float(point["epochs"]) for point in curve["points"]]
        table = [point[name] for point in curve["points"]]
        draw(axes, xs, table, colour=colour, marker=marker, style=style)
    if len(curve["points"]) > 1:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, steps=[1, 2, 5, 10]))
    else:
        axes.set_xticks([point["epochs"] for point in curve["points"]])
    axes.set_xlabel("epochs of fine-tuning")


def _bars(axes: Axes, times: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(times))
    scoring = [100 * (time["scoring"] or 0.0) for time in times]
    tuning = [100 * (time["fine_tuning"] or 0.0) for time in times]
    axes.bar(places, scoring, color=SCORING, label="scoring", zorder=3)
    axes.bar(places, tuning, bottom=scoring, color=TUNING, label="fine-tuning", zorder=3)
    for place, one, other, time in zip(places, scoring, tuning, times, strict=True):
        if time["scoring"] is not None or time["fine_tuning"] is not None:
            axes.annotate(
                f"{one + other:.0f}", (place, one + other), (0, 2), textcoords="offset points", ha="center", fontsize=8
            )
    axes.axhline(100 * CLAIMED_SHARE, color="#555555", linestyle="--", linewidth=1, zorder=2)
    axes.set_ylim(0, max(1.25 * max([0.0, *(a + b for a, b in zip(scoring, tuning, strict=True))]), 34))
    axes.set_xlim(-0.8, max(len(times), 4) - 0.2)
    axes.set_xticks(list(places), [str(time["epochs"]) for time in times])
    axes.set_xlabel("epochs of fine-tuning")
    axes.set_ylabel("% of the training's time")
    panel_title(axes, "Time (paper: below 25 %)")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _alt(result: Result) -> str:
    return (
        "Validation and test accuracy against the epochs of fine-tuning, and the time of scoring and fine-tuning as a "
        f"share of the training's. {_answer(result)}"
    )


VIEW = View(title="Epochs of fine-tuning", answer=_answer, tables=_tables, figure=_figure, alt=_alt)
