"""Evaluation: the logits of a model on a data set, accuracy and loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vprompt.model.classifier import Classifier
from vprompt.training.loader import ImageLabels, check_batch, check_kind, in_order, iterate, size_of
from vprompt.utils.progress import Report, silent


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The accuracy (0-1) of a model on a data set, its mean cross-entropy, and the number of images."""

    accuracy: float
    loss: float
    images: int


def evaluate(
    model: Classifier,
    data: ImageLabels,
    *,
    batch_size: int = 128,
    workers: int = 0,
    report: Report = silent,
) -> Evaluation:
    """Accuracy and loss of a model, in eval mode and without gradients.

    Args:
        model: Prompted, folded, or exported.
        data: As for `fit`.
        batch_size: Images per forward pass.
        workers: Processes that load a data set that is no `ImageDataset`.
        report: Called after every batch.

    Example:
        >>> import timm, vprompt
        >>> from torch.utils.data import TensorDataset
        >>> model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(2), num_classes=2)
        >>> evaluate(model, TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))).images
        4
    """
    correct, loss, length = 0, 0.0, size_of(data)
    for logits, labels in outputs(model, data, batch_size=batch_size, workers=workers, report=report):
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Evaluation(accuracy=correct / length, loss=loss / length, images=length)


@torch.inference_mode()
def outputs(
    model: Classifier,
    data: ImageLabels,
    *,
    batch_size: int = 128,
    workers: int = 0,
    report: Report = silent,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (logits in float32, labels) batch by batch, in order."""
    check_kind(model, Classifier, "A model from vprompt.attach, load or fold")
    device, length = model.device, size_of(data)
    was_training = model.training
    model.eval()
    done = 0
    try:
        for images, labels in iterate(data, in_order(length, batch_size), device=device, workers=workers):
            check_batch(images, labels, model)
            yield model(images).float(), labels
            done += len(labels)
            report(done, length)
    finally:
        model.train(was_training)
