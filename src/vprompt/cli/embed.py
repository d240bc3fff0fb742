"""`vprompt embed`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vprompt.cli.console import UsageError, print_json, print_note, print_table, resumable
from vprompt.cli.fit import data_name
from vprompt.cli.predict import trained_on
from vprompt.utils.errors import VPromptError
from vprompt.utils.io import read_json
from vprompt.utils.text import count, percent

FEW = 5
"""Near copies and doubtful labels that are shown; the JSON file has all."""


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Features of images in a file, and what they tell: does a backbone suit the images, which are copies, which labels
    look wrong.

    Accuracies of nearest neighbours (kNN) and of a linear probe need labels; features alone need none.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL[,MODEL...]")]
    """Backbone (small, base, large, bundled or a timm name), or adapter (folder or Hub id); several to compare."""
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[DATA ...]")] = ()
    """Images as for `fit`, or any folder or list of image files; the bundled task when left out."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """File with the backbone's weights."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out."""
    split_seed: int | None = None
    """Cuts the splits that a folder does not have; as given to `fit` when left out."""
    skip_bad: bool = False
    """Go on without images and classes that cannot be used."""
    unlabelled: bool = False
    """Take all images in the folders, and no labels."""
    batch_size: int = 64
    """Images per forward pass."""
    device: str = "auto"
    """Device to compute on, such as cpu or cuda; auto takes the accelerator where there is one."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """File for the features, .npz or .parquet, beside which a .json file has all figures; named after both when left
    out. Of several models, a folder."""
    resume: bool = False
    """Show the figures of a file that is there already, if it was made by the same command."""
    json: bool = False
    """Print the figures as JSON, those of several models as a list."""

    def run(self) -> None:
        """Embeds, writes, prints."""
        models = [name.strip() for name in self.model.split(",") if name.strip()]
        if not models:
            raise UsageError("There is no model: vprompt embed MODEL DATA, such as vprompt embed small photos/.")
        if len(models) > 1 and (self.weights is not None or self.img_size is not None):
            raise UsageError("Several models have several weights and sizes; give --weights and --img-size with one.")
        if self.batch_size < 1:
            raise UsageError(f"--batch-size is at least 1, not {self.batch_size}.")
        documents: dict[Path, dict[str, Any]] = {}
        for model in models:
            out = self._out(model, several=len(models) > 1)
            with resumable(out):
                documents[out] = self._embedded(model, out)
        if self.json:
            print_json([*documents.values()] if len(models) > 1 else next(iter(documents.values())))
            return
        _print(documents)

    def _out(self, model: str, *, several: bool) -> Path:
        if self.out is not None and not several:
            return Path(self.out)
        data = "images" if len(self.data) > 1 else data_name(next(iter(self.data), None))
        name = re.sub(r"[^\w.+-]+", "-", f"{data}-{data_name(model)}")
        return Path(self.out or "embeddings") / f"{name}.npz"

    def _embedded(self, model: str, out: Path) -> dict[str, Any]:
        """The figures of one model, from its file where that is there."""
        adapter = (Path(model) / "adapter_config.json").is_file()
        seen, seed = trained_on(Path(model)) if adapter else (None, 0)
        seed = seed if self.split_seed is None else self.split_seed
        own = ("model", "device", "out", "resume", "json")
        settings = {key: value for key, value in asdict(self).items() if key not in own}
        settings |= {"model": model, "data": [*self.data], "split_seed": seed}
        if out.exists():
            return _finished(out, settings, resume=self.resume)
        from vprompt.experiments.embed import check_ending, embed
        from vprompt.utils.devices import device_named
        from vprompt.utils.progress import bar

        check_ending(out)
        with bar("reading images") as reading, bar("embedding", unit="img") as report, bar("probing") as probing:
            embed(
                _model(model, adapter, self.weights, self.img_size),
                [*self.data] if len(self.data) > 1 else next(iter(self.data), None),
                device=device_named(self.device),
                root=self.root,
                split_seed=seed,
                skip_bad=self.skip_bad,
                labelled=not self.unlabelled,
                batch_size=self.batch_size,
                out=out,
                settings=settings,
                remarks=["The adapter has learned from images of these kinds; its figures are no backbone's."]
                if seen
                else [],
                reading=reading,
                report=report,
                probing=probing,
            )
        return read_json(out.with_suffix(".json"))


def _model(name: str, adapter: bool, weights: str | None, img_size: int | None) -> Any:
    """A backbone, or an adapter, folded."""
    from vprompt.backbones.factory import can_create, create_backbone
    from vprompt.exporters.base import is_exported
    from vprompt.model.load import load

    if is_exported(name):
        raise VPromptError(f"{name} gives classes and no features; give the adapter or the backbone it was made of.")
    if adapter or (not can_create(name) and (Path(name).exists() or name.count("/") == 1)):
        if img_size is not None:
            raise UsageError("An adapter has its image size; leave out --img-size.")
        return load(name, weights=weights).fold()
    return create_backbone(name, weights=weights, img_size=img_size)


def _finished(out: Path, settings: Mapping[str, Any], *, resume: bool) -> dict[str, Any]:
    """The figures of features that are there already."""
    if not resume:
        raise VPromptError(f"{out} is there already; --resume shows its figures, or choose another --out.")
    document = read_json(out.with_suffix(".json"))
    if document.get("settings") != settings:
        raise VPromptError(f"{out} was made by another command; choose another --out.")
    return document


def _print(documents: Mapping[Path, Mapping[str, Any]]) -> None:
    rows = [_row(document) for document in documents.values()]
    first = next(iter(documents.values()))
    data = " ".join(first["settings"]["data"][:3]) or "the bundled task"
    tested = f", tested on {first['tested_on']}" if "tested_on" in first else ""
    majority = f": the commonest class alone is {percent(first['linear']['majority_accuracy'])} %" if tested else ""
    print_table(f"{data}{tested}{majority}", [*rows[0]], [[*row.values()] for row in rows])
    for out, document in documents.items():
        _print_found(document)
        for note in document["notes"]:
            print_note(note)
        print_note(f"Features are in {out}, all figures in {out.with_suffix('.json')}.")


def _row(document: Mapping[str, Any]) -> dict[str, str]:
    images = sum(document["images"].values())
    row = {"model": document["settings"]["model"], "images": str(images), "features": str(document["features"])}
    if "linear" in document:
        row |= {f"kNN {k}": f"{percent(figures['accuracy'])} %" for k, figures in document["knn"].items()}
        low, high = document["linear"]["interval"]
        row |= {"linear": f"{percent(document['linear']['accuracy'])} %", "95 %": f"{100 * low:.0f}-{100 * high:.0f}"}
        row |= {"doubtful labels": str(len(document["label_errors"])), "near copies": str(len(document["duplicates"]))}
    return row


def _print_found(document: Mapping[str, Any]) -> None:
    copies, doubtful = document["duplicates"], document["label_errors"]
    if copies:
        rows = [[*pair["images"], "/".join(pair["splits"]), f"{pair['cosine']:.3f}"] for pair in copies[:FEW]]
        title = f"{count(len(copies), 'pair')} of near copies in two splits, the most alike first"
        print_table(title, ["image", "looks like", "splits", "cosine"], rows)
    if doubtful:
        rows = [
            [row["image"], row["label"], f"{percent(row['probability'])} %", row["likely"]]
            + [f"{percent(row['likely_probability'])} %"]
            for row in doubtful[:FEW]
        ]
        title = f"{count(len(doubtful), 'label')} that look wrong, the most doubtful first"
        print_table(title, ["image", "label", "probability", "likely", "probability"], rows)
