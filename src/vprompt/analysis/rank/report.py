"""The report of the rank of attention with prompts and without, and of the law of its growth."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vprompt.analysis.base import View
from vprompt.analysis.rank.law import Law
from vprompt.analysis.rank.measure import LIVE, RankStudy
from vprompt.report.document import Block, Chart, Charts, Curve, Dot, Table, simple_table
from vprompt.utils.text import amount, line, percent, spread

UNCHANGED = 0.05
"""Within it, the share that a quarter of the singular values holds counts as unchanged by prompts."""

ALIKE = 0.99
"""R² of a straight line on an exact logarithm, from which on the two laws can hardly be told apart."""

_WORDS = {
    "logarithmic": "the logarithmic law holds",
    "linear": "a straight line fits better than the logarithmic law",
    "neither": "neither the logarithmic law nor a straight line holds",
    "none": "the rank does not grow",
    "open": "there are too few numbers of prompts to tell",
}

_VERDICTS = {"logarithmic": "log", "linear": "line", "neither": "neither", "none": "none", "open": "open"}


def answer(study: RankStudy) -> str:
    """Whether attention stays low-rank, and what law its rank follows."""
    bare, full = study.points[0], study.points[-1]
    before, after = bare.sums["25"], full.sums["25"]
    same = abs(after - before) <= UNCHANGED
    laws = ". Of ".join(
        f"{of}, " + "; ".join(f"at {_epsilon(n)} {_WORDS[study.laws[n].verdict]}{_fits(study.laws[n])}" for n in names)
        for of, names in _kinds(study).items()
    )
    text = (
        f"Beside {amount(bare.tokens)} tokens, {amount(full.prompts)} prompts change the share of the sum that a "
        f"quarter of the singular values of attention holds from {percent(before)} to {percent(after)} %: the spectrum "
        f"{'hardly changes, as in the paper' if same else 'does change, unlike in the paper'}. As for the growth of "
        f"the rank of {laws}."
    )
    likeness = next(iter(study.laws.values())).likeness
    told = any(law.verdict in ("logarithmic", "linear") for law in study.laws.values())
    if told and likeness is not None and likeness >= ALIKE:
        text += (
            " With so few prompts to the tokens a straight line fits an exact logarithm with R² "
            f"{likeness:.3f}, so that the two can hardly be told apart."
        )
    return text


def _kinds(study: RankStudy) -> dict[str, list[str]]:
    """What ranks are of -> their names; earlier versions did not measure the live rows."""
    live = [name for name in study.laws if name.endswith(LIVE)]
    every = [name for name in study.laws if name not in live]
    return {"all rows": every, "live rows": live} if live else {"all rows": every}


def _epsilon(name: str) -> str:
    return f"ε = {name.removesuffix(LIVE)}"


def _fits(law: Law) -> str:
    if law.verdict in ("none", "open"):
        return ""
    return f" (R² {_r2(law.log_r2)}, straight line {_r2(law.linear_r2)})"


def _r2(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value > -10 else "< -10"


def tables(study: RankStudy) -> list[Block]:
    """Ranks, shares and laws by number of prompts; ranks by block; ranks by adapter where there are several."""
    points = study.points
    bare, full = points[0], points[-1]
    shares = [
        [amount(point.prompts), *(percent(of_all[part]) for of_all in (point.sums, point.energies) for part in of_all)]
        for point in points
    ]
    laws = [
        [name, *map(_r2, (law.log_slope, law.log_r2, law.linear_slope, law.linear_r2)), _VERDICTS[law.verdict]]
        for name, law in study.laws.items()
    ]
    kinds = _kinds(study)
    blocks: list[Block] = [
        *(_ranks(study, of, names) for of, names in kinds.items()),
        simple_table(
            "Share (%) that the largest singular values have of the sum of all, and of the sum of their squares",
            ["Prompts", *(f"{what} {part} %" for what in ("Sum", "Sq.") for part in bare.sums)],
            shares,
        ),
        simple_table(
            "Growth of the rank fitted by C · (log(n + m) - log n) and by C · m; a law holds if its R² is the higher "
            "one and at least 0.9",
            ["ε", "C (log)", "R² (log)", "C (straight)", "R² (straight)", "Verdict"],
            laws,
        ),
    ]
    for of, names in kinds.items():
        pairs = [(name, point) for name in names for point in (bare, full)]
        by_block = [
            [str(block), *(f"{point.block_ranks[name][block]:.1f}" for name, point in pairs)]
            for block in range(len(bare.block_ranks[names[0]]))
        ]
        caption = f"Numerical rank of {of} by block, without prompts and with {amount(full.prompts)}"
        head = ["Block", *(f"{name.removesuffix(LIVE)}, {amount(point.prompts)}" for name, point in pairs)]
        blocks.append(simple_table(caption, head, by_block))
    return [*blocks, *(_by_adapter(study, *kind) for kind in kinds.items() if len(study.names) > 1)]


def _ranks(study: RankStudy, of: str, names: Sequence[str]) -> Table:
    several = len(study.names) > 1
    rows = [
        [
            amount(point.prompts),
            *([str(point.adapters)] if several else []),
            amount(point.prompts + point.tokens),
            *(spread(point.ranks[name], point.stds[name], 2, factor=1) for name in names),
        ]
        for point in study.points
    ]
    over = " (mean ± standard deviation over adapters)" if several else ""
    return simple_table(
        f"Numerical rank of {of} of attention matrices at relative error ε, mean over images, heads and blocks{over}; "
        f"prompts {'each adapter was trained with' if study.varied == 'trained' else 'kept in each block'}",
        ["Prompts", *(["Adapters"] if several else []), "Columns", *map(_epsilon, names)],
        rows,
    )


def _by_adapter(study: RankStudy, of: str, names: Sequence[str]) -> Table:
    trained = study.varied == "trained"
    rows: list[list[str]] = []
    for name, ranks in zip(study.names, study.adapters, strict=True):
        first, last = ranks.points[0], ranks.points[-1]
        grown = [
            f"{first.ranks[epsilon]:.1f}-{last.ranks[epsilon]:.1f} {_VERDICTS[ranks.laws[epsilon].verdict]}"
            for epsilon in names
        ]
        rows.append([line(f"{amount(last.prompts)}: {name}" if trained else name, 28), *grown])
    caption = f"Numerical rank of {of} without prompts and with all, and what law it follows, by adapter"
    caption += " (before its name the prompts of a block)" if trained else ""
    return simple_table(caption, ["Adapter", *map(_epsilon, names)], rows)


def figure(study: RankStudy) -> Charts:
    """Left: cumulative singular values. Right of it: ranks against prompts, with both laws, of all and of live rows."""
    points, kinds = study.points, _kinds(study)
    first = kinds["all rows"]
    spectra = [
        Curve(
            name=f"{amount(points[index].prompts)} prompts",
            dots=[Dot(x=k, y=100 * share) for k, share in enumerate([0.0, *points[index].cumulative])],
            style=len(first) + number,
            line=("-", "-.", "--")[number],
            marks=False,
        )
        for number, index in enumerate(sorted({0, len(points) // 2, len(points) - 1}))
    ]
    x, y = "number of singular values, largest first", "share of the sum of all (%)"
    charts = [Chart(title="Cumulative singular values", x=x, y=y, curves=spectra, zero=True)]
    x, y = "prompts in each block", "numerical rank of attention"
    for of, names in kinds.items():
        title = f"Of {of}: logarithmic law (solid), straight line (dotted)"
        charts.append(Chart(title=title, x=x, y=y, curves=_growth(study, names), zero=True))
    legend = [(series.style, series.name) for series in spectra]
    return Charts(
        charts, [*legend, *((style, _epsilon(name)) for style, name in enumerate(first))], rings="one adapter"
    )


def _growth(study: RankStudy, names: Sequence[str]) -> list[Curve]:
    """Ranks against prompts, and the laws fitted to them."""
    points = study.points
    most = max(point.prompts for point in points)
    ranks: list[Curve] = []
    for style, name in enumerate(names):
        law = study.laws[name]
        dots = [Dot(x=point.prompts, y=point.ranks[name], error=point.stds[name]) for point in points]
        ranks.append(Curve(name=_epsilon(name), dots=dots, style=style))
        if study.varied == "trained":
            last = [adapter.points[-1] for adapter in study.adapters]
            each = [Dot(x=point.prompts, y=point.ranks[name], hollow=True) for point in last]
            ranks.append(Curve(name="each adapter", dots=each, style=style))
        grid = [most * step / 100 for step in range(101)] if law.verdict != "open" else []
        bent = [Dot(x=m, y=dots[0].y + (law.log_slope or 0.0) * math.log1p(m / law.tokens)) for m in grid]
        straight = [Dot(x=m, y=dots[0].y + (law.linear_slope or 0.0) * m) for m in grid]
        ranks += [Curve(name="logarithmic law", dots=bent, style=style, line="-", marks=False)]
        ranks += [Curve(name="straight line", dots=straight, style=style, line=":", marks=False)]
    return ranks


VIEW = View(
    title="Rank of attention against the number of prompts",
    answer=answer,
    tables=tables,
    figure=figure,
    result=RankStudy,
)
