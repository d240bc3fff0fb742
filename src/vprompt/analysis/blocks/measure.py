"""Accuracy without the prompts of each block, and how many of them a selection retains."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vprompt.analysis.adapters import Trained, measure_each
from vprompt.analysis.base import Host
from vprompt.analysis.blocks import Blocks
from vprompt.analysis.study import check_shares
from vprompt.compression.criteria import Criterion
from vprompt.compression.score import score
from vprompt.compression.select import select
from vprompt.model.model import PromptedModel
from vprompt.training.evaluate import Evaluation, evaluate
from vprompt.training.loader import ImageLabels
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import Report, part, silent
from vprompt.utils.statistics import std


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Accuracy (0-1) and mean cross-entropy."""

    accuracy: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class BlockAblation:
    """A model with all its prompts, without those of one block after the other, and without any.

    Args:
        images: On which it was measured.
        prompts: Of each block.
        full: With all prompts.
        without: Without the prompts of each block.
        bare: Without prompts in any block; the head and key-value prompts stay.
    """

    images: int
    prompts: tuple[int, ...]
    full: Evaluated
    without: tuple[Evaluated, ...]
    bare: Evaluated


@dataclass(frozen=True, kw_only=True)
class BlockCounts:
    """Numbers of prompts that each block retains, at one share of all."""

    ratio: float
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AdapterBlocks:
    """One adapter: its name and task, what it is without each block, what is retained at each ratio."""

    name: str
    task: str
    split: str
    ablation: BlockAblation
    kept: tuple[BlockCounts, ...]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Means over adapters by block, and standard deviations; these are None for one adapter."""

    means: tuple[float, ...]
    stds: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Adapters of one task, or all: what is lost without each block's prompts, and without any.

    Args:
        name: The task.
        adapters: How many.
        full: Mean accuracy with all prompts.
        drops: Accuracy with all prompts less accuracy without those of the block.
        rises: Mean loss without them less mean loss with all.
        bare_drop: As `drops`, without any prompts.
        bare_rise: As `rises`, without any prompts.
    """

    name: str
    adapters: int
    full: float
    drops: Spread
    rises: Spread
    bare_drop: float
    bare_rise: float


@dataclass(frozen=True, kw_only=True)
class MeanCounts:
    """Prompts that blocks retain, over adapters.

    Args:
        ratio: Share of all prompts that is retained.
        counts: Prompts that the block retains.
        shares: Of its prompts; of 0 prompts it retains none.
    """

    ratio: float
    counts: Spread
    shares: Spread


@dataclass(frozen=True, kw_only=True)
class BlockStudy:
    """Several adapters, block by block.

    Args:
        criterion: By which prompts were scored; None where none were.
        adapters: Each by itself.
        every: All of them together.
        tasks: Those of each task together, where there are several.
        kept: At each ratio, over all of them.
    """

    criterion: str | None
    adapters: tuple[AdapterBlocks, ...]
    every: Group
    tasks: tuple[Group, ...]
    kept: tuple[MeanCounts, ...]


def run(options: Blocks, host: Host) -> BlockStudy:
    """Ablates and scores one adapter after the other, and takes them together."""
    check_shares("share of prompts to keep", options.ratios)
    choice = options.adapters.split

    def measure(trained: Trained) -> AdapterBlocks:
        with host.bar(f"removing, {trained.label}") as report:
            ablation = blocks(trained.model, trained.split(choice), report=report)
        with host.bar(f"scoring, {trained.label}") as report:
            counts = retained(trained.model, trained.split("train"), ratios=options.ratios, report=report)
        split = trained.split_name(choice)
        return AdapterBlocks(name=trained.label, task=trained.task.source, split=split, ablation=ablation, kept=counts)

    return study(measure_each(options.adapters, host, measure))


def blocks(model: PromptedModel, data: ImageLabels, *, report: Report = silent) -> BlockAblation:
    """Accuracy and loss of a trained model without the prompts of each block in turn.

    The prompts are removed, not masked, and nothing is trained again. Key-value prompts (E²VPT) stay, and so does the
    head. A block without prompts of its own has the numbers of the whole model. Shallow prompts belong to the first
    block, so that without them no block has any.

    Args:
        model: With prompts; it is not changed.
        data: What to measure on; as for `vprompt.fit`.
        report: Told of every batch.

    Raises:
        VPromptError: If the model has no prompts.
        DataError: If the data does not fit.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> ablation = blocks(model, data)
        >>> ablation.images, ablation.prompts, len(ablation.without)
        (4, (2, 2, 2, 2, 2, 2), 6)

    Source: Prompt Condensation (arXiv 2305.17223), Fig. 3.
    """
    counts = tuple(model.prompt_counts)
    used = [block for block, count in enumerate(counts) if count]
    if not used:
        raise VPromptError("The model has no prompts, so there is nothing to take away from its blocks.")
    # With prompts in one block only, a model without them has none at all.
    variants = list(dict.fromkeys([(), *((block,) for block in used), tuple(used)]))
    results: dict[tuple[int, ...], Evaluation] = {}
    for number, removed in enumerate(variants):
        retained = [torch.arange(0 if block in removed else count) for block, count in enumerate(counts)]
        results[removed] = evaluate(model.keep(retained), data, report=part(report, number, len(variants)))
    evaluated = {removed: Evaluated(accuracy=result.accuracy, loss=result.loss) for removed, result in results.items()}
    return BlockAblation(
        images=results[()].images,
        prompts=counts,
        full=evaluated[()],
        without=tuple(evaluated.get((block,), evaluated[()]) for block in range(len(counts))),
        bare=evaluated[tuple(used)],
    )


def retained(
    model: PromptedModel,
    train: ImageLabels,
    *,
    ratios: Sequence[float] = Blocks.ratios,
    criterion: Criterion = "taylor",
    report: Report = silent,
) -> tuple[BlockCounts, ...]:
    """Numbers of prompts that each block retains when the best of all blocks together are chosen.

    Args:
        model: With prompts; it is not changed.
        train: What to score on.
        ratios: Shares of the prompts to keep.
        criterion: See `vprompt.score`.
        report: Told of every batch.

    Raises:
        VPromptError: If the model has no prompts, or another argument is out of range.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
        >>> [(row.ratio, sum(row.counts)) for row in retained(model, data)]
        [(0.5, 6), (0.3, 4), (0.1, 1)]

    Source: Prompt Condensation (arXiv 2305.17223), Fig. 7.
    """
    if not any(model.prompt_counts):
        raise VPromptError("The model has no prompts, so there are none to keep.")
    check_shares("share of prompts to keep", ratios)
    scores = score(model, train, criterion=criterion, report=report)
    return tuple(
        BlockCounts(ratio=ratio, counts=tuple(len(index) for index in select(scores, ratio=ratio))) for ratio in ratios
    )


def study(adapters: Sequence[AdapterBlocks], *, criterion: str | None = "taylor") -> BlockStudy:
    """Means and standard deviations over adapters: over tasks and seeds, and of each task.

    Raises:
        VPromptError: If there are none, or they cannot be compared.
    """
    if not adapters:
        raise VPromptError("There is no adapter whose blocks could be shown.")
    if len({len(each.ablation.prompts) for each in adapters}) > 1:
        raise VPromptError("The adapters' backbones have different numbers of blocks; look at them one by one.")
    if len({tuple(part.ratio for part in each.kept) for each in adapters}) > 1:
        raise VPromptError("The adapters were condensed to different shares, which have no mean.")
    tasks = list(dict.fromkeys(each.task for each in adapters))
    return BlockStudy(
        criterion=criterion if adapters[0].kept else None,
        adapters=tuple(adapters),
        every=_group("all adapters", adapters),
        tasks=tuple(_group(task, [each for each in adapters if each.task == task]) for task in tasks)
        if len(tasks) > 1
        else (),
        kept=tuple(_mean_kept(adapters, number) for number in range(len(adapters[0].kept))),
    )


def _group(name: str, adapters: Sequence[AdapterBlocks]) -> Group:
    ablations = [each.ablation for each in adapters]
    return Group(
        name=name,
        adapters=len(ablations),
        full=statistics.fmean(each.full.accuracy for each in ablations),
        drops=_spread([[each.full.accuracy - less.accuracy for less in each.without] for each in ablations]),
        rises=_spread([[less.loss - each.full.loss for less in each.without] for each in ablations]),
        bare_drop=statistics.fmean(each.full.accuracy - each.bare.accuracy for each in ablations),
        bare_rise=statistics.fmean(each.bare.loss - each.full.loss for each in ablations),
    )


def _mean_kept(adapters: Sequence[AdapterBlocks], number: int) -> MeanCounts:
    counts = [each.kept[number].counts for each in adapters]
    shares = [
        [
            count / before if before else 0.0
            for count, before in zip(each.kept[number].counts, each.ablation.prompts, strict=True)
        ]
        for each in adapters
    ]
    return MeanCounts(ratio=adapters[0].kept[number].ratio, counts=_spread(counts), shares=_spread(shares))


def _spread(rows: Sequence[Sequence[float]]) -> Spread:
    columns = list(zip(*rows, strict=True))
    stds = tuple(std(column) or 0.0 for column in columns) if len(rows) > 1 else None
    return Spread(means=tuple(map(statistics.fmean, columns)), stds=stds)
