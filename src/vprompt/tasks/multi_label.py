"""Multi-label: an image has any number of tags."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from vprompt.report.document import Section
from vprompt.tasks import views
from vprompt.tasks.base import CELLS, Target, register
from vprompt.tasks.metrics import BINS, f1_scores, known
from vprompt.tasks.probabilities import Probabilities
from vprompt.utils.text import listed, percent, printable

if TYPE_CHECKING:
    from torch import Tensor

SEPARATORS = ("|", ";", ",")
"""Between the tags of a cell, the first of which that is in any; else they are separated by blanks."""

YES, NO = {"1", "1.0", "true", "yes", "y", "x"}, {"0", "0.0", "false", "no", "n", "", "-1"}
"""What stands in a column of one tag, in lower case."""

_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
"""A number with a comma, rather than two tags."""

_NUMBERS = re.compile(r"\[[^,\"]+(,[^\"]+)+\]")
"""A list of numbers; those of tags are not all as long."""


@register
@dataclass(frozen=True, kw_only=True)
class MultiLabel(Probabilities):
    """Any number of tags; labels are 0 and 1 (N, K), and the loss is the mean of binary cross-entropies.

    A label is a list in JSON, names between separators, or a 0 or 1 for each of several columns. Blanks, Unicode form
    and case of a name do not count; the commonest spelling stays.

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
    unit = "tag"
    shares = {"macro F1": "macro_f1", "all right": "exact"}  # noqa: RUF012 - a class variable
    blank = True

    @classmethod
    def suits(cls, labels: Sequence[str], columns: Sequence[str]) -> bool:
        """See `Target`: columns of 0 and 1, or lists of tags that come in several combinations."""
        if len(columns) > 1:
            return all({cell.strip() for cell in label.lower().split(CELLS)} <= YES | NO for label in labels)
        cells, separator = {label for label in labels if label.strip()}, _separator(labels)
        if any(cell.startswith("[") for cell in cells):
            numbers = all(_NUMBERS.fullmatch(cell) for cell in cells) and len({cell.count(",") for cell in cells}) == 1
            return not numbers and all(_is_list(cell) is not None for cell in cells)
        tags = {tag for label in cells for tag in _split(label, separator)}
        # "tench, Tinca tinca" is the name of one class: its parts come in no other combination.
        return bool(separator) and 1 < len(tags) <= len(cells) and not all(map(_COMMA.fullmatch, cells))

    @classmethod
    def fit(cls, labels: Sequence[str], columns: Sequence[str]) -> Self:
        if len(columns) > 1:
            target = cls(names=tuple(map(printable, columns)))
        else:
            separator = _separator(labels)
            tags = Counter(tag for each in labels if _is_list(each) is not False for tag in _split(each, separator))
            spelled = {tag.casefold(): tag for tag, _ in sorted(tags.items(), key=lambda entry: (entry[1], entry[0]))}
            target = cls(names=tuple(sorted(spelled.values())), separator=separator)
        usable = [label for label in labels if target.problem(label) is None]
        if not usable or not bool(target.encode(usable).any()):
            raise ValueError("no tag on any training image; one or more are needed.")
        return target

    def problem(self, label: str) -> str | None:
        if CELLS in label:
            cells = label.split(CELLS)
            if len(cells) != len(self.names):
                return f"has {len(cells)} columns, not one for each of the {len(self.names)} tags"
            odd = [printable(cell) for cell in cells if cell.strip().lower() not in YES | NO]
            return f"is {odd[0]!r}, not 0 or 1" if odd else None
        if _is_list(label) is False:
            return "is no list of names"
        unknown = sorted(tag for tag in _split(label, self.separator) if tag.casefold() not in self._numbers)
        return f"has tags that no training image has ({listed(unknown, 3)})" if unknown else None

    def encode(self, labels: Sequence[str]) -> Tensor:
        import torch

        targets = torch.zeros(len(labels), len(self.names))
        for row, label in enumerate(labels):
            if CELLS in label:
                targets[row] = torch.tensor([float(cell.strip().lower() in YES) for cell in label.split(CELLS)])
            else:
                targets[row, [self._numbers[tag.casefold()] for tag in _split(label, self.separator)]] = 1.0
        return targets

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name.casefold(): number for number, name in enumerate(self.names)}

    def check(self, targets: Tensor) -> str | None:
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
        return {name: int(number) for name, number in zip(self.names, targets.sum(0).tolist(), strict=True)}

    def loss(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        import torch.nn.functional as F

        wanted = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `Target`: the share of the tags that are rightly given or left out."""
        return ((logits > 0) == (targets > 0.5)).float().mean(1)

    def pseudo(self, logits: Tensor) -> Tensor:
        return (logits > 0).float()

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """See `Target`: the mean over the tags, of which there are images, of the average precision."""
        return float(_average_precisions(logits, targets).nanmean())

    def figures(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        said, true = logits > 0, targets > 0.5
        present, micro = true.any(0), f1_scores(said.flatten()[:, None], true.flatten()[:, None])
        return {
            **self.scored(logits, targets),
            "micro_f1": known(micro),
            "exact": float((said == true).all(1).double().mean()),
            "chance_ap": known(true.double().mean(0)[present].mean()),
            "never_right": [self.names[n] for n in (present & ~(said & true).any(0)).nonzero().flatten().tolist()],
            **self.details(logits, targets),
        }

    @staticmethod
    def beside(figures: Mapping[str, Any], prefix: str = "") -> str:
        share, images = figures.get(f"{prefix}chance_ap"), Target.beside(figures, prefix)
        return f"{images}; tags in any order have a mean AP of {percent(share)} %" if images and share else images

    def remarks(self, figures: Mapping[str, Any], targets: Tensor, split: str) -> list[str]:
        never, told = figures["never_right"], list[str]()
        if absent := [name for name, images in self.counts(targets).items() if not images]:
            told.append(f"No {split} image has {listed(absent, 5)}, of which there are no figures.")
        return [*told, f"Not one {split} image is rightly given {listed(never, 5)}."] if never else told

    def activate(self, logits: Tensor) -> Tensor:
        return self.tempered(logits).sigmoid()

    def inverse(self, outputs: Tensor) -> Tensor:
        import torch

        return self.temperature * outputs.logit(torch.finfo(outputs.dtype).eps / 2)

    def answers(self, outputs: Tensor, top: int) -> list[dict[str, Any]]:
        """See `Target`: the tags whose probability is above a half, and the most probable ones."""
        answers: list[dict[str, Any]] = []
        for row in outputs.tolist():
            order = sorted(range(len(row)), key=row.__getitem__, reverse=True)
            ranked = tuple((self.names[number], row[number]) for number in order)
            answers.append({"tags": [name for name, value in ranked if value > 0.5], "top": ranked[:top]})
        return answers

    def matrix(self, labels: Tensor) -> Tensor:
        """See `Probabilities`."""
        return labels > 0.5

    def calibration_error(self, probabilities: Tensor, targets: Tensor) -> Tensor:
        """See `Probabilities`: of all tags together."""
        from torchmetrics.functional.classification import binary_calibration_error

        return binary_calibration_error(probabilities.flatten(), targets.long().flatten(), n_bins=BINS)

    def named(self, labels: Tensor) -> list[str]:
        rows = [row.nonzero().flatten().tolist() for row in labels]
        return [listed([self.names[number] for number in row], 5) or "no tag" for row in rows]

    def doubt(self, logits: Tensor) -> Tensor:
        """See `Target`: how near the least certain tag comes to a half."""
        return -logits.abs().amin(1)

    def sections(self, figures: Mapping[str, Any], logits: Tensor, targets: Tensor) -> list[Section]:
        """See `Target`: the figures of each tag, and how far probabilities can be trusted."""
        probabilities, true = self.activate(logits.double()), targets > 0.5
        return [
            views.names_section(self.unit, figures["per_tag"]),
            views.reliability_section(probabilities.flatten(), true.flatten()),
        ]

    def row(self, answer: Mapping[str, Any]) -> dict[str, str]:
        first = ", ".join(f"{name} {percent(share)} %" for name, share in answer["top"])
        return {"tags": ", ".join(answer["tags"]) or "none", "most probable": first}


def _average_precisions(logits: Tensor, targets: Tensor) -> Tensor:
    """The area (K,) under the steps of precision over recall, equal logits being one step; NaN without an image, and
    of logits that are no numbers.

    The bootstrap needs it for all tags at once; `torchmetrics` goes through them one by one.
    """
    import torch

    logits_KN, order = logits.T.sort(dim=1, descending=True)
    true_KN = targets.T.gather(1, order).double().cumsum(1)
    last_KN = torch.ones_like(true_KN)  # of a step
    last_KN[:, :-1] = logits_KN[:, 1:] != logits_KN[:, :-1]
    before_KN = (true_KN * last_KN).cummax(1).values.roll(1, 1)
    before_KN[:, 0] = 0
    precision_KN = true_KN / torch.arange(1, len(logits) + 1)
    areas_K = ((true_KN - before_KN) * last_KN * precision_KN).sum(1) / true_KN[:, -1]
    return areas_K.masked_fill(~logits.isfinite().all(0), torch.nan)


def _separator(labels: Sequence[str]) -> str:
    return next((sign for sign in SEPARATORS if any(sign in label for label in labels)), "")


def _is_list(label: str) -> bool | None:
    """Whether what looks like a list in JSON is one; None for other labels."""
    if not label.startswith("["):
        return None
    try:
        return all(isinstance(part, str | int) for part in json.loads(label))
    except (ValueError, RecursionError):
        return False


def _split(label: str, separator: str) -> list[str]:
    """The tags of a cell."""
    if label.startswith("["):
        parts = [str(part) for part in json.loads(label)]
    else:
        parts = label.split(separator) if separator else re.split(r"\s+", label)
    return [" ".join(unicodedata.normalize("NFC", printable(part)).split()) for part in parts if part.strip()]
