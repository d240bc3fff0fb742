"""Accuracy against what it costs: prompts, learned parameters, multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vprompt.experiments.report.accuracy import FEW
from vprompt.experiments.report.aggregate import mean_of, on_task, over_groups
from vprompt.experiments.report.study import Method, Model, Study, Task
from vprompt.report import document as page
from vprompt.report import published
from vprompt.report.document import Block, Fold, Paragraph, Section
from vprompt.utils.text import amount, capital, count, gmacs, listed, spread

QUANTITIES: dict[str, Callable[[Model], float | None]] = {
    "prompts in all blocks": lambda model: model.prompts,
    "learned parameters": lambda model: model.learned_params,
    "GMACs per image, folded": lambda model: model.folded_gmacs,
}


def section(study: Study) -> Section:
    """Three pictures over the tasks that all methods have, one for each task where there are few, and the numbers."""
    results = {m: [t for t in study.tasks if on_task(study, m, t).mean is not None] for m in study.methods}
    alive = [method for method, tasks in results.items() if tasks]
    common = [task for task in study.tasks if alive and all(task in results[method] for method in alive)]
    blocks: list[Block] = []
    if not common:
        blocks.append(Paragraph("There is no task on which every method that has results has one."))
    else:
        over = "the task" if len(common) == 1 else f"the {len(common)} tasks"
        words = f"Each point is a method, its mean over {over} that all methods have"
        if len(alive) < len(study.methods):
            words += f" ({listed([m.label for m in study.methods if m not in alive])}: no result)"
        folded = "Folded: prompts are constants, and the last block computes only what is read of it."
        front = "The broken line joins the methods that none beats at as low a cost."
        blocks.append(Paragraph(f"{words}; bars are the standard deviation over the seeds. {front} {folded}"))
        title = common[0].title if len(common) == 1 else f"Mean of {count(len(common), 'task')}"
        blocks += [_charts(study, alive, common, title), _numbers(study, alive, common)]
    if 1 < len(study.tasks) <= FEW:
        single = [_charts(study, alive, [task], task.title) for task in study.tasks]
        blocks.append(Fold("Task by task", [charts for charts in single if charts.charts]))
    return Section(key="cost", title=f"{capital(study.score)} and cost", blocks=[*blocks, *_published_cost(study)])


def _charts(study: Study, methods: Sequence[Method], tasks: Sequence[Task], title: str) -> page.Charts:
    charts, score = list[page.Chart](), f"{study.metric} {study.score}"
    shown: dict[int, str] = {}
    means = [over_groups(study, method, [tasks]) for method in methods]
    for label, quantity in QUANTITIES.items():
        curves: list[page.Curve] = []
        for method, mean in zip(methods, means, strict=True):
            x = mean_of(study, method, tasks, quantity)
            if mean.mean is None or x is None:
                continue
            shown[method.style] = method.label
            error = None if mean.std is None else 100 * mean.std
            name = f"{method.label}: {spread(mean.mean, mean.std)} % at {amount(x)}"
            curves.append(
                page.Curve(name=name, dots=[page.Dot(x=x, y=100 * mean.mean, error=error)], style=method.style)
            )
        if curves:
            alt = f"{title}: {score} against {label}. {'; '.join(each.name for each in curves)}"
            log = label.startswith("learned")
            curves += page.pareto(curves) if label.startswith(("learned", "GMACs")) else []
            charts.append(page.Chart(title=title, x=label, y=f"{score}, %", alt=alt, curves=curves, log=log))
    return page.Charts(charts, sorted(shown.items()))


def _numbers(study: Study, methods: Sequence[Method], tasks: Sequence[Task]) -> page.Table:
    score = f"{capital(study.score)}, %"
    head = ["Method", score, "Prompts", "Learned", "% of backbone", "GMACs, folded"]
    rows: list[list[str]] = []
    for method in methods:
        mean = over_groups(study, method, [tasks])
        prompts, learned, folded = (mean_of(study, method, tasks, quantity) for quantity in QUANTITIES.values())
        of_all = "–" if learned is None or not study.backbone_params else f"{100 * learned / study.backbone_params:.3g}"
        cells = [amount(prompts), amount(learned), of_all, gmacs(folded)]
        rows.append([method.label, spread(mean.mean, mean.std), *cells])
    filled = [any(row[column] != "–" for row in rows) for column in range(len(head))]
    head, *rows = [[text for text, keep in zip(row, filled, strict=True) if keep] for row in (head, *rows)]
    return page.simple_table(f"Mean over {listed([task.title for task in tasks], 20)}", head, rows)


def _published_cost(study: Study) -> list[Block]:
    """Published cost of the same backbone where prompts are not folded."""
    family = published.family_of(study.backbone)
    costs, source = published.gmacs(family)
    if not costs:
        return []
    words = ", ".join(f"{prompts} prompts {value:g}" for prompts, value in sorted(costs.items()))
    return [
        Paragraph(f"Published GMACs of VPT-Deep on {family}, by prompts per block, not folded: {words} ({source}).")
    ]
