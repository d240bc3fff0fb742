"""Evaluation: the logits of a model on a data set, and figures made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vprompt.model.classifier import Classifier
from vprompt.tasks.base import Target
from vprompt.training.checkpoint import Doubled
from vprompt.training.loader import ImageLabels, check_kind, in_order, iterate, size_of
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import Report, silent


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:  # noqa: PLW1641 - tensors have no hash of their content
    """What a model says of labelled images, and the figures that follow from it.

    Args:
        target: What is to be said.
        loss: Mean of the images' losses.
        logits: (N, K) in float32; where pixels have labels, what `Target.reduced` makes of them.
        labels: (N,) or (N, K), the labels as a tensor, or what that makes of them.
        losses: (N,), the loss of each image; empty where it was not kept.
    """

    target: Target
    loss: float
    logits: Tensor
    labels: Tensor
    losses: Tensor = field(default_factory=lambda: torch.empty(0))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Evaluation)
            and (self.loss, self.target) == (other.loss, other.target)
            and torch.equal(self.labels, other.labels)
            and torch.equal(self.logits, other.logits)
        )

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def score(self) -> float:
        """The figure that models are compared by, such as the accuracy: 1 is the best, 0 where nothing is told."""
        score = self.target.score(self.logits, self.labels)
        return score if math.isfinite(score) else 0.0

    @cached_property
    def figures(self) -> dict[str, Any]:
        """All figures of the target as plain data, and the loss and the number of images."""
        figures = self.target.figures(self.logits, self.labels)
        return {**figures, "loss": self.loss if math.isfinite(self.loss) else None, "images": self.images}

    @property
    def accuracy(self) -> float:
        """Share of the images that are right, 0-1, where each is of one class.

        Raises:
            VPromptError: If they are not.
        """
        if not self.target.grouped:
            raise VPromptError(f"There is no accuracy of {self.target.name}, but a `score`: the {self.target.title}.")
        return self.score

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the score."""
        return None if (ends := self.figures["interval"]) is None else (ends[0], ends[1])

    def remarks(self, split: str) -> list[str]:
        """Sentences that must not be missing beside the figures."""
        return self.target.remarks(self.figures, self.labels, split)

    def __repr__(self) -> str:
        shown = {"images": str(self.images), **self.target.cells(self.figures), "loss": f"{self.loss:.4g}"}
        return f"Evaluation({', '.join(f'{key}: {value}' for key, value in shown.items())})"


def difference(before: Evaluation, after: Evaluation) -> tuple[float, tuple[float, float]]:
    """The score that one model has more than another on the same images, and its paired 95 % interval."""
    return before.target.difference(before.logits, after.logits, before.labels)


def doubled(shorter: Tensor, longer: Tensor, epochs: int) -> Doubled | None:
    """Compares the losses (N,) of images with those after twice the epochs; None of fewer than two images.

    Example:
        >>> doubled(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([1.5, 2.5, 2.0]), 60)
        Doubled(epochs=60, difference=0.0, standard_error=0.2886751345948129)
    """
    if min(len(shorter), len(longer)) < 2:
        return None
    changes = longer.cpu().double() - shorter.cpu().double()
    error = float(changes.std() / math.sqrt(len(changes)))
    return Doubled(epochs=epochs, difference=float(changes.mean()), standard_error=error)


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
    length = size_of(data)
    check_kind(model, Classifier, "A model from vprompt.attach, load or fold")
    parts, losses, loss, done = list[tuple[Tensor, Tensor]](), list[Tensor](), 0.0, 0
    was_training = model.training
    batches = iterate(data, in_order(length, batch_size), device=model.device, workers=workers, model=model)
    model.eval()
    try:
        for images, labels in batches:
            with torch.inference_mode():
                logits = model(images).float()
            losses.append(model.target.loss(logits, labels))
            loss += float(losses[-1].sum())
            reduced = model.target.reduced(logits, labels)
            parts.append((reduced[0].cpu(), reduced[1].cpu()))
            done += len(labels)
            report(done, length)
    finally:
        model.train(was_training)
    logits, labels = map(torch.cat, zip(*parts, strict=True))
    return Evaluation(target=model.target, loss=loss / length, logits=logits, labels=labels, losses=torch.cat(losses))
