"""Embeddings: the features of images, in a file, and what they tell of the backbone and of the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import describe, fingerprint
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.listing import UNSPLIT, Item, Listing
from vprompt.data.pipeline import DEFAULT_MEMORY_LIMIT, as_sentences, check, load, refuse
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.scan import IMAGE_SUFFIXES, PassedOver, in_words, list_images
from vprompt.data.split import look
from vprompt.data.tasks import find_listing
from vprompt.experiments.folder import locked
from vprompt.model.model import FoldedModel, PromptedModel
from vprompt.tasks.base import Target
from vprompt.training import probe
from vprompt.training.evaluate import Evaluation
from vprompt.training.feature_cache import empty_rows
from vprompt.training.loader import in_order, iterate
from vprompt.utils.errors import DataError, VPromptError
from vprompt.utils.io import checksum, encoded, write_atomically, write_json, writing
from vprompt.utils.progress import Report, part, silent
from vprompt.utils.text import printable

Images = str | Path | Sequence[str | Path] | Task | ImageDataset | None
"""What `vprompt fit` takes as DATA, a folder or list of images without labels, a task, or a part of one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """Features of images in the order of the data, and what they tell.

    Args:
        backbone: Name of the backbone.
        features: (N, F), in float32.
        names: Of the images: paths, or numbers where they are in no files.
        splits: Split of each image; `all` where there is none.
        target: What is to be said of an image; None where there are no labels.
        labels: Labels as a tensor.
        looks: Perceptual hashes (N, H), see `look`: they know compressed and resized copies that features do not.
        notes: Sentences on what was left out, and on how the data were read.
    """

    backbone: str
    features: Tensor
    names: tuple[str, ...]
    splits: tuple[str, ...]
    target: Target | None = None
    labels: Tensor | None = None
    looks: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Embeddings({len(self.names)} images, {self.features.shape[1]} features of {self.backbone})"

    @property
    def tested_on(self) -> str | None:
        """The split that `knn` and `linear` are tested on, after learning from `train`; None without classes or it."""
        splits = set(self.splits) if self.target is not None and self.target.grouped else set[str]()
        return next((name for name in ("test", "val") if {name, "train"} <= splits), None)

    def knn(self, k: int = 20) -> Evaluation:
        """Figures of the classes that the `k` nearest training images vote for, see `neighbour_shares`."""
        queries, labels = self._of(self.tested_on)
        shares = probe.neighbour_shares(*self._of("train"), queries, k=k, num_classes=self._classes)
        return self._evaluation(shares.clamp_min(1e-9).log(), labels)

    def linear(self) -> Evaluation:
        """Figures of a linear probe of the training images, whose regularisation is chosen on other images."""
        queries, labels = self._of(self.tested_on)
        return self._evaluation(self._probe.logits(queries), labels)

    def duplicates(self) -> list[dict[str, Any]]:
        """Near copies in different splits, the most alike first, see `near_copies`."""
        return [
            {"cosine": cosine, **{f"{key}s": [values[one], values[two]] for key, values in self._columns.items()}}
            for one, two, cosine in self._copies
            if self.splits[one] != self.splits[two]
        ]

    def label_errors(self, *, report: Report = silent) -> list[dict[str, Any]]:
        """Labels that linear probes doubt which saw neither the image nor a copy of it, see `doubtful_labels`."""
        if self.tested_on is None or self.labels is None:
            return []
        folds = probe.fold_numbers(self.labels, [pair[:2] for pair in self._copies])
        shares = probe.out_of_fold(self.features, self.labels, folds, self._classes, self._probe.strength, report)
        return [
            {key: values[row] for key, values in self._columns.items()}
            | {"likely": cast("Target", self.target).names[likely]}
            | {"probability": float(shares[row, self.labels[row]]), "likely_probability": float(shares[row, likely])}
            for row, likely in probe.doubtful_labels(shares, self.labels)
        ]

    def figures(self, *, report: Report = silent) -> dict[str, Any]:
        """All of it as plain data."""
        images = {split: self.splits.count(split) for split in dict.fromkeys(self.splits)}
        document: dict[str, Any] = {"backbone": self.backbone, "features": self.features.shape[1], "images": images}
        notes = [*self.notes]
        if self.tested_on is not None:
            knn, linear = {str(k): self.knn(k).figures for k in (5, 20)}, self.linear()
            document |= {"tested_on": self.tested_on, "knn": knn, "linear": linear.figures}
            notes += linear.remarks(self.tested_on)
        elif self.target is not None:
            notes.append("Accuracies are for images of one class each, in a train split and a test or val split.")
        found = {"duplicates": self.duplicates(), "label_errors": self.label_errors(report=report)}
        return document | found | {"notes": notes}

    def save(self, path: str | Path) -> None:
        """Writes name, split, label and features of each image: Parquet or npz, by the ending."""
        out = check_ending(Path(path))
        columns: dict[str, Any] = {} if self.labels is None else {"label": self.labels.numpy()}
        columns |= {key: np.array([encoded(text).decode() for text in texts]) for key, texts in self._columns.items()}
        columns["features"] = self.features.contiguous().numpy()

        def write_npz(part: Path) -> None:
            with part.open("wb") as file:
                np.savez(file, **columns)

        def write_parquet(part: Path) -> None:
            import pyarrow as pa
            from pyarrow import parquet

            arrays = {name: pa.array(values.reshape(-1)) for name, values in columns.items()}
            for name in (name for name, values in columns.items() if values.ndim > 1):
                arrays[name] = pa.FixedSizeListArray.from_arrays(arrays[name], columns[name].shape[1])
            parquet.write_table(pa.table(arrays), part)

        write_atomically(out, write_npz if out.suffix == ".npz" else write_parquet)

    @cached_property
    def _columns(self) -> dict[str, Sequence[str]]:
        columns: dict[str, Sequence[str]] = {"image": self.names, "split": self.splits}
        if self.target is not None and self.target.grouped and self.labels is not None:
            columns["label"] = [self.target.names[label] for label in self.labels.tolist()]
        return columns

    @cached_property
    def _copies(self) -> list[tuple[int, int, float]]:
        """Pairs of near copies by features or by looks, with the larger cosine, which falls."""
        pairs = [*probe.near_copies(self.features), *([] if self.looks is None else probe.near_copies(self.looks))]
        cosines = {(one, two): cosine for one, two, cosine in sorted(pairs, key=itemgetter(2))}
        return [(one, two, cosine) for (one, two), cosine in reversed(cosines.items())]

    @cached_property
    def _probe(self) -> probe.Probe:
        """Fitted on all training images; its strength is chosen on validation images, or on a fifth of these."""
        features, labels = self._of("train")
        if self.tested_on == "test" and "val" in self.splits:
            return probe.fit_probe(features, labels, self._classes, held_out=self._of("val"))
        fifth = probe.fold_numbers(labels) == 0
        held_out = (features[fifth], labels[fifth])
        strength = probe.fit_probe(features[~fifth], labels[~fifth], self._classes, held_out=held_out).strength
        return probe.fit_probe(features, labels, self._classes, strengths=[strength])

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
        target = cast("Target", self.target)
        return Evaluation(target=target, loss=float(target.loss(logits, labels).mean()), logits=logits, labels=labels)


def check_ending(out: Path) -> Path:
    """The file itself, if features can be written to one of its name."""
    if out.suffix not in (".npz", ".parquet"):
        raise VPromptError(f"Features are written to a .npz or .parquet file, not to {printable(str(out))}.")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise VPromptError("Parquet files need pyarrow: pip install 'vprompt[parquet]'; or give a name with .npz.")
    return out


def embed(
    model: str | nn.Module,
    data: Images = None,
    *,
    root: str | None = None,
    split_seed: int = 0,
    skip_bad: bool = False,
    labelled: bool = True,
    batch_size: int = 64,
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> Embeddings:
    """Computes the features of images, each of them once.

    Args:
        model: An adapted model, a timm model, or a name that `vprompt fit --backbone` takes.
        data: Images, prepared as the model wants them; the bundled task when not given.
        root: Folder of benchmark tasks.
        split_seed: Cuts the splits that a folder does not have.
        skip_bad: Go on without images that cannot be used.
        labelled: False to take all images in a folder, whatever folders they are in.
        batch_size: Images per forward pass.
        out: Write them there, and all figures into a JSON file of the same name. What is done is kept in a hidden file
            beside; the same call goes on with that after a stop.
        about: What else the JSON file says.
        report: Told of images that were read, features that were computed and probes that were fitted.

    Raises:
        DataError: The images cannot be used.
        BackboneError: There is no such backbone.

    Example:
        >>> import vprompt
        >>> embed("bundled", vprompt.open_data().val.subset(range(4)))
        Embeddings(4 images, 192 features of vprompt_vit_tiny_patch8_64.tiny_imagenet)
    """
    out = None if out is None else check_ending(Path(out))
    module: Any = (create_backbone(model) if isinstance(model, str) else model).eval()
    adapted = isinstance(module, PromptedModel | FoldedModel)
    info = module.info if adapted else describe(module)
    preprocessing = module.preprocessing if adapted else info.preprocessing
    parts, target, notes = _parts(data, preprocessing, root, split_seed, skip_bad, labelled, part(report, 0, 3))
    splits = [split for split, images in parts.items() for _ in range(len(images))]
    names = [
        name
        for split, images in parts.items()
        for name in images.paths or [f"{split}/{number}" for number in range(len(images))]
    ]
    width = info.num_features
    rows = empty_rows(len(splits), (width + len(look(torch.zeros(3, *preprocessing.size))),), torch.float32)
    if rows is None:
        raise VPromptError(f"There is no room for the features of {len(splits)} images; embed them in parts.")

    def row_of(images_BCHW: Tensor) -> Tensor:
        if adapted:
            features = module.features(images_BCHW)
        else:
            held = images_BCHW.to(next(module.parameters()).dtype)
            features = module.forward_head(module.forward_features(held), pre_logits=True)
        return torch.cat([features.float(), torch.stack([*map(look, images_BCHW)])], dim=1).cpu()

    partial = None
    if out is not None:
        key = (fingerprint(module), preprocessing, [images.fingerprint() for images in parts.values()], batch_size)
        partial = out.with_name(f".{out.name}.{checksum(repr(key).encode())[:16]}.partial")
    with nullcontext() if partial is None else locked(partial.with_suffix(".lock"), out):
        _fill(rows, row_of, parts, next(module.parameters()).device, partial, batch_size, part(report, 1, 3))
        result = Embeddings(
            backbone=info.name,
            features=rows[:, :width],
            looks=rows[:, width:],
            names=tuple(names),
            splits=tuple(splits),
            target=target,
            labels=None if target is None else torch.cat([images.labels for images in parts.values()]),
            notes=notes,
        )
        if out is not None and partial is not None:
            write_json(out.with_suffix(".json"), {**(about or {}), **result.figures(report=part(report, 2, 3))})
            result.save(out)
            partial.unlink()
    return result


def _parts(
    data: Images,
    preprocessing: Preprocessing,
    root: str | None,
    split_seed: int,
    skip_bad: bool,
    labelled: bool,
    report: Report,
) -> tuple[dict[str, ImageDataset], Target | None, tuple[str, ...]]:
    """The images of each split, what their labels say, and sentences on how they were read."""
    if isinstance(data, str | Path) or data is None:
        image = data is not None and Path(data).suffix.lower() in IMAGE_SUFFIXES and Path(data).is_file()
        listing = find_listing(data, root=root, training=False) if labelled and not image else None
        known = [] if listing is None else [*listing.splits.get("train", ()), *listing.splits.get(UNSPLIT, ())]
        if listing is None or (len({item.label for item in known}) < 2 and Path(listing.source).is_dir()):
            data = [str(data)]
        else:
            data = load(listing, preprocessing, split_seed=split_seed, skip_bad=skip_bad, progress=report)
    if isinstance(data, ImageDataset):
        return {UNSPLIT: data}, None, ()
    if isinstance(data, Task):
        splits = {"train": data.train, "val": data.val, "test": data.test}
        parts = {split: images for split, images in splits.items() if images is not None}
        return parts, data.target, (*data.skipped, *data.summary.notes)
    others: PassedOver = {}
    files = list(dict.fromkeys(map(str, list_images(data, others))))
    where = printable(str(data[0])) if len(data) == 1 else f"the {len(files)} files"
    items = [Item(file, "") for file in files]
    listing = Listing(name=where, source=where, where=where, splits={UNSPLIT: items}, files=Path())
    checked = check(listing, [files], preprocessing, DEFAULT_MEMORY_LIMIT, report, decode_all=True)
    usable = [file for file in files if file not in checked.bad]
    refuse(listing, checked.problems, skip_bad and bool(usable))
    notes = [*as_sentences(checked.problems), *([f"Passed over: {in_words(others)}."] if others else [])]
    return {UNSPLIT: checked.dataset(usable, torch.zeros(len(usable)).long())}, None, tuple(notes)


@torch.inference_mode()
def _fill(
    rows: Tensor,
    row_of: Callable[[Tensor], Tensor],
    parts: Mapping[str, ImageDataset],
    device: torch.device,
    partial: Path | None,
    batch_size: int,
    report: Report,
) -> None:
    """Computes the rows that the file of an earlier call has not, and adds each batch to it."""
    width, before, done = rows.shape[1], 0, 0
    if partial is not None and partial.exists():
        kept = np.fromfile(partial, np.float32)
        before = len(kept) // width
        rows[:before] = torch.from_numpy(kept[: before * width]).view(before, width)
    for images in parts.values():
        batches = [batch for batch in in_order(len(images), batch_size) if done + int(batch[-1]) >= before]
        done += len(images) - sum(map(len, batches))
        for pixels, labels in iterate(images, batches, device=device):
            rows[done : done + len(labels)] = row_of(pixels)
            if partial is not None:
                with writing(partial), partial.open("r+b" if partial.exists() else "wb") as file:
                    file.seek(4 * done * width)
                    file.write(rows[done : done + len(labels)].numpy().tobytes())
            done += len(labels)
            report(done, len(rows))
