"""Regression: one or several numbers of an image."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from vprompt.report.document import Section
from vprompt.tasks import views
from vprompt.tasks.base import CELLS, Target, bootstrapped, register
from vprompt.tasks.metrics import known
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import count, listed, printable, show

if TYPE_CHECKING:
    from torch import Tensor

MOST = 0.9
"""Share of labels that are numbers, from which on the others are taken for errors."""

MAX = 1e30
"""Beyond it, squares are more than single precision can hold."""

_COMMAS = re.compile(r"\s*[+-]?\d+(,\d+)+(\.\d*)?\s*")
"""A number with a decimal comma, or with commas between thousands: which of both, nobody can tell."""


@register
@dataclass(frozen=True, kw_only=True)
class Regression(Target):
    """Numbers in their own units, (N, K); the model learns them standardised, by the mean of squared errors.

    Args:
        names: Of the numbers.
        mean: Of each over the training images.
        std: Of each over the training images.

    Example:
        >>> import torch
        >>> target = Regression.fit(["1", "2", "3"], ["age"])
        >>> target.names, target.mean, target.activate(torch.zeros(1, 1)).tolist()
        (('age',), (2.0,), [[2.0]])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    name = "regression"
    headline = "r2"
    title = "R²"
    hit = "error"
    answer = "values"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.names) == len(self.mean) == len(self.std):
            raise VPromptError(f"There must be a mean and a deviation for each of {count(len(self.names), 'number')}.")
        if not all(abs(mean) < MAX and 0 < std < MAX for mean, std in zip(self.mean, self.std, strict=True)):
            raise VPromptError("Means of numbers must be finite, and deviations finite and above 0.")

    @property
    def size(self) -> str:
        return f"{count(len(self.names), 'number')} ({listed([*self.names], 3)})"

    @classmethod
    def called(cls, names: Sequence[str]) -> Self:
        """See `Target`: of labels that are standardised already."""
        return cls(names=tuple(names), mean=(0.0,) * len(names), std=(1.0,) * len(names))

    @classmethod
    def suits(cls, labels: Sequence[str], columns: Sequence[str]) -> bool:
        """See `Target`: nearly all are numbers, and not all of them whole, or there are several of them."""
        given = [label for label in labels if label.strip()]
        if given and all(map(_COMMAS.fullmatch, given)):
            return True  # and `fit` says that they cannot be read
        rows = [row for label in given if (row := _numbers(label)) is not None]
        if not rows or len(rows) < MOST * len(given):
            return False
        return max(map(len, rows)) > 1 or any(not number.is_integer() for row in rows for number in row)

    @classmethod
    def fit(cls, labels: Sequence[str], columns: Sequence[str]) -> Self:
        import torch

        rows = [row for label in labels if (row := _numbers(label)) is not None]
        if not rows:
            odd = next((f" (one is {printable(label)[:40]!r})" for label in labels if label.strip()), "")
            raise ValueError(f"no number for any training image{odd}; write numbers as 1234.5, without commas.")
        (size, _), *_ = Counter(map(len, rows)).most_common(1)
        values = torch.tensor([row for row in rows if len(row) == size]).double()  # as they are learned
        names = tuple(map(printable, columns)) or ("value",)
        if len(names) != size:
            names = tuple(str(number) for number in range(size))
        mean, std = values.mean(0), values.std(0, correction=0)
        if flat := [name for name, spread in zip(names, std.tolist(), strict=True) if not 0 < spread < math.inf]:
            raise ValueError(f"nothing to learn of {listed(flat)}: all training images have the same.")
        return cls(names=names, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    def settled(self, labels: Sequence[str]) -> Self:
        """See `Target`: mean and deviation."""
        return self.fit(labels, self.names)

    def problem(self, label: str) -> str | None:
        numbers, wanted = _numbers(label), len(self.names)
        if numbers is None:
            hint = "; write it without commas, as 1234.5" if _COMMAS.search(label) else ""
            return f"is {printable(label.replace(CELLS, ' '))[:40]!r}, not a number up to {MAX:g}{hint}"
        return None if len(numbers) == wanted else f"has {len(numbers)} numbers, not {wanted}"

    def encode(self, labels: Sequence[str]) -> Tensor:
        import torch

        return torch.tensor([_numbers(label) or [] for label in labels]).view(len(labels), len(self.names))

    def check(self, targets: Tensor) -> str | None:
        if targets.ndim != 2 or targets.shape[1] != len(self.names) or not targets.is_floating_point():
            return f"Labels must be numbers (B, {len(self.names)}); these are {targets.dtype}, {tuple(targets.shape)}."
        return None if bool(targets.isfinite().all()) else "A label is no finite number."

    def strata(self, labels: Sequence[str]) -> list[str]:
        """See `Target`: by fifths of the first number."""
        import torch

        values = self.encode(labels)[:, 0].contiguous()
        ends = values.quantile(torch.tensor([0.2, 0.4, 0.6, 0.8])) if labels else values
        return [str(number) for number in torch.bucketize(values, ends).tolist()]

    def loss(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """See `Target`; nothing is smoothed."""
        mean, std = self._scale(logits)
        return (logits - (targets.to(logits.dtype) - mean) / std).square().mean(1)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `Target`: the mean absolute error, in units of the numbers."""
        return (self.activate(logits) - targets).abs().float().mean(1)

    def pseudo(self, logits: Tensor) -> Tensor:
        return self.activate(logits)

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """See `Target`: the mean over the numbers that differ of the share of their variance that is explained."""
        return float(self._explained(logits, targets).nanmean())

    def _explained(self, logits: Tensor, targets: Tensor) -> Tensor:
        """R² (K,) of each number; NaN where all images have the same."""
        wanted = targets.double()
        left = (self.activate(logits.double()) - wanted).square().sum(0)
        explained = 1 - left / (wanted - wanted.mean(0)).square().sum(0)
        return explained.masked_fill(wanted.amax(0) == wanted.amin(0), math.nan)

    def figures(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        errors = (self.activate(logits.double()) - targets.double()).abs()
        constant = (targets.double() - errors.new_tensor(self.mean)).abs()

        def named(values: Tensor) -> dict[str, float | None]:
            return dict(zip(self.names, map(known, values.tolist()), strict=True))

        def interval(of_each: Tensor) -> tuple[float, float] | None:
            return bootstrapped(lambda rows: float(of_each[rows].mean()), len(of_each), most=math.inf)

        return {
            **self.scored(logits, targets),
            "mae": named(errors.mean(0)),
            "rmse": named(errors.square().mean(0).sqrt()),
            "r2_each": named(self._explained(logits, targets)),
            "constant_mae": named(constant.mean(0)),
            "intervals": {"mae": dict(zip(self.names, map(interval, errors.T), strict=True))},
        }

    @classmethod
    def cells(cls, figures: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
        errors = ", ".join(_named(figures.get(f"{prefix}mae") or {}))
        return {**super().cells(figures, prefix), "mean error": errors or "-"}

    @staticmethod
    def beside(figures: Mapping[str, Any], prefix: str = "") -> str:
        errors, images = ", ".join(_named(figures.get(f"{prefix}constant_mae") or {})), Target.beside(figures, prefix)
        return f"{images}; always saying the mean errs by {errors}" if images and errors else images

    def activate(self, logits: Tensor) -> Tensor:
        mean, std = self._scale(logits)
        return logits * std + mean

    def inverse(self, outputs: Tensor) -> Tensor:
        mean, std = self._scale(outputs)
        return (outputs - mean) / std

    def answers(self, outputs: Tensor, top: int) -> list[dict[str, Any]]:
        """See `Target`: every number by its name."""
        return [{"values": dict(zip(self.names, row, strict=True))} for row in outputs.tolist()]

    def named(self, labels: Tensor) -> list[str]:
        return [", ".join(_named(dict(zip(self.names, row, strict=True)))) for row in labels.tolist()]

    def sections(self, figures: Mapping[str, Any], logits: Tensor, targets: Tensor) -> list[Section]:
        """See `Target`: predicted against true numbers."""
        return [views.numbers_section(self.names, figures, self.activate(logits.double()), targets.double())]

    def row(self, answer: Mapping[str, Any]) -> dict[str, str]:
        return {name: f"{value:.4g}" for name, value in answer["values"].items()}

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.mean), like.new_tensor(self.std)


def _numbers(label: str) -> list[float] | None:
    """The numbers of a label; None where one is none, or not finite in single precision."""
    try:
        cells: Any = json.loads(label) if label.startswith("[") else label.split(CELLS)
        numbers = [float(cell) for cell in cells]
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return numbers if numbers and all(abs(number) < MAX for number in numbers) else None


def _named(values: Mapping[str, float | None]) -> list[str]:
    """Numbers with their names, which tell their units; one of a folder has none."""
    shown = {name: show(value, ".4g") for name, value in values.items()}
    return [*shown.values()] if [*values] == ["value"] else [f"{name} {value}" for name, value in shown.items()]
