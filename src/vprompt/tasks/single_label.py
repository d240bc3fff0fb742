"""Single label: every image is of one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from vprompt.report.document import Section
from vprompt.tasks import views
from vprompt.tasks.base import bootstrapped, register
from vprompt.tasks.metrics import BINS, known
from vprompt.tasks.probabilities import Probabilities
from vprompt.utils.statistics import paired_interval, wilson
from vprompt.utils.text import count, listed, percent, printable

if TYPE_CHECKING:
    from torch import Tensor


@register
@dataclass(frozen=True, kw_only=True)
class SingleLabel(Probabilities):
    """One of several classes; labels are numbers (N,), and the loss is cross-entropy.

    Example:
        >>> SingleLabel(names=("ant", "bee")).encode(["bee", "ant"])
        tensor([1, 0])
    """

    name = "single-label"
    headline = "accuracy"
    title = "accuracy"
    hit = "accuracy"
    unit = "class"
    shares = {"balanced": "balanced_accuracy"}  # noqa: RUF012 - a class variable
    grouped = True

    @classmethod
    def fit(cls, labels: Sequence[str], columns: Sequence[str]) -> Self:
        if len(columns) > 1:
            raise ValueError(f"a class for each image in one column, not in {len(columns)}: {listed([*columns])}.")
        if len(classes := sorted(set(labels))) < 2:
            present = f"only the class {printable(classes[0])}" if classes else "no class"
            raise ValueError(f"{present} with usable images to learn from; two or more are needed.")
        return cls(names=tuple(map(printable, classes)))

    def problem(self, label: str) -> str | None:
        return None if printable(label) in self.names else "is none of the classes"

    def encode(self, labels: Sequence[str]) -> Tensor:
        import torch

        numbers = {name: number for number, name in enumerate(self.names)}
        return torch.tensor([numbers[printable(label)] for label in labels], dtype=torch.int64)

    def check(self, targets: Tensor) -> str | None:
        if len(self.names) < 2:
            return "There is one class, and nothing to tell apart; attach with two or more, or target='regression'."
        if targets.is_floating_point() or targets.ndim != 1:
            shape = f"({', '.join(map(str, targets.shape))})"
            others = "for tags or numbers, attach with target='multi-label' or 'regression'"
            return f"Labels must be integers, one per image; these are {targets.dtype}, {shape} ({others})."
        low, high, classes = int(targets.min()), int(targets.max()), len(self.names)
        if 0 <= low <= high < classes:
            return None
        return f"A label is {low if low < 0 else high}, but the model has {classes} classes, numbered from 0."

    def counts(self, targets: Tensor) -> Mapping[str, int]:
        return dict(zip(self.names, self._counts(targets).tolist(), strict=True))

    def loss(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        import torch.nn.functional as F

        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.argmax(1) == targets

    def pseudo(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)

    def score(self, logits: Tensor, targets: Tensor) -> float:
        return int(self.hits(logits, targets).sum()) / len(targets)

    def recalls(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(C,), accuracy on the images of each class; NaN for a class without images."""
        right = self.hits(logits, targets).double()
        return targets.bincount(right, minlength=len(self.names)) / self._counts(targets)

    def figures(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """See `Target`; the interval is Wilson's, and the majority is always naming the commonest class."""

        def balanced(rows: Tensor) -> float:
            return float(self.recalls(logits[rows], targets[rows]).nanmean())

        recalls, classes, images = self.recalls(logits, targets), len(self.names), len(targets)
        figures: dict[str, Any] = {
            "accuracy": self.score(logits, targets),
            "interval": list(wilson(int(self.hits(logits, targets).sum()), images)),
            "balanced_accuracy": float(recalls.nanmean()),
            "majority_accuracy": int(self._counts(targets).max()) / images,
            "never_right": [self.names[label] for label in (recalls == 0).nonzero().flatten().tolist()],
        }
        if not bool(logits.isfinite().all()):
            return figures
        if classes > 5:
            figures["top5_accuracy"] = known((logits.topk(5).indices == targets[:, None]).any(1).double().mean())
        figures |= self.details(logits, targets)
        figures["intervals"]["balanced_accuracy"] = bootstrapped(balanced, images, size=classes)
        return figures

    def difference(self, before: Tensor, after: Tensor, targets: Tensor) -> tuple[float, tuple[float, float]]:
        """See `Target`; in closed form."""
        first, second = self.hits(before, targets), self.hits(after, targets)
        gained, lost, images = int((second & ~first).sum()), int((first & ~second).sum()), len(targets)
        return (gained - lost) / images, paired_interval(gained, lost, images)

    def remarks(self, figures: Mapping[str, Any], targets: Tensor, split: str) -> list[str]:
        """See `Target`: classes that the accuracy hides, and a figure worth nothing."""
        told, counts = list[str](), self._counts(targets)
        if figures["interval"][0] <= figures["majority_accuracy"]:
            far = "" if figures["accuracy"] <= figures["majority_accuracy"] else "clearly "
            told.append(
                f"The {split} accuracy of {percent(figures['accuracy'])} % is not {far}above that of always saying "
                f"{self.names[int(counts.argmax())]} ({percent(figures['majority_accuracy'])} %)."
            )
        of_class = dict(zip(self.names, counts.tolist(), strict=True))
        if never := [f"{name} ({count(of_class[name], 'image')})" for name in figures["never_right"]]:
            told.append(f"Not one {split} image is recognised of {listed(never)}.")
        if figures.get("auroc", 0) is None:
            told.append(f"All {split} images are of one class, so that there is no AUROC.")
        return told

    @staticmethod
    def beside(figures: Mapping[str, Any], prefix: str = "") -> str:
        share, images = figures.get(f"{prefix}majority_accuracy"), Probabilities.beside(figures, prefix)
        return f"{images}, of which the commonest class alone is {percent(share)} %" if images and share else images

    def activate(self, logits: Tensor) -> Tensor:
        return self.tempered(logits).softmax(1)

    def inverse(self, outputs: Tensor) -> Tensor:
        """See `Target`: logarithms, of which those of probabilities too small for their numbers are finite as well."""
        import torch

        return self.temperature * outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()

    def answers(self, outputs: Tensor, top: int) -> list[dict[str, Any]]:
        """See `Target`: the most probable class and its probability, and the first few."""
        best = outputs.topk(min(top, outputs.shape[1]), dim=1)
        answers: list[dict[str, Any]] = []
        for values, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            first = [(self.names[number], value) for number, value in zip(numbers, values, strict=True)]
            answers.append({"class_name": first[0][0], "probability": first[0][1], "top": tuple(first)})
        return answers

    def matrix(self, labels: Tensor) -> Tensor:
        """See `Probabilities`."""
        import torch.nn.functional as F

        return F.one_hot(labels, len(self.names)).bool()

    def calibration_error(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """See `Probabilities`: of the classes that are named."""
        from torchmetrics.functional.classification import multiclass_calibration_error

        return multiclass_calibration_error(probabilities, targets, num_classes=len(self.names), n_bins=BINS)

    def named(self, labels: Tensor) -> list[str]:
        return [self.names[label] for label in labels.tolist()]

    def doubt(self, logits: Tensor) -> Tensor:
        """See `Target`: how near the second class comes to the first."""
        first, second = self.activate(logits.double()).topk(2, dim=1).values.unbind(1)
        return second - first

    def sections(self, figures: Mapping[str, Any], logits: Tensor, targets: Tensor) -> list[Section]:
        """See `Target`: first, which classes are confused."""
        confidence, said = self.activate(logits.double()).max(1)
        return [
            views.confusion_section(self.names, said, targets),
            views.names_section(self.unit, figures["per_class"]),
            views.reliability_section(confidence, said == targets),
        ]

    def row(self, answer: Mapping[str, Any]) -> dict[str, str]:
        then = ", ".join(f"{name} {percent(share)} %" for name, share in answer["top"][1:])
        return {"class": answer["class_name"], "probability": f"{percent(answer['probability'])} %", "then": then}

    def _counts(self, targets: Tensor) -> Tensor:
        return targets.bincount(minlength=len(self.names))
