"""Metrics by torchmetrics, each a line of a list, and what they are drawn from; an undefined figure is None."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

BINS = 15
"""Of confidence, in calibration errors."""

CELLS = 20_000_000
"""Of images times classes: beyond it, figures that sort are those of evenly chosen images."""


@dataclass(frozen=True)
class Metric:
    """A figure of each class or tag.

    Args:
        key: In results.
        function: Name in `torchmetrics.functional.classification`, behind `multiclass_` or `multilabel_`.
        defined: For which classes it is, by the images (K,) that are of each, that are said to be, and their number.
    """

    key: str
    function: str
    defined: Callable[[Tensor, Tensor, int], Tensor]


BY_NAME = (
    Metric("precision", "precision", lambda true, said, images: said > 0),
    Metric("recall", "recall", lambda true, said, images: true > 0),
    Metric("f1", "f1_score", lambda true, said, images: true > 0),
    Metric("average_precision", "average_precision", lambda true, said, images: true > 0),
    Metric("auroc", "auroc", lambda true, said, images: (true > 0) & (true < images)),
)
"""Figures of each class or tag."""


def by_name(
    kind: Literal["multiclass", "multilabel"], probabilities: Tensor, targets: Tensor, said: Tensor
) -> dict[str, Tensor]:
    """The figures (K,) of each class or tag by their keys, NaN where they are not defined, and their `images`.

    Args:
        kind: Of the task, as torchmetrics names it.
        probabilities: (N, K).
        targets: Of the images, as a tensor.
        said: (N, K), 1 where a class or tag is given.
    """
    import torch
    from torchmetrics.functional import classification

    images, names = probabilities.shape
    step = max(1, math.ceil(images * names / CELLS))
    true = (torch.nn.functional.one_hot(targets, names) if targets.ndim == 1 else targets).sum(0)
    size: dict[str, Any] = {"num_classes": names} if kind == "multiclass" else {"num_labels": names}
    found = {"images": true.double()}
    for metric in BY_NAME:
        values: Tensor = getattr(classification, f"{kind}_{metric.function}")(
            probabilities[::step], targets[::step].long(), average="none", validate_args=False, **size
        )
        defined = metric.defined(true, said.sum(0), images)
        found[metric.key] = values.double().masked_fill(~defined, math.nan)
    return found


def as_rows(names: Sequence[str], found: Mapping[str, Tensor]) -> dict[str, dict[str, float | None]]:
    """Figures of each class or tag as plain data, by its name."""
    columns = {key: [known(value) for value in values.tolist()] for key, values in found.items()}
    return {name: {key: column[row] for key, column in columns.items()} for row, name in enumerate(names)}


def known(value: Tensor | float) -> float | None:
    """A figure as plain data, of six digits; None where it is not defined.

    Example:
        >>> known(0.25), known(float("nan"))
        (0.25, None)
    """
    return float(f"{value:.6g}") if math.isfinite(value := float(value)) else None


def average_precisions(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """The area (K,) under the steps of precision over recall, equal logits being one step; NaN without an image.

    It is that of torchmetrics, but of all tags at once and with weights of the images, so that it can be computed for
    hundreds of draws of them.

    Args:
        logits: (N, K).
        targets: (N, K), 0 and 1.
        weights: (N,), how often each image counts.
    """
    import torch

    order = logits.argsort(0, descending=True)
    ranked = logits.gather(0, order)
    counts = (torch.ones(len(logits)) if weights is None else weights).double()[order]
    right = targets.double().gather(0, order) * counts
    last = torch.ones_like(ranked, dtype=torch.bool)  # of those with equal logits, at which a step ends
    last[:-1] = ranked[:-1] != ranked[1:]
    ends = torch.where(last, torch.arange(len(logits))[:, None], len(logits)).flip(0).cummin(0).values.flip(0)
    precisions = (right.cumsum(0) / counts.cumsum(0).clamp(min=1e-9)).gather(0, ends)
    return (right * precisions).sum(0) / right.sum(0)
