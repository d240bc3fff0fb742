"""E2VPT's ablations."""

from __future__ import annotations

from collections.abc import Sequence

from vprompt.analysis import words
from vprompt.analysis.base import View
from vprompt.analysis.e2vpt.measure import AblationEntry, AblationRow, E2VPTResult, PartAblation
from vprompt.analysis.study import LINEAR
from vprompt.analysis.words import share_of
from vprompt.report.document import Block, Chart, Charts, Curve, Dot, Paragraph, Table, simple_table
from vprompt.utils.statistics import ranks_of
from vprompt.utils.text import amount, line

TITLES = {
    "parts": "Kinds of prompts",
    "sharing": "What key-value prompts share",
    "lengths": "Numbers of prompts",
    "pruning": "Pruning",
    "criteria": "Pruning by other criteria, and by chance",
    "rewinding": "What is left, trained again from",
}

MOST_TASKS = 6
"""Have a colour each; of more, only the mean is drawn."""

MEAN = 6
"""Style of the mean over tasks."""

FEW_ROWS = 3
"""Are all in the answer."""


def _answer(result: E2VPTResult) -> str:
    caveats = words.caveats(result.about)
    if not result.ablations:
        return "There is no ablation." + caveats
    default = result.ablations[0].rows[0].entries[0]
    where = result.about.title(default.task)
    name = f"E2VPT with {result.prompts} visual and {result.kv_prompts} key-value prompts"
    if default.accuracy.mean is None:
        return f"{name}, {where}: there is no result yet." + caveats
    share = share_of(default.share, ".2f")
    learned = "" if default.share is None else f", {share} of the backbone's parameters learned"
    return f"{name}, {where}: {100 * default.accuracy.mean:.1f} %{learned}. {_changes(result.ablations)}{caveats}"


def _changes(ablations: Sequence[PartAblation]) -> str:
    """Settings that all rows of an ablation change, or where they are many those that change most."""
    changes: list[str] = []
    for ablation in ablations:
        means = [(row.entries[0].change.mean, line(row.label, 40)) for row in _drawn(ablation)]
        known = sorted(((mean, label) for mean, label in means if mean is not None), key=lambda entry: entry[0])
        few = len(known) <= FEW_ROWS
        shown = [f"{words.signed(mean)} ({label})" for mean, label in (known if few else [known[0], known[-1]])]
        changes += [f"{TITLES[ablation.part].lower()} {(', ' if few else ' to ').join(shown)}"] if known else []
    return f"Points against it: {'; '.join(changes)}." if changes else ""


def _tables(result: E2VPTResult) -> list[Block]:
    tasks = [entry.task for entry in result.ablations[0].rows[0].entries] if result.ablations else []
    tables = [[_table(result, ablation, number) for ablation in result.ablations] for number in range(len(tasks))]
    seeds = [_seeds(result, number) for number, task in enumerate(tasks) if task is not None]
    of_tasks = [table for of_task in tables[1:] for table in of_task]
    ranks = [_ranks(result, ablation) for ablation in result.ablations if len(tables) > 2]
    return words.study_blocks(result.about, [*tables[0], *ranks] if tables else [], of_tasks, seeds)


def _ranks(result: E2VPTResult, ablation: PartAblation) -> Paragraph:
    """Whether the same row is best on all tasks that have all of them."""
    columns = zip(*(row.entries[1:] for row in ablation.rows), strict=True)  # behind the mean
    means = [(column[0].task, [entry.accuracy.mean for entry in column]) for column in columns]
    whole = {task: [mean for mean in row if mean is not None] for task, row in means if None not in row}
    names, title = [line(row.label, 40) for row in ablation.rows], TITLES[ablation.part]
    if len(whole) < 2:
        return Paragraph(f"{title}: fewer than two tasks have all results, so that their orders cannot be compared.")
    ranks = ranks_of([*whole.values()])
    order = ", ".join(f"{name} {rank:.1f}" for rank, name in sorted(zip(ranks.means, names, strict=True)))
    best = "; ".join(f"{result.about.title(task)}: {names[row.index(max(row))]}" for task, row in whole.items())
    return Paragraph(
        f"{title}, mean ranks over {len(whole)} tasks (1 is the best): {order}; p = {ranks.p:.2g} by Friedman's test "
        f"that all are alike. Best on {best}."
    )


def _table(result: E2VPTResult, ablation: PartAblation, number: int) -> Table:
    rows = [
        [
            line(row.label, 40),
            words.accuracy(entry.accuracy),
            "" if row.default else words.change(entry.change),
            amount(entry.learned),
            share_of(entry.share, ".2f"),
        ]
        for row, entry in ((row, row.entries[number]) for row in ablation.rows)
    ]
    return simple_table(
        f"{TITLES[ablation.part]}, {result.about.title(ablation.rows[0].entries[number].task)}: test accuracy (%), "
        "change to the default, numbers learned (with the head), of the backbone's",
        ["", "accuracy", "change", "learned", "of all"],
        rows,
    )


def _seeds(result: E2VPTResult, number: int) -> Table:
    entries = {row.label: row.entries[number] for ablation in result.ablations for row in ablation.rows}
    title = result.about.title(next(iter(entries.values())).task)
    return words.seed_table(result.about, title, [(line(name, 40), entry.accuracy) for name, entry in entries.items()])


def _figure(result: E2VPTResult) -> Charts:
    charts = [_chart(result, ablation) for ablation in result.ablations]
    drawn = {series.style: series.name for chart in charts for series in chart.curves}
    return Charts(charts, list(drawn.items()), rings="not converged")


def _chart(result: E2VPTResult, ablation: PartAblation) -> Chart:
    rows = _drawn(ablation)
    # The linear probe is too far away from all others to stand in one picture with them.
    linear = [row.entries[0].change.mean for row in ablation.rows if row.label == LINEAR]
    probe = f" (linear probe: {words.signed(linear[0])})" if linear and linear[0] is not None else ""
    series: dict[str | None, Curve] = {}
    shown = _shown(rows[0].entries) if rows else []
    for order, (style, task) in enumerate(shown):
        dots: list[Dot] = []
        for place, row in enumerate(rows):
            [entry] = [entry for entry in row.entries if entry.task == task]
            y = place + (order - (len(shown) - 1) / 2) * 0.62 / max(1, len(shown) - 1)
            [point] = words.dots([(y, entry.change)])
            dots.append(Dot(x=point.y, y=y, error=point.error, hollow=bool(entry.accuracy.unconverged)))
        series[task] = Curve(name=result.about.title(task), dots=dots, style=style)
    return Chart(
        title=TITLES[ablation.part] + probe,
        x="change of test accuracy against the default (points)",
        y="",
        rule=(0.0, ""),
        rows=[line(row.label, 40) for row in rows],
        curves=list(series.values()),
    )


def _drawn(ablation: PartAblation) -> list[AblationRow]:
    return [row for row in ablation.rows if not row.default and row.label != LINEAR]


def _shown(entries: Sequence[AblationEntry]) -> list[tuple[int, str | None]]:
    tasks = [entry.task for entry in entries if entry.task is not None]
    mean = [(MEAN, None)] if len(tasks) < len(entries) else []
    return [*([] if mean and len(tasks) > MOST_TASKS else enumerate(tasks)), *mean]


VIEW = View(title="E2VPT's ablations", answer=_answer, tables=_tables, figure=_figure, result=E2VPTResult)
