"""Accuracy against the number of prompts: trained from scratch, and condensed with and without fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vprompt.analysis.study import TITLES, About, Runs, Study, make_plan, tested
from vprompt.experiments.bench.plan import MethodPlan, Plan, PlanError
from vprompt.experiments.bench.store import Store
from vprompt.utils.statistics import Seeds, difference, r_squared, seeds_of

Kind = Literal["scratch", "selected", "condensed"]

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Of the prompts, as in the paper; all of them are trained as well."""

LINEAR = "Linear"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One number of prompts.

    Args:
        share: Of the full number; 0 is the linear probe.
        prompts: Per block (deep) or in all (shallow), of those kept the mean; None where there is no result.
        accuracy: On the test images.
        change: That less the accuracy with all prompts trained, seed by seed.
        lr: What the prompts were trained with; None where tasks differ, or there is no result.
    """

    share: float
    prompts: float | None
    accuracy: Seeds
    change: Seeds
    lr: float | None


@dataclass(frozen=True, kw_only=True)
class Curve:
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
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Linearity:
    """Whether accuracy is linear in the number of prompts, all of them trained from scratch.

    Args:
        method: See `Curve`.
        task: See `Curve`.
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
class Sweep:
    """What `read` returns."""

    about: About
    criterion: str
    scope: str
    fine_tune_epochs: int
    curves: tuple[Curve, ...]
    linearity: tuple[Linearity, ...]


def plan_of(
    study: Study,
    *,
    methods: Sequence[str] = ("vpt-deep",),
    prompts: int | str = 20,
    shares: Sequence[float] = SHARES,
    fine_tune_epochs: int = 20,
    criterion: str = "taylor",
    scope: str = "global",
) -> Plan:
    """The plan of a sweep: all prompts, shares of them from scratch, and as many condensed from all.

    Args:
        study: Tasks and recipe.
        methods: Of `"vpt-deep"` and `"vpt-shallow"`.
        prompts: All of them, per block (deep) or in all (shallow); `"paper"` for what the papers have for each task.
        shares: Of the prompts, above 0 and at most 1; all of them are trained in any case.
        fine_tune_epochs: Of condensed prompts.
        criterion: See `vprompt.score`.
        scope: See `vprompt.select`.

    Raises:
        PlanError: If it cannot be meant.

    Example:
        >>> [method.label for method in plan_of(Study(), shares=(0.1,)).methods]
        ['Linear', 'VPT-Deep', 'From scratch 10 %', 'PC 10 %, not fine-tuned', 'PC 10 %']

    Source: Prompt Condensation (arXiv 2305.17223), Figures 1, 4, 5 and 6, Table 2.
    """
    if unknown := next((method for method in methods if method not in TITLES), None):
        raise PlanError(f"A sweep is of 'vpt-deep' or 'vpt-shallow', not of {unknown!r}.")
    if wrong := [share for share in shares if not 0 < share <= 1]:
        raise PlanError(f"The shares of the prompts must be above 0 and at most 1, not {wrong[0]}.")
    below = sorted({share for share in shares if share < 1})
    tables: list[dict[str, Any]] = [study.linear]
    for method in methods:
        before = f"{method.removeprefix('vpt-').capitalize()}: " if len(methods) > 1 else ""
        one = {"method": method}
        tables.append({"label": TITLES[method], **one})
        if below:
            tables += [
                {"label": f"{before}From scratch {{share%}}", **one, "share": below},
                {"label": f"{before}PC {{condense%}}, not fine-tuned", **one, "condense": below, "fine_tune": False},
                {"label": f"{before}PC {{condense%}}", **one, "condense": below},
            ]
    return make_plan(
        "sweep",
        study,
        tables,
        title="Accuracy against the number of prompts",
        description="All prompts, shares of them trained from scratch, and as many condensed from all of them, with "
        "and without fine-tuning; the linear probe has none.",
        source="Prompt Condensation (arXiv 2305.17223), Figures 1, 4, 5 and 6, Table 2",
        settings={
            "prompts": prompts,
            "fine_tune_epochs": fine_tune_epochs,
            "criterion": criterion,
            "scope": scope,
        },
    )


def read(plan: Plan, store: Store) -> Sweep:
    """The curves, from the results that are there.

    Args:
        plan: What `plan_of` returned.
        store: Where it was run, as far as it was.

    Raises:
        PlanError: If the plan cannot be meant.

    Example:
        >>> from vprompt.experiments.bench.store import open_store
        >>> found = read(plan_of(Study(seeds=1), shares=(0.5,)), open_store("nowhere"))
        >>> [(curve.kind, [point.share for point in curve.points]) for curve in found.curves]
        [('scratch', [0.0, 0.5, 1.0]), ('selected', [0.5]), ('condensed', [0.5])]
        >>> len(found.about.problems)
        5
    """
    runs = Runs(plan, store)
    methods = list(dict.fromkeys(method.settings["method"] for method in plan.methods if method.label != LINEAR))
    curves = [curve for method in methods for task in runs.places for curve in _curves(runs, method, task)]
    settings = plan.settings
    return Sweep(
        about=runs.about(),
        criterion=settings["criterion"],
        scope=settings["scope"],
        fine_tune_epochs=settings["fine_tune_epochs"],
        curves=tuple(curves),
        linearity=tuple(_linearity(curve) for curve in curves if curve.kind == "scratch"),
    )


def _curves(runs: Runs, method: str, task: str | None) -> list[Curve]:
    points: dict[Kind, list[Point]] = {"scratch": [], "selected": [], "condensed": []}
    for one in runs.plan.methods:
        if one.label == LINEAR or one.settings["method"] == method:
            kind, share = _place(one)
            points[kind].append(_point(runs, task, one.label, share, full=TITLES[method]))
    return [
        Curve(method=method, kind=kind, task=task, points=tuple(sorted(row, key=lambda point: point.share)))
        for kind, row in points.items()
        if row
    ]


def _place(method: MethodPlan) -> tuple[Kind, float]:
    """Where a method of the plan belongs: which curve, and which share of the prompts."""
    if method.label == LINEAR:
        return "scratch", 0.0
    ratio = method.settings.get("condense")
    if ratio is not None:
        return "condensed" if method.settings.get("fine_tune", True) else "selected", ratio
    return "scratch", 1.0 if method.share is None else method.share


def _point(runs: Runs, task: str | None, label: str, share: float, *, full: str) -> Point:
    results = [] if task is None else runs.results(task, label)
    counts = [sum(result["prompt_counts"]) for result in results]
    blocks = (
        1 if results and results[0]["method"] == "vpt-shallow" else len(results[0]["prompt_counts"]) if results else 1
    )
    accuracy = runs.seeds(task, label, tested)
    return Point(
        share=share,
        prompts=sum(counts) / len(counts) / blocks if counts else None,
        accuracy=accuracy,
        change=difference(accuracy, runs.seeds(task, full, tested)),
        lr=results[0]["settings"].get("lr") if results else None,
    )


def _linearity(curve: Curve) -> Linearity:
    at = {point.share: point.accuracy for point in curve.points}
    trained = [(share, one.mean) for share, one in at.items() if share and one.mean is not None]
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


def _times(one: Seeds, factor: float) -> Seeds:
    return seeds_of([None if value is None else factor * value for value in one.values])


def _gain(none: float | None, half: float | None, full: float | None) -> float | None:
    if none is None or half is None or full is None or full <= none:
        return None
    return (half - none) / (full - none)
