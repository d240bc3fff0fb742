"""What the views of analyses that train have in common: numbers with their spread, what failed, small multiples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vprompt.analysis.base import Result
from vprompt.report.document import Block, Bullets, Paragraph, Warn
from vprompt.report.plots import legend_below
from vprompt.utils.text import count, line, listed

MOST_PROBLEMS = 20

METHODS = {"vpt-deep": "VPT-Deep", "vpt-shallow": "VPT-Shallow"}


def title_of(result: Result, task: str | None) -> str:
    """What a task is called; the mean over all has no spec."""
    tasks = result["about"]["tasks"]
    if task is None:
        return f"mean of {len(tasks)} tasks"
    return line(next((one["title"] for one in tasks if one["task"] == task), task), 40)


def accuracy(seeds: Mapping[str, Any]) -> str:
    """Mean ± standard deviation in percent; `*` where a training did not converge; how many seeds, where some lack.

    Example:
        >>> accuracy({"mean": 0.5, "std": 0.01, "values": [0.51, 0.49, None], "unconverged": 1})
        '50.0* ± 1.0 (2)'
    """
    if seeds["mean"] is None:
        return "–"
    mark = "*" if seeds.get("unconverged") else ""
    return _spread(f"{100 * seeds['mean']:.1f}{mark}", seeds)


def change(seeds: Mapping[str, Any] | None) -> str:
    """A difference of accuracies in points, with its sign.

    Example:
        >>> change({"mean": -0.012, "std": None, "values": [-0.012]}), change(None)
        ('-1.2', '–')
    """
    if seeds is None or seeds["mean"] is None:
        return "–"
    return _spread(signed(seeds["mean"]), seeds)


def signed(value: float) -> str:
    """A share as points of percent with its sign; nothing is not negative.

    Example:
        >>> signed(0.012), signed(-0.0001)
        ('+1.2', '0.0')
    """
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _spread(mean: str, seeds: Mapping[str, Any]) -> str:
    there = sum(value is not None for value in seeds["values"])
    std = "" if seeds["std"] is None else f" ± {100 * seeds['std']:.1f}"
    return f"{mean}{std}" + (f" ({there})" if there < len(seeds["values"]) else "")


def every(seeds: Mapping[str, Any]) -> list[str]:
    """Every seed's value in percent."""
    return ["–" if value is None else f"{100 * value:.1f}" for value in seeds["values"]]


def caveats(result: Result) -> str:
    """What a reader must know before believing the numbers: what failed, lacks or had not converged; or nothing."""
    about = result["about"]
    failed = sum(problem["why"] is not None for problem in about["problems"])
    missing = len(about["problems"]) - failed
    said = [f"{failed} of {count(about['runs'], 'run')} failed"] if failed else []
    said += [f"{missing} of {count(about['runs'], 'run')} {'is' if missing == 1 else 'are'} missing"] if missing else []
    if about["unconverged"]:
        said.append(f"{about['unconverged']} of {count(about['trainings'], 'training')} had not converged")
    if about["changed_images"]:
        said.append("images changed between runs")
    return f" But {listed(said)}." if said else ""


def origin(result: Result) -> list[Block]:
    """How the numbers came about, and what is wrong with them."""
    about = result["about"]
    names = [title_of(result, task["task"]) for task in about["tasks"]]
    size = f" at {about['img_size']} pixels" if about["img_size"] else ""
    rates = ", ".join(f"{rate:g}" for rate in about["lrs"])
    chosen = f" Learning rates were chosen from {rates} on validation images." if rates else ""
    found: list[Block] = [
        Paragraph(
            f"{line(about['backbone'])}{size}; {listed(names, 20)}; {count(about['epochs'], 'epoch')} of training, "
            f"{count(len(about['seeds']), 'seed')}. Mean ± sample standard deviation over the seeds, "
            f"in brackets how many of them where some lack. A star: a training had not converged, its loss still fell "
            f"at the end.{chosen}"
        )
    ]
    if about["changed_images"]:
        found.append(
            Warn(
                f"The images of {listed([line(name) for name in about['changed_images']])} are not the same "
                "in all runs, which cannot be compared."
            )
        )
    if problems := about["problems"]:
        found.append(Warn(f"{len(problems)} of {count(about['runs'], 'run')} have no result:"))
        shown = [_problem(result, problem) for problem in problems[:MOST_PROBLEMS]]
        more = len(problems) - len(shown)
        found.append(Bullets([*shown, *([f"and {more:,} more"] if more else [])]))
    return found


def _problem(result: Result, problem: Mapping[str, Any]) -> str:
    why = "it was not done." if problem["why"] is None else line(problem["why"], 300)
    return f"{line(problem['method'], 60)} on {title_of(result, problem['task'])}, seed {problem['seed']}: {why}"


def panels(number: int, *, most: int = 4, width: float = 3.3, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """A figure of so many equal panels, in rows of at most `most`."""
    number = max(1, number)
    rows = math.ceil(number / most)
    columns = math.ceil(number / rows)
    least = 4.6 if columns == 1 else 0.0
    figure = Figure(figsize=(max(least, width * columns), height * rows + 0.7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(number)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#EEEEEE", zorder=0)
    return figure, axes


def draw(
    axes: Axes,
    xs: Sequence[float],
    table: Sequence[Mapping[str, Any]],
    *,
    colour: str,
    marker: str,
    style: str = "-",
) -> None:
    """Means with error bars; markers are hollow where a training had not converged.

    A line joins neighbours: it must not run over a place where a result is missing, as if there were one.
    """
    there = [(x, one) for x, one in zip(xs, table, strict=True) if one["mean"] is not None]
    if not there:
        return
    heights = [math.nan if one["mean"] is None else 100 * one["mean"] for one in table]
    axes.plot(xs, heights, style, color=colour, lw=1.3, zorder=2)
    for x, one in there:
        axes.errorbar(
            x,
            100 * one["mean"],
            yerr=None if one["std"] is None else 100 * one["std"],
            color=colour,
            marker=marker,
            markersize=5,
            markerfacecolor="white" if one.get("unconverged") else colour,
            elinewidth=1,
            capsize=2.5,
            zorder=3,
        )


def panel_title(axes: Axes, text: str) -> None:
    """A heading that is never taken for markup."""
    axes.set_title(text if len(text) <= 38 else f"{text[:37]}…", loc="left", fontsize=10, parse_math=False)


def hollow_handle() -> Line2D:
    """What a legend says of hollow markers."""
    return Line2D([], [], color="#555555", marker="o", linestyle="", markerfacecolor="white", label="not converged")


def legend(figure: Figure, labels: Mapping[str, tuple[str, str, Any]], *, hollow: bool) -> None:
    """One legend below all panels: label -> colour, marker, line style."""
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle=style, markersize=5, label=label)
        for label, (colour, marker, style) in labels.items()
    ]
    if hollow:
        handles.append(hollow_handle())
    legend_below(figure, handles)
