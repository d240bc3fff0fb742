"""Accuracy against what it costs: prompts, learned parameters, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vprompt.experiments.report.accuracy import FEW
from vprompt.experiments.report.aggregate import Aggregates, by_place, mean_of, over_tasks
from vprompt.experiments.report.study import Method, Model, Run, Study, Task
from vprompt.report import charts, published
from vprompt.report.document import Block, Body, Fold, Paragraph, Pictures, Section, Table
from vprompt.report.html import Markup
from vprompt.utils.text import amount, count, gmacs, listed, spread

Quantity = Callable[[Model], float | None]

QUANTITIES: dict[str, Quantity] = {
    "prompts in all blocks": lambda model: model.prompts,
    "learned parameters": lambda model: model.learned_params,
    "GMACs per image, folded": lambda model: model.gmacs,
}


def section(study: Study, numbers: Aggregates) -> Section:
    """Three pictures over the tasks that all methods have, one for each task where there are few, and the numbers."""
    table = by_place(study)
    alive = [m for m in study.methods if any(numbers.tasks[m.key, t.key].mean is not None for t in study.tasks)]
    common = [t for t in study.tasks if alive and all(numbers.tasks[m.key, t.key].mean is not None for m in alive)]
    blocks: list[Block] = []
    if not common:
        blocks.append(Paragraph("There is no task on which every method that has results has one."))
    else:
        over = "the task" if len(common) == 1 else f"the {len(common)} tasks"
        words = f"Each point is a method, its mean over {over} that all methods have"
        if len(alive) < len(study.methods):
            words += f" ({listed([m.label for m in study.methods if m not in alive])}: no result)"
        folded = "Folded: prompts are constants, and the last block computes only what is read of it."
        blocks.append(Paragraph(f"{words}; bars are the standard deviation over the seeds. {folded}"))
        title = common[0].title if len(common) == 1 else f"Mean of {count(len(common), 'task')}"
        blocks.append(_pictures(study, numbers, table, alive, common, title))
        blocks.append(_numbers(study, numbers, table, alive, common))
    if 1 < len(study.tasks) <= FEW:
        single = [_pictures(study, numbers, table, alive, [task], task.title) for task in study.tasks]
        blocks.append(Fold("Task by task", [pictures for pictures in single if pictures.svgs]))
    blocks += _published_cost(study)
    return Section(key="cost", title="Accuracy and cost", blocks=blocks)


def _pictures(
    study: Study,
    numbers: Aggregates,
    table: dict[tuple[str, str], list[Run]],
    methods: Sequence[Method],
    tasks: Sequence[Task],
    title: str,
) -> Pictures:
    styles = {method.key: number for number, method in enumerate(study.methods)}
    svgs: list[Markup] = []
    shown: set[str] = set()
    for label, quantity in QUANTITIES.items():
        dots: list[charts.Dot] = []
        for method in methods:
            rows = [table[method.key, task.key] for task in tasks]
            found = over_tasks(rows, numbers.metric)
            x = _mean(rows, quantity)
            if found.mean is None or x is None:
                continue
            shown.add(method.key)
            reach = None if found.std is None else 100 * found.std
            name = f"{method.label}: {spread(found.mean, found.std)} % at {amount(x)}"
            dots.append(charts.Dot(name=name, x=x, y=100 * found.mean, reach=reach, style=styles[method.key]))
        if dots:
            detail = f"{title}: {numbers.metric} accuracy against {label}. " + "; ".join(dot.name for dot in dots)
            y = f"{numbers.metric} accuracy, %"
            svgs.append(charts.scatter(title, dots, x=label, y=y, log=label.startswith("learned"), detail=detail))
    names = [(styles[method.key], method.label) for method in study.methods if method.key in shown]
    return Pictures(svgs, charts.legend(names) if svgs else None)


def _mean(rows: Sequence[Sequence[Run]], quantity: Quantity) -> float | None:
    """The mean over tasks of the mean over seeds."""
    means = [mean_of(runs, quantity) for runs in rows]
    known = [mean for mean in means if mean is not None]
    return sum(known) / len(known) if known and len(known) == len(means) else None


def _numbers(
    study: Study,
    numbers: Aggregates,
    table: dict[tuple[str, str], list[Run]],
    methods: Sequence[Method],
    tasks: Sequence[Task],
) -> Table:
    rows: list[list[str]] = []
    for method in methods:
        runs = [table[method.key, task.key] for task in tasks]
        found = over_tasks(runs, numbers.metric)
        learned = _mean(runs, lambda model: model.learned_params)
        of_all = "–" if learned is None or not study.backbone_params else f"{100 * learned / study.backbone_params:.3g}"
        prompts = _mean(runs, lambda model: model.prompts)
        folded = _mean(runs, lambda model: model.gmacs)
        unfolded = _mean(runs, lambda model: model.published_gmacs)
        cells = [amount(prompts), amount(learned), of_all, gmacs(folded), gmacs(unfolded)]
        rows.append([method.label, spread(found.mean, found.std), *cells])
    caption = f"Mean over {listed([task.title for task in tasks], 20)}"
    head = ["Method", "Accuracy, %", "Prompts", "Learned", "% of backbone", "GMACs, folded", "GMACs, not folded"]
    filled = [any(row[column] != "–" for row in rows) for column in range(len(head))]
    head, *rows = [[text for text, keep in zip(row, filled, strict=True) if keep] for row in (head, *rows)]
    return Table(caption=caption, head=head, bodies=[Body(rows=rows)])


def _published_cost(study: Study) -> list[Block]:
    """What the same backbone is said to cost where prompts are not folded."""
    family = published.family_of(study.backbone)
    costs, source = published.gmacs(family) if family else ({}, "")
    if not costs:
        return []
    words = ", ".join(f"{prompts} prompts {value:g}" for prompts, value in sorted(costs.items()))
    return [
        Paragraph(f"Published GMACs of VPT-Deep on {family}, by prompts per block, not folded: {words} ({source}).")
    ]
