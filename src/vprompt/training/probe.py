"""Probes of frozen features: nearest neighbours, a linear classifier, labels that look wrong, and near copies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vprompt.utils.progress import Report, silent

TEMPERATURE = 0.07
"""Of the votes of neighbours, as in DINO."""

STRENGTHS = (1e-1, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Strengths of regularisation that a linear probe tries, the strongest first."""

FOLDS = 5

FAR_BELOW = 0.1
"""A label is doubted where its probability is below this share of its class's mean; see docs/embeddings.md."""

FIFTH, MUCH_NEARER, SAME = 5, 0.6, 0.02
"""Near copies are less than 0.6 times as far from one another as each is from its fifth neighbour, or no farther than
rounding. A ratio suits every backbone, where cosines do not: different satellite images reach 0.95, crops 0.8."""

ROWS = 1024
"""Of a matrix of cosines that are computed at once."""


@torch.inference_mode()
def neighbour_shares(features_NF: Tensor, labels_N: Tensor, queries_MF: Tensor, *, k: int, num_classes: int) -> Tensor:
    """The share (M, C) of each class in the votes of the k nearest features, which weigh exp(cosine / 0.07).

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> neighbour_shares(features, torch.tensor([0, 0, 1]), torch.tensor([[0.2, 1.0]]), k=1, num_classes=2)
        tensor([[0., 1.]])

    Source: Caron et al. (2021), Emerging properties in self-supervised vision transformers (arXiv 2104.14294).
    """
    known_NF, shares = F.normalize(features_NF, dim=1), list[Tensor]()
    for part_BF in F.normalize(queries_MF, dim=1).split(ROWS):
        cosines_BK, index_BK = (part_BF @ known_NF.T).topk(min(k, len(known_NF)), dim=1)
        votes_BK = (cosines_BK / TEMPERATURE).softmax(1)
        shares.append(torch.zeros(len(part_BF), num_classes).scatter_add_(1, labels_N[index_BK], votes_BK))
    return torch.cat(shares)


class Probe(NamedTuple):
    """A linear classifier of features, and the strength of regularisation it was fitted with."""

    weight: Tensor
    bias: Tensor
    strength: float

    def logits(self, features_BF: Tensor) -> Tensor:
        """Logits (B, C)."""
        return features_BF @ self.weight + self.bias


def fit_probe(
    features_NF: Tensor,
    labels_N: Tensor,
    num_classes: int,
    *,
    held_out: tuple[Tensor, Tensor] | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """Fits a linear classifier: mean cross-entropy of standardised features plus the weight's squares, by L-BFGS.

    Args:
        features_NF: Features to learn from.
        labels_N: Their classes.
        num_classes: Number of classes.
        held_out: Other features and their labels, by whose cross-entropy the strength is chosen.
        strengths: Falling; each fit begins where the one before ended. The last counts where nothing is held out.

    Example:
        >>> features, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
        >>> fit_probe(features, labels, 2).logits(features).argmax(1)
        tensor([0, 1])
    """
    mean, width = features_NF.mean(0), features_NF.shape[1]
    scale = 1 / (features_NF.std(0, correction=0).clamp_min(1e-6) * math.sqrt(width))
    x_NF = (features_NF - mean) * scale
    spread_F, axes_FF = torch.linalg.eigh(x_NF.T @ x_NF / len(x_NF))
    x_NF, weight, bias = x_NF @ axes_FF, torch.zeros(width, num_classes), torch.zeros(num_classes)
    best, least = None, math.inf
    for strength in strengths:
        # About so curved is the loss along each axis: with steps to suit, L-BFGS takes half of the iterations.
        steps_F1 = (spread_F.clamp_min(0) / num_classes + strength).rsqrt()[:, None]
        weight, bias = _minimised(x_NF, labels_N, weight, bias, strength, steps_F1)
        whole = scale[:, None] * (axes_FF @ weight)
        probe = Probe(whole, bias - mean @ whole, strength)
        loss = -1.0 if held_out is None else float(F.cross_entropy(probe.logits(held_out[0]), held_out[1]))
        if loss > least:
            break  # with less regularisation it only grows
        best, least = probe, loss
    assert best is not None
    return best


@torch.enable_grad()
def _minimised(
    x_NF: Tensor, labels_N: Tensor, weight: Tensor, bias: Tensor, strength: float, steps_F1: Tensor
) -> tuple[Tensor, Tensor]:
    scaled, bias = (weight / steps_F1).requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([scaled, bias], max_iter=50, line_search_fn="strong_wolfe", tolerance_change=1e-5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight = scaled * steps_F1
        loss = F.cross_entropy(x_NF @ weight + bias, labels_N) + strength / 2 * weight.square().sum()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return (scaled * steps_F1).detach(), bias.detach()


def fold_numbers(labels_N: Tensor, pairs: Sequence[tuple[int, int]] = ()) -> Tensor:
    """The fold (N,) of every image, 0 to 4: classes are spread evenly, and pairs of copies stay together.

    Example:
        >>> fold_numbers(torch.zeros(10).long()).bincount()
        tensor([2, 2, 2, 2, 2])
    """
    group_N = torch.arange(len(labels_N))
    for one, two in pairs:
        group_N[group_N == group_N[two]] = int(group_N[one])
    groups, labels = group_N.tolist(), labels_N.tolist()
    fold_of, following = dict[int, int](), list(range(max(labels) + 1))  # classes begin with different folds
    for row in torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist():
        if groups[row] not in fold_of:
            fold_of[groups[row]] = following[labels[row]] % FOLDS
            following[labels[row]] += 1
    return torch.tensor([fold_of[group] for group in groups])


def out_of_fold(
    features_NF: Tensor, labels_N: Tensor, folds_N: Tensor, num_classes: int, strength: float, report: Report = silent
) -> Tensor:
    """Probabilities (N, C) of each image, from a linear probe that was fitted on the images of all other folds."""
    probabilities_NC = torch.zeros(len(features_NF), num_classes)
    for fold in range(FOLDS):
        inside = folds_N == fold
        if 0 < int(inside.sum()) < len(inside):
            probe = fit_probe(features_NF[~inside], labels_N[~inside], num_classes, strengths=[strength])
            probabilities_NC[inside] = probe.logits(features_NF[inside]).softmax(1)
        report(fold + 1, FOLDS)
    return probabilities_NC


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
