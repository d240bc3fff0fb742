"""Predictions of image files: class names and probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vprompt.data.images import refusal, try_decode
from vprompt.data.scan import list_images
from vprompt.data.threads import in_threads
from vprompt.model.classifier import Classifier
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import Report, silent


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Prediction of a model for one image.

    Args:
        image: Path of the file.
        class_name: The most probable class.
        probability: Its probability, 0 to 1.
        top: The most probable classes with their probabilities, falling.
    """

    image: str
    class_name: str
    probability: float
    top: tuple[tuple[str, float], ...]


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
    top: int = 3,
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
    images = in_threads(lambda file: try_decode(file, model.preprocessing), files)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(files), batch_size):
            batch = list(zip(files[start : start + batch_size], images, strict=False))
            ranked = iter(_ranked(model, [image for _, image in batch if isinstance(image, Tensor)], top))
            yield [
                Failure(image=file, error=refusal(file, image))
                if isinstance(image, str)
                else _named(file, next(ranked), model.class_names)
                for file, image in batch
            ]
            report(start + len(batch), len(files))
    finally:
        model.train(was_training)


@torch.inference_mode()
def _ranked(model: Classifier, images: Sequence[Tensor], top: int) -> list[list[tuple[int, float]]]:
    if not images:
        return []
    pixels_BCHW = torch.stack([*images]).to(model.device)
    logits_BC = model(model.preprocessing.normalise(pixels_BCHW)).float().cpu()
    if not bool(logits_BC.isfinite().all()):
        raise VPromptError("The model gives logits that are no finite numbers; train or export it again.")
    return most_probable(logits_BC, top)


def _named(file: str, best: Sequence[tuple[int, float]], classes: Sequence[str]) -> Prediction:
    top = tuple((classes[index], probability) for index, probability in best)
    return Prediction(image=file, class_name=top[0][0], probability=top[0][1], top=top)


def most_probable(logits_BC: Tensor, top: int) -> list[list[tuple[int, float]]]:
    """For each image the `top` most probable classes (all where there are fewer) and their probabilities, falling.

    Example:
        >>> import torch
        >>> [[(best, probability), _]] = most_probable(torch.tensor([[0.0, 9.0, 1.0]]), 2)
        >>> best, round(probability, 3)
        (1, 1.0)
    """
    best = logits_BC.float().softmax(1).topk(min(top, logits_BC.shape[1]), dim=1)
    return [
        list(zip(indices, values, strict=True))
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
