"""Loss curves, trainings that had not converged, and the time spent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vprompt.experiments.report.study import Run, Study
from vprompt.report.document import Block, Chart, Charts, Curve, Dot, Fold, Paragraph, Section, Table, simple_table
from vprompt.utils.statistics import DOUBLED, mean
from vprompt.utils.text import amount, count, duration

_POINTS = 40_000
"""So many points are drawn in all, whatever the study's size."""


def curves_section(study: Study) -> Section | None:
    """The loss of every run, by task; None where nothing was trained."""
    trained = [run for run in study.runs if curve_of(run)[0]]
    if not trained:
        return None
    most = max(10, min(120, _POINTS // len(trained)))
    charts: list[Chart] = []
    for task in study.tasks:
        curves = [_curve(run, most) for run in trained if run.task is task]
        if curves:
            dashed = sum(run.unconverged for run in trained if run.task is task)
            alt = f"{task.title}: training loss by epoch of {count(len(curves), 'run')}, {dashed} not converged"
            charts.append(Chart(title=task.title, x="epoch", y="training loss", alt=alt, curves=curves, zero=True))
    shown = {run.method.key for run in trained}
    legend = [(method.style, method.label) for method in study.methods if method.key in shown]
    words = (
        f"One line a run: the mean training loss of each epoch. Dashed: had not converged, {DOUBLED}. A ring marks "
        "where training went on after prompts were removed."
    )
    blocks: list[Block] = [Paragraph(words), Charts(charts, legend), Fold("Numbers", [_losses(study)])]
    return Section(key="curves", title="Loss curves", blocks=blocks)


def curve_of(run: Run) -> tuple[list[tuple[float, float]], float | None]:
    """Epochs and losses, one training after the other, and after which epoch the last one began."""
    points: list[tuple[float, float]] = []
    done = 0
    join: float | None = None
    for number, model in enumerate(run.trainings):
        join = float(done) if number else None
        points += [(float(done + epoch), loss) for epoch, loss in enumerate(model.losses, 1) if loss is not None]
        done += len(model.losses)
    return points, join


def _curve(run: Run, most: int) -> Curve:
    points, join = curve_of(run)
    name = f"{run.method.label}, seed {run.seed}" + (" (had not converged)" if run.unconverged else "")
    thinned = thin(points, most)
    ring = next((epoch for epoch, _ in thinned if join is not None and epoch > join), None)
    dots = [Dot(x=epoch, y=loss, hollow=epoch == ring) for epoch, loss in thinned]
    return Curve(name=name, dots=dots, style=run.method.style, line="--" if run.unconverged else "-", marks=False)


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many of some points, evenly, with the first and the last.

    Example:
        >>> thin([(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)], 3)
        [(0, 0), (2, 2), (4, 4)]
    """
    if len(points) <= most:
        return list(points)
    return [points[round(n * (len(points) - 1) / (most - 1))] for n in range(most)]


def _losses(study: Study) -> Table:
    rows: list[list[str]] = []
    for task in study.tasks:
        for method in study.methods:
            runs = [run for run in study.table[method.key, task.key] if run.model is not None and curve_of(run)[0]]
            if runs:
                curves = [curve_of(run)[0] for run in runs]
                first, last = (f"{statistics.fmean(curve[end][1] for curve in curves):.4g}" for end in (0, -1))
                epochs = sorted({len(run.model.losses) for run in runs if run.model is not None})
                unknown = sum(run.unknown for run in runs)
                known = len(runs) - unknown
                converged = f"{known - sum(run.unconverged for run in runs)} of {known}" if known else "not known"
                rows.append([f"{task.title}, {method.label}", " or ".join(map(str, epochs)), first, last, converged])
    head = ["Task, method", "Epochs", "First loss", "Last loss", "Converged"]
    return simple_table("Training loss, mean over the seeds", head, rows)


def time_section(study: Study) -> Section:
    """Time by method and task, and in all."""
    spent = sum(run.seconds or 0.0 for run in study.runs)
    words = f"All runs together took {duration(spent)}, reading data and evaluating included"
    if study.hours_planned is not None:
        words += f"; {study.hours_planned:g} h were planned"
    words += (
        ". The training of a run counts what came before condensation or pruning; all told does not where several "
        "runs go on from one training, which is then the time of the run that made it."
    )
    by_method = _times("Method", {m.label: [run for run in study.finished if run.method is m] for m in study.methods})
    by_task = _times("Task", {t.title: [run for run in study.finished if run.task is t] for t in study.tasks})
    shown = by_task if len(by_task.texts) <= 6 else Fold("By task", [by_task])
    return Section(key="time", title="Time spent", blocks=[Paragraph(words), by_method, shown])


def _times(what: str, groups: dict[str, list[Run]]) -> Table:
    rows: list[list[str]] = []
    for name, runs in groups.items():
        times = [time for run in runs if (time := run.training_seconds) is not None]
        rows.append([name, amount(len(runs)), duration(mean(times)), duration(sum(run.seconds or 0.0 for run in runs))])
    return simple_table(f"Time by {what.lower()}", [what, "Runs", "Training, mean of a run", "All told"], rows)
