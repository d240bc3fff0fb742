"""The report of the rank of attention with prompts and without, and of the law of its growth."""

from __future__ import annotations

import math

from vprompt.analysis.base import View
from vprompt.analysis.rank.law import Law
from vprompt.analysis.rank.measure import Ranks, RankStudy
from vprompt.report.document import Block, Chart, Charts, Column, Dot, Series, Table, columns, table
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
    laws = "; ".join(f"at ε = {name} {_WORDS[law.verdict]}{_fits(law)}" for name, law in study.laws.items())
    text = (
        f"Beside {amount(bare.tokens)} tokens, {amount(full.prompts)} prompts change the share of the sum that a "
        f"quarter of the singular values of attention holds from {percent(before)} to {percent(after)} %: the spectrum "
        f"{'hardly changes, as in the paper' if same else 'does change, unlike in the paper'}. As for the growth of "
        f"the rank, {laws}."
    )
    likeness = next(iter(study.laws.values())).likeness
    told = any(law.verdict in ("logarithmic", "linear") for law in study.laws.values())
    if told and likeness is not None and likeness >= ALIKE:
        text += (
            " With so few prompts to the tokens a straight line fits an exact logarithm with R² "
            f"{likeness:.3f}, so that the two can hardly be told apart."
        )
    return text


def _fits(law: Law) -> str:
    if law.verdict in ("none", "open"):
        return ""
    return f" (R² {_r2(law.log_r2)}, straight line {_r2(law.linear_r2)})"


def _r2(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value > -10 else "< -10"


def tables(study: RankStudy) -> list[Block]:
    """Ranks, shares and laws by number of prompts; ranks by block; ranks by adapter where there are several."""
    names, points, several = list(study.laws), study.points, len(study.names) > 1
    bare, full = points[0], points[-1]
    over = " (mean ± standard deviation over adapters)" if several else ""
    adapters: list[Column] = [("Adapters", lambda point: str(point.adapters))] if several else []
    prompts: Column = ("Prompts", lambda point: amount(point.prompts))
    blocks: list[Block] = [
        table(
            f"Numerical rank of attention matrices at relative error ε, mean over images, heads and blocks{over}; "
            f"prompts {'each adapter was trained with' if study.varied == 'trained' else 'kept in each block'}",
            points,
            prompts,
            *adapters,
            ("Rows", lambda point: amount(point.prompts + point.tokens)),
            *columns(
                names, "ε = {}".format, lambda name, point: spread(point.ranks[name], point.stds[name], 2, factor=1)
            ),
        ),
        table(
            "Share (%) that the largest singular values have of the sum of all, and of the sum of their squares",
            points,
            prompts,
            *columns(bare.sums, "Sum {} %".format, lambda part, point: percent(point.sums[part])),
            *columns(bare.sums, "Sq. {} %".format, lambda part, point: percent(point.energies[part])),
        ),
        table(
            "Growth of the rank fitted by C · (log(n + m) - log n) and by C · m; a law holds if its R² is the higher "
            "one and at least 0.9",
            study.laws.items(),
            ("ε", lambda entry: entry[0]),
            ("C (log)", lambda entry: _r2(entry[1].log_slope)),
            ("R² (log)", lambda entry: _r2(entry[1].log_r2)),
            ("C (straight)", lambda entry: _r2(entry[1].linear_slope)),
            ("R² (straight)", lambda entry: _r2(entry[1].linear_r2)),
            ("Verdict", lambda entry: _VERDICTS[entry[1].verdict]),
        ),
        table(
            f"Numerical rank by block, without prompts and with {amount(full.prompts)}",
            range(len(bare.block_ranks[names[0]])),
            ("Block", str),
            *columns(
                [(name, point) for name in names for point in (bare, full)],
                lambda key: f"{key[0]}, {amount(key[1].prompts)}",
                lambda key, block: f"{key[1].block_ranks[key[0]][block]:.1f}",
            ),
        ),
    ]
    return [*blocks, _by_adapter(study)] if several else blocks


def _by_adapter(study: RankStudy) -> Table:
    trained = study.varied == "trained"

    def name(adapter: tuple[str, Ranks]) -> str:
        return line(f"{amount(adapter[1].points[-1].prompts)}: {adapter[0]}" if trained else adapter[0], 28)

    def grown(epsilon: str, adapter: tuple[str, Ranks]) -> str:
        ranks = adapter[1]
        first, last = (point.ranks[epsilon] for point in (ranks.points[0], ranks.points[-1]))
        return f"{first:.1f}-{last:.1f} {_VERDICTS[ranks.laws[epsilon].verdict]}"

    return table(
        "Numerical rank without prompts and with all, and what law it follows, by adapter"
        + (" (before its name the prompts of a block)" if trained else ""),
        zip(study.names, study.adapters, strict=True),
        ("Adapter", name),
        *columns(study.laws, "ε = {}".format, grown),
    )


def figure(study: RankStudy) -> Charts:
    """Left: cumulative singular values. Right: ranks against prompts, with both laws."""
    points, names = study.points, list(study.laws)
    spectra = [
        Series(
            name=f"{amount(points[index].prompts)} prompts",
            dots=[Dot(x=k, y=100 * share) for k, share in enumerate([0.0, *points[index].cumulative])],
            style=len(names) + number,
            line=("-", "-.", "--")[number],
            marks=False,
        )
        for number, index in enumerate(sorted({0, len(points) // 2, len(points) - 1}))
    ]
    most = max(point.prompts for point in points)
    ranks: list[Series] = []
    for style, (name, law) in enumerate(study.laws.items()):
        dots = [Dot(x=point.prompts, y=point.ranks[name], error=point.stds[name]) for point in points]
        ranks.append(Series(name=f"ε = {name}", dots=dots, style=style))
        if study.varied == "trained":
            last = [adapter.points[-1] for adapter in study.adapters]
            each = [Dot(x=point.prompts, y=point.ranks[name], hollow=True) for point in last]
            ranks.append(Series(name="each adapter", dots=each, style=style))
        grid = [most * step / 100 for step in range(101)] if law.verdict != "open" else []
        bent = [Dot(x=m, y=dots[0].y + (law.log_slope or 0.0) * math.log1p(m / law.tokens)) for m in grid]
        straight = [Dot(x=m, y=dots[0].y + (law.linear_slope or 0.0) * m) for m in grid]
        ranks += [Series(name="logarithmic law", dots=bent, style=style, line="-", marks=False)]
        ranks += [Series(name="straight line", dots=straight, style=style, line=":", marks=False)]
    titles = ("Cumulative singular values", "Logarithmic law (solid) and straight line (dotted)")
    xs = ("number of singular values, largest first", "prompts in each block")
    ys = ("share of the sum of all (%)", "numerical rank of attention")
    parts = zip(titles, xs, ys, (spectra, ranks), strict=True)
    charts = [Chart(title=title, x=x, y=y, series=series, zero=True) for title, x, y, series in parts]
    legend = [(series.style, series.name) for series in spectra]
    return Charts(charts, [*legend, *((style, f"ε = {name}") for style, name in enumerate(names))], rings="one adapter")


VIEW = View(
    title="Rank of attention against the number of prompts",
    answer=answer,
    tables=tables,
    figure=figure,
    result=RankStudy,
)
