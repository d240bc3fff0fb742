"""The report of the accuracy of each criterion."""

from __future__ import annotations

from collections.abc import Sequence

from vprompt.analysis.base import View
from vprompt.analysis.scores import EXACT
from vprompt.analysis.scores.measure import EFFECTS, ScoreStudy
from vprompt.report.document import Block, Chart, Charts, Curve, Dot, Paragraph, simple_table
from vprompt.utils.statistics import mean, seeds_of, std
from vprompt.utils.text import count, line, percent, show, spread

KINDS = {"rise": "rise of the mean loss", "change": "mean absolute change"}


def _answer(study: ScoreStudy) -> str:
    rise = _correlations(study, "rise")
    best = max(rise, key=lambda name: _mean(rise[name]), default=None)
    if best is None:
        return "No criterion could be compared."
    taylor = f", taylor's {_mean(rise['taylor']):.2f}" if "taylor" in rise and best != "taylor" else ""
    ratio = min(study.ratios)
    at = {name: _mean(by[ratio]) for name, by in _drops(study, _scope(study)).items() if name not in EXACT}
    keeps = max(at, key=lambda name: at[name])
    return (
        f"Over {count(len(study.models), 'model')}, the scores of {line(best)} go with what leaving out one prompt "
        f"does to the loss: rank correlation {_mean(rise[best]):.2f}{taylor}. At {100 * ratio:g} % kept, without "
        f"fine-tuning, {line(keeps)} is the best, {100 * at[keeps]:+.1f} points against all prompts"
        + (f" (taylor {100 * at['taylor']:+.1f})." if "taylor" in at and keeps != "taylor" else ".")
    )


def _tables(study: ScoreStudy) -> list[Block]:
    rise = _correlations(study, "rise")
    kinds = {kind: by_name for kind in (*KINDS, *EFFECTS) if (by_name := _correlations(study, kind))}
    blocks: list[Block] = [
        Paragraph(
            "Exact ablation leaves out one prompt at a time. Rise: by how much the mean loss rises without it. Change: "
            "mean absolute change of an image's loss. Zeroed: the same where the prompt is zero and stays in attention "
            "(the paper's equation 13). Mean ± sample standard deviation over models of Spearman's rank correlation "
            "over a model's prompts. Size: the exact effect that a criterion estimates, over its scores."
        ),
        simple_table(
            "Rank correlation of scores with exact ablation",
            ["Criterion", *(kind.capitalize() for kind in kinds), "Size"],
            [[line(name), *(_spread(by.get(name, [])) for by in kinds.values()), _size(study, name)] for name in rise],
        ),
    ]
    ratios = [f"{100 * ratio:g} %" for ratio in study.ratios]
    tuned = any(kept.fine_tuned is not None for model in study.models for kept in model.kept)
    for scope in study.scopes:
        for key, words in (("accuracy", "not fine-tuned"), *([("fine_tuned", "fine-tuned")] if tuned else [])):
            drops = _drops(study, scope, key)
            rows = [[line(name), *(_spread(by[ratio], 100) for ratio in study.ratios)] for name, by in drops.items()]
            caption = f"Accuracy with a share of the prompts against all of them, points ({scope}, {words})"
            blocks.append(simple_table(caption, ["Criterion", *ratios], rows))
        blocks += _early(study, scope)
    numbers = {name: str(number) for number, name in enumerate(rise, 1)}
    rows: list[list[str]] = []
    for name, number in numbers.items():
        pairs = ([model.between.get(name, {}).get(other) for model in study.models] for other in numbers)
        rows.append([f"{number} {line(name)}", *(show(seeds_of(pair).mean, ".0f", factor=100) for pair in pairs)])
    caption = "Rank correlation of scores with each other, times 100"
    blocks.append(simple_table(caption, ["", *numbers.values()], rows))
    rows = [[line(each.label, 40), str(sum(each.prompt_counts)), percent(each.accuracy)] for each in study.models]
    caption = f"Models, and their accuracy on the {study.split} images (%)"
    return [*blocks, simple_table(caption, ["Model", "Prompts", "Accuracy"], rows)]


def _size(study: ScoreStudy, name: str) -> str:
    return show(mean([model.sizes[name] for model in study.models if name in model.sizes]), ".3g")


def _early(study: ScoreStudy, scope: str) -> list[Block]:
    """Choices before the end of the training, where there are any."""
    pairs = [(each, model.accuracy) for model in study.models for each in model.early if each.scope == scope]
    rows: list[list[str]] = []
    for share, name in dict.fromkeys((each.share, each.criterion) for each, _ in pairs):
        mine = [(each, all_of_them) for each, all_of_them in pairs if (each.share, each.criterion) == (share, name)]
        ranks = [each.agreement for each, _ in mine if each.ratio == study.ratios[0] and each.agreement is not None]
        same, gains = list[str](), list[str]()
        for ratio in study.ratios:
            at = [pair for pair in mine if pair[0].ratio == ratio]
            same.append(show(mean([each.overlap for each, _ in at]), ".0f", factor=100))
            gains.append(_spread([(each.fine_tuned or 0.0) - all_of_them for each, all_of_them in at], 100))
        rows.append([f"{100 * share:g} %", line(name), _spread(ranks), *same, *gains])
    caption = (
        f"Chosen after a share of the training ({scope}): rank correlation with the scores at the end, percent that "
        "these choose as well (by chance: as many as are kept), accuracy after the rest against all prompts, points"
    )
    ratios = [f"{100 * ratio:g} %" for ratio in study.ratios]
    head = ["After", "Criterion", "Ranks", *(f"same {ratio}" for ratio in ratios), *ratios]
    return [simple_table(caption, head, rows)] if rows else []


def _figure(study: ScoreStudy) -> Charts:
    correlations = {kind: _correlations(study, kind) for kind in KINDS}
    names = sorted(correlations["rise"], key=lambda name: -_mean(correlations["rise"][name]))
    agreement = [
        Curve(
            name=KINDS[kind],
            dots=[
                Dot(x=_mean(values[name]), y=row - 0.14 + 0.28 * style, error=std(values[name]))
                for row, name in enumerate(names)
            ],
            style=style,
        )
        for style, (kind, values) in enumerate(correlations.items())
    ]
    kept = [
        Curve(
            name=line(name, 24),
            dots=[Dot(x=100 * ratio, y=100 * _mean(values)) for ratio, values in by_ratio.items()],
            style=style,
            line="--" if name in EXACT else "-",
        )
        for style, (name, by_ratio) in enumerate(_drops(study, _scope(study)).items(), 2)
    ]
    rows = [line(name, 24) for name in names]
    y = f"accuracy against all prompts\n(points, {_scope(study)}, not fine-tuned)"
    charts = [
        Chart(title="", x="rank correlation with exact ablation", y="", rows=rows, rule=(0.0, ""), curves=agreement),
        Chart(title="", x="prompts kept (%)", y=y, levels=[(0.0, "")], curves=kept),
    ]
    return Charts(charts, [(series.style, series.name) for series in (*agreement, *kept)])


def _correlations(study: ScoreStudy, kind: str) -> dict[str, list[float]]:
    """Criterion -> correlation with the exact effect, of every model that has one."""
    by_criterion: dict[str, list[float]] = {}
    for model in study.models:
        for name, values in model.agreement.items():
            if (value := values.get(kind)) is not None:
                by_criterion.setdefault(name, []).append(value)
    return by_criterion


def _drops(study: ScoreStudy, scope: str, key: str = "accuracy") -> dict[str, dict[float, list[float]]]:
    """Criterion -> ratio -> accuracy against all prompts, a value for every model."""
    by_criterion: dict[str, dict[float, list[float]]] = {}
    for model in study.models:
        for kept in model.kept:
            if kept.scope == scope and (accuracy := getattr(kept, key)) is not None:
                drops = by_criterion.setdefault(kept.criterion, {ratio: [] for ratio in study.ratios})
                drops[kept.ratio].append(accuracy - model.accuracy)
    return by_criterion


def _scope(study: ScoreStudy) -> str:
    return "global" if "global" in study.scopes else study.scopes[0]


def _mean(values: Sequence[float]) -> float:
    return mean(values) or 0.0


def _spread(values: Sequence[float], factor: float = 1) -> str:
    return spread(mean(values), std(values), 1 if factor > 1 else 2, factor=factor)


VIEW = View(title="How right scores are", answer=_answer, tables=_tables, figure=_figure, result=ScoreStudy)
