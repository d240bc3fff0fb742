"""Words, tables and pieces of pictures that views of analyses share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vprompt.analysis.base import Result
from vprompt.report.document import Block, Bullets, Fold, Paragraph, Table, Warn, simple_table
from vprompt.report.plots import legend_below, short
from vprompt.utils.text import count, line, listed

MOST_PROBLEMS = 20

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "grid.color": "#EEEEEE",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.parse_math": False,
}
"""Style of matplotlib in the pictures of analyses: faint lines, no frames, and no text from data as markup."""

# ── words and tables ─────────────────────────────────────────────────────────────────────────────────────────────────


Column = tuple[str, Callable[[Any], str]]
"""Head of a column, and the text that it shows of a row."""


def table(caption: str, rows: Iterable[Any], *columns: Column) -> Table:
    """A table of rows: each column has a head, and the text that it shows of a row.

    Example:
        >>> table("Files", [{"size": 3}], ("Size", lambda row: str(row["size"]))).texts
        [['3']]
    """
    return simple_table(caption, [head for head, _ in columns], [[text(row) for _, text in columns] for row in rows])


def show(value: float | None, form: str = "g", *, factor: float = 1, unit: str = "") -> str:
    """A number times a factor in a format, with its unit; a dash where there is none.

    Example:
        >>> show(0.256, ".0f", factor=100, unit=" %"), show(None)
        ('26 %', '–')
    """
    return "–" if value is None else f"{factor * value:{form}}{unit}"


def share_of(value: float | None, form: str = ".3g") -> str:
    """A share in percent, with no more digits than it has.

    Example:
        >>> share_of(0.3), share_of(1 / 3), share_of(None)
        ('30 %', '33.3 %', '–')
    """
    return show(value, form, factor=100, unit=" %")


def signed(value: float) -> str:
    """A share as points of percent with its sign; nothing is not negative.

    Example:
        >>> signed(0.012), signed(-0.0001)
        ('+1.2', '0.0')
    """
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def plus_minus(mean: float | None, std: float | None, digits: int = 2, *, factor: float = 1) -> str:
    """A mean and, where there is one, its standard deviation, both times a factor.

    Example:
        >>> plus_minus(0.123, 0.05), plus_minus(0.01, None, 1, factor=100), plus_minus(None, None)
        ('0.12 ± 0.05', '1.0', '–')
    """
    form = f".{digits}f"
    return show(mean, form, factor=factor) + ("" if mean is None or std is None else f" ± {factor * std:{form}}")


# ── words and tables of studies ──────────────────────────────────────────────────────────────────────────────────────


def title_of(result: Result, task: str | None) -> str:
    """Title of a task; the mean over all has no spec."""
    tasks = result["about"]["tasks"]
    if task is None:
        return f"mean of {len(tasks)} tasks"
    return line(next((each["title"] for each in tasks if each["task"] == task), task), 40)


def accuracy(seeds: Mapping[str, Any]) -> str:
    """Mean ± standard deviation in percent; `*` where a training did not converge; how many seeds, where some lack.

    Example:
        >>> accuracy({"mean": 0.5, "std": 0.01, "values": [0.51, 0.49, None], "unconverged": 1})
        '50.0* ± 1.0 (2)'
    """
    if seeds["mean"] is None:
        return "–"
    return _with_spread(f"{100 * seeds['mean']:.1f}{'*' if seeds.get('unconverged') else ''}", seeds)


def change(seeds: Mapping[str, Any] | None) -> str:
    """A difference of accuracies in points, with its sign.

    Example:
        >>> change({"mean": -0.012, "std": None, "values": [-0.012]}), change(None)
        ('-1.2', '–')
    """
    return "–" if seeds is None or seeds["mean"] is None else _with_spread(signed(seeds["mean"]), seeds)


def _with_spread(mean: str, seeds: Mapping[str, Any]) -> str:
    finished = sum(value is not None for value in seeds["values"])
    std = "" if seeds["std"] is None else f" ± {100 * seeds['std']:.1f}"
    return f"{mean}{std}" + (f" ({finished})" if finished < len(seeds["values"]) else "")


def seed_table(
    result: Result,
    title: str,
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    what: str = "test accuracy",
    name: str = "",
) -> Table:
    """Every seed's value in percent: a row for each name and its seeds."""
    values = [
        [label, *("–" if value is None else f"{100 * value:.1f}" for value in seeds["values"])] for label, seeds in rows
    ]
    heads = [f"seed {seed}" for seed in result["about"]["seeds"]]
    return simple_table(f"{title}: {what} (%)", [name, *heads], values)


def caveats(result: Result) -> str:
    """Warnings before the numbers: what failed, lacks or had not converged; or nothing."""
    about = result["about"]
    failed = sum(problem["why"] is not None for problem in about["problems"])
    missing = len(about["problems"]) - failed
    remarks = [f"{failed} of {count(about['runs'], 'run')} failed"] if failed else []
    if missing:
        remarks.append(f"{missing} of {count(about['runs'], 'run')} {'is' if missing == 1 else 'are'} missing")
    if about["unconverged"]:
        remarks.append(f"{about['unconverged']} of {count(about['trainings'], 'training')} had not converged")
    if about["changed_images"]:
        remarks.append("images changed between runs")
    return f" But {listed(remarks)}." if remarks else ""


def study_blocks(
    result: Result, shown: Sequence[Block], tasks: Sequence[Block], seeds: Sequence[Block], *more: Block
) -> list[Block]:
    """All tables of a study: those to see at once, those of every task and seed on demand, and how they came about."""
    folds = [Fold("Every task", tasks)] if tasks else []
    folds += [Fold("Every seed", seeds)] if seeds else []
    return [*shown, *folds, *more, *_origin(result)]


def _origin(result: Result) -> list[Block]:
    """Origin of the numbers, and what is wrong with them."""
    about = result["about"]
    names = [title_of(result, task["task"]) for task in about["tasks"]]
    size = f" at {about['img_size']} pixels" if about["img_size"] else ""
    rates = ", ".join(f"{rate:g}" for rate in about["lrs"])
    chosen = f" Learning rates were chosen from {rates} on validation images." if rates else ""
    blocks: list[Block] = [
        Paragraph(
            f"{line(about['backbone'])}{size}; {listed(names, 20)}; {count(about['epochs'], 'epoch')} of training, "
            f"{count(len(about['seeds']), 'seed')}. Mean ± sample standard deviation over the seeds, "
            f"in brackets how many of them where some lack. A star: a training had not converged, its loss still fell "
            f"at the end.{chosen}"
        )
    ]
    if about["changed_images"]:
        changed = listed([line(name) for name in about["changed_images"]])
        blocks.append(Warn(f"The images of {changed} are not the same in all runs, which cannot be compared."))
    if problems := about["problems"]:
        blocks.append(Warn(f"{len(problems)} of {count(about['runs'], 'run')} have no result:"))
        shown = [_problem(result, problem) for problem in problems[:MOST_PROBLEMS]]
        more = len(problems) - len(shown)
        blocks.append(Bullets([*shown, *([f"and {more:,} more"] if more else [])]))
    return blocks


def _problem(result: Result, problem: Mapping[str, Any]) -> str:
    why = "it was not done." if problem["why"] is None else line(problem["why"], 300)
    return f"{line(problem['method'], 60)} on {title_of(result, problem['task'])}, seed {problem['seed']}: {why}"


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def panels(number: int, *, most: int = 4, width: float = 3.3, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """A figure of so many equal panels, in rows of at most `most`."""
    number = max(1, number)
    rows = math.ceil(number / most)
    columns = math.ceil(number / rows)
    least = 4.6 if columns == 1 else 0.0
    figure = Figure(figsize=(max(least, width * columns), height * rows + 0.7))
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(number)]


def draw(
    axes: Axes, xs: Sequence[float], seeds: Sequence[Mapping[str, Any]], *, colour: str, marker: str, style: str = "-"
) -> None:
    """Means with error bars; markers are hollow where a training had not converged.

    A line joins neighbours: it must not run over a place where a result is missing, as if there were one.
    """
    heights = [math.nan if each["mean"] is None else 100 * each["mean"] for each in seeds]
    if all(map(math.isnan, heights)):
        return
    axes.plot(xs, heights, style, color=colour, lw=1.3, zorder=2)
    for x, y, each in zip(xs, heights, seeds, strict=True):
        if each["mean"] is not None:
            dot(axes, x, y, yerr=each["std"], colour=colour, marker=marker, hollow=bool(each.get("unconverged")))


def dot(
    axes: Axes,
    x: float,
    y: float,
    *,
    xerr: float | None = None,
    yerr: float | None = None,
    colour: str,
    marker: str,
    hollow: bool,
    size: float = 5,
) -> None:
    """A marker with error bars, which are shares; hollow where a training had not converged."""
    axes.errorbar(
        x,
        y,
        xerr=None if xerr is None else 100 * xerr,
        yerr=None if yerr is None else 100 * yerr,
        color=colour,
        marker=marker,
        markersize=size,
        markerfacecolor="white" if hollow else colour,
        elinewidth=1,
        capsize=2.5,
        zorder=3,
    )


def panel_title(axes: Axes, text: str) -> None:
    """A heading that fits over a small panel."""
    axes.set_title(short(text, 38))


def handle(
    label: str, colour: str = "#555555", marker: str = "", style: Any = "", *, size: float = 5, fill: Any = "full"
) -> Line2D:
    """An entry of a legend."""
    entry = Line2D([], [], color=colour, marker=marker, linestyle=style, label=label, markersize=size)
    entry.set_fillstyle(fill)
    return entry


def legend_above(axes: Axes, handles: Sequence[Artist] | None = None, *, columns: int = 2) -> None:
    """A legend over a panel, which hides nothing in it."""
    chosen = axes.get_legend_handles_labels()[0] if handles is None else handles
    axes.legend(handles=chosen, ncols=columns, columnspacing=1.2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def study_legend(figure: Figure, handles: Sequence[Line2D], *, hollow: bool) -> None:
    """One legend below all panels, with what hollow markers mean where there are some."""
    extra = [handle("not converged", marker="o", fill="none")] if hollow else []
    legend_below(figure, [*handles, *extra])
