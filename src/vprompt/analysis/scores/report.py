"""The report of the accuracy of each criterion."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vprompt.analysis.base import Result, View
from vprompt.analysis.plots import legend_above, plus_minus, table
from vprompt.analysis.scores import EXACT
from vprompt.report.document import Block, Paragraph, simple_table
from vprompt.report.plots import COLOURS, MARKERS, side_by_side
from vprompt.utils.statistics import mean, std
from vprompt.utils.text import count, line, percent


def _answer(result: Result) -> str:
    rise = _correlations(result, "rise")
    best = max(rise, key=lambda name: _mean(rise[name]), default=None)
    if best is None:
        return "No criterion could be compared."
    taylor = f", taylor's {_mean(rise['taylor']):.2f}" if "taylor" in rise and best != "taylor" else ""
    ratio = min(result["ratios"])
    drops = _drops(result, _scope(result))
    at = {name: _mean(drops[name][ratio]) for name in drops if name not in EXACT}
    keeps = max(at, key=lambda name: at[name])
    return (
        f"Over {count(len(result['models']), 'model')}, the scores of {line(best)} go with what leaving out one prompt "
        f"does to the loss: rank correlation {_mean(rise[best]):.2f}{taylor}. At {100 * ratio:g} % kept, without "
        f"fine-tuning, {line(keeps)} is the best, {100 * at[keeps]:+.1f} points against all prompts"
        + (f" (taylor {100 * at['taylor']:+.1f})." if "taylor" in at and keeps != "taylor" else ".")
    )


def _tables(result: Result) -> Sequence[Block]:
    rise, change = _correlations(result, "rise"), _correlations(result, "change")
    blocks: list[Block] = [
        Paragraph(
            "Exact ablation leaves out one prompt at a time. Rise: by how much the mean loss rises without it. Change: "
            "mean absolute change of an image's loss. Mean ± sample standard deviation over models of Spearman's rank "
            "correlation over a model's prompts."
        ),
        table(
            "Rank correlation of scores with exact ablation",
            rise,
            ("Criterion", line),
            ("Rise", lambda name: _spread(rise[name])),
            ("Change", lambda name: _spread(change[name])),
        ),
    ]
    tuned = any(kept["fine_tuned"] is not None for model in result["models"] for kept in model["kept"])
    for scope in result["scopes"]:
        for key, words in (("accuracy", "not fine-tuned"), *([("fine_tuned", "fine-tuned")] if tuned else [])):
            drops = _drops(result, scope, key)
            head = ["Criterion", *(f"{100 * ratio:g} %" for ratio in result["ratios"])]
            rows = [[line(n), *(_spread(drops[n][r], 100) for r in result["ratios"])] for n in drops]
            caption = f"Accuracy with a share of the prompts against all of them, points ({scope}, {words})"
            blocks.append(simple_table(caption, head, rows))
    names = list(rise)
    numbers = [str(number + 1) for number in range(len(names))]
    rows = [
        [f"{number} {line(name)}", *(_hundredths(_between(result, name, other)) for other in names)]
        for number, name in zip(numbers, names, strict=True)
    ]
    blocks.append(simple_table("Rank correlation of scores with each other, times 100", ["", *numbers], rows))
    models = table(
        f"Models, and their accuracy on the {result['split']} images (%)",
        result["models"],
        ("Model", lambda model: line(model["label"], 40)),
        ("Prompts", lambda model: str(sum(model["prompt_counts"]))),
        ("Accuracy", lambda model: percent(model["accuracy"])),
    )
    return [*blocks, models]


def _figure(result: Result) -> Figure:
    figure, (left, right) = side_by_side(10.4, 4.4, 2)
    _draw_correlations(left, result)
    _draw_kept(right, result, _scope(result))
    return figure


def _draw_correlations(axes: Axes, result: Result) -> None:
    rise, change = _correlations(result, "rise"), _correlations(result, "change")
    names = sorted(rise, key=lambda name: _mean(rise[name]))
    for number, (values, label) in enumerate(((rise, "rise of the mean loss"), (change, "mean absolute change"))):
        places = [row + 0.14 - 0.28 * number for row in range(len(names))]
        means, errors = [_mean(values[name]) for name in names], [std(values[name]) or 0.0 for name in names]
        colour, marker = COLOURS[number], MARKERS[number]
        axes.errorbar(means, places, xerr=errors, fmt=marker, color=colour, ms=5, capsize=2, lw=1, label=label)
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(names)), [line(name, 24) for name in names])
    axes.set(xlabel="rank correlation with exact ablation", xlim=(-1.05, 1.05), ylim=(-0.6, len(names) - 0.4))
    axes.grid(visible=True, axis="x")
    legend_above(axes)


def _draw_kept(axes: Axes, result: Result, scope: str) -> None:
    drops = _drops(result, scope)
    for number, name in enumerate(drops):
        ratios = [100 * ratio for ratio in result["ratios"]]
        values = [100 * _mean(drops[name][ratio]) for ratio in result["ratios"]]
        exact = name in EXACT
        axes.plot(
            ratios,
            values,
            color="#000000" if exact else "#888888" if name == "random" else COLOURS[number % 6],
            linestyle=("--", ":")[EXACT.index(name)] if exact else "-" if number < 6 else "-.",
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1.3,
            label=line(name, 24),
        )
    axes.axhline(0, color="#999999", linewidth=0.8)
    axes.set(xlabel="prompts kept (%)", xticks=[100 * ratio for ratio in result["ratios"]])
    axes.set_ylabel(f"accuracy against all prompts\n(points, {scope}, not fine-tuned)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _alt(result: Result) -> str:
    rise = _correlations(result, "rise")
    return "Rank correlation of each criterion with exact ablation, and accuracy by what each keeps: " + ", ".join(
        f"{line(name)} {_mean(rise[name]):.2f}" for name in rise
    )


def _correlations(result: Result, kind: str) -> dict[str, list[float]]:
    by_criterion: dict[str, list[float]] = {}
    for model in result["models"]:
        for name, values in model["agreement"].items():
            by_criterion.setdefault(name, []).extend([] if values[kind] is None else [values[kind]])
    return {name: values for name, values in by_criterion.items() if values}


def _between(result: Result, one: str, other: str) -> list[float]:
    values = [model["between"].get(one, {}).get(other) for model in result["models"]]
    return [value for value in values if value is not None]


def _drops(result: Result, scope: str, key: str = "accuracy") -> dict[str, dict[float, list[float]]]:
    """Criterion -> ratio -> accuracy against all prompts, a value for every model."""
    by_criterion: dict[str, dict[float, list[float]]] = {}
    for model in result["models"]:
        for kept in model["kept"]:
            if kept["scope"] == scope and kept[key] is not None:
                drops = by_criterion.setdefault(kept["criterion"], {ratio: [] for ratio in result["ratios"]})
                drops[kept["ratio"]].append(kept[key] - model["accuracy"])
    return by_criterion


def _scope(result: Result) -> str:
    """Figures that are drawn and put in words."""
    return "global" if "global" in result["scopes"] else result["scopes"][0]


def _mean(values: Sequence[float]) -> float:
    return mean(values) or 0.0


def _hundredths(values: Sequence[float]) -> str:
    return f"{100 * _mean(values):.0f}" if values else "–"


def _spread(values: Sequence[float], factor: float = 1) -> str:
    return plus_minus(mean(values), std(values), 1 if factor > 1 else 2, factor=factor)


VIEW = View(title="How right scores are", answer=_answer, tables=_tables, figure=_figure, alt=_alt)
