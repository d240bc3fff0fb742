"""Embeddings: the features of images, in a file, and what they tell of the backbone and of the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vprompt.backbones.factory import as_timm, create_backbone
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
from vprompt.tasks.columns import NO_COLUMNS, Columns
from vprompt.tasks.single_label import SingleLabel
from vprompt.training import probe
from vprompt.training.evaluate import Evaluation
from vprompt.training.feature_cache import empty_rows
from vprompt.training.loader import in_order, iterate
from vprompt.utils.errors import DataError, VPromptError
from vprompt.utils.io import checksum, encoded, write_atomically, write_json, writing
from vprompt.utils.progress import Report, part, silent
from vprompt.utils.text import printable


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
        groups: Name of an image -> what it belongs to, such as a patient.
        notes: Sentences on what was left out, and on how the data were read.
    """

    backbone: str
    features: Tensor
    names: tuple[str, ...]
    splits: tuple[str, ...]
    target: Target | None = None
    labels: Tensor | None = None
    looks: Tensor | None = None
    groups: Mapping[str, str] = field(default_factory=dict[str, str])
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Embeddings({len(self.names)} images, {self.features.shape[1]} features of {self.backbone})"

    @property
    def tested_on(self) -> str | None:
        """The split that `knn` and `linear` are tested on, after learning from `train`; None without labels or it."""
        splits = set[str]() if self.target is None else set(self.splits)
        return next((name for name in ("test", "val") if {name, "train"} <= splits), None)

    def knn(self, k: int = 20) -> Evaluation:
        """Figures of what the `k` nearest training images say, see `neighbour_means`."""
        features, labels, target = self._of("train")
        outputs = F.one_hot(labels, len(target.names)).float() if target.grouped else labels
        return self._tested(lambda queries: target.inverse(probe.neighbour_means(features, outputs, queries, k=k)))

    def linear(self) -> Evaluation:
        """Figures of a linear probe of the training images, whose regularisation is chosen on other images."""
        return self._tested(self._probe[0])

    def duplicates(self) -> list[dict[str, Any]]:
        """Near copies in different splits, the most alike first, see `near_copies`."""
        return [
            {"cosine": cosine, **{f"{key}s": [values[one], values[two]] for key, values in self._columns.items()}}
            for one, two, cosine in self._copies
            if self.splits[one] != self.splits[two]
        ]

    def label_errors(self, *, report: Report = silent) -> list[dict[str, Any]]:
        """Labels that linear probes doubt which saw neither the image nor a copy of it, see `doubtful_labels`."""
        target = self.target
        if self.tested_on is None or self.labels is None or target is None or not target.grouped:
            return []
        shares = probe.out_of_fold(self.features, self.labels, self._folds, target, self._probe[1], report)
        return [
            {key: values[row] for key, values in self._columns.items()}
            | {"likely": target.names[likely]}
            | {"probability": float(shares[row, self.labels[row]]), "likely_probability": float(shares[row, likely])}
            for row, likely in probe.doubtful_labels(shares, self.labels)
        ]

    def figures(self, *, report: Report = silent) -> dict[str, Any]:
        """All of it as plain data."""
        document: dict[str, Any] = {"backbone": self.backbone, "features": self.features.shape[1]}
        document["images"], notes = dict(Counter(self.splits)), [*self.notes]
        if self.tested_on is not None:
            knn, linear = {str(k): self.knn(k).figures for k in (5, 20)}, self.linear()
            document |= {"target": linear.target.name, "tested_on": self.tested_on, "knn": knn}
            document["linear"], notes = linear.figures, [*notes, *linear.remarks(self.tested_on)]
        elif self.target is not None:
            notes.append("Accuracies need a train split and a test or val split.")
        found = {"duplicates": self.duplicates(), "label_errors": self.label_errors(report=report)}
        return document | found | {"notes": notes}

    def save(self, path: str | Path) -> None:
        """Writes name, split, label and features of each image: Parquet or npz, by the ending."""
        out = check_ending(Path(path))
        columns: dict[str, Any] = {} if self.labels is None else {"label": self.labels.numpy()}
        columns |= {key: np.array([encoded(text).decode() for text in texts]) for key, texts in self._columns.items()}
        columns["features"] = self.features.contiguous().numpy()

        def write(part: Path) -> None:
            if out.suffix == ".parquet":
                import pyarrow as pa
                from pyarrow import parquet

                wide = {name: values for name, values in columns.items() if values.ndim > 1}
                lists = {name: pa.FixedSizeListArray.from_arrays(v.ravel(), v.shape[1]) for name, v in wide.items()}
                parquet.write_table(pa.table({**columns, **lists}), part)
            else:
                with part.open("wb") as file:
                    np.savez(file, **columns)

        write_atomically(out, write)

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
    def _folds(self) -> Tensor:
        """Of all images; copies, and what belongs together, are in one."""
        first, pairs = dict[str, int](), [pair[:2] for pair in self._copies]
        for row, name in enumerate(self.names):
            if name in self.groups:
                pairs.append((first.setdefault(self.groups[name], row), row))
        labels = torch.zeros(len(self.names)) if self.labels is None else self.labels
        return probe.fold_numbers(labels if labels.ndim == 1 else torch.zeros(len(labels)), pairs)

    @cached_property
    def _probe(self) -> tuple[probe.Probe, float]:
        """Fitted on all training images; its strength is chosen on validation images, or on a fold of these."""
        features, labels, target = self._of("train")
        if self.tested_on == "test" and "val" in self.splits:
            return probe.fit_probe(features, labels, target, held_out=self._of("val")[:2])
        held, strength = self._folds[self._rows("train")] == 0, probe.STRENGTHS[3]
        if bool(held.any()) and not bool(held.all()):
            others = (features[held], labels[held])
            _, strength = probe.fit_probe(features[~held], labels[~held], target, held_out=others)
        return probe.fit_probe(features, labels, target, strengths=[strength])

    def _rows(self, split: str | None) -> Tensor:
        return torch.tensor([name == split for name in self.splits])

    def _of(self, split: str | None) -> tuple[Tensor, Tensor, Target]:
        if self.tested_on is None or self.labels is None or self.target is None:
            raise DataError("Labelled images are needed, in a train split and in a test or val split.")
        return self.features[self._rows(split)], self.labels[self._rows(split)], self.target

    def _tested(self, logits_of: Callable[[Tensor], Tensor]) -> Evaluation:
        features, labels, target = self._of(self.tested_on)
        logits = logits_of(features)
        return Evaluation(target=target, loss=float(target.loss(logits, labels).mean()), logits=logits, labels=labels)


class Embedder:
    """Features (B, F) in float32 of normalised images (B, 3, H, W), by an adapted model, a timm model, or its name."""

    def __init__(self, model: str | nn.Module) -> None:
        self.module: Any = (create_backbone(model) if isinstance(model, str) else as_timm(model)).eval()
        self._adapted = isinstance(self.module, PromptedModel | FoldedModel)
        self.info = self.module.info if self._adapted else describe(self.module)
        self.preprocessing = self.as_read = self.module.preprocessing if self._adapted else self.info.preprocessing

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """The features, where the model is."""
        like = next(self.module.parameters())
        if self._adapted:
            return self.module.features(images.to(like.device)).float()
        features = self.module.forward_features(images.to(like.device, like.dtype))
        return self.module.forward_head(features, pre_logits=True).float()


def check_ending(out: Path) -> Path:
    """The file itself, if features can be written to one of its name."""
    if out.suffix not in (".npz", ".parquet"):
        raise VPromptError(f"Features are written to a .npz or .parquet file, not to {printable(str(out))}.")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise VPromptError("Parquet files need pyarrow: pip install 'vprompt[parquet]'; or give a name with .npz.")
    return out


def embed(
    model: str | nn.Module,
    data: Any = None,
    *,
    root: str | None = None,
    columns: Columns = NO_COLUMNS,
    target: str | None = None,
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
        data: What `vprompt.open_data` takes; a task, prepared as the model wants it, or a part of one; a folder or list
            of images without labels; the bundled task when not given.
        root: See `vprompt.open_data`, as `columns`, `target` and `split_seed`.
        columns: Columns of a table.
        target: Name of what is to be said of an image.
        split_seed: Cuts the splits that a folder does not have.
        skip_bad: Go on without images that cannot be used.
        labelled: False to take all images, whatever folders they are in, and no labels.
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
    embedder = Embedder(model)
    module, info, preprocessing = embedder.module, embedder.info, embedder.preprocessing
    if not isinstance(data, Task | ImageDataset):
        data = _listing(data, root, columns, target, labelled)
    how: dict[str, Any] = {"target": target, "split_seed": split_seed, "skip_bad": skip_bad}
    parts, about_images = _parts(data, preprocessing, progress=part(report, 0, 3), **how)
    splits = [split for split, images in parts.items() for _ in range(len(images))]
    names = [
        name
        for split, images in parts.items()
        for name in images.paths or [f"{split}/{number}" for number in range(len(images))]
    ]
    width, like = info.num_features, next(module.parameters())
    rows = empty_rows(len(splits), (width + len(look(torch.zeros(3, *preprocessing.size))),), torch.float32)
    if rows is None:
        raise VPromptError(f"There is no room for the features of {len(splits)} images; embed them in parts.")

    @torch.inference_mode()
    def embedded(partial: Path | None = None) -> Embeddings:
        """Computes the rows that the file of an earlier call has not, and adds each batch to it."""
        kept = np.fromfile(partial, np.float32) if partial is not None and partial.exists() else np.zeros(0, np.float32)
        rows.view(-1)[: len(kept)] = torch.from_numpy(kept)
        done = 0
        for images in parts.values():
            batches, first = in_order(len(images), batch_size), done
            left = [batch for batch in batches if (first + int(batch[-1]) + 1) * rows.shape[1] > len(kept)]
            for batch, (pixels, _) in zip(left, iterate(images, left, device=like.device), strict=True):
                start, done = first + int(batch[0]), first + int(batch[-1]) + 1
                rows[start:done] = torch.cat([embedder(pixels), torch.stack([*map(look, pixels)])], dim=1)
                if partial is not None:
                    with writing(partial), partial.open("r+b" if partial.exists() else "wb") as file:
                        file.seek(start * rows[0].nbytes)
                        file.write(rows[start:done].numpy().tobytes())
                part(report, 1, 3)(done, len(rows))
            done = first + len(images)
        about: dict[str, Any] = {"backbone": info.name, "names": tuple(names), "splits": tuple(splits)}
        return Embeddings(features=rows[:, :width], looks=rows[:, width:], **about, **about_images)

    if out is None:
        return embedded()
    key = (fingerprint(module), preprocessing, [images.fingerprint() for images in parts.values()], batch_size)
    partial = out.with_name(f".{out.name}.{checksum(repr(key).encode())[:16]}.partial")
    with locked(partial.with_suffix(".lock"), out):
        found = embedded(partial)
        write_json(out.with_suffix(".json"), {**(about or {}), **found.figures(report=part(report, 2, 3))})
        found.save(out)
        partial.unlink()
    return found


def _listing(data: Any, root: str | None, columns: Columns, target: str | None, labelled: bool) -> Listing:
    """The images that are meant, with empty labels where there are none."""
    paths: list[Any] = [*data] if isinstance(data, list | tuple) else [data]
    paths = [Path(path) for path in paths if isinstance(path, str | Path)]
    folder = len(paths) == 1 and paths[0].is_dir()
    files = len(paths) > 1 or folder or (len(paths) == 1 and paths[0].suffix.lower() in IMAGE_SUFFIXES)
    if not files or (folder and labelled):
        listing = find_listing(data, root=root, training=False, columns=columns, target=target)
        items = [item for items in listing.splits.values() for item in items]
        if not labelled:
            return replace(listing, splits={UNSPLIT: [item._replace(label="") for item in items]})
        if not folder or len({item.label for item in items}) > 1:
            return listing
    others: PassedOver = {}
    items = [Item(name, "") for name in dict.fromkeys(map(str, list_images(paths, others)))]
    where = printable(str(paths[0])) if len(paths) == 1 else f"the {len(items)} files"
    return Listing(name=where, source=where, where=where, splits={UNSPLIT: items}, files=Path(), passed_over=others)


def _parts(
    data: Listing | Task | ImageDataset, preprocessing: Preprocessing, *, skip_bad: bool, progress: Report, **how: Any
) -> tuple[dict[str, ImageDataset], dict[str, Any]]:
    """The images of each split, and what else `Embeddings` say of them."""
    if isinstance(data, ImageDataset):
        return {UNSPLIT: data}, {}
    about: dict[str, Any] = {"groups": data.groups} if isinstance(data, Listing) else {}
    if isinstance(data, Listing) and not any(item.label for items in data.splits.values() for item in items):
        names = [item.name for item in data.splits[UNSPLIT]]
        checked = check(data, [names], preprocessing, DEFAULT_MEMORY_LIMIT, progress, decode_all=True)
        usable, problems = [name for name in names if name not in checked.bad], [*data.problems, *checked.problems]
        refuse(data, problems, skip_bad and bool(usable))
        over = [f"Passed over: {in_words(data.passed_over)}."] * bool(data.passed_over)
        blank = SingleLabel(names=("",))
        images = checked.labelled([Item(name, "") for name in usable], blank, preprocessing)
        return {UNSPLIT: images}, about | {"notes": (*data.remarks, *as_sentences(problems), *over)}
    task = load(data, preprocessing, skip_bad=skip_bad, progress=progress, **how) if isinstance(data, Listing) else data
    if task.target.dense:
        raise DataError(f"{task.source} has a label for each pixel, none for an image; give the images without masks.")
    splits = {"train": task.train, "val": task.val, "test": task.test}
    parts = {split: images for split, images in splits.items() if images is not None}
    labels = torch.cat([images.labels for images in parts.values()])
    return parts, about | {"target": task.target, "labels": labels, "notes": (*task.skipped, *task.summary.notes)}
