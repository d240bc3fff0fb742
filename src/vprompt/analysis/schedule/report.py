"""Accuracy against the epochs of fine-tuning, and what condensation takes in time."""

from __future__ import annotations

import math

from vprompt.analysis import words
from vprompt.analysis.base import View
from vprompt.analysis.schedule import PAPER_EPOCHS
from vprompt.analysis.schedule.measure import CondensingTime, EpochCurve, ScheduleResult
from vprompt.analysis.words import share_of
from vprompt.report.document import Block, Chart, Charts, Curve, Dot, Paragraph, Table, simple_table
from vprompt.utils.statistics import Seeds
from vprompt.utils.text import count, duration

CLAIMED_OF, CLAIMED_SHARE = 100, 0.25
"""The paper fine-tunes for 20 epochs after 100 of training, and says that it takes less than 25 % of the time."""

NEXT_TO_NOTHING = 0.005
"""Of a gain in accuracy."""

IMAGES = ("validation", "test")


def _answer(result: ScheduleResult) -> str:
    return f"{_plateau(result)} {_time(result)}{words.caveats(result.about)}"


def _plateau(result: ScheduleResult) -> str:
    curve, condensed = result.curves[0], f"Condensed to {share_of(result.ratio)}"
    finished = [(point.epochs, point.validation.mean) for point in curve.points if point.validation.mean is not None]
    if not finished:
        return f"{condensed}: there is no result yet."
    full, late = curve.full_validation.mean, curve.late
    # The first, the paper's choice and the last.
    ends = dict.fromkeys([finished[0], *(pair for pair in finished if pair[0] == PAPER_EPOCHS), finished[-1]])
    after = {epochs: f"after {count(epochs, 'epoch')}" if epochs else "without fine-tuning" for epochs, _ in ends}
    accuracies = ", ".join(f"{100 * mean:.1f} % {after[epochs]}" for epochs, mean in ends)
    accuracies += "" if full is None else f" ({100 * full:.1f} % with all prompts)"
    text = f"{condensed}, {result.about.title(curve.task)}, validation accuracy: {accuracies}"
    if late is None or late.mean is None:
        return f"{text}."
    text += f"; more than {PAPER_EPOCHS}"
    if late.mean <= max(NEXT_TO_NOTHING, late.std or 0.0):
        return f"{text} change it by {words.change(late)} points, the plateau that the paper found."
    return f"{text} still bring {words.change(late)} points, so there is no plateau yet."


def _time(result: ScheduleResult) -> str:
    times = {time: share for time in result.times if (share := _both(time)) is not None}
    if not times:
        return "How long scoring took was not recorded."
    time = next((each for each in times if each.epochs == PAPER_EPOCHS), [*times][-1])
    share, epochs = times[time], result.about.epochs
    tuned = f" and {count(time.epochs, 'epoch')}" if time.epochs else ""
    took = f"Scoring{tuned} took {100 * share:.0f} % of the time of the training"
    if epochs != CLAIMED_OF:
        share *= epochs / CLAIMED_OF
        took += f" of {count(epochs, 'epoch')}, which is {100 * share:.0f} % of one of {CLAIMED_OF}"
    if time.epochs != PAPER_EPOCHS:
        return f"{took}."
    if share < CLAIMED_SHARE:
        return f"{took}: less than 25 %, as the paper says."
    return f"{took}: the paper's claim of less than 25 % does not hold here."


def _both(time: CondensingTime) -> float | None:
    return None if time.scoring is None or time.fine_tuning is None else time.scoring + time.fine_tuning


def _tables(result: ScheduleResult) -> list[Block]:
    first, *rest = result.curves
    seeds = [_seeds(result, curve) for curve in result.curves if curve.task is not None]
    remark = Paragraph("Nothing was trained on the validation images.")
    shown = [_accuracies(result, first), _times(result)]
    return words.study_blocks(result.about, shown, [_accuracies(result, curve) for curve in rest], seeds, remark)


def _points(curve: EpochCurve) -> list[tuple[str, Seeds, Seeds]]:
    """Epochs, accuracies on the validation and on the test images; then those with all prompts."""
    points = [(str(point.epochs), point.validation, point.test) for point in curve.points]
    return [*points, ("all prompts", curve.full_validation, curve.full_test)]


def _accuracies(result: ScheduleResult, curve: EpochCurve) -> Table:
    rows = [[name, *map(words.accuracy, accuracies)] for name, *accuracies in _points(curve)]
    caption = f"{result.about.title(curve.task)}: accuracy (%), condensed to {share_of(result.ratio)}"
    return simple_table(caption, ["epochs", *IMAGES], rows)


def _times(result: ScheduleResult) -> Table:
    seconds = result.scoring_seconds
    took = "not recorded" if seconds is None else f"{seconds:.2g} s" if seconds < 10 else duration(seconds)
    rows = [
        [
            str(time.epochs),
            *(share_of(share, ".1f") for share in (time.scoring, time.fine_tuning, _both(time))),
            duration(time.seconds),
            str(time.runs),
        ]
        for time in result.times
    ]
    return simple_table(
        f"Time as a share of the training with all prompts ({duration(result.training_seconds)}); scoring {took}; as "
        "measured, whatever else ran at the time",
        ["epochs", "scoring", "fine-tuning", "both", "fine-tuning", "runs"],
        rows,
    )


def _seeds(result: ScheduleResult, curve: EpochCurve) -> Table:
    rows = [
        (f"{name}, {images}", seeds)
        for name, *accuracies in _points(curve)
        for images, seeds in zip(IMAGES, accuracies, strict=True)
    ]
    return words.seed_table(result.about, result.about.title(curve.task), rows, what="accuracy", name="epochs")


def _figure(result: ScheduleResult) -> Charts:
    charts = [_chart(result.about.title(curve.task), curve) for curve in result.curves]
    parts = {
        "scoring": [(time.epochs, time.scoring) for time in result.times],
        "scoring and fine-tuning": [(time.epochs, _both(time)) for time in result.times],
    }
    times = [
        Curve(
            name=name,
            dots=[Dot(x=epochs, y=math.nan if share is None else 100 * share) for epochs, share in shares],
            style=2 + number,
            line="-",
        )
        for number, (name, shares) in enumerate(parts.items())
    ]
    claim = (100 * CLAIMED_SHARE, "paper: below 25 %")
    x, y = "epochs of fine-tuning", "% of the training's time"
    charts.append(Chart(title="Time", x=x, y=y, levels=[claim], curves=times, zero=True))
    return Charts(charts, list(enumerate([*IMAGES, *parts])), rings="not converged")


def _chart(title: str, curve: EpochCurve) -> Chart:
    full = {"validation": curve.full_validation.mean, "test": curve.full_test.mean}
    return Chart(
        title=title,
        x="epochs of fine-tuning",
        y="accuracy (%)",
        levels=[(100 * mean, f"all prompts, {name}") for name, mean in full.items() if mean is not None],
        curves=[
            Curve(
                name=name,
                dots=words.dots((point.epochs, getattr(point, name)) for point in curve.points),
                style=style,
                line="-",
            )
            for style, name in enumerate(IMAGES)
        ],
    )


VIEW = View(title="Epochs of fine-tuning", answer=_answer, tables=_tables, figure=_figure, result=ScheduleResult)
