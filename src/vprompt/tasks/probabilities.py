"""Targets whose answers are probabilities: their temperature, figures of each class or tag, and what a page shows."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from vprompt.tasks.base import Target, bootstrapped
from vprompt.tasks.metrics import as_rows, by_name, f1_scores, known

if TYPE_CHECKING:
    from torch import Tensor

MOST = 10.0
"""Largest temperature, and its inverse the smallest: a model that is never wrong on few images would ask for 0."""


@dataclass(frozen=True, kw_only=True)
class Probabilities(Target):
    """A target whose answers are probabilities of classes or tags.

    Args:
        temperature: What logits are divided by before they become probabilities; it changes no order.
    """

    temperature: float = field(default=1.0, compare=False)

    answer = "probabilities"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature must be above 0 and finite, not {self.temperature}")

    @abstractmethod
    def matrix(self, labels: Tensor) -> Tensor:
        """Whether each image has each class or tag, (N, K), of labels as a tensor."""

    @abstractmethod
    def calibration_error(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """The mean distance, over bins of confidence, between this and the share that is right."""

    def agreement(self, before: Tensor, after: Tensor) -> float:
        """See `Target`: the share of classes or tags that stayed."""
        return float(self.hits(after, self.pseudo(before)).double().mean())

    def tempered(self, logits: Tensor) -> Tensor:
        """Logits divided by the temperature; the same ones at 1."""
        return logits if self.temperature == 1 else logits / self.temperature

    def calibrated(self, logits: Tensor, targets: Tensor) -> Self:
        """See `Target`; the loss is convex in the inverse of the temperature, and the root of its slope is bisected.

        Source: Guo et al. 2017 (arXiv 1706.04599), On calibration of modern neural networks.
        """
        import torch

        logits, low, high = logits.double(), -math.log(MOST), math.log(MOST)
        for _ in range(40):
            middle = (low + high) / 2
            place = torch.tensor(middle, dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(self.loss(logits * (-place).exp(), targets).mean(), place)
            low, high = (low, middle) if slope > 0 else (middle, high)
        return replace(self, temperature=math.exp((low + high) / 2))

    def trust(self, logits: Tensor, targets: Tensor) -> dict[str, float | None]:
        """See `Target`: the temperature, and with it the mean loss and the expected calibration error."""
        error = self.calibration_error(self.activate(logits.double()), targets)
        loss = self.loss(self.tempered(logits), targets).mean()
        return {"temperature": self.temperature, "loss": known(loss), "ece": known(error)}

    def details(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """Figures of each class or tag, their means, the calibration error, and 95 % `intervals` of means."""
        said, true, probabilities = (
            self.matrix(self.pseudo(logits)),
            self.matrix(targets),
            self.activate(logits.double()),
        )
        found = by_name(probabilities, said, true)

        def macro_f1(rows: Tensor) -> float:
            return float(f1_scores(said[rows], true[rows]).nanmean())

        means = {"macro_f1": "f1", "average_precision": "average_precision", "auroc": "auroc"}
        return {
            **{name: known(found[key].nanmean()) for name, key in means.items()},
            "ece": known(self.calibration_error(probabilities, targets)),
            "intervals": {"macro_f1": bootstrapped(macro_f1, len(said), size=said.shape[1])},
            f"per_{self.unit}": as_rows(self.names, found),
        }
