"""`vprompt embed`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from vprompt.cli.console import UsageError, percent, print_json, print_note, print_table, resumable
from vprompt.cli.fit import data_name
from vprompt.cli.options import Device
from vprompt.cli.predict import BulkOptions, ImageOptions, trained_on
from vprompt.tasks.base import TARGETS
from vprompt.utils.errors import VPromptError
from vprompt.utils.io import read_json
from vprompt.utils.text import count

NOT_ASKED = ("device", "out", "resume", "json", "workers", "cluster", "shard_size")
"""Options that the figures do not depend on."""

FEW = 5
"""Near copies and doubtful labels that are shown; the JSON file has all."""


@dataclass(frozen=True, kw_only=True)
class Embed(BulkOptions, ImageOptions):
    """Features of images in a file, and what they tell: does a backbone suit the images, which are copies of others,
    which labels look wrong.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL[,MODEL...]")]
    """Backbone (small, base, large, bundled or a timm name) or adapter (folder or Hub id); several to compare."""
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[DATA ...]")] = ()
    """Images as for `fit`, or files or folders of them without labels; the bundled task when left out."""
    target: str | None = None
    """What is to be said of an image, as for `fit`; what the labels look like when left out."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """File with the backbone's weights."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    skip_bad: bool = False
    """Go on without images and classes that cannot be used."""
    unlabelled: bool = False
    """Take all images, and no labels."""
    batch_size: int = 64
    """Images per forward pass."""
    device: Device = "auto"
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """File for the features, .npz or .parquet, beside which a .json file has all figures; named after model and data
    when left out. Of several models, a folder."""
    resume: bool = False
    """Show the figures again where all is done. What was begun is gone on with in any case."""
    json: bool = False
    """Print the figures as JSON, those of several models as a list."""

    def run(self) -> None:
        """Embeds, writes, prints."""
        models = list(dict.fromkeys(filter(None, map(str.strip, self.model.split(",")))))
        if not models or self.batch_size < 1:
            raise UsageError("vprompt embed takes a model, such as small, and a --batch-size of at least 1.")
        if len(models) > 1 and (self.weights is not None or self.img_size is not None):
            raise UsageError("Several models have several weights and sizes; give --weights and --img-size with one.")
        if self.workers is not None:
            self._in_bulk(models, self.workers)
            return
        documents: dict[Path, dict[str, Any]] = {}
        for model in models:
            data = "images" if len(self.data) > 1 else data_name(next(iter(self.data), None))
            twins = [data_name(other) for other in models].count(data_name(model)) > 1
            called = model.strip("/.") if twins else data_name(model)
            name = re.sub(r"[^\w.+-]+", "-", f"{data}-{called}.npz")
            several = self.out is None or len(models) > 1
            out = Path(self.out or "embeddings") / name if several else Path(str(self.out))
            with resumable(out):
                documents[out] = self._figures(model, out)
        if self.json:
            print_json([*documents.values()] if len(models) > 1 else next(iter(documents.values())))
        else:
            _print(documents)

    def _figures(self, model: str, out: Path) -> dict[str, Any]:
        """The figures of one model: those in its file, where that is there."""
        seen, seed, columns = trained_on(Path(model))
        columns, seed = self.columns.over(columns), seed if self.split_seed is None else self.split_seed
        asked = {key: value for key, value in asdict(self).items() if key not in NOT_ASKED}
        asked |= {"model": model, "data": [*self.data], "columns": asdict(columns), "split_seed": seed}
        if out.exists():
            document = read_json(out.with_suffix(".json")) if self.resume else {}
            if document.get("settings") == asked:
                return document
            others = "it was made by another command" if self.resume else "--resume shows its figures"
            raise VPromptError(f"{out} is there already; {others}, or choose another --out.")
        from vprompt.experiments.embed import embed
        from vprompt.utils.devices import device_named
        from vprompt.utils.progress import bar

        module = self._model(model).to(device_named(self.device))
        with bar(f"embedding by {model}") as report:
            embed(
                module,
                [*self.data] if len(self.data) > 1 else next(iter(self.data), None),
                **{key: asked[key] for key in ("root", "target", "split_seed", "skip_bad", "batch_size")},
                columns=columns,
                labelled=not self.unlabelled,
                out=out,
                about={"settings": asked, "learned_from_images": seen is not None},
                report=report,
            )
        return read_json(out.with_suffix(".json"))

    def _in_bulk(self, models: Sequence[str], workers: int) -> None:
        from vprompt.experiments.bulk import Job, features

        if self.out is None or not self.data or len(models) > 1:
            raise UsageError("--workers goes with one model, images, and a folder --out.")
        load, column = partial(Embed._embedder, self, *models), self.columns.image_column
        job = Job(load=load, answers=features, out=Path(self.out), image_column=column)
        paths, asked = [*map(Path, self.data)], {"weights": self.weights, "img_size": self.img_size}
        self.answer(job, workers, paths, models[0], **asked)

    def _embedder(self, name: str) -> Any:
        from vprompt.experiments.embed import Embedder
        from vprompt.utils.devices import device_named

        return Embedder(self._model(name).to(device_named(self.device)))

    def _model(self, name: str) -> Any:
        """A backbone, or an adapter, folded."""
        from vprompt.backbones.factory import can_create, create_backbone
        from vprompt.exporters.base import is_exported
        from vprompt.model.load import load

        if is_exported(name):
            raise VPromptError(f"{name} gives classes and no features; give its adapter or its backbone.")
        if can_create(name) and not (Path(name) / "adapter_config.json").exists():
            return create_backbone(name, weights=self.weights, img_size=self.img_size)
        if self.img_size is None and (Path(name).exists() or name.count("/") == 1):
            return load(name, weights=self.weights).fold()
        raise UsageError(f"{name} is no backbone that timm has, nor an adapter, which has an image size of its own.")


def _print(documents: Mapping[Path, Mapping[str, Any]]) -> None:
    """Prints a table of the models, then what each has found."""
    rows, beside = list[dict[str, str]](), ""
    for document in documents.values():
        row = {"model": document["settings"]["model"], "features": str(document["features"])}
        if "linear" in document:
            kind, linear = TARGETS.get(document["target"]), document["linear"]
            beside = f", {kind.title} on {document['tested_on']}{kind.beside(linear)}"
            row |= {f"kNN {k}": next(iter(kind.cells(knn).values())) for k, knn in document["knn"].items()}
            row |= dict(zip(("linear", "95 %"), kind.cells(linear).values(), strict=False))
        rows.append(row)
    first = next(iter(documents.values()))
    data = " ".join(first["settings"]["data"][:3]) or "the bundled task"
    title = f"{count(sum(first['images'].values()), 'image')} of {data}{beside}"
    print_table(title, [*rows[0]], [[*row.values()] for row in rows])
    for out, document in documents.items():
        copies, doubtful = document["duplicates"], document["label_errors"]
        if copies:
            cells = [[*pair["images"], "/".join(pair["splits"]), f"{pair['cosine']:.3f}"] for pair in copies[:FEW]]
            title = f"{count(len(copies), 'pair')} of near copies in two splits, the most alike first"
            print_table(title, ["image", "looks like", "splits", "cosine"], cells)
        if doubtful:
            keys = ("image", "label", "probability", "likely", "likely_probability")
            cells = [[percent(row[k]) if "probability" in k else row[k] for k in keys] for row in doubtful[:FEW]]
            title = f"{count(len(doubtful), 'label')} that may be wrong, the most doubtful first"
            print_table(title, ["image", "label", "of which", "likely", "of which"], cells)
        learned = "The adapter has learned from these or other images: its figures are not those of a backbone."
        for note in [*document["notes"], *[learned] * document["learned_from_images"]]:
            print_note(note)
        print_note(f"Features are in {out}, all figures in {out.with_suffix('.json')}.")
