"""Predictions of images as they come: files, PIL images, arrays; a model knows how they are prepared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
from vprompt.tasks.segmentation import resized
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
        answers: What the model says of each image, as plain data: a class, tags, numbers by name, the runs of a mask.
        outputs: Probabilities of all classes or tags, or values in their own units: (N, K); where pixels have labels,
            nothing (N, 0), for they take much memory.
    """

    target: Target
    answers: tuple[dict[str, Any], ...]
    outputs: Tensor

    @cached_property
    def masks(self) -> tuple[Tensor, ...]:
        """The number of the class (H, W) of every pixel of each image.

        Raises:
            VPromptError: If the model says nothing of pixels.
        """
        if not self.target.dense:
            raise VPromptError(
                f"The model says nothing of pixels, its target is {self.target.name}: ask for `answers`."
            )
        return tuple(mask_of(answer) for answer in self.answers)

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
        return len(self.answers)

    def __repr__(self) -> str:
        shorter = ({k: v[:1] if k == "top" else v for k, v in answer.items()} for answer in self.answers[:4])
        rows = [self.target.row(answer) for answer in shorter]
        shown = [" ".join(f"{head} {line(cell, 40)}" for head, cell in row.items() if cell) for row in rows]
        return f"Predictions({printable('; '.join(shown + ['...'] * (len(self) > 4)))})"


def predict(model: Classifier, images: Pictures, *, batch_size: int = 32) -> Predictions:
    """See `Classifier.predict`."""
    as_read, answers, rows = model.as_read, list[dict[str, Any]](), list[Tensor]()
    prepared = in_threads(lambda image: _pixels(image, as_read), _each(images))
    while batch := list(islice(prepared, batch_size)):
        for outputs in outputs_of(model, batch):
            answers += model.target.answers(outputs, TOP)
            rows.append(outputs.new_empty(len(outputs), 0) if model.target.dense else outputs)
    if not rows:
        raise DataError("There are no images to predict; give at least one.")
    return Predictions(target=model.target, answers=tuple(answers), outputs=torch.cat(rows))


@torch.inference_mode()
def outputs_of(model: Classifier, images: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields what a model says of uint8 images (3, H, W), read as `as_read` says, on the CPU: (B, K) of all of them.

    Where pixels have labels, (1, K, H, W) of one after the other, in its own size.

    Raises:
        VPromptError: If its logits are no finite numbers.
    """
    training, seen = model.training, model.preprocessing
    batches = [images] if not model.target.dense else [[image] for image in images]
    for batch in batches:
        model.eval()
        try:
            shown = [render(image.permute(1, 2, 0).numpy(), seen) for image in batch] if model.target.dense else batch
            logits = model(seen.normalise(torch.stack([*shown]).to(model.device))).float()
        finally:
            model.train(training)
        logits = resized(logits, batch[0].shape[1:]).cpu() if model.target.dense else logits.cpu()
        if not bool(logits.isfinite().all()):
            raise VPromptError("The model gives logits that are no finite numbers; train or export it again.")
        yield model.target.activate(logits)


def mask_of(answer: Mapping[str, Any]) -> Tensor:
    """The number of the class (H, W) of every pixel, from the runs in one of `Target.answers`.

    Example:
        >>> mask_of({"size": [2, 3], "runs": [[0, 4], [1, 2]]}).tolist()
        [[0, 0, 0], [0, 1, 1]]
    """
    classes, lengths = torch.tensor(answer["runs"]).unbind(1)
    return classes.repeat_interleave(lengths).view(*answer["size"])


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
