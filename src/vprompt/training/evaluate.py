"""Evaluation: the logits of a model on a data set, and figures made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vprompt.model.classifier import Classifier
from vprompt.training.loader import ImageLabels, check_batch, check_kind, in_order, iterate, size_of
from vprompt.utils.progress import Report, silent
from vprompt.utils.statistics import paired_interval, wilson
from vprompt.utils.text import count, listed, percent


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:  # noqa: PLW1641 - tensors have no hash of their content
    """What a model says of labelled images: accuracy, and what has to be known beside it to believe it.

    Args:
        loss: Mean cross-entropy.
        labels: (N,), the class of each image.
        right: (N,), whether the model named it.
        num_classes: Number of classes that the model knows.
    """

    loss: float
    labels: Tensor
    right: Tensor
    num_classes: int

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Evaluation)
            and (self.loss, self.num_classes) == (other.loss, other.num_classes)
            and torch.equal(self.labels, other.labels)
            and torch.equal(self.right, other.right)
        )

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """Share of the images that are right, 0-1."""
        return int(self.right.sum()) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy, after Wilson."""
        return wilson(int(self.right.sum()), self.images)

    @property
    def counts(self) -> Tensor:
        """(C,), images of each class."""
        return torch.bincount(self.labels, minlength=self.num_classes)

    @property
    def recalls(self) -> Tensor:
        """(C,), accuracy on the images of each class; NaN for a class without images."""
        return torch.bincount(self.labels, self.right.double(), minlength=self.num_classes) / self.counts

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recalls, in which every class that has images counts the same."""
        return float(self.recalls.nanmean())

    @property
    def majority_accuracy(self) -> float:
        """Accuracy of naming the commonest class for every image."""
        return int(self.counts.max()) / self.images

    def figures(self, classes: Sequence[str]) -> dict[str, Any]:
        """All of it as plain data, with the names of the classes."""
        return {
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "majority_accuracy": self.majority_accuracy,
            "never_right": [classes[label] for label in torch.nonzero(self.recalls == 0).flatten().tolist()],
            "loss": self.loss if math.isfinite(self.loss) else None,
            "images": self.images,
        }

    def remarks(self, classes: Sequence[str], split: str) -> list[str]:
        """Sentences that must not be missing beside the accuracy: classes it hides, and a figure worth nothing."""
        told, common = list[str](), int(self.counts.argmax())
        if self.interval[0] <= self.majority_accuracy:
            far = "" if self.accuracy <= self.majority_accuracy else "clearly "
            told.append(
                f"The {split} accuracy of {percent(self.accuracy)} % is not {far}above that of always saying "
                f"{classes[common]} ({percent(self.majority_accuracy)} %)."
            )
        counts = dict(zip(classes, self.counts.tolist(), strict=True))
        if never := [f"{name} ({count(counts[name], 'image')})" for name in self.figures(classes)["never_right"]]:
            told.append(f"Not one {split} image is recognised of {listed(never)}.")
        return told

    def __repr__(self) -> str:
        figures = {"accuracy": self.accuracy, "low": self.interval[0], "high": self.interval[1], "loss": self.loss}
        figures |= {"balanced_accuracy": self.balanced_accuracy, "majority_accuracy": self.majority_accuracy}
        return f"Evaluation(images={self.images}, {', '.join(f'{key}={value:.4g}' for key, value in figures.items())})"


def difference(before: Evaluation, after: Evaluation) -> tuple[float, tuple[float, float]]:
    """The accuracy that one model has more than another on the same images, and its paired 95 % interval."""
    gained, lost = int((after.right & ~before.right).sum()), int((before.right & ~after.right).sum())
    return (gained - lost) / before.images, paired_interval(gained, lost, before.images)


def evaluate(
    model: Classifier,
    data: ImageLabels,
    *,
    batch_size: int = 128,
    workers: int = 0,
    report: Report = silent,
) -> Evaluation:
    """Evaluates a model, in eval mode and without gradients.

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
    parts: list[tuple[Tensor, Tensor]] = []
    loss, length = 0.0, size_of(data)
    for logits, labels in outputs(model, data, batch_size=batch_size, workers=workers, report=report):
        parts.append((labels.cpu(), (logits.argmax(1) == labels).cpu()))
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    labels, right = map(torch.cat, zip(*parts, strict=True))
    return Evaluation(loss=loss / length, labels=labels, right=right, num_classes=model.num_classes)


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
