"""Multi-label: an image has any number of tags."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from vprompt.tasks.base import CELLS, Target, bootstrapped, register
from vprompt.utils.text import count, listed, percent, printable

if TYPE_CHECKING:
    from torch import Tensor

SEPARATORS = ("|", ";", ",")
"""Between the tags of a cell, the first of which that is in any; else they are separated by blanks."""

YES, NO = {"1", "1.0", "true", "yes", "y", "x"}, {"0", "0.0", "false", "no", "n", "", "-1"}
"""What stands in a column of one tag, in lower case."""


@register
@dataclass(frozen=True, kw_only=True)
class MultiLabel(Target):
    """Any number of tags; labels are 0 and 1 (N, K), and the loss is the mean of binary cross-entropies.

    A label is a list in JSON, names between separators, or a 0 or 1 for each of several columns.

    Args:
        names: Of the tags.
        separator: Between the tags of a cell; empty for blanks.

    Example:
        >>> target = MultiLabel.fit(["red;round", "blue", ""], ["tags"])
        >>> target.names, target.encode(["blue;round"]).tolist()
        (('blue', 'red', 'round'), [[1.0, 0.0, 1.0]])
    """

    separator: str = ""

    name = "multi-label"
    headline = "mean_ap"
    title = "mean AP"
    hit = "tag_accuracy"
    answer = "probabilities"
    unit = "tag"

    @property
    def size(self) -> str:
        """See `Target`."""
        return count(len(self.names), "tag")

    @classmethod
    def suits(cls, labels: Sequence[str], columns: Sequence[str]) -> bool:
        """See `Target`: columns of 0 and 1, or lists of tags that come in several combinations."""
        if len(columns) > 1:
            return all(set(label.lower().split(CELLS)) <= YES | NO for label in labels)
        if any(label.startswith("[") for label in labels):
            return all(_is_list(label) is not None for label in labels if label.strip())
        cells, separator = {label for label in labels if label.strip()}, _separator(labels)
        tags = {tag for label in cells for tag in _split(label, separator)}
        # "tench, Tinca tinca" is the name of one class: its parts come in no other combination.
        return bool(separator) and 1 < len(tags) <= len(cells)

    @classmethod
    def fit(cls, labels: Sequence[str], columns: Sequence[str]) -> Self:
        """See `Target`."""
        if len(columns) > 1:
            target = cls(names=tuple(map(printable, columns)))
        else:
            separator = _separator(labels)
            tags = {tag for label in labels if _is_list(label) is not False for tag in _split(label, separator)}
            target = cls(names=tuple(sorted(tags)), separator=separator)
        usable = [label for label in labels if target.problem(label) is None]
        if not usable or not bool(target.encode(usable).any()):
            raise ValueError("no tag on any training image; one or more are needed.")
        return target

    def problem(self, label: str) -> str | None:
        """See `Target`."""
        if CELLS in label:
            cells = label.split(CELLS)
            if len(cells) != len(self.names):
                return f"has {len(cells)} columns, not one for each of the {len(self.names)} tags"
            odd = [printable(cell) for cell in cells if cell.strip().lower() not in YES | NO]
            return f"is {odd[0]!r}, not 0 or 1" if odd else None
        if _is_list(label) is False:
            return "is no list of names"
        unknown = sorted(set(_split(label, self.separator)) - set(self.names))
        return f"has tags that no training image has ({listed(unknown, 3)})" if unknown else None

    def encode(self, labels: Sequence[str]) -> Tensor:
        """See `Target`."""
        import torch

        numbers = {name: number for number, name in enumerate(self.names)}
        targets = torch.zeros(len(labels), len(self.names))
        for row, label in enumerate(labels):
            if CELLS in label:
                targets[row] = torch.tensor([float(cell.strip().lower() in YES) for cell in label.split(CELLS)])
            else:
                targets[row, [numbers[tag] for tag in _split(label, self.separator)]] = 1.0
        return targets

    def check(self, targets: Tensor) -> str | None:
        """See `Target`."""
        if targets.ndim != 2 or targets.shape[1] != len(self.names):
            return f"Labels must be 0 and 1 (B, {len(self.names)}); these are {tuple(targets.shape)}."
        if bool(((targets != 0) & (targets != 1)).any()):
            return "Labels of tags must be 0 and 1."
        return None

    def strata(self, labels: Sequence[str]) -> list[str]:
        """See `Target`: by the rarest tag of each image."""
        tags = [[self.names[number] for number in row.nonzero().flatten().tolist()] for row in self.encode(labels)]
        common = Counter(tag for each in tags for tag in each)
        return [min([(common[tag], tag) for tag in each], default=(0, ""))[1] for each in tags]

    def counts(self, targets: Tensor) -> Mapping[str, int]:
        """See `Target`."""
        return {name: int(number) for name, number in zip(self.names, targets.sum(0).tolist(), strict=True)}

    def loss(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """See `Target`."""
        import torch.nn.functional as F

        wanted = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `Target`: the share of the tags that are rightly given or left out."""
        return ((logits > 0) == (targets > 0.5)).double().mean(1)

    def pseudo(self, logits: Tensor) -> Tensor:
        """See `Target`."""
        return (logits > 0).float()

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """See `Target`: the mean over the tags, of which there are images, of the average precision."""
        return float(_average_precisions(logits, targets).nanmean())

    def figures(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """See `Target`."""
        said, true = logits > 0, targets > 0.5
        both = (said & true).sum(0).double()
        f1 = 2 * both / (said.sum(0) + true.sum(0))
        present = true.any(0)
        micro = 2 * both.sum() / max(1, int(said.sum() + true.sum()))
        return {
            "mean_ap": self.score(logits, targets),
            "interval": list(bootstrapped(lambda rows: self.score(logits[rows], targets[rows]), len(targets))),
            "macro_f1": float(f1[present].mean()) if bool(present.any()) else None,
            "micro_f1": float(micro),
            "exact": float((said == true).all(1).double().mean()),
            "chance_ap": float(targets.mean(0)[present].mean()) if bool(present.any()) else None,
            "never_right": [self.names[n] for n in (present & (both == 0)).nonzero().flatten().tolist()],
        }

    @staticmethod
    def cells(figures: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
        """See `Target`."""
        ends = figures.get(f"{prefix}interval")
        keys = {"mean AP": "mean_ap", "macro F1": "macro_f1", "all right": "exact"}
        shares = {head: figures.get(f"{prefix}{key}") for head, key in keys.items()}
        cells = {head: "-" if share is None else f"{percent(share)} %" for head, share in shares.items()}
        interval = "-" if ends is None else f"{100 * ends[0]:.0f}-{100 * ends[1]:.0f}"
        return {"mean AP": cells.pop("mean AP"), "95 %": interval, **cells}

    @staticmethod
    def beside(figures: Mapping[str, Any], prefix: str = "") -> str:
        """See `Target`."""
        share, images = figures.get(f"{prefix}chance_ap"), Target.beside(figures, prefix)
        return f"{images}; tags in any order have a mean AP of {percent(share)} %" if images and share else images

    def remarks(self, figures: Mapping[str, Any], targets: Tensor, split: str) -> list[str]:
        """See `Target`."""
        never = figures["never_right"]
        return [f"Not one {split} image is rightly given {listed(never, 5)}."] if never else []

    def activate(self, logits: Tensor) -> Tensor:
        """See `Target`."""
        return logits.sigmoid()

    def inverse(self, outputs: Tensor) -> Tensor:
        """See `Target`."""
        import torch

        return outputs.logit(torch.finfo(outputs.dtype).eps / 2)

    def answers(self, outputs: Tensor, top: int) -> list[dict[str, Any]]:
        """See `Target`: the tags whose probability is above a half, and the most probable ones."""
        answers: list[dict[str, Any]] = []
        for row in outputs.tolist():
            order = sorted(range(len(row)), key=row.__getitem__, reverse=True)
            ranked = tuple((self.names[number], row[number]) for number in order)
            answers.append({"tags": [name for name, value in ranked if value > 0.5], "top": ranked[:top]})
        return answers


def _average_precisions(logits: Tensor, targets: Tensor) -> Tensor:
    """The area (K,) under the steps of precision over recall, equal logits being one step; NaN without an image."""
    from torchmetrics.functional.classification import multilabel_average_precision

    found = multilabel_average_precision(logits, targets.long(), num_labels=logits.shape[1], average="none")
    return found.double().masked_fill(~targets.any(0), float("nan"))


def _separator(labels: Sequence[str]) -> str:
    return next((sign for sign in SEPARATORS if any(sign in label for label in labels)), "")


def _is_list(label: str) -> bool | None:
    """Whether what looks like a list in JSON is one; None for other labels."""
    if not label.startswith("["):
        return None
    try:
        return isinstance(json.loads(label), list)
    except ValueError:
        return False


def _split(label: str, separator: str) -> list[str]:
    """The tags of a cell."""
    if label.startswith("["):
        parts = [str(part) for part in json.loads(label)]
    else:
        parts = label.split(separator) if separator else re.split(r"\s+", label)
    return [" ".join(printable(part).split()) for part in parts if part.strip()]
