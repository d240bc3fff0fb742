"""Metrics of classes and tags by torchmetrics: one line each; what is not defined is NaN here, and None in results."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BY_NAME = {
    "precision": "multilabel_precision",
    "recall": "multilabel_recall",
    "f1": "multilabel_f1_score",
    "average_precision": "multilabel_average_precision",
    "auroc": "multilabel_auroc",
}
"""Metrics of each class against all others, or of each tag: key -> name in `torchmetrics.functional.classification`."""

BINS = 15
"""Of confidence, in calibration errors."""


def by_name(probabilities: Tensor, said: Tensor, true: Tensor) -> dict[str, Tensor]:
    """The figures (K,) of each class or tag by their keys, and its number of `images`.

    Args:
        probabilities: (N, K).
        said: (N, K), whether a class or tag is given.
        true: (N, K), whether it should be.
    """
    from torchmetrics.functional import classification

    images, names = true.shape
    of_each = true.sum(0)
    undefined = {"precision": said.sum(0) == 0, "auroc": (of_each == 0) | (of_each == images)}
    found, common = {"images": of_each.double()}, {"num_labels": names, "average": "none", "validate_args": False}
    for key, function in BY_NAME.items():
        given = probabilities if key in ("average_precision", "auroc") else said.long()
        with warnings.catch_warnings(action="ignore"):  # about what is not defined
            values: Tensor = getattr(classification, function)(given, true.long(), **common)
        found[key] = values.double().masked_fill(undefined.get(key, of_each == 0), math.nan)
    return found


def as_rows(names: Sequence[str], found: Mapping[str, Tensor]) -> dict[str, dict[str, float | None]]:
    """Figures of each class or tag as plain data, by its name."""
    rows = zip(*(values.round(decimals=5).tolist() for values in found.values()), strict=True)
    return {name: dict(zip(found, map(known, row), strict=True)) for name, row in zip(names, rows, strict=True)}


def known(value: Tensor | float) -> float | None:
    """A figure as plain data; None where it is not defined.

    Example:
        >>> known(0.25), known(float("nan"))
        (0.25, None)
    """
    return value if math.isfinite(value := float(value)) else None


def f1_scores(said: Tensor, true: Tensor) -> Tensor:
    """The F1 (K,) of each class or tag; NaN of one without images."""
    return (2 * (said & true).sum(0) / (said.sum(0) + true.sum(0)).double()).masked_fill(~true.any(0), math.nan)
