"""Embeddings: the features of images, in a file, and what they tell of the backbone and of the images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import BackboneInfo, describe, fingerprint
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.listing import UNSPLIT, Item, Listing
from vprompt.data.pipeline import DEFAULT_MEMORY_LIMIT, as_sentences, check_files, load, refuse
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.scan import PassedOver, in_words, list_images
from vprompt.data.tasks import find_listing
from vprompt.experiments.folder import locked
from vprompt.model.model import FoldedModel, PromptedModel
from vprompt.training.evaluate import Evaluation
from vprompt.training.loader import ImageLabels, check_images, identity, in_order, iterate, size_of
from vprompt.training.probe import Probe, doubtful_labels, fit_probe, fold_numbers, near_copies, nearest_classes
from vprompt.training.probe import out_of_fold as out_of_fold_of
from vprompt.utils.errors import DataError, VPromptError
from vprompt.utils.io import encoded, write_atomically, write_json
from vprompt.utils.progress import Report, silent
from vprompt.utils.text import listed, printable
from vprompt.utils.version import __version__

Images = str | Path | Sequence[str | Path] | Task | ImageLabels | None
"""What `vprompt fit` takes as DATA, a folder or list of images without labels, a task, or any data set."""

NEIGHBOURS = (5, 20)


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """Features of images in the order of the data, and what they tell.

    Args:
        backbone: Name of the backbone.
        features: (N, F), in float32.
        files: Name of each image.
        splits: Its split; `all` where the data has none.
        labels: (N,), numbers of the classes; None without labels, or with labels that are no classes.
        classes: Names of the classes.
        remarks: Sentences on what was left out, and on how the data were read.
    """

    backbone: str
    features: Tensor
    files: tuple[str, ...]
    splits: tuple[str, ...]
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Embeddings({len(self.files)} images, {self.features.shape[1]} features of {self.backbone})"

    @property
    def tested_on(self) -> str | None:
        """The split that `knn` and `linear` are tested on, which learn from `train`; None where one is missing."""
        present = set(self.splits) if self.labels is not None else set[str]()
        return next((name for name in ("test", "val") if {name, "train"} <= present), None)

    def knn(self, k: int = 20) -> Evaluation:
        """Accuracy of the classes that the `k` nearest training images vote for, see `nearest_classes`."""
        features, labels, queries, answers = self._learned_and_tested()
        given = nearest_classes(features, labels, queries, k=k, num_classes=len(self.classes))
        return Evaluation(loss=math.nan, labels=answers, right=given == answers, num_classes=len(self.classes))

    def linear(self) -> Evaluation:
        """Accuracy of a linear probe of the training images, whose regularisation is chosen on other images."""
        _, _, queries, answers = self._learned_and_tested()
        logits = self._probe(queries)
        loss = float(nn.functional.cross_entropy(logits, answers))
        return Evaluation(loss=loss, labels=answers, right=logits.argmax(1) == answers, num_classes=len(self.classes))

    def duplicates(self) -> list[dict[str, Any]]:
        """Near copies in different splits, the most alike first: their files, splits and cosine; see `near_copies`."""
        return [
            {"cosine": cosine, **{key: [values[one], values[two]] for key, values in self._columns.items()}}
            for one, two, cosine in self._pairs
            if self.splits[one] != self.splits[two]
        ]

    def label_errors(self, *, report: Report = silent) -> list[dict[str, Any]]:
        """Labels that look wrong, the most doubtful first, with the likely class; see `doubtful_labels`.

        The probabilities are those of linear probes that have not seen the image nor a near copy of it.
        """
        if self.labels is None or self.tested_on is None:
            return []
        folds = fold_numbers(self.labels, [(one, two) for one, two, _ in self._pairs])
        strength = self._probe.strength
        shares = out_of_fold_of(
            self.features, self.labels, folds, len(self.classes), strength=strength, report=report
        )
        return [
            {key: values[row] for key, values in self._columns.items()}
            | {"likely": self.classes[likely], "probability": float(shares[row, self.labels[row]])}
            | {"likely_probability": float(shares[row, likely])}
            for row, likely in doubtful_labels(shares, self.labels)
        ]

    def figures(self, *, report: Report = silent) -> dict[str, Any]:
        """All of it as plain data: accuracies with intervals, near copies, and labels that look wrong."""
        counts = {split: self.splits.count(split) for split in dict.fromkeys(self.splits)}
        document = {"backbone": self.backbone, "features": self.features.shape[1], "images": counts}
        notes = [*self.remarks]
        copies = self.duplicates()
        if self.tested_on is not None:
            linear = self.linear()
            knn = {str(k): self.knn(k).figures(self.classes) for k in NEIGHBOURS}
            document |= {"tested_on": self.tested_on, "knn": knn}
            document |= {"linear": {**linear.figures(self.classes), "strength": self._probe.strength}}
            document |= {"majority_accuracy": linear.majority_accuracy}
            notes += linear.remarks(self.classes, f"linear probe's {self.tested_on}")
        return document | {
            "duplicates": copies,
            "label_errors": self.label_errors(report=report),
            "notes": notes,
        }

    def save(self, path: str | Path) -> None:
        """Writes file, split, label and features of each image: Parquet or npz, by the ending.

        Raises:
            VPromptError: The ending is another, or pyarrow is missing.
        """
        target = Path(path)
        check_ending(target)
        columns = {key: np.array([_text(value) for value in values]) for key, values in self._columns.items()}
        rows = self.features.numpy()

        def write(part: Path) -> None:
            if target.suffix == ".npz":
                with part.open("wb") as file:
                    np.savez(file, features=rows, **columns)
                return
            import pyarrow as pa
            from pyarrow import parquet

            flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
            parquet.write_table(pa.table({**{key: pa.array(c) for key, c in columns.items()}, "features": flat}), part)

        write_atomically(target, write)

    @cached_property
    def _columns(self) -> dict[str, Sequence[str]]:
        labels = {} if self.labels is None else {"label": [self.classes[label] for label in self.labels.tolist()]}
        return {"file": self.files, "split": self.splits, **labels}

    @cached_property
    def _pairs(self) -> list[tuple[int, int, float]]:
        return near_copies(self.features)

    @cached_property
    def _probe(self) -> Probe:
        features, labels = self._of("train")
        held_out = self._of("val")
        if self.tested_on == "val" or not len(held_out[1]):
            fifth = fold_numbers(labels) == 0
            held_out, features, labels = (features[fifth], labels[fifth]), features[~fifth], labels[~fifth]
        chosen = fit_probe(features, labels, len(self.classes), held_out=held_out)
        if len(labels) == self.splits.count("train"):
            return chosen
        return fit_probe(*self._of("train"), len(self.classes), strengths=[chosen.strength])

    def _of(self, split: str) -> tuple[Tensor, Tensor]:
        assert self.labels is not None
        rows = torch.tensor([name == split for name in self.splits])
        return self.features[rows], self.labels[rows]

    def _learned_and_tested(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.tested_on is None:
            raise DataError("Labelled images in a train split and in a test or val split are needed.")
        return (*self._of("train"), *self._of(self.tested_on))


def embed(
    model: str | nn.Module,
    data: Images = None,
    *,
    weights: str | Path | None = None,
    img_size: int | None = None,
    device: torch.device | None = None,
    root: str | None = None,
    split_seed: int = 0,
    skip_bad: bool = False,
    labelled: bool = True,
    batch_size: int = 64,
    out: Path | None = None,
    reading: Report = silent,
    report: Report = silent,
) -> Embeddings:
    """Computes the features of images, each of them once.

    Args:
        model: An adapted model, a timm model, or what `vprompt fit --backbone` takes.
        data: Images; the bundled task when not given. Images in files are prepared as the model wants them.
        weights: With a name: file with its weights.
        img_size: With a name: input size in pixels.
        device: Where to compute; the model's own when not given.
        root: Folder of benchmark tasks.
        split_seed: Cuts the splits that a folder does not have.
        skip_bad: Go on without images that cannot be used.
        labelled: False to take all images in a folder, whatever folders they are in.
        batch_size: Images per forward pass.
        out: Write them there; what is done is kept beside it, and the same call after a stop goes on with that.
        reading: Told of images that were read.
        report: Told of features that were computed.

    Raises:
        DataError: The images cannot be used.
        BackboneError: There is no such backbone.

    Example:
        >>> import timm
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.randn(4, 3, 32, 32), torch.zeros(4).long())
        >>> embed(timm.create_model("test_vit", img_size=32), images).features.shape
        torch.Size([4, 64])
    """
    if out is not None:
        check_ending(out)
    module = create_backbone(model, weights=weights, img_size=img_size) if isinstance(model, str) else model
    module = module if device is None else module.to(device)
    info = module.info if isinstance(module, PromptedModel | FoldedModel) else describe(module)
    preprocessing = module.preprocessing if isinstance(module, PromptedModel | FoldedModel) else info.preprocessing
    parts, classes, remarks = _parts(data, preprocessing, root, split_seed, skip_bad, labelled, reading)
    files = [
        name for split, images in parts.items() for name in (_paths(images) or _numbered(split, size_of(images)))
    ]
    rows, partial = _room(module, info, parts, files, out)
    with nullcontext() if partial is None else locked(partial.with_suffix(".lock"), out):
        labels = _filled(module, info, parts, rows, partial, batch_size, report)
        result = Embeddings(
            backbone=info.name,
            features=rows,
            files=tuple(files),
            splits=tuple(split for split, images in parts.items() for _ in range(size_of(images))),
            labels=labels if classes else None,
            classes=classes,
            remarks=remarks,
        )
    return result
