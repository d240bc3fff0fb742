"""Segmentation: every pixel is of one class, or counts for nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from vprompt.report.document import Section
from vprompt.tasks import views
from vprompt.tasks.base import CELLS, Target, bootstrapped, register
from vprompt.tasks.metrics import known
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import count, listed, percent, printable

if TYPE_CHECKING:
    from torch import Tensor

DenseHead = Literal["linear", "multi", "conv"]
"""Heads on maps of features; see `vprompt.methods.layers.dense`."""

IGNORED = -1
"""The label of pixels that count for nothing."""

RARE = 0.1
"""A class with less than this part of an equal share of the pixels is rare."""

TOLERANCE = 0.0075
"""Part of an image's diagonal by which a boundary may be off."""

COLOUR = 1 << 24
"""Added to the codes of colours, which are no grey values."""

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm", ".jpg", ".jpeg")
"""Of masks; a JPEG is none, and is refused once it is read."""


@register
@dataclass(frozen=True, kw_only=True)
class Segmentation(Target):
    """One of several classes for each pixel; the loss is the mean over an image's pixels.

    A label is the path of a mask, and once that was read (`vprompt.data.masks`) how many pixels have which code. Labels
    as tensors are (N, H, W) int64, `IGNORED` where nothing counts; logits are (N, K, h, w), resized where they are of
    another size. `reduced` makes counts of both: (N, K, 7) and (N, K).

    Args:
        codes: In masks, of the classes: grey values, or colours from `COLOUR` on; 0 to K-1 when not given.
        ignored: Codes of pixels that count for nothing.
        head: What makes logits of maps of features.
        dice: Whether Dice is added to cross-entropy, as where classes are rare.

    Example:
        >>> import torch
        >>> target = Segmentation(names=("ground", "tree"))
        >>> target.loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 8, 8, dtype=torch.int64))
        tensor([0.6931])
    """

    codes: tuple[int, ...] = ()
    ignored: tuple[int, ...] = (255,)
    head: DenseHead = "linear"
    dice: bool = False

    name = "segmentation"
    headline = "mean_iou"
    title = "mean IoU"
    hit = "pixel_accuracy"
    answer = "probabilities"
    unit = "class"
    shares: ClassVar[Mapping[str, str]] = {"pixels": "pixel_accuracy"}
    dense = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codes and len(self.codes) != len(self.names):
            raise VPromptError(f"There are {len(self.codes)} codes in masks for {len(self.names)} classes.")
        if len({*self.codes}) < len(self.codes):
            raise VPromptError(f"Two classes have the same code in masks: {listed([*map(spelled, self.codes)])}.")

    @property
    def code_of(self) -> tuple[int, ...]:
        """The code of each class in masks."""
        return self.codes or tuple(range(len(self.names)))

    @property
    def map_head(self) -> str:
        return self.head

    def with_head(self, head: str) -> Self:
        return replace(self, head=cast("DenseHead", head))

    @classmethod
    def suits(cls, labels: Sequence[str], columns: Sequence[str]) -> bool:
        """See `Target`: they are names of image files."""
        return bool(labels) and all(label.partition(CELLS)[0].lower().endswith(SUFFIXES) for label in labels)

    @classmethod
    def fit(cls, labels: Sequence[str], columns: Sequence[str]) -> Self:
        """See `Target`: classes as the columns after the first say, `CODE CELLS NAME`, without a name for ignored ones;
        or one for each code."""
        if not labels:
            raise ValueError("no image to learn from with a mask that can be used.")
        table = {int(code): name for code, name in (column.split(CELLS) for column in columns if CELLS in column)}
        seen = sorted({code for label in labels for code in histogram(label)})
        known = table or {code: "" if code == 255 and seen != [0, 255] else spelled(code) for code in seen}
        named = {code: printable(name) for code, name in known.items() if name}
        if len(named) < 2:
            shown = listed([*named.values()])
            raise ValueError(f"masks of {count(len(named), 'class')} only ({shown}); two or more are needed.")
        plain = tuple(named) != tuple(range(len(named)))
        ignored = {code for code, name in known.items() if not name} | ({255} - {*named})
        return cls(names=tuple(named.values()), codes=tuple(named) if plain else (), ignored=tuple(sorted(ignored)))

    def settled(self, labels: Sequence[str]) -> Self:
        """See `Target`: Dice is added where a class is rare."""
        pixels = self.encode(labels).sum(0)
        shares = pixels[pixels > 0] / pixels.sum()
        return replace(self, dice=bool((shares < RARE / len(self.names)).any()))

    def problem(self, label: str) -> str | None:
        found = histogram(label)
        if unknown := sorted(found.keys() - {*self.code_of, *self.ignored}):
            shown = listed([spelled(code) for code in unknown], 3)
            classes = listed([spelled(code) for code in self.code_of], 4)
            return f"has pixels of {shown}, and the classes are {classes}"
        return None

    def encode(self, labels: Sequence[str]) -> Tensor:
        """See `Target`: the number of pixels of each class, (N, K)."""
        import torch

        rows = [[histogram(label).get(code, 0) for code in self.code_of] for label in labels]
        return torch.tensor(rows, dtype=torch.float32).view(len(rows), len(self.names))

    def check(self, targets: Tensor) -> str | None:
        if targets.ndim != 3 or targets.is_floating_point():
            return f"Labels must be masks (B, H, W) of class numbers, not {targets.dtype} {tuple(targets.shape)}."
        low, high, most = int(targets.min()), int(targets.max()), len(self.names) - 1
        wrong = high if high > most else low
        return None if low >= IGNORED and high <= most else f"Labels must be from 0 to {most}, or -1; one is {wrong}."

    def strata(self, labels: Sequence[str]) -> list[str]:
        """See `Target`: all in one."""
        return [""] * len(labels)

    def counts(self, targets: Tensor) -> Mapping[str, int]:
        """See `Target`: those with a pixel of the class."""
        return dict(zip(self.names, (targets > 0).sum(0).tolist(), strict=True))

    def loss(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """See `Target`: the mean over the pixels that count; and one less the mean soft Dice of the classes there are.

        Source: of Dice, Milletari et al. 2016 (arXiv 1606.04797), V-Net, with sums in the denominator.
        """
        import torch.nn.functional as F

        logits, valid = resized(logits, targets.shape[1:]), targets != IGNORED
        each = F.cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=smoothing, reduction="none")
        losses = each.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
        if not self.dice:
            return losses
        said = logits.softmax(1) * valid.unsqueeze(1)
        both = _by_class(said.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1), targets, len(self.names))
        true = _by_class(valid.to(said.dtype), targets, len(self.names))
        dice, there = 2 * both / (said.flatten(2).sum(2) + true).clamp(min=1), true > 0
        return losses + ((1 - dice) * there).sum(1) / there.sum(1).clamp(min=1)

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See `Target`: the share of the pixels that count."""
        valid = (targets != IGNORED).flatten(1)
        right = (resized(logits, targets.shape[1:]).argmax(1) == targets).flatten(1)
        return right.sum(1) / valid.sum(1).clamp(min=1)

    def pseudo(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)

    def reduced(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See `Target`: of each image and class, pixels that are said and true, said, true; and of its boundary, those
        said that are near a true one, said, true that are near a said one, true."""
        import torch

        valid, size = targets != IGNORED, len(self.names)
        said = resized(logits, targets.shape[1:]).argmax(1).masked_fill(~valid, IGNORED)
        parts = ((valid & (said == targets), targets), (valid, said), (valid, targets))
        areas = [_by_class(chosen.long(), of, size).float() for chosen, of in parts]
        reach = max(1, round(TOLERANCE * math.hypot(*targets.shape[1:])))
        edges = {"said": _edges(said), "true": _edges(targets)}
        borders = torch.zeros(len(targets), size, 4, device=targets.device)
        for label in torch.cat([said[edges["said"]], targets[edges["true"]]]).unique().tolist():
            ours, theirs = edges["said"] & (said == label), edges["true"] & (targets == label)
            near = (ours & _grown(theirs, reach), ours, theirs & _grown(ours, reach), theirs)
            borders[:, label] = torch.stack([part.flatten(1).sum(1) for part in near], 1).float()
        counts = torch.cat([torch.stack(areas, 2), borders], 2)
        return counts, counts[:, :, 2].clone()

    def score(self, logits: Tensor, targets: Tensor) -> float:
        """See `Target`: intersection over union of all pixels together, the mean over classes said or true."""
        return float(_each(logits)["iou"].nanmean())

    def figures(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """See `Target`.

        Source: of the boundary's F-score, Csurka et al. 2013 (BMVC), What is a good evaluation measure for semantic
        segmentation?, here of the pixels of all images together, and with distances along rows or columns.
        """
        each, totals = _each(logits), logits.double().sum(0)

        def accuracy(rows: Tensor) -> float:
            return float(logits[rows, :, 0].sum() / logits[rows, :, 2].sum())

        columns = {name: [known(value) for value in values] for name, values in each.items()}
        pixels = [int(value) for value in totals[:, 2].tolist()]
        rows = [
            {"pixels": number, **{name: values[row] for name, values in columns.items()}}
            for row, number in enumerate(pixels)
        ]
        return {
            **self.scored(logits, targets),
            "pixel_accuracy": known(totals[:, 0].sum() / totals[:, 2].sum()),
            "mean_accuracy": known(each["accuracy"].nanmean()),
            "boundary_f1": known(each["boundary_f1"].nanmean()),
            "intervals": {"pixel_accuracy": bootstrapped(accuracy, len(logits), size=logits[0].numel())},
            "per_class": dict(zip(self.names, rows, strict=True)),
        }

    def agreement(self, before: Tensor, after: Tensor) -> float:
        """See `Target`: the share of pixels that stayed."""
        return float((before.argmax(1) == after.argmax(1)).double().mean())

    def remarks(self, figures: Mapping[str, Any], targets: Tensor, split: str) -> list[str]:
        """See `Target`: classes that are never found."""
        never = [name for name, row in figures["per_class"].items() if row["pixels"] and not row["iou"]]
        return [f"Of {listed(never, 4)} no pixel is found on the {split} images."] if never else []

    def activate(self, logits: Tensor) -> Tensor:
        return logits.softmax(1)

    def inverse(self, outputs: Tensor) -> Tensor:
        import torch

        return outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()

    def answers(self, outputs: Tensor, top: int) -> list[dict[str, Any]]:
        """See `Target`: the largest classes and their shares of the pixels; the mask as runs of classes by rows."""
        answers: list[dict[str, Any]] = []
        for mask in outputs.argmax(1):
            classes, runs = mask.flatten().unique_consecutive(return_counts=True)
            shares = mask.flatten().bincount(minlength=len(self.names)) / mask.numel()
            best = [place for place in shares.argsort(descending=True, stable=True).tolist()[:top] if shares[place]]
            answers.append(
                {
                    "top": [(self.names[place], float(shares[place])) for place in best],
                    "size": [*mask.shape],
                    "runs": [[*pair] for pair in zip(classes.tolist(), runs.tolist(), strict=True)],
                }
            )
        return answers

    def sections(self, figures: Mapping[str, Any], logits: Tensor, targets: Tensor) -> list[Section]:
        return [views.names_section(self.unit, figures["per_class"], by="iou")]

    def row(self, answer: Mapping[str, Any]) -> dict[str, str]:
        return {"pixels": ", ".join(f"{name} {percent(share)} %" for name, share in answer["top"])}


def histogram(label: str) -> dict[int, int]:
    """Pixels by code of a mask that was read; nothing of one that was not.

    Example:
        >>> histogram(f"masks/a.png{CELLS}0:9 255:3"), histogram("masks/a.png")
        ({0: 9, 255: 3}, {})
    """
    pairs = (pair.split(":") for pair in label.partition(CELLS)[2].split())
    return {int(code): int(pixels) for code, pixels in pairs}


def spelled(code: int) -> str:
    """A code in words: a grey value, or a colour.

    Example:
        >>> spelled(7), spelled(COLOUR + 255)
        ('7', '#0000ff')
    """
    return str(code) if code < COLOUR else f"#{code - COLOUR:06x}"


def resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits or other maps (N, K, H, W) of a size; bilinear."""
    import torch.nn.functional as F

    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=[*size], mode="bilinear", align_corners=False)


def _by_class(values: Tensor, classes: Tensor, size: int) -> Tensor:
    """Sums (N, K) of values (N, H, W) over the pixels of each class; ignored ones must be 0."""
    sums = values.new_zeros(len(values), size)
    return sums.scatter_add(1, classes.clamp(min=0).flatten(1), values.flatten(1))


def _each(counts: Tensor) -> dict[str, Tensor]:
    """Figures (K,) of each class, from `reduced` ones (N, K, 7); NaN where there is nothing to tell them by."""
    both, said, true, near_said, said_edge, near_true, true_edge = counts.double().sum(0).unbind(1)
    precision, recall = near_said / said_edge, near_true / true_edge
    boundary = (2 * precision * recall / (precision + recall)).where(near_said + near_true > 0, 0.0)
    return {
        "iou": both / (said + true - both),
        "accuracy": both / true,
        "boundary_f1": boundary.where(said_edge + true_edge > 0, math.nan),
    }


def _edges(labels: Tensor) -> Tensor:
    """Pixels (N, H, W) with a neighbour to a side of another class; the ignored have none."""
    import torch

    edges = torch.zeros_like(labels, dtype=torch.bool)
    for dim in (1, 2):
        first, second = labels.narrow(dim, 0, labels.shape[dim] - 1), labels.narrow(dim, 1, labels.shape[dim] - 1)
        differ = (first != second) & (first != IGNORED) & (second != IGNORED)
        edges.narrow(dim, 0, labels.shape[dim] - 1).logical_or_(differ)
        edges.narrow(dim, 1, labels.shape[dim] - 1).logical_or_(differ)
    return edges


def _grown(pixels: Tensor, reach: int) -> Tensor:
    """Pixels (N, H, W) within a distance of some, along rows and columns."""
    import torch

    for dim in (1, 2):
        at, size = torch.arange(pixels.shape[dim], device=pixels.device), pixels.shape[dim]
        before = torch.cat([torch.zeros_like(pixels.narrow(dim, 0, 1)), pixels], dim).cumsum(dim, dtype=torch.int32)
        ends = (at + reach + 1).clamp(max=size), (at - reach).clamp(min=0)
        pixels = before.index_select(dim, ends[0]) > before.index_select(dim, ends[1])
    return pixels
