"""Probes of frozen features: nearest neighbours, a linear classifier, labels that look wrong, and near copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from vprompt.tasks.base import Target
from vprompt.utils.progress import Report, silent

TEMPERATURE = 0.07
"""Of the votes of neighbours, as in DINO."""

STRENGTHS = (1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Strengths of regularisation that a linear probe tries, the strongest first."""

FOLDS = 5

Probe = Callable[[Tensor], Tensor]
"""A linear layer: makes logits of features."""

FAR_BELOW = 0.1
"""A label is doubted where its probability is below this share of its class's mean; see docs/embeddings.md."""

FIFTH, MUCH_NEARER, SAME = 5, 0.6, 0.02
"""Near copies are less than 0.6 times as far from one another as each is from its fifth neighbour, or no farther than
rounding. A ratio suits every backbone, where cosines do not: different satellite images reach 0.95, crops 0.8."""

ROWS = 1024
"""Of a matrix of cosines that are computed at once."""


@torch.inference_mode()
def neighbour_means(features_NF: Tensor, outputs_NK: Tensor, queries_MF: Tensor, *, k: int) -> Tensor:
    """The mean output (M, K) of the k nearest features, which weigh exp(cosine / 0.07): of classes, their shares.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> neighbour_means(features, torch.tensor([[1.0, 0], [1, 0], [0, 1]]), torch.tensor([[0.2, 1.0]]), k=1)
        tensor([[0., 1.]])

    Source: Caron et al. (2021), Emerging properties in self-supervised vision transformers (arXiv 2104.14294).
    """
    known_NF, means = F.normalize(features_NF, dim=1), list[Tensor]()
    for part_BF in F.normalize(queries_MF, dim=1).split(ROWS):
        cosines_BK, index_BK = (part_BF @ known_NF.T).topk(min(k, len(known_NF)), dim=1)
        votes_BK = (cosines_BK / TEMPERATURE).softmax(1)
        means.append(F.embedding_bag(index_BK, outputs_NK, per_sample_weights=votes_BK, mode="sum"))
    return torch.cat(means)


def fit_probe(
    features_NF: Tensor,
    labels_N: Tensor,
    target: Target,
    *,
    held_out: tuple[Tensor, Tensor] | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[Probe, float]:
    """Fits a linear layer: the target's mean loss on standardised features plus the weight's squares, by L-BFGS.

    Args:
        features_NF: Features to learn from.
        labels_N: Their labels as a tensor.
        target: What is to be said.
        held_out: Other features and their labels, by whose loss the strength is chosen.
        strengths: Falling; each fit begins where the one before ended. The last counts where nothing is held out.

    Returns:
        What makes logits (B, K) of features, and the strength.

    Example:
        >>> from vprompt.tasks.single_label import SingleLabel
        >>> features, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> probe, _ = fit_probe(features, labels, SingleLabel(names=("ant", "bee")))
        >>> probe(features).argmax(1)
        tensor([0, 1])
    """
    mean_F, scale_F = features_NF.mean(0), 1 / features_NF.std(0, correction=0).clamp_min(1e-6)
    x_NF, width, size = (features_NF - mean_F) * scale_F, features_NF.shape[1], len(target.names)
    weight_KF, bias_K = torch.zeros(size, width, requires_grad=True), torch.zeros(size, requires_grad=True)

    @torch.enable_grad()
    def objective(strength: float) -> Tensor:
        weight_KF.grad = bias_K.grad = None
        loss = target.loss(F.linear(x_NF, weight_KF, bias_K), labels_N).mean()
        loss = loss + strength * width / 2 * weight_KF.square().sum()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss

    found, least = list[tuple[Probe, float]](), math.inf
    for strength in strengths:
        optimizer = torch.optim.LBFGS([weight_KF, bias_K], 1, 100, tolerance_change=1e-5, line_search_fn="strong_wolfe")
        optimizer.step(partial(objective, strength))  # pyright: ignore[reportArgumentType]
        whole_KF = (weight_KF * scale_F).detach()
        probe: Probe = partial(F.linear, weight=whole_KF, bias=bias_K.detach() - whole_KF @ mean_F)
        loss = -1.0 if held_out is None else float(target.loss(probe(held_out[0]), held_out[1]).mean())
        if found and not loss <= least:
            break  # with less regularisation it only grows
        found, least = [(probe, strength)], loss
    return found[0]


def fold_numbers(labels_N: Tensor, pairs: Sequence[tuple[int, int]] = ()) -> Tensor:
    """The fold (N,) of every image, 0 to 4: classes are spread evenly, and pairs of copies stay together.

    Example:
        >>> fold_numbers(torch.zeros(10).long()).bincount()
        tensor([2, 2, 2, 2, 2])
    """
    group_N = torch.arange(len(labels_N))
    for one, two in pairs:
        group_N[group_N == group_N[two]] = int(group_N[one])
    drawn_N = torch.rand(len(labels_N), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    in_turn = dict.fromkeys(group_N[(labels_N + drawn_N).argsort()].tolist())  # class after class
    numbers = {group: number for number, group in enumerate(in_turn)}
    return torch.tensor([numbers[group] % FOLDS for group in group_N.tolist()])


def out_of_fold(
    features_NF: Tensor, labels_N: Tensor, folds_N: Tensor, target: Target, strength: float, report: Report = silent
) -> Tensor:
    """What a linear probe says of each image (N, K) that was fitted on the images of all other folds."""
    outputs_NK = torch.zeros(len(features_NF), len(target.names))
    for fold in range(FOLDS):
        inside = folds_N == fold
        if 0 < int(inside.sum()) < len(inside):
            probe, _ = fit_probe(features_NF[~inside], labels_N[~inside], target, strengths=[strength])
            outputs_NK[inside] = target.activate(probe(features_NF[inside]))
        report(fold + 1, FOLDS)
    return outputs_NK


def doubtful_labels(probabilities_NC: Tensor, labels_N: Tensor) -> list[tuple[int, int]]:
    """Images whose label looks wrong and the class they are likely of, the most doubtful first.

    A class counts for an image where its probability is at least what images with that label have on average. An image
    is named where another class counts, and its own is far below its average (`FAR_BELOW`).

    Args:
        probabilities_NC: Of classifiers that have not seen the image.
        labels_N: The given labels.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.97, 0.03]])
        >>> doubtful_labels(probabilities, torch.tensor([0, 0, 1, 1]))
        [(3, 0)]

    Source: Northcutt, Jiang and Chuang (2021), Confident learning (arXiv 1911.00068): the confident joint.
    """
    given_N = probabilities_NC.gather(1, labels_N[:, None])[:, 0]
    counts_C = torch.bincount(labels_N, minlength=probabilities_NC.shape[1])
    average_C = torch.bincount(labels_N, given_N.double(), minlength=len(counts_C)).float() / counts_C
    counting_NC = torch.where(probabilities_NC >= average_C, probabilities_NC, -1.0)  # never for NaN, without images
    likely_N, share_N = counting_NC.argmax(1), given_N / average_C[labels_N]
    doubtful_N = (share_N < FAR_BELOW) & (counting_NC.amax(1) > 0) & (likely_N != labels_N)
    rows = sorted(doubtful_N.nonzero().flatten().tolist(), key=share_N.tolist().__getitem__)
    return [(row, int(likely_N[row])) for row in rows]


@torch.inference_mode()
def near_copies(features_NF: Tensor) -> list[tuple[int, int, float]]:
    """Pairs of images that look like copies of one another, and their cosine around the mean; the most alike first.

    Example:
        >>> features = torch.eye(8)[[0, 1, 2, 3, 4, 5, 6, 6]]
        >>> [(one, two) for one, two, _ in near_copies(features)]
        [(6, 7)]
    """
    unit_NF, near = F.normalize(features_NF - features_NF.mean(0), dim=1), min(FIFTH, len(features_NF) - 1)
    if near < 2:
        return []
    found = list[tuple[Tensor, Tensor]]()
    for part in torch.arange(len(unit_NF)).split(ROWS):
        cosines_BN = (unit_NF[part] @ unit_NF.T).index_put((torch.arange(len(part)), part), torch.tensor(-2.0))
        found.append(cosines_BN.topk(near, dim=1))
    cosines_NK, index_NK = (torch.cat(parts) for parts in zip(*found, strict=True))
    distances_NK = (2 - 2 * cosines_NK).clamp_min(0).sqrt()
    limit_N = (MUCH_NEARER * distances_NK[:, -1]).clamp_min(SAME)
    close_NK = distances_NK[:, :-1] < torch.minimum(limit_N[:, None], limit_N[index_NK[:, :-1]])
    rows, others = close_NK.nonzero()[:, 0].tolist(), index_NK[:, :-1][close_NK].tolist()
    triples = zip(rows, others, cosines_NK[:, :-1][close_NK].tolist(), strict=True)
    pairs = {(min(row, other), max(row, other)): cosine for row, other, cosine in triples}
    return sorted(((one, two, cosine) for (one, two), cosine in pairs.items()), key=itemgetter(2), reverse=True)
