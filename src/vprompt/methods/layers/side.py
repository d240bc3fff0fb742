"""A small convolutional network whose features are mixed with the backbone's."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class SideNetwork(nn.Module):
    """Four strided convolutions, average pooling and a linear layer, which starts at zero.

    Args:
        width: Channels of the first convolution; each of the others has twice as many as the one before.
        features: Width of the backbone's feature.

    Attributes:
        mixing: a (1,); the backbone's part of the mixture is sigmoid(a).

    Source: Side-Tuning (arXiv 1912.13503), section 3.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride=2, padding=1),
                    nn.GroupNorm(math.gcd(8, after), after),
                    nn.GELU(),
                )
                for before, after in pairwise(channels)
            )
        )
        self.out = nn.Linear(channels[-1], features)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.mixing = nn.Parameter(torch.zeros(1))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Features (B, F) of images."""
        return self.out(self.layers(images_BCHW).mean((2, 3)))

    def mix(self, features_BF: Tensor, images_BCHW: Tensor) -> Tensor:
        """The backbone's features, mixed with this network's."""
        share = self.mixing.sigmoid()
        return share * features_BF + (1 - share) * self(images_BCHW)
