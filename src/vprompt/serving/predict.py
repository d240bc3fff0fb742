"""Predictions of image files: class names and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vprompt.data.images import refusal
from vprompt.data.pipeline import check_files
from vprompt.data.scan import list_images
from vprompt.model.classifier import Classifier
from vprompt.training.evaluate import outputs
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
    files = [str(file) for file in list_images(list(paths))]
    checked = check_files(Path(), [files] if skip_bad else [], model.preprocessing, 0, None, decode_all=True)
    skipped = [refusal(file, problem) for file, problem in checked.bad.items()]
    usable = [file for file in files if file not in checked.bad]
    if not usable:
        raise DataError(f"None of the {len(files)} images could be read; the first: {skipped[0]}")
    images = checked.dataset(usable, [0] * len(usable))
    batches = (logits for logits, _ in outputs(model, images, batch_size=batch_size, report=report))
    ranked = [best for logits_BC in batches for best in most_probable(logits_BC, top)]
    return [_named(file, best, model.class_names) for file, best in zip(usable, ranked, strict=True)], skipped


def _named(file: str, best: Sequence[tuple[int, float]], classes: Sequence[str]) -> Prediction:
    top = tuple((classes[index], probability) for index, probability in best)
    return Prediction(image=printable(file), class_name=top[0][0], probability=top[0][1], top=top)


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
