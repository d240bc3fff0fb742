"""Plan of a sweep over numbers of prompts, and its curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vprompt.analysis.options import depth_title
from vprompt.analysis.study import (
    Compared,
    RunResult,
    Runs,
    StudySummary,
    check_choice,
    check_shares,
    linear_probe,
    make_plan,
)
from vprompt.analysis.sweep import Sweep
from vprompt.experiments.bench.plan import Plan
from vprompt.experiments.bench.store import Store
from vprompt.utils.statistics import Seeds, difference, r_squared, seeds_of

Kind = Literal["scratch", "selected", "condensed"]


@dataclass(frozen=True, kw_only=True)
class SharePoint(Compared):
    """One number of prompts, against all of them trained.

    Args:
        share: Of the full number; 0 is the linear probe.
        prompts: Per block (deep) or in all (shallow), of those retained the mean; None where there is no result.
        lr: What the prompts were trained with; None where tasks differ, or there is no result.
    """

    share: float
    prompts: float | None
    lr: float | None


@dataclass(frozen=True, kw_only=True)
class ShareCurve:
    """Accuracies at several shares of the prompts, smallest first.

    Args:
        method: `"vpt-deep"` or `"vpt-shallow"`.
        kind: `"scratch"`: trained with so many, the linear probe and all prompts among them; `"selected"`: the best of
            all, as trained; `"condensed"`: these, fine-tuned.
        task: None is the mean over all tasks.
        points: One for each share.
    """

    method: str
    kind: Kind
    task: str | None
    points: tuple[SharePoint, ...]


@dataclass(frozen=True, kw_only=True)
class Linearity:
    """Whether accuracy is linear in the number of prompts, all of them trained from scratch.

    Args:
        method: See `ShareCurve`.
        task: See `ShareCurve`.
        r2: Part of the variance of the mean accuracies that a straight line in the share explains, without the linear
            probe; None with fewer than three shares.
        half: The share between, the nearest to a half; None where there is none.
        low: The smallest share.
        first: Accuracy with all prompts less that at `half`.
        second: Accuracy at `half` less that at `low`.
        bend: How much steeper the second drop is than the first, per share of the prompts; 0 on a straight line.
        gain: Which part of what all prompts gain over the linear probe is there at `half`; None where they gain none.
    """

    method: str
    task: str | None
    r2: float | None
    half: float | None
    low: float | None
    first: Seeds | None
    second: Seeds | None
    bend: Seeds | None
    gain: float | None


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Curves of a sweep, and whether they are linear."""

    about: StudySummary
    criterion: str
    scope: str
    fine_tune_epochs: int
    curves: tuple[ShareCurve, ...]
    linearity: tuple[Linearity, ...]


def plan_of(options: Sweep) -> Plan:
    """The plan of a sweep: all prompts, shares of them from scratch, and as many condensed from all.

    Raises:
        PlanError: If it cannot be meant.

    Example:
        >>> [method.label for method in plan_of(Sweep(shares=(0.1,))).methods]
        ['Linear', 'VPT-Deep', 'From scratch 10 %', 'PC 10 %, not fine-tuned', 'PC 10 %']

    Source: Prompt Condensation (arXiv 2305.17223), Figures 1, 4, 5 and 6, Table 2.
    """
    check_choice(options, "method", options.method)
    check_shares("shares of the prompts", options.shares)
    tables = [table for method in _methods(options) for _, _, table in _trainings(options, method)[1:]]
    return make_plan(
        options,
        [linear_probe(options.training), *tables],
        title="Accuracy against the number of prompts",
        description="All prompts, shares of them trained from scratch, and as many condensed from all of them, with "
        "and without fine-tuning; the linear probe has none.",
        source="Prompt Condensation (arXiv 2305.17223), Figures 1, 4, 5 and 6, Table 2",
        settings={**vars(options.condensing), "fine_tune_epochs": options.fine_tune_epochs},
    )


def _methods(options: Sweep) -> Sequence[str]:
    return ("vpt-deep", "vpt-shallow") if options.method == "both" else (options.method,)


def _trainings(options: Sweep, method: str) -> list[tuple[Kind, float, dict[str, Any]]]:
    """Curve, share and table of everything that is trained with a method, the linear probe first."""
    before = f"{method.removeprefix('vpt-').capitalize()}: " if options.method == "both" else ""
    below = {share: f"{100 * share:g} %" for share in sorted({share for share in options.shares if share < 1})}
    own = {"method": method}
    return [
        ("scratch", 0.0, linear_probe(options.training)),
        ("scratch", 1.0, {"label": depth_title(method), **own}),
        *(("scratch", n, {"label": f"{before}From scratch {text}", **own, "share": n}) for n, text in below.items()),
        *(
            ("selected", n, {"label": f"{before}PC {text}, not fine-tuned", **own, "condense": n, "fine_tune": False})
            for n, text in below.items()
        ),
        *(("condensed", n, {"label": f"{before}PC {text}", **own, "condense": n}) for n, text in below.items()),
    ]


def read(options: Sweep, store: Store) -> SweepResult:
    """The curves of a plan, from the results that are there.

    Example:
        >>> from vprompt.analysis.options import Training
        >>> from vprompt.experiments.bench.store import open_store
        >>> result = read(Sweep(training=Training(seeds=1), shares=(0.5,)), open_store("nowhere"))
        >>> [(curve.kind, [point.share for point in curve.points]) for curve in result.curves]
        [('scratch', [0.0, 0.5, 1.0]), ('selected', [0.5]), ('condensed', [0.5])]
        >>> len(result.about.problems)
        5
    """
    runs = Runs(plan_of(options), store)
    curves = [
        curve for method in _methods(options) for task in runs.places for curve in _curves(runs, options, method, task)
    ]
    return SweepResult(
        about=runs.about(),
        criterion=options.condensing.criterion,
        scope=options.condensing.scope,
        fine_tune_epochs=options.fine_tune_epochs,
        curves=tuple(curves),
        linearity=tuple(_linearity(curve) for curve in curves if curve.kind == "scratch"),
    )


def _curves(runs: Runs, options: Sweep, method: str, task: str | None) -> list[ShareCurve]:
    points: dict[Kind, list[SharePoint]] = {}
    for kind, share, table in sorted(_trainings(options, method), key=lambda entry: entry[1]):
        points.setdefault(kind, []).append(_point(runs, task, table["label"], share, full=depth_title(method)))
    kinds: tuple[Kind, ...] = get_args(Kind)
    return [
        ShareCurve(method=method, kind=kind, task=task, points=tuple(points[kind])) for kind in kinds if kind in points
    ]


def _point(runs: Runs, task: str | None, label: str, share: float, *, full: str) -> SharePoint:
    results = [] if task is None else runs.results(task, label)
    return SharePoint(
        share=share,
        prompts=seeds_of([_prompts(result) for result in results]).mean,
        lr=results[0]["settings"].get("lr") if results else None,
        **vars(runs.compared(task, label, full)),
    )


def _prompts(result: RunResult) -> float:
    """Mean over the blocks that were trained with prompts."""
    trained = [count for count in (result.get("before") or result)["prompt_counts"] if count]
    return sum(result["prompt_counts"]) / max(1, len(trained))


def _linearity(curve: ShareCurve) -> Linearity:
    at = {point.share: point.accuracy for point in curve.points}
    trained = [(share, seeds.mean) for share, seeds in at.items() if share and seeds.mean is not None]
    between = [share for share in at if 0 < share < 1]
    low = min(between, default=None)
    half = min((share for share in between if share != low), key=lambda share: abs(share - 0.5), default=None)
    first = second = bend = None
    if half is not None and low is not None:
        first, second = difference(at[1.0], at[half]), difference(at[half], at[low])
        bend = difference(_times(second, 1 / (half - low)), _times(first, 1 / (1 - half)))
    return Linearity(
        method=curve.method,
        task=curve.task,
        r2=r_squared([share for share, _ in trained], [mean for _, mean in trained]),
        half=half,
        low=low,
        first=first,
        second=second,
        bend=bend,
        gain=None if half is None else _gain(at[0.0].mean, at[half].mean, at[1.0].mean),
    )


def _times(seeds: Seeds, factor: float) -> Seeds:
    return seeds_of([None if value is None else factor * value for value in seeds.values])


def _gain(none: float | None, half: float | None, full: float | None) -> float | None:
    if none is None or half is None or full is None or full <= none:
        return None
    return (half - none) / (full - none)
