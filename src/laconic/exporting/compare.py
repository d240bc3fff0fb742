"""The outputs of an exported file beside those of the model it was made from."""

from __future__ import annotations

import torch
from torch import Tensor

from laconic.classifier import Classifier
from laconic.errors import LaconicError
from laconic.exporting.about import Comparison

TOLERANCE = 1e-4
"""The largest difference of two logits that is taken for rounding, as a share of the largest logit."""

BATCHES = (1, 3, 8)
"""Sizes of the batches that are compared; all others are of the last size."""


def paired_logits(first: Classifier, second: Classifier, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C) of two models for the same images in the same batches, the sizes of which change."""
    pairs: list[tuple[Tensor, Tensor]] = []
    rest, number = images_NCHW, 0
    with torch.inference_mode():
        while len(rest):
            size = BATCHES[min(number, len(BATCHES) - 1)]
            batch, rest, number = rest[:size], rest[size:], number + 1
            pairs.append((first(batch), second(batch)))
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])


def compare(eager_NC: Tensor, exported_NC: Tensor, *, tolerance: float = TOLERANCE) -> Comparison:
    """How far the logits of an exported file are from those of the model.

    Raises:
        LaconicError: If that is more than rounding, or a class is named that is not the model's first. Classes whose
            logits are closer than the tolerance are all its first.

    Example:
        >>> compare(torch.tensor([[1.0, -4.0]]), torch.tensor([[1.0001, -4.0]])).scale
        4.0
    """
    largest, scale = float((eager_NC - exported_NC).abs().max()), float(eager_NC.abs().max())
    if not largest <= tolerance * scale:
        raise LaconicError(
            f"The exported file does not compute what the model does: logits differ by up to {largest:.2g}, and "
            f"{tolerance * scale:.2g} is allowed ({tolerance:g} of the largest); nothing was written."
        )
    chosen_N = eager_NC.gather(1, exported_NC.argmax(1, keepdim=True))[:, 0]
    other = int((chosen_N < eager_NC.amax(1) - tolerance * scale).sum())
    if other:
        raise LaconicError(
            f"The exported file names another class than the model for {other} of {len(eager_NC)} images; nothing was "
            "written."
        )
    return Comparison(images=len(eager_NC), largest=largest, scale=scale, tolerance=tolerance)


def same_class(eager_NC: Tensor, exported_NC: Tensor) -> float:
    """Share of the images for which both name the same class, 0 to 1."""
    return float((eager_NC.argmax(1) == exported_NC.argmax(1)).float().mean())
