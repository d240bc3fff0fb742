"""Sections of a page that several targets show: what is confused, figures by name, reliability, thresholds, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vprompt.report.document import Cell, Chart, Charts, Curve, Dot, Paragraph, Section, simple_table
from vprompt.utils.statistics import wilson
from vprompt.utils.text import count, percent, show

if TYPE_CHECKING:
    from torch import Tensor

PAIRS, DOTS, BINS = 15, 400, 10
"""Rows of the table of confused classes, points of a cloud, and bins of confidence, at most."""


def confusion_section(names: Sequence[str], said: Tensor, true: Tensor) -> Section:
    """What is said of the images of each class; classes that are confused stand beside each other."""
    size = len(names)
    counts = (true * size + said).bincount(minlength=size**2).view(size, size)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    order = beside(shares + shares.T)
    wrong = counts.clone().fill_diagonal_(0).flatten()
    pairs = [(place // size, place % size) for place in wrong.argsort(descending=True).tolist() if wrong[place]]
    rows = [[names[t], names[s], f"{counts[t, s]}", f"{percent(float(shares[t, s]))} %"] for t, s in pairs[:PAIRS]]
    chart = Chart(
        title="Share of the images of a class",
        x="said",
        y="true",
        alt=f"Confusion matrix of {size} classes",
        rows=[names[label] for label in order],
        cells=shares[order][:, order].tolist(),
    )
    title = f"Most confused of {count(len(pairs), 'pair')}" if pairs else "No class is taken for another"
    table = simple_table(title, ["True", "Said", "Images", "Of the class"], rows)
    words = "One row a true class, one column an answer, classes that are confused beside each other; what is right is "
    return Section(key="confusion", title="Confusion", blocks=[Paragraph(words + "blue."), Charts([chart]), table])


def beside(alike: Tensor) -> list[int]:
    """An order in which what is alike is near: next is what is most like the last ones, of which older ones count less.

    Args:
        alike: (K, K), how alike each two are.
    """
    import torch

    alike = alike.clone().fill_diagonal_(0)
    order, pull = list[int](), alike.sum(1)
    left = torch.ones(len(alike), dtype=torch.bool)
    while len(order) < len(alike):
        order.append(int(pull.masked_fill(~left, -1).argmax()))
        left[order[-1]] = False
        pull = (pull / 2 if len(order) > 1 else 0) + alike[order[-1]]
    return order


def names_section(unit: str, rows: Mapping[str, Mapping[str, float | None]], key: str) -> Section:
    """The figures of each class or tag, the worst first.

    Args:
        unit: Name of what a row is.
        rows: By name, from `vprompt.tasks.metrics.as_rows`.
        key: Of the figure that they are sorted by.
    """
    heads = [head for head in next(iter(rows.values())) if head != "images"]
    order = sorted(rows, key=lambda name: (rows[name][key] is None, rows[name][key] or 0))
    cells = [
        [name, show(rows[name]["images"], ".0f"), *(Cell(text=percent(v), share=v) for v in map(rows[name].get, heads))]
        for name in order
    ]
    head = [unit, "images", *(head.replace("_", " ") for head in heads)]
    table = simple_table(f"Figures of each {unit} in percent, the worst {key.replace('_', ' ')} first", head, cells)
    return Section(key="names", title=f"Each {unit}", blocks=[table])


def reliability_section(confidence: Tensor, right: Tensor) -> Section:
    """How often what is said with some probability is right.

    Args:
        confidence: (N,), 0-1.
        right: (N,), whether it is.
    """
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    dots, rows = list[Dot](), list[list[str]]()
    for number in bins.unique().tolist():
        of_bin = bins == number
        images, good, mean = int(of_bin.sum()), int(right[of_bin].sum()), float(confidence[of_bin].mean())
        low, high = wilson(good, images)
        share = good / images
        dots.append(Dot(x=100 * mean, y=100 * share, error=(100 * (share - low), 100 * (high - share))))
        rows.append(
            [f"{100 * number // BINS}-{100 * (number + 1) // BINS} %", str(images), percent(mean), percent(share)]
        )
    ideal = Curve(name="as said", dots=[Dot(x=0, y=0), Dot(x=100, y=100)], style=6, line="--", marks=False)
    chart = Chart(
        title="Reliability",
        x="probability (%)",
        y="right (%)",
        alt="Share that is right against the probability that is said",
        curves=[ideal, Curve(name="bins", dots=dots, line="-")],
        zero=True,
    )
    words = (
        "Below the dashed line the model is surer than it should be; --calibrate mends that. Bars are 95 % intervals."
    )
    table = simple_table("The same in numbers", ["Probability", "Number", "Mean, %", "Right, %"], rows)
    blocks = [Paragraph(words), Charts([chart]), table]
    return Section(key="reliability", title="Can the probabilities be trusted?", blocks=blocks)


def thresholds_section(probabilities: Tensor, true: Tensor) -> Section:
    """What other thresholds than a half would do."""
    cuts = [number / 20 for number in range(1, 20)]
    said = [probabilities > cut for cut in cuts]
    both = [int((each & true).sum()) for each in said]
    given, there = [max(1, int(each.sum())) for each in said], max(1, int(true.sum()))
    figures = {
        "precision": [b / g for b, g in zip(both, given, strict=True)],
        "recall": [b / there for b in both],
        "F1": [2 * b / (g + there) for b, g in zip(both, given, strict=True)],
    }
    curves = [
        Curve(name=name, dots=[Dot(x=x, y=100 * y) for x, y in zip(cuts, ys, strict=True)], style=style, line="-")
        for style, (name, ys) in enumerate(figures.items())
    ]
    chart = Chart(title="All tags together", x="threshold", y="%", alt="By threshold", curves=curves, zero=True)
    best = max(range(len(cuts)), key=figures["F1"].__getitem__)
    words = f"A tag is given from a probability of 0.5 on; the F1 of all would be highest at {cuts[best]:g}."
    legend = [*enumerate(figures)]
    return Section(key="thresholds", title="Thresholds", blocks=[Paragraph(words), Charts([chart], legend)])


def numbers_section(names: Sequence[str], figures: Mapping[str, Any], said: Tensor, true: Tensor) -> Section:
    """Numbers that are said against the true ones, what is left, and the figures of each."""
    step = -(-len(true) // DOTS)
    charts = list[Chart]()
    for place, name in enumerate(names[:4]):
        pairs = list(zip(true[::step, place].tolist(), said[::step, place].tolist(), strict=True))
        ends = [min(min(pair) for pair in pairs), max(max(pair) for pair in pairs)]
        ideal = Curve(name="right", dots=[Dot(x=e, y=e) for e in ends], style=6, line="--", marks=False)
        cloud = Curve(name=name, dots=[Dot(x=t, y=s) for t, s in pairs])
        rest = Curve(name=name, dots=[Dot(x=s, y=s - t) for t, s in pairs], style=1)
        charts.append(Chart(title=name, x="true", y="said", alt=f"{name}: said", curves=[ideal, cloud], tight=True))
        levels = [(0.0, "")]
        more = {"alt": f"{name}: errors", "curves": [rest], "levels": levels}
        charts.append(Chart(title=f"{name}: errors", x="said", y="said - true", tight=True, **more))
    rows = [
        [name, *(show(figures[key][name], ".4g") for key in ("mae", "rmse", "constant_mae", "r2_each"))]
        for name in names
    ]
    table = simple_table("Errors, in units of the numbers", ["", "MAE", "RMSE", "MAE of the mean", "R²"], rows)
    return Section(key="numbers", title="Said against true", blocks=[Charts(charts), table])
