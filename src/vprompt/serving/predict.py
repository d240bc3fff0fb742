"""Predictions of image files: what a model says of each, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from vprompt.data.images import decode, refusal, try_decode
from vprompt.data.masks import mask_picture
from vprompt.data.scan import list_images
from vprompt.data.threads import in_threads
from vprompt.model.classifier import Classifier
from vprompt.model.predict import TOP, mask_of, outputs_of
from vprompt.report.masks import overlaid
from vprompt.utils.errors import VPromptError
from vprompt.utils.io import write_atomically
from vprompt.utils.progress import Report, silent


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Prediction of a model for one image.

    Args:
        image: Path of the file.
        answer: As the model's target gives it. Its entries are attributes, too: of a class `class_name`, `probability`
            and `top`, the most probable classes with their probabilities; of tags `tags` and `top`; of numbers
            `values`.
    """

    image: str
    answer: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["answer"][name]
        except KeyError as error:
            raise AttributeError(name) from error


def write_mask(found: Prediction, model: Classifier, folder: Path, taken: set[str]) -> None:
    """Writes the mask of an image as NAME.png, and the image under it as NAME-overlay.jpg.

    Args:
        found: Of a model whose target says something of every pixel.
        model: That model.
        folder: Is made where it is not there.
        taken: Names that are given away; the new one is added.
    """
    mask, stem = mask_of(found.answer), Path(found.image).stem
    name = next(name for number in count(1) if (name := stem if number == 1 else f"{stem}-{number}") not in taken)
    taken.add(name)
    image = decode(found.image, model.as_read)
    colours = image[:3] if len(image) > 2 else image[[0, 0, 0]]
    over = overlaid(colours.permute(1, 2, 0).numpy(), mask.numpy(), len(model.target.names))
    write_atomically(folder / f"{name}.png", lambda part: mask_picture(mask, model.target).save(part, "PNG"))
    write_atomically(folder / f"{name}-overlay.jpg", lambda part: Image.fromarray(over).save(part, "JPEG"))


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An image that could not be classified.

    Args:
        image: Path of the file.
        error: A sentence that says why.
    """

    image: str
    error: str


def predict_each(
    model: Classifier,
    paths: Sequence[str | Path],
    *,
    top: int = TOP,
    batch_size: int = 32,
    report: Report = silent,
) -> Iterator[list[Prediction | Failure]]:
    """Classifies image files, and all images in folders; yields every batch as soon as it is done.

    Args:
        model: Prompted, folded, or exported.
        paths: Files and folders.
        top: How many classes to name, at least 1.
        batch_size: Images per forward pass.
        report: Told of every batch.

    Raises:
        DataError: If a path does not exist.
    """
    if top < 1:
        raise VPromptError(f"At least one class must be named for each image, not {top}.")
    files = [str(file) for file in list_images(list(paths))]
    images = in_threads(lambda file: try_decode(file, model.as_read), files)
    for start in range(0, len(files), batch_size):
        batch = list(zip(files[start : start + batch_size], images, strict=False))
        pixels = [image for _, image in batch if isinstance(image, Tensor)]
        said = outputs_of(model, pixels) if pixels else ()
        answers = (answer for outputs in said for answer in model.target.answers(outputs, top))
        yield [
            Failure(image=file, error=refusal(file, image))
            if isinstance(image, str)
            else Prediction(image=file, answer=next(answers))
            for file, image in batch
        ]
        report(start + len(batch), len(files))
