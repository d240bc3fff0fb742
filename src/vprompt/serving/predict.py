"""Predictions of image files: class names and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vprompt.data.images import decode
from vprompt.data.scan import list_images
from vprompt.model.classifier import Classifier
from vprompt.utils.errors import DataError, VPromptError
from vprompt.utils.progress import Report, silent
from vprompt.utils.text import printable


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


def predict(
    model: Classifier,
    paths: Sequence[str | Path],
    *,
    top: int = 3,
    batch_size: int = 32,
    skip_bad: bool = False,
    report: Report = silent,
) -> tuple[list[Prediction], list[str]]:
    """Classifies image files, and all images in folders.

    Args:
        model: Prompted, folded, or exported.
        paths: Files and folders.
        top: How many classes to name, at least 1.
        batch_size: Images per forward pass.
        skip_bad: Go on without images that cannot be read.
        report: Told of every batch.

    Returns:
        The predictions in order, and one sentence for every skipped image.

    Raises:
        DataError: If a path does not exist or an image cannot be read.
    """
    if top < 1:
        raise VPromptError(f"At least one class must be named for each image, not {top}.")
    files = list_images(list(paths))
    predictions: list[Prediction] = []
    skipped: list[str] = []
    model.eval()
    for start in range(0, len(files), batch_size):
        batch: list[tuple[Path, Tensor]] = []
        for file in files[start : start + batch_size]:
            try:
                batch.append((file, decode(file, model.preprocessing)))
            except DataError as error:
                if not skip_bad:
                    raise
                skipped.append(str(error))
        if batch:
            predictions += _predict_batch(model, batch, top)
        report(min(start + batch_size, len(files)), len(files))
    if not predictions:
        raise DataError(f"None of the {len(files)} images could be read; the first: {skipped[0]}")
    return predictions, skipped


@torch.inference_mode()
def _predict_batch(model: Classifier, batch: Sequence[tuple[Path, Tensor]], top: int) -> list[Prediction]:
    names, predictions = model.class_names, list[Prediction]()
    images = model.preprocessing.normalise(torch.stack([pixels for _, pixels in batch]).to(model.device))
    for (file, _), best in zip(batch, most_probable(model(images), top), strict=True):
        ranked = tuple((names[index], probability) for index, probability in best)
        name, probability = ranked[0]
        image = printable(str(file))
        predictions.append(Prediction(image=image, class_name=name, probability=probability, top=ranked))
    return predictions


def most_probable(logits_BC: Tensor, top: int) -> list[list[tuple[int, float]]]:
    """For each image the `top` most probable classes (all where there are fewer) and their probabilities, falling.

    Example:
        >>> [[(best, probability), _]] = most_probable(torch.tensor([[0.0, 9.0, 1.0]]), 2)
        >>> best, round(probability, 3)
        (1, 1.0)
    """
    best = logits_BC.float().softmax(1).topk(min(top, logits_BC.shape[1]), dim=1)
    return [
        list(zip(indices, values, strict=True))
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
