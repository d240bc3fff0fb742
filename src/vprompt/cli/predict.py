"""`vprompt eval` and `vprompt predict`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vprompt.backbones.names import BackbonePrecision
from vprompt.cli.console import UsageError, goes_on, json_rows, percent, print_json, print_note, print_table
from vprompt.cli.options import Device, Json, Root, Weights
from vprompt.experiments.folder import PAGE
from vprompt.serving.setup import named
from vprompt.tasks.columns import NO_COLUMNS, Columns
from vprompt.utils.errors import DataError, VPromptError
from vprompt.utils.io import read_json
from vprompt.utils.text import count

if TYPE_CHECKING:
    from vprompt.experiments.bulk import Job
    from vprompt.model.classifier import Classifier
    from vprompt.serving.predict import Prediction
    from vprompt.tasks.base import Target


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Options that name a classifier."""

    adapter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]
    """Folder of the adapter, its Hub id, an exported file, or an engine, with --adapter."""
    on_engine: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="adapter", metavar="[NAME=]FILE")
    ] = ()
    """File of an adapter that the engine runs; may be given several times."""
    weights: Weights = None
    backbone_precision: BackbonePrecision | None = None
    """How the backbone's linear layers are held, where not as in training; fp32, bf16, int8, int4, fp8."""
    device: Device = "auto"
    trust_file: bool = False
    """Read an exported .pt2 or .pte file: one that was made to do so can then run code on this machine. Only for files
    whose maker you trust."""
    json: Json = False

    def models(self, *, fold: bool) -> dict[str, Classifier]:
        """The adapters on an engine, by name; else the one model, under no name."""
        if not self.on_engine:
            return {"": self.load(fold=fold)}
        from vprompt.serving.bank.engine import Engine

        if self.weights or self.backbone_precision or self.device not in ("auto", "cpu"):
            raise UsageError(f"{self.adapter} has its weights in it and runs on the processor; leave out the option.")
        engine, sources = Engine(self.adapter, trust=self.trust_file), named(self.on_engine)
        for name, source in sources.items():
            engine.add(name, source)
        return {name: engine.classifier(name) for name in sources}

    def load(self, *, fold: bool) -> Classifier:
        """An adapter, folded where that is wanted, or an exported model."""
        from vprompt.exporters.base import is_exported

        if is_exported(self.adapter):
            from vprompt.exporters.exported import load_exported

            if self.weights is not None or self.backbone_precision is not None:
                option = "--weights" if self.weights is not None else "--backbone-precision"
                raise UsageError(f"An exported model has its weights in it; leave out {option} for {self.adapter}.")
            if self.device not in ("auto", "cpu"):
                raise UsageError(f"An exported model runs on the processor; leave out --device for {self.adapter}.")
            return load_exported(self.adapter, trust=self.trust_file)
        from vprompt.model.load import load
        from vprompt.utils.devices import device_named

        device = device_named(self.device)
        model = load(self.adapter, weights=self.weights, backbone_precision=self.backbone_precision)
        return (model.fold() if fold else model).to(device)


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Options that say which images are meant."""

    columns: Annotated[Columns, tyro.conf.arg(name="")] = NO_COLUMNS
    """Columns of a table; those that the adapter was trained on when left out."""
    root: Root = None
    split_seed: int | None = None
    """Cuts the splits that a folder does not have; as given to `fit` when left out."""


@dataclass(frozen=True, kw_only=True)
class Eval(ImageOptions, _Source):
    """Accuracy of an adapter or an exported model on labelled images, or what else tells how good it is."""

    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
    """Image folder with one folder per class, a table, or a task; the bundled task when left out."""
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    """auto: all images of a folder that the adapter was not trained on, else its test or validation images."""
    skip_bad: bool = False
    """Leave out classes that the adapter does not know; images that cannot be read are no error in the end."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for report.html, a page to look at; none is written when left out."""

    def run(self) -> None:
        """Loads, evaluates, prints."""
        from vprompt.data.tasks import load_labelled
        from vprompt.training.evaluate import evaluate
        from vprompt.utils.progress import bar

        page = None if self.out is None else self.out / PAGE
        if page is not None and page.exists():
            raise UsageError(f"{page} is there already; choose another --out.")
        (model, *others) = self.models(fold=False).values()
        if others:
            raise UsageError("One adapter is evaluated at a time; give --adapter once.")
        sample, seed, columns = trained_on(Path(self.adapter))
        bad: list[str] = []
        with bar("reading images") as report:
            images, split, skipped = load_labelled(
                self.data,
                model.preprocessing,
                model.target,
                root=self.root,
                columns=self.columns.over(columns),
                split=self.split,
                split_seed=seed if self.split_seed is None else self.split_seed,
                skip_bad=self.skip_bad,
                bad=bad,
                sample=sample,
                progress=report,
            )
        with bar("evaluating") as report:
            result = evaluate(model, images, report=report)
        data = self.data or "the bundled task"
        which = f"These are the {split} images of {data}; --split all takes all of them."
        if sample is None and self.data:
            which = f"It is not known which images the model was trained on. {which}"
        elif split == "all":
            which = f"These are all images of {data}" + ", of which the model has seen none." * (self.split == "auto")
        figures, notes, target = result.figures, [which, *result.remarks(split)], model.target
        if page is not None:
            from vprompt.experiments.report.outcome import write_page

            shown = {f"{split}_{key}": value for key, value in figures.items()} | {"notes": notes}
            write_page(page, model, {split: result}, {split: images}, shown, adapter=self.adapter, data=self.data)
            notes = [*notes, f"{page} shows it all."]
        if self.json:
            print_json({**figures, "split": split, "skipped": list(skipped), "notes": notes})
        else:
            print_table(
                f"{self.adapter} on {data}{target.beside(figures)}",
                ["split", "images", *(cells := target.cells(figures)), "loss"],
                [[split, str(result.images), *cells.values(), f"{result.loss:.4f}"]],
            )
            more = [f"{len(skipped) - 3} more such sentences: --json."] * (len(skipped) > 3)
            for note in [*notes, *skipped[:3], *more]:
                print_note(note)
        if bad and not self.skip_bad:
            which = f"{len(bad)} of the images could not be read, and the figures are those of the others"
            raise DataError(f"{which} (with --skip-bad that is no error); the first: {bad[0]}")


def trained_on(adapter: Path) -> tuple[str | None, int, Columns]:
    """A sample of the images that an adapter has seen, where its result has one, seed of their cut, and columns."""
    try:
        result = read_json(adapter / "result.json")
        sample, seed = result["provenance"]["data"].get("sample"), result["settings"].get("split_seed", 0)
        columns = Columns.among(result["settings"])
    except (VPromptError, LookupError, TypeError, AttributeError):
        return None, 0, NO_COLUMNS  # from the Hub, exported, or written by hand
    return (sample if isinstance(sample, str) else None), (seed if isinstance(seed, int) else 0), columns


@dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """Options of a command that answers about any number of images, see `run_bulk`."""

    workers: int | None = None
    """Write answers into Parquet files in the folder --out, by so many processes on Ray, or 0 for this one; the same
    command goes on after a stop. Images may then be in Parquet files, too."""
    cluster: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None
    """Ray cluster whose machines see the same folders; one of its own on this machine when left out."""
    shard_size: int = 1024
    """Images in a Parquet file, with --workers."""

    if TYPE_CHECKING:  # options of the commands
        device: str
        skip_bad: bool
        json: bool

    def answer(self, job: Job, workers: int, paths: Sequence[Path], model: str, **settings: Any) -> None:
        """Computes what `model`, a saved or exported one or a backbone, says, and where it is."""
        from vprompt.experiments.bulk import run_bulk
        from vprompt.utils.devices import device_named
        from vprompt.utils.io import checksum
        from vprompt.utils.progress import bar

        files = [file for file in (Path(model) / "adapter_config.json", Path(model)) if file.is_file()]
        settings |= {"model": checksum(*files) if files else model, "image_column": job.image_column}
        gpus = float(device_named(self.device).type == "cuda")
        with goes_on(lambda: f"The same command goes on (in {job.out})."), bar("shards") as report:
            where: Any = {"address": self.cluster, "shard_size": self.shard_size, "report": report}
            done = run_bulk(job, paths, settings, workers=workers, gpus=gpus, **where)
        if self.json:
            print_json({**done, "out": str(job.out)})
        else:
            print_note(f"Answers about {count(done['images'], 'image')} are in {job.out} (part-*.parquet).")
        if done["bad"] and not self.skip_bad:
            which = f"{done['bad']} of {done['images']} images could not be read"
            raise DataError(f"{which} (with --skip-bad that is no error); the column error in {job.out} says why.")


@dataclass(frozen=True, kw_only=True)
class Predict(BulkOptions, _Source):
    """What a model says of images: class and probability, tags, or numbers; a folder stands for all images in it.

    Rows are written batch by batch, with --json one on each line: neither a stop nor a bad file costs finished work.
    """

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Image files or folders."""
    top: int = 3
    """Number of classes or tags to name for each image."""
    skip_bad: bool = False
    """Leave images that cannot be read out; without it they are rows that say why, and the exit status is 1."""
    image_column: str | None = None
    """Column of Parquet files that has the images, or their paths; found by what is in it when left out."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """With --workers, folder for the answers. Else, where every pixel is of a class, for masks (.png, with the values
    of the training's masks) and the images under them (-overlay.jpg); none are written when left out."""

    def __post_init__(self) -> None:
        if not self.images:
            raise UsageError("There is no image to predict: vprompt predict ADAPTER IMAGE_OR_FOLDER ...")

    def run(self) -> None:
        """Loads, folds, predicts, prints."""
        if self.workers is None:
            self._as_it_goes()
        else:
            self._in_bulk(self.workers)

    def _check_out(self, out: Path, models: Iterable[Classifier], files: Iterable[Path]) -> None:
        """Raises where there are no masks to write, or where they could replace images."""
        if not all(model.target.dense for model in models):
            raise UsageError(
                f"{self.adapter} says nothing of pixels, so that there are no masks; leave out --out, and write "
                "answers to a file with --json > FILE."
            )
        if out.resolve() in {file.resolve().parent for file in files}:
            raise UsageError(f"{out} holds images to predict; give another folder for their masks.")

    def _as_it_goes(self) -> None:
        from vprompt.data.scan import PassedOver, in_words, list_images
        from vprompt.serving.predict import Failure, Prediction, predict_each, write_mask
        from vprompt.utils.progress import bar

        models = self.models(fold=True)
        others: PassedOver = {}
        files = list_images(self.images, others)
        if self.out is not None:
            self._check_out(self.out, models.values(), files)
        failures: list[Failure] = []
        taken = set[str]()
        done = 0
        # Rows on a terminal are progress themselves, and would tear a bar.
        with bar("predicting", enabled=not sys.stdout.isatty()) as report, json_rows() as write:
            for name, model in models.items():
                before, said = done, {"adapter": name} if name else {}
                for batch in predict_each(model, files, top=self.top, report=report):
                    predictions = [found for found in batch if isinstance(found, Prediction)]
                    failures += [found for found in batch if isinstance(found, Failure)]
                    done += len(predictions)
                    for found in predictions:
                        if self.out is not None:
                            write_mask(found, model, self.out, taken)
                    if self.json:
                        for found in predictions if self.skip_bad else batch:
                            row = found.answer if isinstance(found, Prediction) else {"error": found.error}
                            write({"image": found.image, **said, **row})
                    elif predictions:
                        _print(predictions, done - before, model.target, name)
        if taken:
            print_note(f"Masks and the images under them are in {self.out}.")
        for failure in failures:
            print_note(failure.error)
        if others:
            print_note(f"Passed over: {in_words(others)}.")
        if failures and not (self.skip_bad and done):
            which = f"{len(failures)} of {done + len(failures)} images could not be read"
            go_on = "" if self.skip_bad else " (with --skip-bad that is no error)"
            raise DataError(f"{which}{go_on}; the first: {failures[0].error}")

    def _in_bulk(self, workers: int) -> None:
        from vprompt.experiments.bulk import Job, predictions

        if self.out is None or self.on_engine or self.top < 1:
            raise UsageError("--workers goes with a folder --out, no --adapter, and a --top of at least 1.")
        load, answers = partial(Predict.load, self, fold=True), partial(predictions, self.top)
        job = Job(load=load, answers=answers, out=self.out, image_column=self.image_column)
        self.answer(job, workers, self.images, self.adapter, top=self.top)


def _print(predictions: Sequence[Prediction], done: int, target: Target, name: str = "") -> None:
    """Prints a table of some predictions of an adapter, the last of which is number `done`."""
    rows = [target.row(prediction.answer) for prediction in predictions]
    first = done - len(rows) + 1
    title = f"{done} image{'s' * (done != 1)}" if first == 1 else f"images {first} to {done}"
    title = f"{name}: {title}" if name else title
    head, width = ["image", *rows[0]], shutil.get_terminal_size().columns
    cells = [[prediction.image, *row.values()] for prediction, row in zip(predictions, rows, strict=True)]
    if sum(max(map(len, column)) for column in zip(head, *cells, strict=True)) + 16 > width:  # with what is between
        head = ["image", target.unit or "of", "probability" if target.unit else "value"]
        cells = [row for prediction in predictions for row in _stacked(prediction, target, width // 3)]
    print_table(title, head, cells, whole_first=max(len(row[0]) for row in cells) <= width // 2)


def _stacked(prediction: Prediction, target: Target, most: int) -> Iterator[list[str]]:
    """Rows of an image on a narrow terminal: what is said one below the other, its path broken at slashes only."""
    pieces = [""]
    for part in prediction.image.replace("/", "/\0").split("\0"):
        pieces += [""] * (len(pieces[-1] + part) > most)
        pieces[-1] += part
    row, top = target.row(prediction.answer).items(), prediction.answer.get("top")
    said = row if top is None else [(name, percent(share)) for name, share in top]
    for piece, found in zip_longest(filter(None, pieces), said):
        yield [piece or "", *(found or ["", ""])]
