"""How the trainings went: loss curves, what had not converged, and the time spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vprompt.experiments.report.aggregate import by_place
from vprompt.experiments.report.study import Run, Study
from vprompt.report import charts
from vprompt.report.document import Block, Body, Fold, Paragraph, Pictures, Section, Table
from vprompt.report.html import Markup
from vprompt.utils.text import amount, count, duration

_POINTS = 40_000
"""So many points are drawn in all, whatever the study's size."""


def curves_section(study: Study) -> Section | None:
    """The loss of every run, by task; None where nothing was trained."""
    styles = {method.key: number for number, method in enumerate(study.methods)}
    trained = [run for run in study.runs if curve_of(run)[0]]
    if not trained:
        return None
    most = max(10, min(120, _POINTS // len(trained)))
    svgs: list[Markup] = []
    for task in study.tasks:
        lines: list[charts.Line] = []
        for run in trained:
            if run.task is task:
                points, joint = curve_of(run)
                name = f"{run.method.label}, seed {run.seed}" + (" (had not converged)" if run.unconverged else "")
                style = styles[run.method.key]
                lines.append(
                    charts.Line(name=name, points=thin(points, most), style=style, dashed=run.unconverged, join=joint)
                )
        if lines:
            dashed = sum(line.dashed for line in lines)
            detail = f"{task.title}: training loss by epoch of {count(len(lines), 'run')}, {dashed} not converged"
            svgs.append(charts.curves(task.title, lines, x="epoch", y="training loss", detail=detail))
    shown = {run.method.key for run in trained}
    legend = charts.legend([(styles[m.key], m.label) for m in study.methods if m.key in shown])
    words = (
        "One line a run: the mean training loss of each epoch. Dashed: had not converged, the loss fell by 5 % or more "
        "from the epochs at 60–80 % to those at 80–100 %. A ring marks "
        "where training went on after prompts were removed."
    )
    blocks: list[Block] = [Paragraph(words), Pictures(svgs, legend), Fold("Numbers", [_losses(study)])]
    return Section(key="curves", title="Loss curves", blocks=blocks)


def curve_of(run: Run) -> tuple[list[tuple[float, float]], float | None]:
    """Epochs and losses, one training after the other, and after which epoch the last one began."""
    models = [model for model in (run.before, run.model) if model is not None and model.epochs]
    points: list[tuple[float, float]] = []
    done = 0
    joint: float | None = None
    for number, model in enumerate(models):
        joint = float(done) if number else None
        points += [(float(done + e), loss) for e, loss in enumerate(model.losses, 1) if loss is not None]
        done += len(model.epochs)
    return points, joint


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
            runs = [run for run in by_place(study)[method.key, task.key] if run.model is not None and curve_of(run)[0]]
            if runs:
                converged = sum(not run.unconverged for run in runs)
                first = _mean([curve_of(run)[0][0][1] for run in runs])
                last = _mean([curve_of(run)[0][-1][1] for run in runs])
                epochs = sorted({len(model.epochs) for run in runs for model in [run.model] if model is not None})
                spent = " or ".join(str(number) for number in epochs)
                cells = [spent, first, last, f"{converged} of {len(runs)}"]
                rows.append([f"{task.title}, {method.label}", *cells])
    head = ["Task, method", "Epochs", "First loss", "Last loss", "Converged"]
    return Table(caption="Training loss, mean over the seeds", head=head, bodies=[Body(rows=rows)])


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.4g}"


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
    tables: list[Block] = [Paragraph(words)]
    of_method: dict[str, Callable[[Run], bool]] = {m.label: lambda run, m=m: run.method is m for m in study.methods}
    of_task: dict[str, Callable[[Run], bool]] = {t.title: lambda run, t=t: run.task is t for t in study.tasks}
    for what, choices in (("Method", of_method), ("Task", of_task)):
        rows = [_spent(name, [run for run in study.finished if of(run)]) for name, of in choices.items()]
        head = [what, "Runs", "Training, mean of a run", "All told"]
        table = Table(caption=f"Time by {what.lower()}", head=head, bodies=[Body(rows=rows)])
        tables.append(table if what == "Method" or len(rows) <= 6 else Fold("By task", [table]))
    return Section(key="time", title="Time spent", blocks=tables)


def _spent(name: str, runs: Sequence[Run]) -> list[str]:
    times = [time for run in runs if (time := run.training_seconds) is not None]
    whole = sum(run.seconds or 0.0 for run in runs)
    mean = sum(times) / len(times) if times else None
    return [name, amount(float(len(runs))), duration(mean), duration(whole)]
