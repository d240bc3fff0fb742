"""Accuracy against the epochs of fine-tuning, and what condensation takes in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vprompt.analysis import plots
from vprompt.analysis.base import Result, View
from vprompt.analysis.plots import share_of
from vprompt.analysis.schedule import PAPER_EPOCHS
from vprompt.report.document import Block, Paragraph, Table
from vprompt.report.plots import COLOURS
from vprompt.utils.text import count, duration

CLAIMED_OF, CLAIMED_SHARE = 100, 0.25
"""The paper fine-tunes for 20 epochs after 100 of training, and says that it takes less than 25 % of the time."""

NEXT_TO_NOTHING = 0.005
"""Of a gain in accuracy."""

STYLES = {"test": (COLOURS[0], "o", "-"), "validation": (COLOURS[1], "s", "--")}

SCORING, TUNING = "#777777", COLOURS[0]


def _answer(result: Result) -> str:
    return f"{_plateau(result)} {_time(result)}{plots.caveats(result)}"


def _plateau(result: Result) -> str:
    curve, condensed = result["curves"][0], f"Condensed to {share_of(result['ratio'])}"
    means = [(point["epochs"], point["validation"]["mean"]) for point in curve["points"]]
    finished = [(epochs, mean) for epochs, mean in means if mean is not None]
    if not finished:
        return f"{condensed}: there is no result yet."
    full, late = curve["full_validation"]["mean"], curve["late"]
    # The first, the paper's choice and the last.
    ends = dict.fromkeys([finished[0], *(pair for pair in finished if pair[0] == PAPER_EPOCHS), finished[-1]])
    accuracies = ", ".join(f"{100 * mean:.1f} % {_after(epochs)}" for epochs, mean in ends)
    accuracies += "" if full is None else f" ({100 * full:.1f} % with all prompts)"
    text = f"{condensed}, {plots.title_of(result, curve['task'])}, validation accuracy: {accuracies}"
    if late is None or late["mean"] is None:
        return f"{text}."
    text += f"; more than {PAPER_EPOCHS}"
    if late["mean"] <= max(NEXT_TO_NOTHING, late["std"] or 0.0):
        return f"{text} change it by {plots.change(late)} points, the plateau that the paper found."
    return f"{text} still bring {plots.change(late)} points, so there is no plateau yet."


def _after(epochs: int) -> str:
    return f"after {count(epochs, 'epoch')}" if epochs else "without fine-tuning"


def _time(result: Result) -> str:
    times = [time for time in result["times"] if _both(time) is not None]
    if not times:
        return "How long scoring took was not recorded."
    time = next((each for each in times if each["epochs"] == PAPER_EPOCHS), times[-1])
    share, epochs = _both(time) or 0.0, result["about"]["epochs"]
    tuned = f" and {count(time['epochs'], 'epoch')}" if time["epochs"] else ""
    took = f"Scoring{tuned} took {100 * share:.0f} % of the time of the training"
    if epochs != CLAIMED_OF:
        share *= epochs / CLAIMED_OF
        took += f" of {count(epochs, 'epoch')}, which is {100 * share:.0f} % of one of {CLAIMED_OF}"
    if time["epochs"] != PAPER_EPOCHS:
        return f"{took}."
    if share < CLAIMED_SHARE:
        return f"{took}: less than 25 %, as the paper says."
    return f"{took}: the paper's claim of less than 25 % does not hold here."


def _tables(result: Result) -> Sequence[Block]:
    first, *rest = result["curves"]
    seeds = [_seeds(result, curve) for curve in result["curves"] if curve["task"] is not None]
    remark = Paragraph("Nothing was trained on the validation images.")
    shown = [_accuracies(result, first), _times(result)]
    return plots.study_blocks(result, shown, [_accuracies(result, curve) for curve in rest], seeds, remark)


def _points(curve: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Epochs, accuracies on the validation and on the test images; then those with all prompts."""
    points = [(str(point["epochs"]), point["validation"], point["test"]) for point in curve["points"]]
    return [*points, ("all prompts", curve["full_validation"], curve["full_test"])]


def _accuracies(result: Result, curve: Mapping[str, Any]) -> Table:
    return plots.table(
        f"{plots.title_of(result, curve['task'])}: accuracy (%), condensed to {share_of(result['ratio'])}",
        _points(curve),
        ("epochs", lambda point: point[0]),
        ("validation", lambda point: plots.accuracy(point[1])),
        ("test", lambda point: plots.accuracy(point[2])),
    )


def _times(result: Result) -> Table:
    return plots.table(
        f"Time as a share of the training with all prompts ({duration(result['training_seconds'])}); scoring "
        f"{_seconds(result['scoring_seconds'])}; as measured, whatever else ran at the time",
        result["times"],
        ("epochs", lambda time: str(time["epochs"])),
        ("scoring", lambda time: share_of(time["scoring"], ".1f")),
        ("fine-tuning", lambda time: share_of(time["fine_tuning"], ".1f")),
        ("both", lambda time: share_of(_both(time), ".1f")),
        ("fine-tuning", lambda time: duration(time["seconds"])),
        ("runs", lambda time: str(time["runs"])),
    )


def _seconds(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.2g} s" if value < 10 else duration(value)


def _both(time: Mapping[str, Any]) -> float | None:
    scoring, tuning = time["scoring"], time["fine_tuning"]
    return None if scoring is None or tuning is None else scoring + tuning


def _seeds(result: Result, curve: Mapping[str, Any]) -> Table:
    rows = [
        (f"{name}, {images}", seeds)
        for name, validation, test in _points(curve)
        for images, seeds in (("validation", validation), ("test", test))
    ]
    return plots.seed_table(result, plots.title_of(result, curve["task"]), rows, what="accuracy", name="epochs")


def _figure(result: Result) -> Figure:
    curves = result["curves"]
    figure, axes = plots.panels(len(curves) + 1, width=3.6, height=3.0)
    for panel, curve in zip(axes, curves, strict=False):
        _panel(panel, curve)
        plots.panel_title(panel, plots.title_of(result, curve["task"]))
    axes[0].set_ylabel("accuracy (%)")
    _bars(axes[-1], result["times"])
    seeds = [point[name] for curve in curves for point in curve["points"] for name in STYLES]
    handles = [plots.handle(name, *style) for name, style in STYLES.items()]
    handles.append(plots.handle("all prompts", style=":"))
    plots.study_legend(figure, handles, hollow=any(each["unconverged"] for each in seeds))
    return figure


def _panel(axes: Axes, curve: Mapping[str, Any]) -> None:
    for name, (colour, marker, style) in STYLES.items():
        full = curve[f"full_{name}"]["mean"]
        if full is not None:
            axes.axhline(100 * full, color=colour, linestyle=":", linewidth=1.2, zorder=1)
        xs = [float(point["epochs"]) for point in curve["points"]]
        plots.draw(axes, xs, [point[name] for point in curve["points"]], colour=colour, marker=marker, style=style)
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
    for place, time in zip(places, times, strict=True):
        if time["scoring"] is not None or time["fine_tuning"] is not None:
            top = scoring[place] + tuning[place]
            axes.annotate(f"{top:.0f}", (place, top), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    axes.axhline(100 * CLAIMED_SHARE, color="#555555", linestyle="--", linewidth=1, zorder=2)
    axes.set(xlabel="epochs of fine-tuning", xlim=(-0.8, max(len(times), 4) - 0.2), ylabel="% of the training's time")
    axes.set_ylim(0, max(1.25 * max([0.0, *(a + b for a, b in zip(scoring, tuning, strict=True))]), 34))
    axes.set_xticks(list(places), [str(time["epochs"]) for time in times])
    plots.panel_title(axes, "Time (paper: below 25 %)")
    axes.legend(loc="upper left")


def _alt(result: Result) -> str:
    return (
        "Validation and test accuracy against the epochs of fine-tuning, and the time of scoring and fine-tuning as a "
        f"share of the training's. {_answer(result)}"
    )


VIEW = View(title="Epochs of fine-tuning", answer=_answer, tables=_tables, figure=_figure, alt=_alt)
