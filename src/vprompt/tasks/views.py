"""Sections of a page that targets show: what is confused, figures by name, reliability, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vprompt.report import document as page
from vprompt.report.document import Section, simple_table
from vprompt.utils.statistics import wilson
from vprompt.utils.text import count, percent, show, title_of

if TYPE_CHECKING:
    from torch import Tensor

PAIRS, DOTS, BINS, NUMBERS = 15, 400, 10, 4
"""Rows of the table of confused classes, points of a cloud, bins of confidence, and numbers that are drawn, at most."""


def confusion_section(names: Sequence[str], said: Tensor, true: Tensor) -> Section:
    """What is said (N,) of the images of each class; classes that are confused stand beside each other."""
    size = len(names)
    counts = (true * size + said).bincount(minlength=size**2).view(size, size)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    order, wrong = alike_together(shares + shares.T), counts.clone().fill_diagonal_(0).flatten()
    pairs: list[tuple[int, int]] = [
        divmod(place, size) for place in wrong.argsort(descending=True).tolist() if wrong[place]
    ]
    rows = [[names[t], names[s], f"{counts[t, s]}", f"{percent(float(shares[t, s]))} %"] for t, s in pairs[:PAIRS]]
    title, alt = "Of each true class, percent", f"Confusion matrix of {size} classes; the table has its largest errors"
    shown, heads = shares[order][:, order].tolist(), [names[label] for label in order]
    chart = page.Chart(title=title, x="said", y="true", alt=alt, rows=heads, cells=shown)
    table: page.Block = page.Paragraph("No class is taken for another.")
    if pairs:
        most = f"Most confused of {count(len(pairs), 'pair')}"
        table = simple_table(most, ["True", "Said", "Images", "Of the class"], rows, words=True)
    words = page.Paragraph("Classes that are confused stand beside each other; blue is right, orange is wrong.")
    numbers = page.Fold(
        "Classes by their numbers", [page.Code("\n".join(f"{n} {name}" for n, name in enumerate(heads)))]
    )
    return Section(key="confusion", title="Confusion", blocks=[words, page.Charts([chart]), table, numbers])


def alike_together(alike: Tensor) -> list[int]:
    """An order (K,) by likeness (K, K): next is what is most like the last ones, of which older ones count less."""
    import torch

    alike = alike.clone().fill_diagonal_(0)
    order, pull, left = list[int](), alike.sum(1), torch.ones(len(alike), dtype=torch.bool)
    while bool(left.any()):
        order.append(int(pull.masked_fill(~left, -1).argmax()))
        left[order[-1]] = False
        pull = alike[order[-1]] + (pull / 2 if len(order) > 1 else 0)
    return order


def names_section(unit: str, rows: Mapping[str, Mapping[str, float | None]], by: str = "f1") -> Section:
    """The figures of each class or tag, from `vprompt.tasks.metrics.as_rows`, the worst by one of them first."""
    order = sorted(rows, key=lambda name: (rows[name][by] is None, rows[name][by] or 0))
    images, *heads = rows[order[0]]
    bars = {
        name: [page.Cell(text=percent(share), share=share) for share in map(rows[name].get, heads)] for name in order
    }
    cells = [[name, show(rows[name][images], ".0f"), *bars[name]] for name in order]
    head = [unit, images, *map(title_of, heads)]
    table = simple_table(f"Each {unit} in percent, the worst first", head, cells)
    return Section(key="names", title=f"Each {unit}", blocks=[table])


def reliability_section(confidence: Tensor, right: Tensor) -> Section:
    """How often what is said with some probability (N,) is right (N,)."""
    bins, dots = (confidence * BINS).long().clamp(max=BINS - 1), list[page.Dot]()
    for number in bins.unique().tolist():
        images, good = int((bins == number).sum()), int(right[bins == number].sum())
        share, (low, high) = good / images, wilson(good, images)
        error = (max(0, 100 * (share - low)), max(0, 100 * (high - share)))
        dots.append(page.Dot(x=100 * float(confidence[bins == number].mean()), y=100 * share, error=error))
    ideal = page.Curve(name="as said", dots=page.points([(0, 0), (100, 100)]), style=6, line="--", marks=False)
    curves = [ideal, page.Curve(name="found", dots=dots, line="-")]
    alt = "Share that is right against the probability that is said"
    chart = page.Chart(title="Reliability", x="probability (%)", y="right (%)", alt=alt, curves=curves, zero=True)
    words = "Below the dashed line the model is surer than it should be, which --calibrate mends. Bars: 95 % intervals."
    return Section(
        key="reliability",
        title="Can the probabilities be trusted?",
        blocks=[page.Paragraph(words), page.Charts([chart])],
    )


def numbers_section(names: Sequence[str], figures: Mapping[str, Any], said: Tensor, true: Tensor) -> Section:
    """Numbers (N, K) that are said against the true ones, and the figures of each."""
    step, charts = -(-len(true) // DOTS), list[page.Chart]()
    for place, name in enumerate(names[:NUMBERS]):
        pairs = list(zip(true[::step, place].tolist(), said[::step, place].tolist(), strict=True))
        ends = page.points((end, end) for end in (min(map(min, pairs)), max(map(max, pairs))))
        cloud = [
            page.Curve(name="right", dots=ends, style=6, line="--", marks=False),
            page.Curve(name=name, dots=page.points(pairs)),
        ]
        charts.append(
            page.Chart(title=name, x="true", y="said", alt=f"{name}, said against true", curves=cloud, tight=True)
        )
    kinds = {"MAE": "mae", "RMSE": "rmse", "MAE of always saying the mean": "constant_mae", "R²": "r2_each"}
    rows = [[name, *(show(figures[key][name], ".4g") for key in kinds.values())] for name in names]
    table = simple_table("Errors, in units of the numbers", ["", *kinds], rows)
    return Section(key="numbers", title="Said against true", blocks=[page.Charts(charts), table])
