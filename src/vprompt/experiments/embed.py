"""Embeddings: the features of images, in a file, and what they tell of the backbone and of the images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import BackboneInfo, describe, fingerprint
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.listing import UNSPLIT, Item, Listing
from vprompt.data.pipeline import DEFAULT_MEMORY_LIMIT, as_sentences, check, load, refuse
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.scan import IMAGE_SUFFIXES, PassedOver, in_words, list_images
from vprompt.data.tasks import find_listing
from vprompt.experiments.folder import locked
from vprompt.model.model import FoldedModel, PromptedModel
from vprompt.tasks.base import Target
from vprompt.training.evaluate import Evaluation
from vprompt.training.feature_cache import empty_rows
from vprompt.training.loader import ImageLabels, check_images, identity, in_order, iterate, size_of
from vprompt.training.probe import Probe, doubtful_labels, fit_probe, fold_numbers, near_copies, neighbour_shares
from vprompt.training.probe import out_of_fold as probabilities_of
from vprompt.utils.errors import DataError, VPromptError
from vprompt.utils.io import encoded, write_atomically, write_json, writing
from vprompt.utils.progress import Report, silent
from vprompt.utils.text import printable
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
        target: What is to be said of an image; None where there are no labels.
        labels: Labels as a tensor, (N,) or (N, K).
        remarks: Sentences on what was left out, and on how the data were read.
    """

    backbone: str
    features: Tensor
    files: tuple[str, ...]
    splits: tuple[str, ...]
    target: Target | None = None
    labels: Tensor | None = None
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Embeddings({len(self.files)} images, {self.features.shape[1]} features of {self.backbone})"

    @property
    def tested_on(self) -> str | None:
        """The split that `knn` and `linear` are tested on, which learn from `train`.

        None where one of the two is missing, or where an image is not of one class.
        """
        present = set(self.splits) if self.target is not None and self.target.grouped else set[str]()
        return next((name for name in ("test", "val") if {name, "train"} <= present), None)

    def knn(self, k: int = 20) -> Evaluation:
        """Figures of the classes that the `k` nearest training images vote for, see `neighbour_shares`."""
        classes, (queries, answers) = self._classes, self._of(self.tested_on)
        shares = neighbour_shares(*self._of("train"), queries, k=k, num_classes=classes)
        return self._evaluation(shares.clamp_min(1e-9).log(), answers)

    def linear(self) -> Evaluation:
        """Figures of a linear probe of the training images, whose regularisation is chosen on other images."""
        queries, answers = self._of(self.tested_on)
        return self._evaluation(self._probe(queries), answers)

    def duplicates(self) -> list[dict[str, Any]]:
        """Near copies in different splits, the most alike first: their files, splits and cosine; see `near_copies`."""
        return [
            {"cosine": cosine, **{f"{key}s": [values[one], values[two]] for key, values in self._columns.items()}}
            for one, two, cosine in self._pairs
            if self.splits[one] != self.splits[two]
        ]

    def label_errors(self, *, report: Report = silent) -> list[dict[str, Any]]:
        """Labels that look wrong, the most doubtful first, with the likely class; see `doubtful_labels`.

        The probabilities are those of linear probes that have seen neither the image nor a near copy of it.
        """
        if self.tested_on is None or self.target is None or self.labels is None:
            return []
        folds, strength = fold_numbers(self.labels, [pair[:2] for pair in self._pairs]), self._probe.strength
        shares = probabilities_of(self.features, self.labels, folds, self._classes, strength=strength, report=report)
        return [
            {
                **{key: values[row] for key, values in self._columns.items()},
                "likely": self.target.names[likely],
                "probability": float(shares[row, self.labels[row]]),
                "likely_probability": float(shares[row, likely]),
            }
            for row, likely in doubtful_labels(shares, self.labels)
        ]

    def figures(self, *, report: Report = silent) -> dict[str, Any]:
        """All of it as plain data: accuracies with intervals, near copies, and labels that look wrong."""
        images = {split: self.splits.count(split) for split in dict.fromkeys(self.splits)}
        document: dict[str, Any] = {"backbone": self.backbone, "features": self.features.shape[1], "images": images}
        remarks = [*self.remarks]
        if self.tested_on is not None:
            linear = self.linear()
            document |= {
                "tested_on": self.tested_on,
                "knn": {str(k): self.knn(k).figures for k in NEIGHBOURS},
                "linear": {**linear.figures, "strength": self._probe.strength},
            }
            remarks += linear.remarks(self.tested_on)
        elif self.target is not None:
            remarks.append("Accuracies are for images of one class each, with a train and a test or val split.")
        return {
            **document,
            "duplicates": self.duplicates(),
            "label_errors": self.label_errors(report=report),
            "notes": remarks,
        }

    def save(self, path: str | Path) -> None:
        """Writes file, split, label and features of each image: Parquet or npz, by the ending.

        Raises:
            VPromptError: The ending is another, or pyarrow is missing.
        """
        target = check_ending(Path(path))
        labels = {} if self.labels is None or "label" in self._columns else {"label": self.labels.numpy()}
        texts = {key: np.array([encoded(value).decode() for value in v]) for key, v in self._columns.items()}
        columns: dict[str, Any] = {**texts, **labels, "features": self.features.numpy()}

        def write(part: Path) -> None:
            if target.suffix.lower() == ".npz":
                with part.open("wb") as file:
                    np.savez(file, **columns)
                return
            import pyarrow as pa
            from pyarrow import parquet

            arrays: dict[str, Any] = {
                key: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
                if values.ndim > 1
                else pa.array(values)
                for key, values in columns.items()
            }
            parquet.write_table(pa.table(arrays), part)

        write_atomically(target, write)

    @cached_property
    def _columns(self) -> dict[str, Sequence[str]]:
        columns: dict[str, Sequence[str]] = {"image": self.files, "split": self.splits}
        if self.target is not None and self.target.grouped and self.labels is not None:
            columns["label"] = [self.target.names[label] for label in self.labels.tolist()]
        return columns

    @cached_property
    def _pairs(self) -> list[tuple[int, int, float]]:
        return near_copies(self.features)

    @cached_property
    def _probe(self) -> Probe:
        """Fitted on all training images; the strength is chosen on validation images, or on a fifth of these."""
        features, labels = self._of("train")
        if self.tested_on == "test" and "val" in self.splits:
            return fit_probe(features, labels, self._classes, held_out=self._of("val"))
        fifth = fold_numbers(labels) == 0
        held_out = (features[fifth], labels[fifth])
        chosen = fit_probe(features[~fifth], labels[~fifth], self._classes, held_out=held_out)
        return fit_probe(features, labels, self._classes, strengths=[chosen.strength])

    @property
    def _classes(self) -> int:
        return 0 if self.target is None else len(self.target.names)

    def _of(self, split: str | None) -> tuple[Tensor, Tensor]:
        """Features and labels of a split."""
        if self.tested_on is None or self.labels is None:
            raise DataError("Images of one class each are needed, in a train split and in a test or val split.")
        rows = torch.tensor([name == split for name in self.splits])
        return self.features[rows], self.labels[rows]

    def _evaluation(self, logits: Tensor, labels: Tensor) -> Evaluation:
        assert self.target is not None
        return Evaluation(
            target=self.target, loss=float(self.target.loss(logits, labels).mean()), logits=logits, labels=labels
        )


def check_ending(out: Path) -> Path:
    """The file itself, if features can be written to one of its name."""
    if out.suffix.lower() not in (".npz", ".parquet"):
        raise VPromptError(f"Features are written to a .npz or .parquet file, not to {printable(str(out))}.")
    if out.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise VPromptError("Parquet files need pyarrow: pip install 'vprompt[parquet]'; or give a name with .npz.")
    return out


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
    settings: Mapping[str, Any] | None = None,
    remarks: Sequence[str] = (),
    reading: Report = silent,
    report: Report = silent,
    probing: Report = silent,
) -> Embeddings:
    """Computes the features of images, each of them once.

    Args:
        model: An adapted model, a timm model, or a name that `vprompt fit --backbone` takes.
        data: Images; the bundled task when not given. Those in files are prepared as the model wants them.
        weights: With a name: file with its weights.
        img_size: With a name: input size in pixels.
        device: Where to compute; the model's own when not given.
        root: Folder of benchmark tasks.
        split_seed: Cuts the splits that a folder does not have.
        skip_bad: Go on without images that cannot be used.
        labelled: False to take all images in a folder, whatever folders they are in.
        batch_size: Images per forward pass.
        out: Write them there, and all figures into a JSON file of the same name. What is done is kept in a hidden file
            beside; the same call goes on with that after a stop.
        settings: Written into the JSON file.
        remarks: More sentences for the result.
        reading: Told of images that were read.
        report: Told of features that were computed.
        probing: Told of probes that were fitted, where figures are written.

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
    module = (module if device is None else module.to(device)).eval()
    encoder = _Encoder.of(module)
    info, preprocessing = encoder.info, encoder.preprocessing
    parts, target, told = _parts(data, preprocessing, root, split_seed, skip_bad, labelled, reading)
    sizes = {split: size_of(images) for split, images in parts.items()}
    names = {split: getattr(images, "paths", None) for split, images in parts.items()}
    rows = empty_rows(sum(sizes.values()), (info.num_features,), torch.float32)
    if rows is None:
        raise VPromptError(f"There is no room for features of {sum(sizes.values())} images; embed them in parts.")
    partial = None if out is None else _partial(out, module, preprocessing, parts, batch_size)
    with nullcontext() if partial is None else locked(partial.with_suffix(".lock"), out):
        _fill(rows, encoder, parts, partial, batch_size, report)
        known = [images.labels for images in parts.values() if isinstance(images, ImageDataset)]
        result = Embeddings(
            backbone=info.name,
            features=rows,
            files=tuple(name for split, size in sizes.items() for name in names[split] or _numbered(split, size)),
            splits=tuple(split for split, size in sizes.items() for _ in range(size)),
            target=target,
            labels=None if target is None else torch.cat(known),
            remarks=(*remarks, *told),
        )
        if out is not None:
            about = {"version": __version__, "settings": dict(settings or {})}
            write_json(out.with_suffix(".json"), about | result.figures(report=probing))
            result.save(out)
        if partial is not None:
            partial.unlink()
    return result


class _Encoder(NamedTuple):
    """What makes features of normalised images."""

    info: BackboneInfo
    preprocessing: Preprocessing
    like: Tensor
    features: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, module: Any) -> _Encoder:
        """That of an adapted model, or of a plain timm model."""
        like = next(module.parameters())
        if isinstance(module, PromptedModel | FoldedModel):
            return cls(module.info, module.preprocessing, like, module.features)

        def pooled(images: Tensor) -> Tensor:
            return module.forward_head(module.forward_features(images.to(like.dtype)), pre_logits=True)

        info = describe(module)
        return cls(info, info.preprocessing, like, pooled)


def _numbered(split: str, size: int) -> list[str]:
    return [f"{split}/{number}" for number in range(size)]


def _parts(
    data: Images,
    preprocessing: Preprocessing,
    root: str | None,
    split_seed: int,
    skip_bad: bool,
    labelled: bool,
    reading: Report,
) -> tuple[dict[str, ImageLabels], Target | None, tuple[str, ...]]:
    """The images of each split, what their labels say, and sentences on how they were read."""
    if isinstance(data, str | Path) or data is None:
        image = data is not None and Path(data).suffix.lower() in IMAGE_SUFFIXES and Path(data).is_file()
        listing = find_listing(data, root=root, training=False) if labelled and not image else None
        learned = [
            item.label
            for split, items in (listing.splits if listing else {}).items()
            for item in items
            if split in ("train", UNSPLIT)
        ]
        plain = data is not None and Path(data).is_dir() and len(set(learned)) < 2
        if listing is None or plain:
            data = [str(data)]
        else:
            data = load(listing, preprocessing, split_seed=split_seed, skip_bad=skip_bad, progress=reading)
    if isinstance(data, Task):
        splits = {"train": data.train, "val": data.val, "test": data.test}
        parts: dict[str, ImageLabels] = {split: images for split, images in splits.items() if images is not None}
        return parts, data.target, (*data.skipped, *data.summary.notes)
    if not isinstance(data, list | tuple):
        return {UNSPLIT: data}, None, ()
    others: PassedOver = {}
    files = list(dict.fromkeys(map(str, list_images(data, others))))
    where = printable(data[0]) if len(data) == 1 else f"{len(files)} images"
    items = [Item(file, "") for file in files]
    listing = Listing(name=where, source=where, where=where, splits={UNSPLIT: items}, files=Path())
    checked = check(listing, [files], preprocessing, DEFAULT_MEMORY_LIMIT, reading, decode_all=True)
    refuse(listing, checked.problems, skip_bad)
    usable = [file for file in files if file not in checked.bad]
    if not usable:
        raise DataError(f"Of {where} no image can be read; the first: {checked.problems[0]}.")
    told = [*as_sentences(checked.problems), *([f"Passed over: {in_words(others)}."] if others else [])]
    return {UNSPLIT: checked.dataset(usable, torch.zeros(len(usable)).long())}, None, tuple(told)


def _partial(
    out: Path, module: nn.Module, preprocessing: Preprocessing, parts: Mapping[str, ImageLabels], batch_size: int
) -> Path | None:
    """The file that takes up features on the way; another for other weights or images, none for unknown images."""
    identities = {split: identity(images) for split, images in parts.items()}
    if None in identities.values():
        return None
    key = repr((fingerprint(module), preprocessing, identities, batch_size))
    return out.with_name(f".{out.name}.{hashlib.sha256(key.encode()).hexdigest()[:16]}.partial")


@torch.inference_mode()
def _fill(
    rows: Tensor,
    encoder: _Encoder,
    parts: Mapping[str, ImageLabels],
    partial: Path | None,
    batch_size: int,
    report: Report,
) -> None:
    """Computes the features that an earlier call has not, and adds each batch to its file."""
    width, info = rows.shape[1], encoder.info
    before, done = 0, 0
    if partial is not None and partial.exists():
        kept = np.fromfile(partial, np.float32)
        before = len(kept) // width
        rows[:before] = torch.from_numpy(kept[: before * width]).view(before, width)
    for images in parts.values():
        batches = [batch for batch in in_order(size_of(images), batch_size) if done + int(batch[-1]) >= before]
        done += size_of(images) - sum(map(len, batches))
        for pixels, labels in iterate(images, batches, device=encoder.like.device):
            check_images(pixels, encoder.preprocessing.size, any_size=info.any_size)
            rows[done : done + len(labels)] = encoder.features(pixels).float().cpu()
            if partial is not None:
                with writing(partial), partial.open("r+b" if partial.exists() else "wb") as file:
                    file.seek(4 * done * width)
                    file.write(rows[done : done + len(labels)].numpy().tobytes())
            done += len(labels)
            report(done, len(rows))
