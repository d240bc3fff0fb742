"""Classifiers on the pooled feature: one linear layer, or several."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.methods.base import Promptless
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from vprompt.methods.registry import Method

HeadInit = Literal["paper", "zero"]


class MLPHead(nn.Module):
    """Layers of the feature's width with GELU, then a linear classifier.

    Args:
        features: Width of the pooled feature.
        classes: How many classes there are.
        layers: How many layers in all, the classifier included.

    Example:
        >>> MLPHead(4, 2, 3)(torch.zeros(1, 4)).shape
        torch.Size([1, 2])
    """

    def __init__(self, features: int, classes: int, layers: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(features, features) for _ in range(layers - 1))
        self.classifier = nn.Linear(features, classes)

    def represent(self, features_BF: Tensor) -> Tensor:
        """What the classifier sees of features, (B, F)."""
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
        """How many classes there are."""
        return self.classifier.out_features

    @property
    def weight(self) -> nn.Parameter:
        """The classifier's."""
        return cast("nn.Parameter", self.classifier.weight)

    @property
    def bias(self) -> nn.Parameter:
        """The classifier's."""
        return self.classifier.bias


Head = nn.Linear | MLPHead
"""A classifier; both kinds tell `in_features`, `out_features`, `weight` and `bias` of their last layer."""


def empty_head(method: Method, features: int, classes: int) -> Head:
    """The head of a method without values, on the meta device; takes nothing from torch's random generator."""
    with torch.device("meta"):
        return _head(method, features, classes)


def initial_head(method: Method, features: int, classes: int, init: HeadInit) -> Head:
    """The head of a method as training starts; `init` is as in `vprompt.attach`, and for the last layer only.

    Raises:
        VPromptError: If there is no such initialisation.
    """
    head = _head(method, features, classes)
    if init == "paper":
        nn.init.kaiming_normal_(head.weight, mode="fan_out")
        nn.init.constant_(head.bias, -math.log(99))
    elif init == "zero":
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    else:
        raise VPromptError(f"The head's initialisation is 'paper' or 'zero', not {init!r}.")
    return head


def _head(method: Method, features: int, classes: int) -> Head:
    return MLPHead(features, classes, method.layers) if isinstance(method, MLP) else nn.Linear(features, classes)


@dataclass(frozen=True)
class Linear(Promptless):
    """Linear probe: a linear head on the frozen backbone's pooled feature, and no prompts.

    Example:
        >>> Linear().initial_counts(3)
        [0, 0, 0]
    """

    name: ClassVar[str] = "linear"


@dataclass(frozen=True)
class MLP(Promptless):
    """A deeper head on the frozen backbone's feature: layers of the feature's width with GELU, then a linear one.

    Args:
        layers: How many in all, 2 to 100.

    Raises:
        VPromptError: If there are fewer or more.

    Example:
        >>> MLP().layers
        2

    Source: VPT (arXiv 2203.12119), section 4.1.
    """

    layers: int = 2
    name: ClassVar[str] = "mlp"
    lr_factor: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        if not 2 <= self.layers <= 100:
            raise VPromptError(f"MLP has 2 to 100 layers, not {self.layers}; with one, it is Linear().")
