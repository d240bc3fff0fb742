"""Scores of prompts against exact ablation, each other and early ones, and by the accuracy of what they retain."""

from __future__ import annotations

import itertools
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset

from vprompt.analysis.adapters import Trained, measure_each
from vprompt.analysis.base import Host
from vprompt.analysis.scores import EXACT, Scores
from vprompt.compression.condense import fine_tuning_recipe
from vprompt.compression.criteria import GRADIENTS, SCOPES, Criterion, Scope, check_name, removes
from vprompt.compression.score import score
from vprompt.compression.select import select
from vprompt.data.dataset import ImageDataset
from vprompt.experiments.run import attached
from vprompt.experiments.settings import settings_from, upgraded
from vprompt.experiments.stages import training_images
from vprompt.methods.linear import Linear
from vprompt.model.attach import attach
from vprompt.model.model import FoldedModel, PromptedModel
from vprompt.training.evaluate import evaluate
from vprompt.training.loader import ImageLabels, size_of
from vprompt.training.trainer import fit
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import Report, silent

PerBlock = tuple[tuple[float, ...], ...]
"""A number for each prompt, block by block."""

EFFECTS = dict(zip(("change", "rise", "zeroed change", "zeroed rise"), EXACT, strict=True))
"""Exact effects that scores are correlated with, and their names among what chooses prompts."""


@dataclass(frozen=True, kw_only=True)
class PromptAblation:
    """Effects of leaving out one prompt at a time, or of setting it to zero, on the loss of each image, in the mean.

    Args:
        images: How many.
        loss: Mean loss with all prompts.
        rise: By how much the mean loss rises; below zero for a prompt that does harm.
        change: Mean of the absolute change of an image's loss.
    """

    images: int
    loss: float
    rise: PerBlock
    change: PerBlock


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A model with its best prompts only.

    Args:
        criterion: By which they were chosen.
        scope: See `vprompt.select`.
        ratio: Share of the prompts that is retained.
        accuracy: On the images that it was measured on, 0-1.
        loss: On them.
        fine_tuned: Accuracy after fine-tuning (of what was chosen early: the rest of the training), where asked for.
        counts: Prompts per block.
    """

    criterion: str
    scope: str
    ratio: float
    accuracy: float
    loss: float
    fine_tuned: float | None
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class EarlyChoice(Selection):
    """Prompts that were chosen before the training's end and trained by themselves for the rest of it.

    Args:
        share: Of the training after which they were chosen; 0 is the random prompts that it starts from.
        agreement: Rank correlation of the scores then with those at the end.
        overlap: Share of them that the scores at the end choose as well; of a choice by chance the ratio.
    """

    share: float
    agreement: float | None
    overlap: float


@dataclass(frozen=True, kw_only=True)
class ScoreAnalysis:
    """Scores of a model's prompts by several criteria, and how right they are.

    Args:
        accuracy: Of the whole model, 0-1.
        loss: Of the whole model.
        prompt_counts: Per block.
        scores: Criterion -> score of every prompt.
        ablation: The exact effects of leaving out a prompt.
        zeroing: Those of setting it to zero, if that was measured.
        agreement: Criterion -> Spearman's rank correlation with the exact rise of the loss (`rise`) and with the mean
            absolute change (`change`), and where a prompt is zero (`zeroed rise`, `zeroed change`), over all prompts of
            the model; None where all scores are the same.
        sizes: Criterion that is a first-order estimate of an exact effect -> that effect over the scores, both in
            absolute values and summed over the prompts.
        between: Criterion -> criterion -> rank correlation.
        kept: What is left of the model by each criterion, scope and ratio.
    """

    accuracy: float
    loss: float
    prompt_counts: tuple[int, ...]
    scores: dict[str, PerBlock]
    ablation: PromptAblation
    agreement: dict[str, dict[str, float | None]]
    between: dict[str, dict[str, float | None]]
    kept: tuple[Selection, ...]
    zeroing: PromptAblation | None = None
    sizes: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class AdapterScores(ScoreAnalysis):
    """An adapter by itself: its name, its task, its seed where it is known, and what was chosen early."""

    label: str
    task: str
    seed: int | None
    early: tuple[EarlyChoice, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScoreStudy:
    """Several adapters, and the options that they share."""

    ratios: tuple[float, ...]
    scopes: tuple[str, ...]
    split: str
    images: int
    models: tuple[AdapterScores, ...]


def run(options: Scores, host: Host) -> ScoreStudy:
    """Scores and ablates one adapter after the other."""
    _check(options)
    split = options.adapters.split

    def measure(trained: Trained) -> AdapterScores:
        with host.bar(trained.label) as report:
            analysis = scores(trained.model, trained.task.train, trained.split(split), options, report=report)
        early = _early(trained, analysis.scores, options, host) if options.early else ()
        seed = trained.result.get("seed")
        return AdapterScores(**vars(analysis), label=trained.label, task=trained.task.source, seed=seed, early=early)

    models = tuple(measure_each(options.adapters, host, measure))
    return ScoreStudy(ratios=options.ratios, scopes=options.scopes, split=split, images=options.images, models=models)


def _check(options: Scores) -> None:
    for criterion in options.criteria:
        check_name(criterion)
    if wrong := next((scope for scope in options.scopes if scope not in SCOPES), None):
        raise VPromptError(f"The scope is 'global', 'local' or 'shared', not {wrong!r}.")
    if options.images < 1:
        raise VPromptError(f"There must be at least one image to score on, not {options.images}.")
    if wrong := next((share for share in options.early if not 0 <= share <= 1), None):
        raise VPromptError(f"Prompts are chosen after a share of the training from 0 to 1, not {wrong}.")


def scores(
    model: PromptedModel,
    train: ImageLabels,
    data: ImageLabels,
    options: Scores = Scores(),  # noqa: B008 - it is frozen
    *,
    report: Report = silent,
) -> ScoreAnalysis:
    """Scores a trained model's prompts by every criterion and compares with leaving out each prompt in turn.

    Exact ablation runs the model once for every prompt, over the images that the scores are computed on. Among what is
    retained, `ablation` and `ablation-signed` choose by these exact effects of each prompt alone. Criteria that the
    model cannot have (attention of a class token that it lacks, removal of shallow prompts) are left out.

    Args:
        model: Trained, with prompts; it is not changed.
        train: What to score and ablate on, and to fine-tune on; as for `vprompt.fit`.
        data: What to measure on what each criterion retains.
        options: Criteria, shares, scopes, images, fine-tuning and seed; its adapters are not opened.
        report: Told of every prompt ablated and every model measured.

    Raises:
        VPromptError: If the model has no prompts, or an option is out of range.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> options = Scores(ratios=(0.5,), scopes=("global",), criteria=("removal-signed", "random"), zeroing=False)
        >>> [(selection.criterion, sum(selection.counts)) for selection in scores(model, data, data, options).kept]
        [('removal-signed', 6), ('random', 6), ('ablation', 6), ('ablation-signed', 6)]

    Source: Prompt Condensation (arXiv 2305.17223), section 5 and Table 3; zeroing is its equation 13, leaving out ours.
    """
    _check(options)
    if not any(model.prompt_counts):
        raise VPromptError("There is nothing to score: the model has no prompts.")
    choices = _choices(options)
    for ratio, scope in choices:
        # What is wrong with them is said before anything is run.
        select([torch.zeros(count) for count in model.prompt_counts], ratio=ratio, scope=scope)
    recipe = replace(fine_tuning_recipe(model), epochs=options.fine_tune_epochs, seed=options.seed)
    model = model.copy().eval()
    usable: list[Criterion] = [name for name in cast("Sequence[Criterion]", options.criteria) if _fits(model, name)]
    drawn = _draw(train, options.images, options.seed)
    ways = {"ablation": False, "zeroing": True} if options.zeroing else {"ablation": False}

    def tune(small: PromptedModel) -> None:
        small.method, small.prompts.dropout = small.method.without_dropout(), 0.0
        fit(small, train, recipe=recipe)

    done, total = 0, len(ways) * sum(model.prompt_counts) + (len(usable) + 2 * len(ways)) * len(choices)

    def step() -> None:
        nonlocal done
        done += 1
        report(done, total)

    values: dict[str, Sequence[Tensor]] = {
        name: score(model, drawn, criterion=name, seed=options.seed) for name in usable
    }
    exact = {way: ablate(model, drawn, zero=zero, step=step) for way, zero in ways.items()}
    for way, effects in exact.items():
        for name, effect in ((way, effects.change), (f"{way}-signed", effects.rise)):
            values[name] = [torch.tensor(block) for block in effect]
    flat = {name: torch.cat(list(blocks)).tolist() for name, blocks in values.items()}
    against = {kind: flat[name] for kind, name in EFFECTS.items() if name in flat}
    whole = evaluate(model.fold(), data)
    return ScoreAnalysis(
        accuracy=whole.accuracy,
        loss=whole.loss,
        prompt_counts=tuple(model.prompt_counts),
        scores={name: _plain(values[name]) for name in usable},
        ablation=exact["ablation"],
        zeroing=exact.get("zeroing"),
        agreement={name: {kind: spearman(flat[name], it) for kind, it in against.items()} for name in usable},
        sizes={name: size for name in usable if (size := _size(name, flat)) is not None},
        between={name: {other: spearman(flat[name], flat[other]) for other in usable} for name in usable},
        kept=tuple(_selections(model, data, values, choices, tune if recipe.epochs else None, step)),
    )


def _selections(
    model: PromptedModel,
    data: ImageLabels,
    values: Mapping[str, Sequence[Tensor]],
    choices: Sequence[tuple[float, Scope]],
    tune: Callable[[PromptedModel], object] | None,
    step: Callable[[], None],
) -> Iterator[Selection]:
    """The model with what each criterion retains by each choice, as it is and trained on."""
    for (ratio, scope), (name, of_prompts) in itertools.product(choices, values.items()):
        small = model.keep(select(of_prompts, ratio=ratio, scope=scope)).eval()
        measured, tuned = evaluate(small.fold(), data), None
        if tune is not None:
            tune(small)
            tuned = evaluate(small.fold(), data).accuracy
        step()
        yield Selection(
            criterion=name,
            scope=scope,
            ratio=ratio,
            accuracy=measured.accuracy,
            loss=measured.loss,
            fine_tuned=tuned,
            counts=tuple(small.prompt_counts),
        )


def _choices(options: Scores) -> list[tuple[float, Scope]]:
    return list(itertools.product(options.ratios, cast("tuple[Scope, ...]", options.scopes)))


def _size(criterion: str, flat: Mapping[str, Sequence[float]]) -> float | None:
    """The exact effect that a criterion estimates, over its scores; None for one that estimates none."""
    kind = GRADIENTS.get(criterion)
    if kind is None or kind.of != "loss":
        return None
    exact = flat.get(("ablation" if kind.along == "removal" else "zeroing") + "-signed" * kind.signed, ())
    scored = sum(map(abs, flat[criterion]))
    return sum(map(abs, exact)) / scored if exact and scored else None


def _early(trained: Trained, final: Mapping[str, PerBlock], options: Scores, host: Host) -> tuple[EarlyChoice, ...]:
    """Begins the training of an adapter anew, and chooses on the way; `final` are the scores of the adapter."""
    document, seeded = upgraded(trained.result.get("settings", {})), trained.model.recipe
    if "backbone" not in document or seeded is None or trained.model.method.relocates:
        raise VPromptError(
            f"Prompts of {trained.folder} cannot be chosen early: they move in training, or nothing beside the adapter "
            "says how it was trained; leave out --early."
        )
    settings = settings_from(document)
    train, val = training_images(trained.task, settings)
    recipe = seeded.scheduled(size_of(train))
    torch.manual_seed(recipe.seed)
    start = attached(settings, trained.model.backbone, trained.task)
    drawn = _draw(trained.task.train, options.images, options.seed)
    data, choices = trained.split(options.adapters.split), _choices(options)
    late = {name: [torch.tensor(block) for block in values] for name, values in final.items()}
    found: list[EarlyChoice] = []
    total = len(options.early) * len(late) * len(choices)
    with host.bar(f"{trained.label}, early") as report:
        for share in options.early:
            young, epochs = start.copy(), round(share * recipe.num_epochs)
            fit(young, train, val, recipe=recipe, until=epochs)
            tune = partial(fit, train=train, val=val, recipe=replace(recipe, epochs=recipe.num_epochs - epochs))
            scored = young.copy()
            if not epochs:  # a head of zeros has no gradient to score by: that of a linear probe takes its place
                probe = attach(trained.model.backbone, Linear(), data=trained.task, head=settings.head)
                fit(probe, train, val, recipe=recipe)
                scored.head.load_state_dict(probe.head.state_dict())
            # Another draw of random scores than the last ones.
            now = {
                name: score(scored, drawn, criterion=name, seed=options.seed + (name == "random"))
                for name in cast("Sequence[Criterion]", list(late))
            }
            for each in _selections(young, data, now, choices, tune, lambda: report(len(found) + 1, total)):
                pair, scope = [values[each.criterion] for values in (now, late)], cast("Scope", each.scope)
                chosen = zip(*(select(values, ratio=each.ratio, scope=scope) for values in pair), strict=True)
                overlap = sum(int(torch.isin(*indices).sum()) for indices in chosen) / sum(each.counts)
                agreement = spearman(*(torch.cat(list(values)).tolist() for values in pair))
                found.append(EarlyChoice(**vars(each), share=share, agreement=agreement, overlap=overlap))
    return tuple(found)


def _fits(model: PromptedModel, criterion: str) -> bool:
    if removes(criterion):
        return model.method.riding != "tokens"
    return criterion != "cls-similarity" or model.info.class_token


def _draw(train: ImageLabels, images: int, seed: int) -> ImageLabels:
    """So many of the images, in their order."""
    length = size_of(train)
    if images >= length:
        return train
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:images].sort().values
    return train.subset(order) if isinstance(train, ImageDataset) else Subset(train, order.tolist())


def ablate(
    model: PromptedModel, data: ImageLabels, *, zero: bool = False, step: Callable[[], None] = lambda: None
) -> PromptAblation:
    """Leaves out one prompt at a time, exactly.

    Args:
        model: With prompts.
        data: Images and labels.
        zero: Set it to zero instead: it stays in attention, with the key and value that zeros have.
        step: Called after every prompt.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
        >>> found = ablate(model, torch.utils.data.TensorDataset(torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 0])))
        >>> found.images, [len(block) for block in found.rise]
        (3, [2, 2, 2, 2, 2, 2])
    """
    base_N = _losses(model.fold(), data)
    rise: list[Tensor] = []
    change: list[Tensor] = []
    for block, count in enumerate(model.prompt_counts):
        effects_PN = torch.zeros(count, len(base_N), dtype=torch.float64)
        for prompt in range(count):
            effects_PN[prompt] = _losses(_without(model, block, prompt, zero=zero).fold(), data) - base_N
            step()
        rise.append(effects_PN.mean(1))
        change.append(effects_PN.abs().mean(1))
    return PromptAblation(images=len(base_N), loss=float(base_N.mean()), rise=_plain(rise), change=_plain(change))


def _without(model: PromptedModel, block: int, prompt: int, *, zero: bool) -> PromptedModel:
    if zero:
        prompts = model.prompts.constants()
        prompts[block][prompt] = 0
        return model.copy(prompts=prompts)
    indices = [torch.arange(count) for count in model.prompt_counts]
    indices[block] = indices[block][indices[block] != prompt]
    return model.keep(indices)


def _losses(model: FoldedModel, data: ImageLabels) -> Tensor:
    """Loss of every image, in float64."""
    found = evaluate(model, data)
    return F.cross_entropy(found.logits.double(), found.labels, reduction="none")


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Rank correlation of two lists, equal values sharing their mean rank; None where it is not defined.

    Example:
        >>> spearman([1, 2, 3], [10, 30, 20]), spearman([1, 1], [2, 3])
        (0.5, None)
    """
    if min(len(set(one)), len(set(other))) < 2:
        return None
    return round(statistics.correlation(_ranks(one), _ranks(other)), 12)


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [bisect_left(ordered, value) + bisect_right(ordered, value) for value in values]


def _plain(values: Sequence[Tensor]) -> PerBlock:
    """As numbers that a file need not hold to the last bit."""
    return tuple(tuple(float(f"{value:.6g}") for value in block.tolist()) for block in values)
