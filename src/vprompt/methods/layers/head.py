"""Classifiers on the pooled feature: one linear layer, or several."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.methods.layers.dense import DenseHead
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from vprompt.backbones.info import BackboneInfo
    from vprompt.methods.base import Method
    from vprompt.tasks.base import Target

_PAPER_BIAS = -math.log(99)


class MLPHead(nn.Module):
    """Layers of the feature's width with GELU, then a linear classifier.

    Args:
        features: Width of the pooled feature.
        classes: Number of classes.
        layers: Number of layers, the classifier included.

    Example:
        >>> import torch
        >>> MLPHead(4, 2, 3)(torch.zeros(1, 4)).shape
        torch.Size([1, 2])
    """

    def __init__(self, features: int, classes: int, layers: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(features, features) for _ in range(layers - 1))
        self.classifier = nn.Linear(features, classes)

    def represent(self, features_BF: Tensor) -> Tensor:
        """Input of the last layer, (B, F)."""
        for layer in self.hidden:
            features_BF = F.gelu(layer(features_BF))
        return features_BF

    def forward(self, features_BF: Tensor) -> Tensor:
        """Logits (B, C) of features."""
        return self.classifier(self.represent(features_BF))

    @property
    def in_features(self) -> int:
        """Width of the pooled feature."""
        return self.classifier.in_features

    @property
    def out_features(self) -> int:
        """Number of classes."""
        return self.classifier.out_features

    @property
    def weight(self) -> nn.Parameter:
        """The classifier's."""
        return cast("nn.Parameter", self.classifier.weight)

    @property
    def bias(self) -> nn.Parameter:
        """The classifier's."""
        return self.classifier.bias


Head = nn.Linear | MLPHead | DenseHead
"""A classifier; all kinds tell `in_features`, `out_features`, `weight` and `bias` of their last layer."""


def new_head(method: Method, info: BackboneInfo, target: Target | None, classes: int) -> Head:
    """The head of a method for a backbone: on the pooled feature, or on maps where every pixel has a label."""
    if target is not None and target.map_head is not None:
        return method.make_dense_head(target.map_head, info.widths, classes)
    return method.make_head(info.num_features, classes)


def head_values(head: Head) -> dict[str, Tensor]:
    """All values of a head by name: what is learned, and the statistics of batch norm."""
    return {**dict(head.named_parameters()), **dict(head.named_buffers())}


def initialise(head: Head, init: str) -> Head:
    """Sets the last layer of a head to where training starts; `init` is as in `vprompt.attach`.

    Raises:
        VPromptError: If there is no such initialisation.
    """
    if init == "paper":
        nn.init.kaiming_normal_(head.weight, mode="fan_out")
        nn.init.constant_(head.bias, _PAPER_BIAS)
    elif init == "zero":
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    else:
        raise VPromptError(f"The head's initialisation is 'paper' or 'zero', not {init!r}.")
    return head


def starts_as_in_the_paper(head: Head) -> bool:
    """Whether a head stands where `"paper"` puts it."""
    return bool((head.bias == head.bias.new_tensor(_PAPER_BIAS)).all())
