"""Rank of attention by number of prompts, and the law that its growth follows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vprompt.analysis.adapters import measure_each
from vprompt.analysis.attention import watched
from vprompt.analysis.base import Host
from vprompt.analysis.rank import Rank
from vprompt.experiments.finished import Trained
from vprompt.model.model import PromptedModel
from vprompt.training.loader import ImageLabels, check_batch, iterate, size_of
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import Report, part, silent
from vprompt.utils.statistics import std

Verdict = Literal["logarithmic", "linear", "neither", "none", "open"]
"""See `fit_law`."""

GOOD = 0.9
"""The R² from which on a law is said to fit."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """Two laws fitted to the growth of a rank, each with one constant; R² is None where the growth is constant.

    Args:
        verdict: See `fit_law`.
        tokens: n.
        log_slope: C of C · (log(n + m) - log n), natural logarithms.
        log_r2: Share of the variance of the growth that it explains; below 0 if the mean alone does better.
        linear_slope: C of C · m.
        linear_r2: The same of it.
        likeness: R² of a straight line fitted to an exact logarithm at these numbers of prompts; next to 1 they can
            hardly be told apart.
    """

    verdict: Verdict
    tokens: float
    log_slope: float | None
    log_r2: float | None
    linear_slope: float | None
    linear_r2: float | None
    likeness: float | None


def fit_law(prompts: Sequence[float], ranks: Sequence[float], tokens: float) -> Law:
    """Fits the logarithmic law of growth, and a straight line as its rival, by least squares through the origin.

    What is fitted is the growth rank(n + m) - rank(n): on log(n + m) - log n, and on m.

    Proposition 1 says that the growth is O(log(n + m) - log n). As an upper bound up to a constant it excludes nothing
    that can be measured: over a finite range of m any growth lies below a logarithm times some constant. (And it bounds
    the rank of an approximation whose existence needs rank log n / ε², which at n = 197 and ε = 0.1 is already more
    than n.) What can fail is how the paper reads it: that the rank follows a logarithm, so that each further prompt
    adds less. The verdict is about that:

    - `logarithmic`: its R² is at least 0.9, and not below that of the straight line.
    - `linear`: the straight line's R² is at least 0.9, and above the logarithm's.
    - `neither`: both are below 0.9.
    - `none`: the rank grows at no number of prompts, so that there is no law to find and any bound holds.
    - `open`: fewer than three numbers of prompts above 0 are too few to tell.

    Args:
        prompts: m, with 0 among them.
        ranks: Of the attention matrix with so many prompts, usually means.
        tokens: n.

    Raises:
        VPromptError: If the numbers do not belong together, or 0 prompts are not among them.

    Example:
        >>> law = fit_law([0, 10, 20, 40], [5.0, 5 + math.log(2), 5 + math.log(3), 5 + math.log(5)], tokens=10)
        >>> law.verdict, round(law.log_slope, 6), round(law.log_r2, 6)
        ('logarithmic', 1.0, 1.0)

    Source: Prompt Condensation (arXiv 2305.17223), Proposition 1.
    """
    if len(prompts) != len(ranks):
        raise VPromptError(f"There are {len(prompts)} numbers of prompts for {len(ranks)} ranks.")
    if not all(map(math.isfinite, [*prompts, *ranks, tokens])) or tokens <= 0 or min(prompts, default=0) < 0:
        raise VPromptError("Numbers of prompts, ranks and tokens must be finite, and none of them below 0.")
    bare = [rank for count, rank in zip(prompts, ranks, strict=True) if count == 0]
    if not bare:
        raise VPromptError("The growth of the rank needs the rank without prompts; 0 is not among their numbers.")
    start = sum(bare) / len(bare)
    pairs = [(float(count), rank - start) for count, rank in zip(prompts, ranks, strict=True) if count]
    straight, growth = [count for count, _ in pairs], [grown for _, grown in pairs]
    bent = [math.log1p(count / tokens) for count in straight]
    log_slope, log_r2 = _through_origin(bent, growth)
    linear_slope, linear_r2 = _through_origin(straight, growth)
    return Law(
        verdict=_verdict(len(set(straight)), growth, log_r2, linear_r2),
        tokens=tokens,
        log_slope=log_slope,
        log_r2=log_r2,
        linear_slope=linear_slope,
        linear_r2=linear_r2,
        likeness=_through_origin(straight, bent)[1],
    )


def _through_origin(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None]:
    """Slope and R² of the line through the origin; None where they mean nothing."""
    if not x:
        return None, None
    slope = sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
    mean = sum(y) / len(y)
    varies = sum((b - mean) ** 2 for b in y)
    left = sum((b - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    # Of numbers that are equal but for rounding there is no variance to explain.
    return slope, 1 - left / varies if varies > 1e-12 * sum(b * b for b in y) else None


def _verdict(counts: int, growth: Sequence[float], log_r2: float | None, linear_r2: float | None) -> Verdict:
    if counts < 3:
        return "open"
    if max(growth) <= 0:
        return "none"
    bent, straight = (-math.inf if r2 is None else r2 for r2 in (log_r2, linear_r2))
    if max(bent, straight) < GOOD:
        return "neither"
    return "logarithmic" if bent >= straight else "linear"


PARTS = (10, 25, 50)
"""Percentages of the dimensions of which a share is told."""

EPSILONS = (0.1, 0.03, 0.01)
"""Relative errors at which ranks are told, unless others are asked for: what law a rank follows can depend on it."""


@dataclass(frozen=True, kw_only=True)
class Spectra:
    """Attention with one number of prompts: means over images, heads and windows, and then over blocks.

    Args:
        prompts: m, mean over blocks where they differ.
        tokens: n, likewise.
        ranks: Numerical ranks; keys are the relative errors, as `"0.1"`.
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
            ranks = rank(
                trained.model,
                images,
                counts=options.prompts,
                epsilon=options.epsilon,
                max_images=options.images,
                report=report,
            )
        return trained.label, ranks

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


def spectrum(weights: Tensor) -> Tensor:
    """Cumulative normalised singular values (..., K): the share of their sum that the k largest have.

    All ones for a matrix of zeros.

    Example:
        >>> spectrum(torch.diag(torch.tensor([1.0, 3.0]))).tolist()
        [0.75, 1.0]

    Source: Prompt Condensation (arXiv 2305.17223), Fig. 2.
    """
    return _cumulative(singular_values(weights))


def numerical_rank(weights: Tensor, epsilon: float) -> Tensor:
    """How many singular values are above `epsilon` times the largest, (...,) of matrices (..., N, M).

    It is the smallest rank of a matrix Ã with ||A - Ã|| <= epsilon · ||A|| in the spectral norm: the best of rank k
    errs by exactly the singular value number k + 1, so that k suffices if and only if that one is at most epsilon
    times the first. A matrix of zeros has rank 0.

    Raises:
        VPromptError: If epsilon is not in [0, 1), or an entry of a matrix is not finite.

    Example:
        >>> numerical_rank(torch.diag(torch.tensor([1.0, 0.5, 0.01])), 0.1)
        tensor(2)
    """
    return _rank(singular_values(weights), checked_epsilon(epsilon))


def _cumulative(values: Tensor) -> Tensor:
    total = values.sum(-1, keepdim=True)
    return torch.where(total > 0, values.cumsum(-1) / total, 1.0)


def _rank(values: Tensor, epsilon: float) -> Tensor:
    return (values > epsilon * values[..., :1]).sum(-1)


def checked_epsilon(epsilon: float) -> float:
    """The same number.

    Raises:
        VPromptError: If it is not in [0, 1).
    """
    if not 0 <= epsilon < 1:
        raise VPromptError(f"The relative error epsilon must be at least 0 and below 1, not {epsilon}.")
    return epsilon


def rank(
    model: PromptedModel,
    images: ImageLabels,
    *,
    counts: Sequence[int] | None = None,
    epsilon: float | Sequence[float] = EPSILONS,
    max_images: int = 32,
    report: Report = silent,
) -> Ranks:
    """Spectra and ranks of a model's attention without prompts, with some of them, and with all.

    The matrices are those of the published execution, in which prompts are tokens; see
    `vprompt.analysis.attention.watched`. The number of prompts is varied by taking the first m of each block (of the
    first block where they are shallow). Their order is that in which they were drawn, so it says nothing of what they
    are worth. To look at models that were trained with different numbers instead, hand the results of each to `study`.

    Args:
        model: A trained model with prompts.
        images: As for `vprompt.fit`; the images to look at are spread evenly over them.
        counts: Numbers of prompts; 0 and six more up to all when not given. 0 is the bare backbone, and is looked at
            in any case.
        epsilon: Of the numerical rank, or several; see `numerical_rank`.
        max_images: Look at so many images at most.
        report: Told of every batch.

    Raises:
        VPromptError: If the model has no prompts, or another argument is out of range.

    Example:
        >>> import timm, vprompt
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(4), num_classes=2)
        >>> data = torch.utils.data.TensorDataset(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
        >>> found = rank(model, data, counts=[2, 4])
        >>> [(point.prompts, point.tokens, len(point.cumulative)) for point in found.points]
        [(0.0, 5.0, 5), (2.0, 5.0, 7), (4.0, 5.0, 9)]

    Source: Prompt Condensation (arXiv 2305.17223), Fig. 2 and Proposition 1.
    """
    epsilons = [epsilon] if isinstance(epsilon, int | float) else list(dict.fromkeys(epsilon))
    if not epsilons:
        raise VPromptError("There is no rank without a relative error epsilon; give at least one.")
    named = {f"{checked_epsilon(each):g}": each for each in epsilons}
    if max_images < 1:
        raise VPromptError(f"At least one image must be looked at, not {max_images}.")
    chosen = _counts(model, counts)
    length = size_of(images)
    seen = min(length, max_images)
    indices = torch.arange(seen) * length // seen
    points = tuple(
        _spectra(model, images, indices, count, named, part(report, number, len(chosen)))
        for number, count in enumerate(chosen)
    )
    counted, tokens = [point.prompts for point in points], points[0].tokens
    laws = {name: fit_law(counted, [point.ranks[name] for point in points], tokens) for name in named}
    return Ranks(images=seen, points=points, laws=laws)


def _counts(model: PromptedModel, counts: Sequence[int] | None) -> list[int]:
    """Numbers of prompts to look at, with 0 among them, rising."""
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
    sums = [_Sums(epsilons) for _ in model.info.blocks]
    run = watched(model, lambda block, matrices: sums[block].add(matrices), prompts=count)
    parameter = next(model.parameters())
    done = 0
    for batch, labels in iterate(images, list(indices.split(4)), device=parameter.device):
        check_batch(batch, labels, model)
        run(batch.to(parameter.dtype))
        done += len(labels)
        report(done, len(indices))
    counts = [min(count, own) for own in model.prompt_counts]
    if model.method.riding == "tokens":
        counts = [counts[0]] * len(counts)
    ranks = {name: tuple(block.mean(block.ranks[name]) for block in sums) for name in epsilons}
    longest = max(len(block.cumulative) for block in sums)
    curves = torch.stack([torch.cat([c, c.new_ones(longest - len(c))]) for c in (b.mean_curve() for b in sums)])
    return Spectra(
        prompts=statistics.fmean(counts),
        tokens=statistics.fmean(block.rows - own for block, own in zip(sums, counts, strict=True)),
        ranks={name: statistics.fmean(each) for name, each in ranks.items()},
        block_ranks=ranks,
        cumulative=tuple(curves.mean(0).tolist()),
        sums={str(p): statistics.fmean(block.mean(block.sums[p]) for block in sums) for p in PARTS},
        energies={str(p): statistics.fmean(block.mean(block.energies[p]) for block in sums) for p in PARTS},
    )


class _Sums:
    """What is added up over the matrices of one block."""

    def __init__(self, epsilons: Mapping[str, float]) -> None:
        self.epsilons = epsilons
        self.rows = 0
        self.matrices = 0
        self.ranks = dict.fromkeys(epsilons, 0.0)
        self.cumulative = torch.zeros(0, dtype=torch.float64)
        self.sums = dict.fromkeys(PARTS, 0.0)
        self.energies = dict.fromkeys(PARTS, 0.0)

    def add(self, matrices_RNM: Tensor) -> None:
        values_RK = singular_values(matrices_RNM)
        shares_RK, energy_RK = _cumulative(values_RK), _cumulative(values_RK.square())
        size = values_RK.shape[1]
        if not self.matrices:
            self.rows, self.cumulative = matrices_RNM.shape[1], shares_RK.new_zeros(size)
        self.matrices += len(values_RK)
        for name, epsilon in self.epsilons.items():
            self.ranks[name] += float(_rank(values_RK, epsilon).sum())
        self.cumulative += shares_RK.sum(0)
        for percent in PARTS:
            last = -(-percent * size // 100) - 1  # rounded up, as a number from 0
            self.sums[percent] += float(shares_RK[:, last].sum())
            self.energies[percent] += float(energy_RK[:, last].sum())

    def mean(self, total: float) -> float:
        return total / self.matrices

    def mean_curve(self) -> Tensor:
        return self.cumulative / self.matrices


def study(adapters: Sequence[tuple[str, Ranks]]) -> RankStudy:
    """Means over adapters by number of prompts, with their spread, and the law of the mean growth.

    Where all adapters were looked at with the same numbers of prompts, the points are these. Where they differ (for
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
    alike = {(tuple(each.laws), each.points[0].tokens, _depth(each)) for each in ranks}
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


def _depth(ranks: Ranks) -> int:
    return len(next(iter(ranks.points[0].block_ranks.values())))


def _mean(pairs: Sequence[tuple[Spectra, Spectra]], names: Sequence[str]) -> MeanSpectra:
    """Means over adapters: each with some prompts, and the same without."""
    points = [point for point, _ in pairs]
    ranks = {name: [point.ranks[name] for point in points] for name in names}
    return MeanSpectra(
        prompts=points[0].prompts,
        tokens=points[0].tokens,
        ranks={name: statistics.fmean(each) for name, each in ranks.items()},
        block_ranks={name: _columns([point.block_ranks[name] for point in points]) for name in names},
        cumulative=_columns([point.cumulative for point in points]),
        sums={key: statistics.fmean(point.sums[key] for point in points) for key in points[0].sums},
        energies={key: statistics.fmean(point.energies[key] for point in points) for key in points[0].energies},
        adapters=len(points),
        stds={name: std(each) for name, each in ranks.items()},
        growths={name: statistics.fmean(p.ranks[name] - bare.ranks[name] for p, bare in pairs) for name in names},
    )


def _columns(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(statistics.fmean(column) for column in zip(*rows, strict=True))
