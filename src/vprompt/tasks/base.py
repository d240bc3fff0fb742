"""A target: what is to be said of an image. It reads labels, and knows its loss, its figures and its answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec

from vprompt.utils.errors import VPromptError
from vprompt.utils.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

CELLS = "\x1f"
"""Between the cells of several label columns, in the label of one image."""

DRAWS = 500
"""Of the images, to see how far a figure depends on which there are."""


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
    grouped: ClassVar[bool] = False
    """Whether every image is of one class, and a label is its name."""

    @property
    @abstractmethod
    def size(self) -> str:
        """How much there is to tell apart, in words, such as `3 classes`."""

    @classmethod
    @abstractmethod
    def suits(cls, labels: Sequence[str], columns: Sequence[str]) -> bool:
        """Whether labels look as if they were meant so.

        Args:
            labels: Of the training images.
            columns: Names of the label columns; none for folders.
        """

    @classmethod
    @abstractmethod
    def fit(cls, labels: Sequence[str], columns: Sequence[str]) -> Target:
        """The target that the training images tell of, as far as their labels can be used; arguments as of `suits`.

        Raises:
            ValueError: If nothing can be learned of them, in words that follow `the data have`.
        """

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

    @abstractmethod
    def figures(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        """All figures, as plain data; the headline and its 95 % `interval` among them."""

    def difference(self, before: Tensor, after: Tensor, targets: Tensor) -> tuple[float, tuple[float, float]]:
        """The headline that the second logits have more than the first, and its paired 95 % interval."""
        import torch

        def change(rows: Tensor) -> float:
            return self.score(after[rows], targets[rows]) - self.score(before[rows], targets[rows])

        return change(torch.arange(len(targets))), bootstrapped(change, len(targets))

    @abstractmethod
    def score(self, logits: Tensor, targets: Tensor) -> float:
        """The headline."""

    def remarks(self, figures: Mapping[str, Any], targets: Tensor, split: str) -> list[str]:
        """Sentences that must not be missing beside figures."""
        return []

    @staticmethod
    @abstractmethod
    def cells(figures: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
        """Heads and cells of a table of figures, which may be of earlier versions.

        Args:
            figures: As `figures` gives them.
            prefix: Of their keys.
        """

    @staticmethod
    def beside(figures: Mapping[str, Any], prefix: str = "") -> str:
        """What has to be known beside the figures of a table, to go on after its title; arguments as of `cells`."""
        images = figures.get(f"{prefix}images")
        return "" if images is None else f": {images} images"

    @abstractmethod
    def activate(self, logits: Tensor) -> Tensor:
        """What the model says: probabilities (N, K), or values in their own units."""

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


TARGETS: Registry[type[Target]] = Registry("target", "vprompt.tasks", "vprompt.targets")
"""All targets by name."""

T = TypeVar("T", bound=type[Target])


def register(target: T) -> T:
    """Makes a target known by its name; a decorator for its class."""
    TARGETS.register(target)
    return target


def target_of(labels: Sequence[str], columns: Sequence[str], name: str | None = None) -> Target:
    """The target of training images: of a kind that is named, or of the one that their labels look like.

    Args:
        labels: Of the training images.
        columns: Names of the label columns; none for folders.
        name: Of a registered target.

    Raises:
        ValueError: See `Target.fit`.

    Example:
        >>> target_of(["ant", "bee", "ant"], []).names, target_of(["0.5", "1.25"], ["weight"]).name
        (('ant', 'bee'), 'regression')
    """
    return kind_of(labels, columns, name).fit(labels, columns)


def kind_of(labels: Sequence[str], columns: Sequence[str], name: str | None = None) -> type[Target]:
    """The kind of target that is named, or that labels look like; arguments as those of `target_of`."""
    if name is not None:
        return TARGETS.get(name)
    return next((kind for kind in TARGETS if not kind.grouped and columns and kind.suits(labels, columns)), _usual())


def _usual() -> type[Target]:
    return next(kind for kind in TARGETS if kind.grouped)


def to_document(target: Target) -> dict[str, Any] | None:
    """A target as plain data without its names; None for the usual one, as in files of earlier versions."""
    document = {key: value for key, value in asdict(target).items() if key != "names"}
    plain = {entry.name: entry.default for entry in fields(target) if entry.name != "names"}
    return None if target.grouped and document == plain else {"name": target.name, **document}


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


def bootstrapped(figure: Callable[[Tensor], float], images: int, *, draws: int = DRAWS) -> tuple[float, float]:
    """The 95 % interval of a figure: its percentiles over images that are drawn anew, with replacement.

    Args:
        figure: Of rows (N,) of the images.
        images: Number of images.
        draws: How often they are drawn.

    Source: Efron (1979), Bootstrap methods: another look at the jackknife.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(images, (draws, images), generator=generator)
    values = torch.tensor([figure(row) for row in rows], dtype=torch.float64)
    low, high = values[values.isfinite()].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
