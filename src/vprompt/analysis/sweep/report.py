"""Accuracy against the number of prompts."""

from __future__ import annotations

from collections.abc import Sequence

from vprompt.analysis import words
from vprompt.analysis.base import View
from vprompt.analysis.options import depth_title
from vprompt.analysis.sweep.measure import Linearity, SharePoint, SweepResult
from vprompt.analysis.words import share_of, signed
from vprompt.report.document import Block, Chart, Charts, Curve, Table, simple_table
from vprompt.utils.text import count, show

Place = tuple[str, str | None]
"""Method and task; no task is the mean over all. Each is a panel and a table."""

Points = dict[str, dict[float, SharePoint]]
"""Kind of curve -> share -> point."""

KINDS = {"scratch": "from scratch", "condensed": "condensed, fine-tuned", "selected": "condensed, not fine-tuned"}

DODGE = {"scratch": 0.0, "condensed": 0.8, "selected": -0.8}
"""Percent of the prompts by which curves are moved aside, so that error bars do not hide each other."""

FAR = 1.5
"""Times the range of all others."""

FEW_TASKS = 4
"""Have a table each in a terminal."""


def _points(result: SweepResult) -> dict[Place, Points]:
    places: dict[Place, Points] = {}
    for curve in result.curves:
        kinds = places.setdefault((curve.method, curve.task), {kind: {} for kind in KINDS})
        kinds[curve.kind] = {point.share: point for point in curve.points}
    return places


def _answer(result: SweepResult) -> str:
    if not result.curves or not result.linearity:
        return "There is nothing to say yet." + words.caveats(result.about)
    first = result.linearity[0]
    points = _points(result)[first.method, first.task]
    parts = [_linear(result, first, points["scratch"]), _condensed(points)]
    return " ".join(part for part in parts if part) + words.caveats(result.about)


def _linear(result: SweepResult, linearity: Linearity, scratch: dict[float, SharePoint]) -> str:
    at = {share: point.accuracy.mean for share, point in scratch.items()}
    name, full, none = _heading(result, (linearity.method, linearity.task)), at.get(1.0), at.get(0.0)
    if full is None:
        return f"{name}: no seed has a result with all prompts{' on all tasks' if linearity.task is None else ''}."
    text = f"{name}: {100 * full:.1f} % with all prompts" + ("" if none is None else f", {100 * none:.1f} % with none")
    first, second, bend = (seeds and seeds.mean for seeds in (linearity.first, linearity.second, linearity.bend))
    if linearity.bend is None or first is None or second is None or bend is None:
        return f"{text}."
    half, low, then = share_of(linearity.half, "g"), share_of(linearity.low, "g"), signed(-second)
    text += f"; trained from scratch with {half} of them {signed(-first)} points, from there to {low} {then}: "
    text += "" if linearity.bend.std is not None else "by one seed, "
    if abs(bend) <= (linearity.bend.std or 0.0):
        return text + "no clear bend beside the spread of the seeds, so the paper's claim is not confirmed here."
    if bend > 0:
        return text + "not linear, the fewer prompts the more each counts, as the paper says."
    return text + "the paper's claim that most is lost below a half does not hold here."


def _condensed(points: Points) -> str:
    """All kinds at the smallest share to which was condensed."""
    low = min((share for share, point in points["condensed"].items() if point.change.mean is not None), default=None)
    if low is None:
        return ""
    at_low = [(name, points[kind][low].change.mean) for kind, name in KINDS.items() if low in points[kind]]
    changes = ", ".join(f"{signed(change)} {name}" for name, change in at_low if change is not None)
    return f"With {share_of(low, 'g')} of the prompts, points against all of them: {changes}."


def _heading(result: SweepResult, place: Place) -> str:
    return f"{depth_title(place[0])}, {result.about.title(place[1])}"


def _tables(result: SweepResult) -> list[Block]:
    places = _points(result)
    means = [place for place in places if place[1] is None]
    shown = means if means and len(places) > FEW_TASKS else list(places)
    rest = [place for place in places if place not in shown]
    first, tasks = (
        [*(_table(result, place, places[place]) for place in some), *_linearity(result, some)] for some in (shown, rest)
    )
    seeds = [_seeds(result, place, points) for place, points in places.items() if place[1] is not None]
    return words.study_blocks(result.about, first, tasks, seeds)


def _seeds(result: SweepResult, place: Place, points: Points) -> Table:
    rows = [
        (f"{name}, {share_of(share, 'g')}", point.accuracy)
        for kind, name in KINDS.items()
        for share, point in points[kind].items()
    ]
    return words.seed_table(result.about, _heading(result, place), rows)


def _table(result: SweepResult, place: Place, points: Points) -> Table:
    rows: list[list[str]] = []
    for share in sorted({share for shares in points.values() for share in shares}):
        scratch = points["scratch"].get(share)
        accuracies = [words.accuracy(shares[share].accuracy) if share in shares else "" for shares in points.values()]
        counts = (shares[share].prompts for kind, shares in points.items() if share in shares and kind != "selected")
        each = " / ".join(dict.fromkeys(show(prompts, ".3g") for prompts in counts))
        rows.append([share_of(share, "g") if share else "none", each, *accuracies, show(scratch and scratch.lr)])
    return simple_table(
        f"{_heading(result, place)}: test accuracy (%); fine-tuned for {count(result.fine_tune_epochs, 'epoch')}; "
        "each: prompts from scratch / condensed, where these differ",
        ["prompts", "each", "scratch", "condensed", "not tuned", "lr"],
        rows,
    )


def _linearity(result: SweepResult, places: Sequence[Place]) -> list[Table]:
    found = [row for row in result.linearity if row.half is not None and (row.method, row.task) in places]
    if not found:
        return []
    half, low = (share_of(share, "g") for share in (found[0].half, found[0].low))
    rows = [
        [
            _heading(result, (row.method, row.task)),
            *(words.change(drop).removeprefix("+") for drop in (row.first, row.second)),
            share_of(row.gain, ".0f"),
            show(row.r2, ".2f"),
        ]
        for row in found
    ]
    caption = (
        f"From scratch: points lost to {half} of the prompts, then to {low}; share of the gain over the linear "
        f"probe that is there at {half}; R² of a straight line"
    )
    return [simple_table(caption, ["", f"to {half}", f"to {low}", "gain", "R²"], rows)]


def _figure(result: SweepResult) -> Charts:
    charts = [_chart(_heading(result, place), points) for place, points in _points(result).items()]
    return Charts(charts, list(enumerate(KINDS.values())), rings="not converged")


def _chart(title: str, points: Points) -> Chart:
    far, full = _far_below(points), points["scratch"].get(1.0)
    series: list[Curve] = []
    for style, (kind, name) in enumerate(KINDS.items()):
        shown = [point for share, point in points[kind].items() if share or far is None]
        shown += [full] if shown and kind != "scratch" and full is not None else []
        xs = [100 * point.share + (DODGE[kind] if 0 < point.share < 1 else 0) for point in shown]
        dots = words.dots(zip(xs, (point.accuracy for point in shown), strict=True))
        series.append(Curve(name=name, dots=dots, style=style, line="--" if kind == "selected" else "-"))
    x = "prompts (% of all)" + ("" if far is None else f"; {100 * far:.1f} % with none")
    return Chart(title=title, x=x, y="test accuracy (%)", curves=series)


def _far_below(points: Points) -> float | None:
    """The linear probe where it lies so far below that nothing else could be told apart; it is then put in words."""
    means = [(share, point.accuracy.mean) for shares in points.values() for share, point in shares.items()]
    trained = [mean for share, mean in means if share and mean is not None]
    none = next((mean for share, mean in means if not share), None)
    if not trained or none is None or none > min(trained) - FAR * max(max(trained) - min(trained), 0.02):
        return None
    return none


VIEW = View(
    title="Accuracy against the number of prompts", answer=_answer, tables=_tables, figure=_figure, result=SweepResult
)
