"""Rank of attention by number of prompts, of one adapter and of several."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vprompt.analysis.adapters import Trained, measure_each
from vprompt.analysis.attention import watched
from vprompt.analysis.base import Host
from vprompt.analysis.rank import Rank
from vprompt.analysis.rank.law import Law, fit_law
from vprompt.model.model import PromptedModel
from vprompt.training.loader import ImageLabels, iterate, size_of
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import Report, part, silent
from vprompt.utils.statistics import mean_of, std

LIVE = " live"
"""Ends the names of ranks of the live rows: those whose outputs are read, n of n + m where prompts are deep."""

PARTS = (10, 25, 50)
"""Percentages of the dimensions of which a share is told."""


@dataclass(frozen=True, kw_only=True)
class Spectra:
    """Attention with one number of prompts: means over images, heads and windows, and then over blocks.

    Args:
        prompts: m, mean over blocks where they differ.
        tokens: n, likewise.
        ranks: Numerical ranks; keys are the relative errors, as `"0.1"`, and of the live rows alone `"0.1 live"`, which
            earlier versions did not measure.
        block_ranks: The same for each block.
        cumulative: Share of the sum of all singular values that the k largest have, for k = 1, 2, ...
        sums: The same for the largest 10, 25 and 50 % of them, rounded up; keys are the percentages.
        energies: As `sums`, of the sum of their squares.
    """

    prompts: float
    tokens: float
    ranks: dict[str, float]
    block_ranks: dict[str, tuple[float, ...]]
    cumulative: tuple[float, ...]
    sums: dict[str, float]
    energies: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Attention of one model with several numbers of prompts, fewest first, and the law of each of its ranks."""

    images: int
    points: tuple[Spectra, ...]
    laws: dict[str, Law]


@dataclass(frozen=True, kw_only=True)
class MeanSpectra(Spectra):
    """Means over adapters.

    Args:
        adapters: How many.
        stds: Standard deviations of their ranks; None for one adapter.
        growths: Means of each adapter's ranks less those without prompts.
    """

    adapters: int
    stds: dict[str, float | None]
    growths: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RankStudy:
    """Attention of several adapters.

    Args:
        varied: What tells the numbers of prompts apart: how many of an adapter's prompts were `"kept"`, or how many it
            was `"trained"` with.
        names: Of the adapters.
        adapters: Each by itself.
        points: Means over them by number of prompts, fewest first.
        laws: Of the mean growth; keys as those of the ranks.
    """

    varied: Literal["kept", "trained"]
    names: tuple[str, ...]
    adapters: tuple[Ranks, ...]
    points: tuple[MeanSpectra, ...]
    laws: dict[str, Law]


def run(options: Rank, host: Host) -> RankStudy:
    """Spectra and ranks of one adapter after the other, and of all together."""

    def measure(trained: Trained) -> tuple[str, Ranks]:
        images = trained.split(options.adapters.split)
        with host.bar(f"rank, {trained.label}") as report:
            return trained.label, rank(trained.model, images, options, report=report)

    return study(measure_each(options.adapters, host, measure))


def singular_values(weights: Tensor) -> Tensor:
    """Singular values (..., K) of matrices (..., N, M), largest first, in float64 on the CPU.

    Raises:
        VPromptError: If an entry is not a finite number.
    """
    wide = weights.detach().cpu().double()
    if not bool(wide.isfinite().all()):
        raise VPromptError("A matrix has entries that are not finite numbers; the model or its data is broken.")
    return torch.linalg.svdvals(wide)


def spectrum(values: Tensor) -> Tensor:
    """Cumulative normalised singular values (..., K): the share of their sum that the k largest have.

    All ones for a matrix of zeros.

    Example:
        >>> spectrum(torch.tensor([3.0, 1.0])).tolist()
        [0.75, 1.0]

    Source: Prompt Condensation (arXiv 2305.17223), Fig. 2.
    """
    total = values.sum(-1, keepdim=True)
    return torch.where(total > 0, values.cumsum(-1) / total, 1.0)


def numerical_rank(values: Tensor, epsilon: float) -> Tensor:
    """Number of singular values (..., K) above `epsilon` times the largest, (...,).

    It is the smallest rank of a matrix Ã with ||A - Ã|| <= epsilon · ||A|| in the spectral norm: the best of rank k
    errs by exactly the singular value number k + 1, so that k suffices if and only if that one is at most epsilon
    times the first. A matrix of zeros has rank 0.

    Raises:
        VPromptError: If epsilon is not in [0, 1).

    Example:
        >>> numerical_rank(torch.tensor([1.0, 0.5, 0.01]), 0.1)
        tensor(2)
    """
    if not 0 <= epsilon < 1:
        raise VPromptError(f"The relative error epsilon must be at least 0 and below 1, not {epsilon}.")
    return (values > epsilon * values[..., :1]).sum(-1)


def rank(
    model: PromptedModel,
    images: ImageLabels,
    options: Rank = Rank(),  # noqa: B008 - it is frozen
    *,
    report: Report = silent,
) -> Ranks:
    """Spectra and ranks of a model's attention without prompts, with some of them, and with all.

    The matrices are those of the published execution, in which prompts are tokens; see
    `vprompt.analysis.attention.watched`. The number of prompts is varied by taking the first m of each block (of the
    first block where they are shallow). Their order is that in which they were drawn, so it says nothing of what they
    are worth. The rank is told of the square matrices, as in the paper, and of their live rows: with deep prompts these
    are n of n + m, so that it is at most n. To look at models that were trained with different numbers instead, hand
    the results of each to `study`.

    Args:
        model: A trained model with prompts.
        images: As for `vprompt.fit`; the images to look at are spread evenly over them.
        options: Numbers of prompts (0 is the bare backbone, and is measured in any case), relative errors and how many
            images; its adapters are not opened.
        report: Told of every batch.

    Raises:
        VPromptError: If the model has no prompts, or an option is out of range.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(4), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
        >>> ranks = rank(model, data, Rank(prompts=(2, 4)))
        >>> [(point.prompts, point.tokens, len(point.cumulative)) for point in ranks.points]
        [(0.0, 5.0, 5), (2.0, 5.0, 7), (4.0, 5.0, 9)]

    Source: Prompt Condensation (arXiv 2305.17223), Fig. 2 and Proposition 1.
    """
    named = {f"{epsilon:g}{of}": epsilon for of in ("", LIVE) for epsilon in options.epsilon}
    if not named:
        raise VPromptError("There is no rank without a relative error epsilon; give at least one.")
    for epsilon in options.epsilon:
        numerical_rank(torch.ones(1), epsilon)  # what is wrong with it is said before anything is run
    if options.images < 1:
        raise VPromptError(f"At least one image must be looked at, not {options.images}.")
    chosen = _counts(model, options.prompts)
    length = size_of(images)
    seen = min(length, options.images)
    indices = torch.arange(seen) * length // seen
    points = tuple(
        _spectra(model, images, indices, count, named, part(report, number, len(chosen)))
        for number, count in enumerate(chosen)
    )
    counted, tokens = [point.prompts for point in points], points[0].tokens
    laws = {name: fit_law(counted, [point.ranks[name] for point in points], tokens) for name in named}
    return Ranks(images=seen, points=points, laws=laws)


def _counts(model: PromptedModel, counts: Sequence[int] | None) -> list[int]:
    """Numbers of prompts to measure with, with 0 among them, rising."""
    most = max(model.prompt_counts, default=0)
    if not most:
        raise VPromptError("The model has no prompts, so there is nothing to compare its attention with.")
    wanted = [round(most * sixth / 6) for sixth in range(1, 7)] if counts is None else counts
    wrong = [count for count in wanted if not 0 <= count <= most]
    if wrong:
        raise VPromptError(f"The model has up to {most} prompts in a block; it cannot be run with {wrong[0]} of them.")
    return sorted({0, *wanted})


def _spectra(
    model: PromptedModel,
    images: ImageLabels,
    indices: Tensor,
    count: int,
    epsilons: Mapping[str, float],
    report: Report,
) -> Spectra:
    rows, values, live = _values(model, images, indices, count, report)
    counts = [min(count, own) for own in model.prompt_counts]
    if model.method.riding == "tokens":
        counts = [counts[0]] * len(counts)
    ranks = {
        name: tuple(
            float(numerical_rank(values_RK, epsilon).double().mean())
            for values_RK in (live if name.endswith(LIVE) else values)
        )
        for name, epsilon in epsilons.items()
    }
    sums = [spectrum(values_RK).mean(0) for values_RK in values]
    energies = [spectrum(values_RK.square()).mean(0) for values_RK in values]
    longest = max(map(len, sums))
    return Spectra(
        prompts=statistics.fmean(counts),
        tokens=statistics.fmean(size - own for size, own in zip(rows, counts, strict=True)),
        ranks={name: statistics.fmean(of_blocks) for name, of_blocks in ranks.items()},
        block_ranks=ranks,
        cumulative=tuple(torch.stack([F.pad(c, (0, longest - len(c)), value=1.0) for c in sums]).mean(0).tolist()),
        sums={str(percent): _largest(sums, percent) for percent in PARTS},
        energies={str(percent): _largest(energies, percent) for percent in PARTS},
    )


def _values(
    model: PromptedModel, images: ImageLabels, indices: Tensor, count: int, report: Report
) -> tuple[list[int], list[Tensor], list[Tensor]]:
    """Rows of the attention matrices of each block, all their singular values (R, K), and those of the live rows."""
    rows = [0] * len(model.info.blocks)
    values: list[list[Tensor]] = [[] for _ in rows]
    live: list[list[Tensor]] = [[] for _ in rows]

    def see(block: int, square_RNM: Tensor, live_RLM: Tensor) -> None:
        rows[block] = square_RNM.shape[1]
        values[block].append(singular_values(square_RNM))
        live[block].append(values[block][-1] if live_RLM is square_RNM else singular_values(live_RLM))

    run = watched(model, see, prompts=count)
    parameter = next(model.parameters())
    done = 0
    for batch, labels in iterate(images, list(indices.split(4)), device=parameter.device, model=model):
        run(batch.to(parameter.dtype))
        done += len(labels)
        report(done, len(indices))
    return rows, [torch.cat(batches) for batches in values], [torch.cat(batches) for batches in live]


def _largest(curves: Sequence[Tensor], percent: int) -> float:
    """Sum of a percentage of the values, rounded up and the largest first; mean over cumulative curves."""
    return statistics.fmean(float(curve[-(-percent * len(curve) // 100) - 1]) for curve in curves)


def study(adapters: Sequence[tuple[str, Ranks]]) -> RankStudy:
    """Means over adapters by number of prompts, with their spread, and the law of the mean growth.

    Where all adapters were measured with the same numbers of prompts, the points are these. Where they differ (for
    they were trained with different numbers), a point is made of adapters with all the prompts they have.

    Args:
        adapters: Name of an adapter and what `rank` returned.

    Raises:
        VPromptError: If there are none, or they cannot be compared.
    """
    if not adapters:
        raise VPromptError("There is no adapter whose attention could be shown.")
    ranks = [of_one for _, of_one in adapters]
    names = list(ranks[0].laws)
    depths = [len(next(iter(each.points[0].block_ranks.values()))) for each in ranks]
    alike = {(tuple(each.laws), each.points[0].tokens, depth) for each, depth in zip(ranks, depths, strict=True)}
    if len(alike) > 1:
        raise VPromptError(
            "The adapters differ in blocks or tokens of their backbones, or in epsilon; look at them one by one."
        )
    same = len({tuple(point.prompts for point in each.points) for each in ranks}) == 1
    by_count: dict[float, list[tuple[Spectra, Spectra]]] = {}
    for each in ranks:
        for point in each.points if same else (each.points[0], each.points[-1]):
            by_count.setdefault(point.prompts, []).append((point, each.points[0]))
    points = tuple(_mean(by_count[count], names) for count in sorted(by_count))
    counts, tokens = [point.prompts for point in points], points[0].tokens
    return RankStudy(
        varied="kept" if same else "trained",
        names=tuple(name for name, _ in adapters),
        adapters=tuple(ranks),
        points=points,
        laws={name: fit_law(counts, [point.growths[name] for point in points], tokens) for name in names},
    )


def _mean(pairs: Sequence[tuple[Spectra, Spectra]], names: Sequence[str]) -> MeanSpectra:
    """Means over adapters: each with some prompts, and the same without."""
    points = [point for point, _ in pairs]
    means = mean_of([vars(point) for point in points]) | {"prompts": points[0].prompts, "tokens": points[0].tokens}
    return MeanSpectra(
        **means,
        adapters=len(points),
        stds={name: std([point.ranks[name] for point in points]) for name in names},
        growths={name: statistics.fmean(p.ranks[name] - bare.ranks[name] for p, bare in pairs) for name in names},
    )
