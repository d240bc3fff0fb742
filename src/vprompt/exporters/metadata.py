"""The description inside an exported model: all that is needed to use it, and where it comes from; files of labels."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NoReturn

from vprompt.backbones.factory import public_name
from vprompt.backbones.info import fingerprint
from vprompt.data.preprocessing import Preprocessing
from vprompt.exporters.base import BLANK
from vprompt.model.model import FoldedModel
from vprompt.tasks.base import Target, from_document, to_document
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import ADDED, Reader
from vprompt.utils.text import printable
from vprompt.utils.version import __version__

FORMAT_VERSION = 1
"""Version of this description; a newer one is refused."""

Precision = Literal["float32", "float16", "int8"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The file's outputs beside those of the model that it was made from, in float32.

    Args:
        images: How many real images both saw.
        largest: The largest difference of two logits.
        scale: The largest logit, without its sign.
        tolerance: What `largest / scale` may be.
    """

    images: int
    largest: float
    scale: float
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """The cost of int8.

    Args:
        tool: What quantised.
        calibration_images: How many images the ranges of values come from; 0 where they are found while it runs.
        same_class: Share of the compared images whose most probable class stayed, or how far another target says the
            same, 0 to 1.
        data: What the score was measured on, or None where it was not.
        split: Which split of it.
        images: How many images it was measured on.
        accuracy_before: Of the float32 model, 0 to 1; None for another target than classes.
        accuracy_after: Of the int8 model on the same images.
        score_before: The figure that models of the target are compared by, of the float32 model.
        score_after: Of the int8 model.
    """

    tool: str
    calibration_images: int
    same_class: float
    data: str | None = None
    split: str | None = None
    images: int = 0
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    score_before: float | None = field(default=None, metadata=ADDED)
    score_after: float | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True, kw_only=True)
class EngineForm:
    """The sizes of what an engine takes beside images: `keys` and `values` of one prompt in all blocks together."""

    blocks: int
    keys: int
    values: int
    features: int
    max_prompts: int


@dataclass(frozen=True, kw_only=True)
class About:
    """The description of an exported model, of an engine, or of an adapter for an engine.

    Args:
        format_version: Version of this description.
        vprompt_version: What exported it.
        adapter: Name of the adapter's folder, or its id on the Hub, where it was saved.
        method: Name of the method.
        backbone: Name of the backbone.
        fingerprint: Of the backbone's weights, as `vprompt.backbones.info.fingerprint` gives it.
        prompt_counts: Prompts of every block.
        preprocessing: What images must look like.
        classes: Names of the classes in the order of the logits, or None.
        num_classes: How many logits there are.
        includes_preprocessing: Whether it takes uint8 pixels (B, H, W, 3) of the preprocessing's size and gives
            probabilities (or what else its target says), rather than normalised images and logits.
        precision: In which numbers it computes.
        libraries: Versions of what took part.
        comparison: Beside the model before it was exported.
        quantisation: What int8 cost, or None.
        target: What the logits say, as plain data, where that is not one of the classes.
        engine: Of an engine, what it takes beside images; it has no prompts and no classes of its own.
    """

    format_version: int
    vprompt_version: str
    adapter: str | None
    method: str
    backbone: str
    fingerprint: str
    prompt_counts: tuple[int, ...]
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None
    num_classes: int
    precision: Precision
    libraries: dict[str, str]
    comparison: Comparison | None
    quantisation: Quantisation | None
    includes_preprocessing: bool = False
    target: dict[str, Any] | None = None
    engine: EngineForm | None = None

    @property
    def made_target(self) -> Target:
        """What the logits say.

        Raises:
            VPromptError: If it cannot be made.
        """
        return from_document(self.target, self.classes or tuple(map(str, range(self.num_classes))))

    def to_text(self) -> str:
        """JSON in one line of printable ASCII, which every format can hold; the place for the checksum comes last."""
        return json.dumps({**asdict(self), "checksum": BLANK}, allow_nan=False)


class _Reader(Reader):
    """Of the description in an exported file."""

    may_lack = (About,)  # not all was there at first

    def fail(self, problem: str) -> NoReturn:
        raise VPromptError(f"What {self.where} says of itself is damaged: {problem}; export the adapter again.")


def describe_export(
    model: FoldedModel, adapter: str | None, libraries: tuple[str, ...], *, includes_preprocessing: bool = False
) -> About:
    """The description of a model that is about to be exported, without the folders of this machine."""
    return About(
        format_version=FORMAT_VERSION,
        vprompt_version=__version__,
        adapter=adapter,
        method=model.method.name,
        backbone=public_name(model.info.name),
        fingerprint=fingerprint(model.backbone),
        prompt_counts=tuple(model.prompt_counts),
        preprocessing=model.preprocessing,
        classes=model.classes,
        num_classes=model.num_classes,
        precision="float32",
        libraries={"python": platform.python_version(), **{name: _version(name) for name in libraries}},
        comparison=None,
        quantisation=None,
        includes_preprocessing=includes_preprocessing,
        target=to_document(model.target),
    )


def read_about(text: str | bytes, where: str) -> About:
    """Reads and checks a description; keys that it does not know are passed over.

    Raises:
        VPromptError: If it is damaged, or of a newer version of vprompt.
    """
    reader = _Reader(where)
    document = reader.document(text, FORMAT_VERSION)
    about = About(**reader.entries(document, About, ""))
    classes = about.classes
    if min(about.preprocessing.size) < 1 or min(about.preprocessing.std) <= 0 or about.preprocessing.white < 1:
        reader.fail("'preprocessing' has a size, a deviation or a white that cannot be")
    if about.num_classes < 1 or len(classes or range(about.num_classes)) != about.num_classes:
        reader.fail(f"there are {len(classes or ())} names for {about.num_classes} classes")
    return about


def label_files(classes: Sequence[str]) -> dict[str, str]:
    """Name and content of each: a line a class for TensorFlow Lite's tools, `id2label` for those of transformers.

    Example:
        >>> label_files(["ant", "bee"])["labels.txt"]
        'ant\\nbee\\n'
    """
    numbers = {str(number): name for number, name in enumerate(classes)}
    config = {"id2label": numbers, "label2id": {name: int(number) for number, name in numbers.items()}}
    lines = "".join(f"{printable(' '.join(name.splitlines()))}\n" for name in classes)
    return {"labels.txt": lines, "config.json": json.dumps(config, indent=2) + "\n"}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
