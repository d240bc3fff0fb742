"""Predictions of images as they come: files, PIL images, arrays; a model knows how they are prepared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vprompt.data.images import UnusableImageError, decode, render
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.scan import list_images
from vprompt.data.threads import in_threads
from vprompt.tasks.base import Target
from vprompt.utils.errors import DataError, VPromptError
from vprompt.utils.text import line, printable

if TYPE_CHECKING:
    from vprompt.model.classifier import Classifier

TOP = 3
"""Classes or tags that are named where nothing else is asked for."""

Pictures = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor | Sequence["Pictures"]
"""An image or several: a file, a folder of files, a PIL image, a uint8 array (H, W), (H, W, C) or (N, H, W, C), a uint8
tensor (3, H, W) or (N, 3, H, W), or a list of those.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Predictions of a model for some images.

    Args:
        target: What is to be said of an image.
        outputs: Probabilities of all classes or tags, or values in their own units: (N, K).
    """

    target: Target
    outputs: Tensor

    @cached_property
    def answers(self) -> tuple[dict[str, Any], ...]:
        """What the model says of each image, as plain data: a class, tags, numbers by name."""
        return tuple(self.target.answers(self.outputs, TOP))

    @property
    def probabilities(self) -> Tensor:
        """`outputs` by the name that they have of classes and tags."""
        return self.outputs

    @property
    def labels(self) -> tuple[int, ...]:
        """The most probable class of each image.

        Raises:
            VPromptError: If the model does not tell classes apart.
        """
        if not self.target.grouped:
            raise VPromptError(f"The model names no class, its target is {self.target.name}: ask for `answers`.")
        return tuple(self.outputs.argmax(1).tolist())

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of `labels`."""
        return tuple(self.target.names[label] for label in self.labels)

    def __len__(self) -> int:
        return len(self.outputs)

    def __repr__(self) -> str:
        rows = [self.target.row(answer) for answer in self.target.answers(self.outputs[:4], 1)]
        shown = [" ".join(f"{head} {line(cell, 40)}" for head, cell in row.items() if cell) for row in rows]
        return f"Predictions({printable('; '.join(shown + ['...'] * (len(self) > 4)))})"


def predict(model: Classifier, images: Pictures, *, batch_size: int = 32) -> Predictions:
    """See `Classifier.predict`."""
    preprocessing, rows = model.preprocessing, list[Tensor]()
    prepared = in_threads(lambda image: _pixels(image, preprocessing), _each(images))
    while batch := list(islice(prepared, batch_size)):
        rows.append(model.target.activate(logits_of(model, batch)))
    if not rows:
        raise DataError("There are no images to predict; give at least one.")
    return Predictions(target=model.target, outputs=torch.cat(rows))


@torch.inference_mode()
def logits_of(model: Classifier, images: Sequence[Tensor]) -> Tensor:
    """Logits (B, C) of prepared uint8 images (3, H, W), on the CPU.

    Raises:
        VPromptError: If one is no finite number.
    """
    training = model.training
    model.eval()
    try:
        pixels_BCHW = torch.stack([*images]).to(model.device)
        logits_BC = model(model.preprocessing.normalise(pixels_BCHW)).float().cpu()
    finally:
        model.train(training)
    if not bool(logits_BC.isfinite().all()):
        raise VPromptError("The model gives logits that are no finite numbers; train or export it again.")
    return logits_BC


def _each(images: Any) -> Iterator[str | os.PathLike[str] | Image.Image | NDArray[Any]]:
    """The images one by one; arrays as (H, W) or (H, W, C)."""
    if isinstance(images, str | os.PathLike):
        yield from list_images([os.fspath(images)])
    elif isinstance(images, Image.Image):
        yield images
    elif isinstance(images, Tensor):
        yield from _each(images.detach().cpu().movedim(-3, -1).numpy() if images.ndim > 2 else images.cpu().numpy())
    elif isinstance(images, np.ndarray):
        if images.dtype != np.uint8:
            raise DataError(
                f"Arrays of images hold bytes (uint8), 0 to 255, not {images.dtype}; images that are normalised "
                "already go to the model itself: model(images)."
            )
        if not 2 <= images.ndim <= 4 or 0 in images.shape:
            raise DataError(f"An array is (H, W) or (H, W, 3), of several images (N, H, W, 3), not {images.shape}.")
        yield from images if images.ndim == 4 else (images,)
    elif isinstance(images, Sequence):
        for image in images:
            yield from _each(image)
    else:
        raise DataError(f"An image is a path, a PIL image or an array, not {type(images).__name__}.")


def _pixels(image: str | os.PathLike[str] | Image.Image | NDArray[Any], preprocessing: Preprocessing) -> Tensor:
    if isinstance(image, str | os.PathLike):
        return decode(image, preprocessing)
    try:
        upright = ImageOps.exif_transpose(image) if isinstance(image, Image.Image) else np.atleast_3d(image)
        return render(upright, preprocessing)
    except UnusableImageError as error:
        raise DataError(f"An image {error}; give images as the model was trained on.") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes when it is asked for pixels
        raise DataError(f"A PIL image cannot be read ({error}); open another.") from error
