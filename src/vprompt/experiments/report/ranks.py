"""Ranks of the methods over tasks: Friedman's test, and the differences that Nemenyi's test calls real."""

from __future__ import annotations

from vprompt.experiments.report.aggregate import on_task
from vprompt.experiments.report.study import Study
from vprompt.report.document import Chart, Charts, Curve, Dot, Paragraph, Section, points, simple_table
from vprompt.utils.statistics import ranks_of
from vprompt.utils.text import count, line, listed


def section(study: Study) -> Section | None:
    """The diagram of critical differences, over tasks on which all methods have a result; None of fewer than two."""
    means = {method: [on_task(study, method, task).mean for task in study.tasks] for method in study.methods}
    means = {method: scores for method, scores in means.items() if any(score is not None for score in scores)}
    rows = [[score for score in row if score is not None] for row in zip(*means.values(), strict=True)]
    rows = [row for row in rows if len(row) == len(means)]
    if len(rows) < 2 or len(means) < 2:
        return None
    methods, ranks = list(means), ranks_of(rows)
    order = sorted(range(len(methods)), key=ranks.means.__getitem__)
    best, names = min(ranks.means), [methods[m].label for m in order]
    behind = [methods[m].label for m in order if ranks.means[m] - best > ranks.critical]
    words = (
        f"Mean ranks over {len(rows)} of {count(len(study.tasks), 'task')}, 1 for the best. Friedman's test: "
        f"chi-squared {ranks.statistic:.2f} with {count(len(methods) - 1, 'degree')} of freedom, p = {ranks.p:.2g}. By "
        f"Nemenyi's test two methods differ, at the 5 % level, where their mean ranks are more than "
        f"{ranks.critical:.2f} apart; lines on the right join methods that it does not tell apart. "
        f"Behind {names[0]}: {listed(behind) if behind else 'none'}."
    )
    curves = [
        Curve(
            name=f"{methods[m].label}: {ranks.means[m]:.2f}",
            dots=[Dot(x=ranks.means[m], y=row)],
            style=methods[m].style,
        )
        for row, m in enumerate(order)
    ]
    right = max(ranks.means)
    for number, clique in enumerate(ranks.cliques, 1):
        ends = [(right + 0.25 * number, order.index(m)) for m in (clique[0], clique[-1])]
        joined = listed([methods[m].label for m in clique])
        curves.append(Curve(name=f"not told apart: {joined}", dots=points(ends), style=6, line="-", marks=False))
    chart = Chart(
        title="",
        x=f"mean rank of {study.metric} {study.score}",
        y="",
        alt=f"Mean ranks: {'; '.join(curve.name for curve in curves)}",
        curves=curves,
        rows=[line(name, 30) for name in names],
        rule=(best + ranks.critical, f"best + critical difference of {ranks.critical:.2f}"),
    )
    first = [sum(row[m] == max(row) for row in rows) for m in order]
    table = [[methods[m].label, f"{ranks.means[m]:.2f}", str(wins)] for m, wins in zip(order, first, strict=True)]
    blocks = [Paragraph(words), Charts([chart]), simple_table("Ranks", ["Method", "Mean rank", "Best on tasks"], table)]
    return Section(key="ranks", title="Ranks over tasks", blocks=blocks)
