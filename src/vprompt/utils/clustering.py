"""K-means with weights."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 20
"""Most rounds; it ends long before."""


def k_means(points_NA: Tensor, number_N: Tensor, start_K: Tensor) -> Tensor:
    """The cluster (N,) of every point, each of which counts `number_N` times; starts from the points at `start_K`.

    Example:
        >>> k_means(torch.tensor([[0.0], [1.0], [9.0]]), torch.ones(3).long(), torch.tensor([0, 2]))
        tensor([0, 0, 1])
    """
    centres_KA = points_NA[start_K]
    member_N = torch.cdist(points_NA, centres_KA).argmin(1)
    member_N[start_K] = torch.arange(len(start_K), device=points_NA.device)  # also where two of them are the same
    for _ in range(ROUNDS):
        weights_KN = one_hot(member_N, len(start_K)) * number_N
        total_K1 = weights_KN.sum(1, keepdim=True)
        means_KA = weights_KN.to(points_NA.dtype) @ points_NA / total_K1.clamp(min=1)
        centres_KA = torch.where(total_K1 > 0, means_KA, centres_KA)
        nearest_N = torch.cdist(points_NA, centres_KA).argmin(1)
        # A cluster never loses its last member, so that there are always as many.
        if len(nearest_N.unique()) < len(start_K) or torch.equal(nearest_N, member_N):
            break
        member_N = nearest_N
    return member_N


def one_hot(member_N: Tensor, clusters: int) -> Tensor:
    """(K, N) int64: 1 where a point is in a cluster."""
    return (member_N == torch.arange(clusters, device=member_N.device)[:, None]).long()
