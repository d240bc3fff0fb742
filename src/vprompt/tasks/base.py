"""A target: what is to be said of an image. It reads labels, and knows its loss, its figures and its answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from vprompt.utils.errors import VPromptError
from vprompt.utils.registry import Registry
from vprompt.utils.text import count, listed, percent, printable

if TYPE_CHECKING:
    from torch import Tensor

    from vprompt.report.document import Section

CELLS = "\x1f"
"""Between the cells of several label columns, in the label of one image."""

DRAWS = 500
"""Of the images, to see how far a figure depends on which there are."""

MOST_DRAWN, LEAST_DRAWN = 100_000, 1_000
"""Numbers in a draw, and images: of more, a draw takes a part, and the interval is narrowed accordingly."""


@dataclass(frozen=True, kw_only=True)
class Target(ABC):
    """What a model says of an image, as far as the training images tell.

    A label is the text that stands in a table, or the name of a folder. Labels as tensors are (N,) int64, or (N, K)
    float32; logits are (N, K).

    Args:
        names: Of the K outputs: classes, tags, or quantities.
    """

    names: tuple[str, ...]

    name: ClassVar[str]
    """On the command line and in files."""
    headline: ClassVar[str]
    """Key of the figure that models are compared by: a share, of which 1 is the best."""
    title: ClassVar[str]
    """The headline in words."""
    hit: ClassVar[str]
    """Name of the figure that is reported while training: the mean of `hits`."""
    answer: ClassVar[str]
    """Name of the outputs that `activate` gives."""
    unit: ClassVar[str] = ""
    """Name of what `counts` counts."""
    blank: ClassVar[bool] = False
    """Whether an empty cell is a label as well."""
    shares: ClassVar[Mapping[str, str]] = {}
    """Heads of more columns of a table of figures -> keys of the shares in them."""
    grouped: ClassVar[bool] = False
    """Whether every image is of one class, and a label is its name."""
    dense: ClassVar[bool] = False
    """Whether every pixel has a label: a label is the name of a mask, and logits are (N, K, H, W)."""

    def __post_init__(self) -> None:
        odd = sorted(name for name in {*self.names} if self.names.count(name) > 1 or printable(name) != name)
        if odd and not self.grouped:
            raise VPromptError(f"No output can be called {listed([*map(printable, odd)], 3)}: twice, or not in print.")

    @property
    def size(self) -> str:
        """How much there is to tell apart, in words, such as `3 classes`."""
        return count(len(self.names), self.unit or "number")

    @classmethod
    def suits(cls, labels: Sequence[str], columns: Sequence[str]) -> bool:
        """Whether labels look as if they were meant so; never, of a target that has to be named.

        Args:
            labels: Of the training images.
            columns: Names of the label columns.
        """
        return False

    @classmethod
    @abstractmethod
    def fit(cls, labels: Sequence[str], columns: Sequence[str]) -> Target:
        """The target that the training images tell of, as far as their labels can be used; arguments as of `suits`.

        Raises:
            ValueError: If nothing can be learned of them, in words that follow `the data have`.
        """

    @classmethod
    def called(cls, names: Sequence[str]) -> Target:
        """The target of these names, for labels that are tensors already."""
        return cls(names=tuple(names))

    @property
    def map_head(self) -> str | None:
        """Name of the head on maps of features, see `vprompt.methods.layers.dense`; None for one on pooled features."""
        return None

    def with_head(self, head: str) -> Target:
        """The same target with another head on maps of features.

        Raises:
            VPromptError: If it has none.
        """
        raise VPromptError(f"A head on maps is for pixels with labels, not for {self.name}; leave out the head.")

    def settled(self, labels: Sequence[str]) -> Target:
        """The same target with what depends on the training images alone, once these are chosen."""
        return self

    @abstractmethod
    def problem(self, label: str) -> str | None:
        """Why a label cannot be used, in words that follow `the label`; None where it can."""

    @abstractmethod
    def encode(self, labels: Sequence[str]) -> Tensor:
        """Usable labels as a tensor."""

    @abstractmethod
    def check(self, targets: Tensor) -> str | None:
        """What is wrong with a batch of labels as a tensor, in a sentence; None where nothing is."""

    def strata(self, labels: Sequence[str]) -> list[str]:
        """The group of each image, all of which should be in all splits."""
        return [*labels]

    def counts(self, targets: Tensor) -> Mapping[str, int]:
        """Number of images by name, where images can be counted so."""
        return {}

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """The loss (N,) of each image.

        Args:
            logits: (N, K).
            targets: Labels as a tensor.
            smoothing: Share of the label that is spread over all, where there are classes or tags.
        """

    @abstractmethod
    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How right the model is of each image, (N,), as is reported while training."""

    @abstractmethod
    def pseudo(self, logits: Tensor) -> Tensor:
        """The labels as a tensor that a model itself would give."""

    def reduced(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What figures need of the logits and labels of a batch; they are given no more where this is overridden."""
        return logits, targets

    @abstractmethod
    def figures(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """All figures, as plain data; the headline and its 95 % `interval` among them."""

    def difference(self, before: Tensor, after: Tensor, targets: Tensor) -> tuple[float, tuple[float, float]]:
        """The headline that the second logits have more than the first, and its paired 95 % interval."""
        import torch

        def change(rows: Tensor) -> float:
            return self.score(after[rows], targets[rows]) - self.score(before[rows], targets[rows])

        if not math.isfinite(whole := change(torch.arange(len(targets)))):
            return 0.0, (0.0, 0.0)
        return whole, bootstrapped(change, len(targets), size=before[0].numel()) or (whole, whole)

    @abstractmethod
    def score(self, logits: Tensor, targets: Tensor) -> float:
        """The headline; NaN where these images do not tell it."""

    def scored(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """The headline and its interval, as in `figures`; None where these images do not tell them."""
        score = self.score(logits, targets)
        if not math.isfinite(score):
            return {self.headline: None, "interval": None}
        size = logits[0].numel()
        ends = bootstrapped(lambda rows: self.score(logits[rows], targets[rows]), len(targets), size=size)
        return {self.headline: score, "interval": ends and [*ends]}

    def agreement(self, before: Tensor, after: Tensor) -> float:
        """How far the logits of two models say the same of the same images, 0 to 1: 1 less their mean distance."""
        return max(0.0, 1 - float((after - before).abs().double().mean()))

    def remarks(self, figures: Mapping[str, Any], targets: Tensor, split: str) -> list[str]:
        """Sentences that must not be missing beside figures."""
        return []

    @classmethod
    def cells(cls, figures: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
        """Heads and cells of a table of figures, which may be of earlier versions: headline, interval, `shares`.

        Args:
            figures: As `figures` gives them.
            prefix: Of their keys.
        """
        found = {head: figures.get(f"{prefix}{key}") for head, key in {cls.title: cls.headline, **cls.shares}.items()}
        cells = {head: "-" if share is None else f"{percent(share)} %" for head, share in found.items()}
        ends = figures.get(f"{prefix}interval")
        interval = "-" if ends is None else f"{100 * ends[0]:.0f}-{100 * ends[1]:.0f}"
        return {cls.title: cells[cls.title], "95 %": interval, **cells}

    @staticmethod
    def beside(figures: Mapping[str, Any], prefix: str = "") -> str:
        """What has to be known beside the figures of a table, to go on after its title; arguments as of `cells`."""
        images = figures.get(f"{prefix}images")
        return "" if images is None else f": {images:.0f} images"

    @abstractmethod
    def activate(self, logits: Tensor) -> Tensor:
        """What the model says: probabilities (N, K), or values in their own units."""

    def calibrated(self, logits: Tensor, targets: Tensor) -> Target:
        """The same target with probabilities that are right as often as they say, by the logits of images not learned.

        The labels and what the model names stay as they are; a target without probabilities stays the same.
        """
        return self

    def trust(self, logits: Tensor, targets: Tensor) -> dict[str, float | None]:
        """Figures of how far probabilities are right as often as they say; none of a target without them."""
        return {}

    @abstractmethod
    def inverse(self, outputs: Tensor) -> Tensor:
        """Logits that `activate` makes such outputs of, but for rounding; finite in any case."""

    @abstractmethod
    def answers(self, outputs: Tensor, top: int) -> list[dict[str, Any]]:
        """For each image, what the model says of it as plain data; from what `activate` gives.

        Args:
            outputs: (N, K).
            top: Number of classes or tags to name.
        """

    def named(self, labels: Tensor) -> list[str]:
        """Labels as a tensor in words, for each image."""
        return [str(label) for label in labels.tolist()]

    def doubt(self, logits: Tensor) -> Tensor | None:
        """How unsure the model is of each image, (N,); None where it does not say."""
        return None

    def sections(self, figures: Mapping[str, Any], logits: Tensor, targets: Tensor) -> list[Section]:
        """What a page shows of the figures and what they are made of."""
        return []

    @abstractmethod
    def row(self, answer: Mapping[str, Any]) -> dict[str, str]:
        """Heads and cells of one of `answers` in a table."""


TARGETS: Registry[type[Target]] = Registry("target", "vprompt.tasks", "vprompt.targets")
"""All targets by name."""

T = TypeVar("T", bound=type[Target])


def register(target: T) -> T:
    """Makes a target known by its name; a decorator for its class."""
    TARGETS.register(target)
    return target


def kind_of(labels: Sequence[str], columns: Sequence[str], name: str | None = None) -> type[Target]:
    """The kind of target that is named, or that labels look like.

    Args:
        labels: Of the training images.
        columns: Names of the label columns; none for folders.
        name: Of a registered target.

    Example:
        >>> kind_of(["ant", "bee", "ant"], []).name, kind_of(["0.5", "1.25"], ["weight"]).name
        ('single-label', 'regression')
    """
    if name is not None:
        return TARGETS.get(name)
    return next((kind for kind in TARGETS if not kind.grouped and columns and kind.suits(labels, columns)), _usual())


def _usual() -> type[Target]:
    return next(kind for kind in TARGETS if kind.grouped)


def to_document(target: Target) -> dict[str, Any] | None:
    """A target as plain data without its names and what is as by default; None for the usual one, as in old files."""
    plain = {entry.name: entry.default for entry in fields(target)}
    document = {key: value for key, value in asdict(target).items() if key != "names" and value != plain[key]}
    return None if target.grouped and not document else {"name": target.name, **document}


def from_document(document: Mapping[str, Any] | None, names: Sequence[str]) -> Target:
    """The target that `to_document` wrote, with its names.

    Raises:
        VPromptError: If there is no such target, or its values cannot be.
    """
    values = {} if document is None else {key: value for key, value in document.items() if key != "name"}
    kind = _usual() if document is None else TARGETS.get(str(document.get("name")))
    try:
        return msgspec.convert({**values, "names": tuple(names)}, kind)
    except msgspec.ValidationError as error:
        raise VPromptError(f"The target {kind.name} cannot be so ({error}).") from error


def bootstrapped(
    figure: Callable[[Tensor], float], images: int, *, size: int = 1, most: float = 1
) -> tuple[float, float] | None:
    """The 95 % interval of a figure: percentiles over images that are drawn anew, with replacement.

    Their mean is moved to the figure: with images that come twice, an average precision is too high. Of very many
    images fewer are drawn, and the distances from the mean shrunk by the root of their share.

    Args:
        figure: Of rows (N,) of the images; draws for which it is NaN do not count.
        images: Number of images.
        size: Numbers of each.
        most: Largest value of the figure.

    Returns:
        The ends; None where the figure is not defined.

    Source: Efron (1979), Bootstrap methods: another look at the jackknife; Bickel, Götze, van Zwet (1997), Resampling
    fewer than n observations.
    """
    import torch

    generator, drawn = torch.Generator().manual_seed(0), min(images, max(LEAST_DRAWN, MOST_DRAWN // size))
    rows = (torch.randint(images, (drawn,), generator=generator) for _ in range(DRAWS))
    values = torch.tensor([figure(row) for row in rows], dtype=torch.float64)
    values, whole = values[values.isfinite()], figure(torch.arange(images))
    if not len(values) or not math.isfinite(whole):
        return None
    values = whole + (values - values.mean()) * math.sqrt(drawn / images)
    low, high = values.clamp(max=most).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
