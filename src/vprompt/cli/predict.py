"""`vprompt eval` and `vprompt predict`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vprompt.cli.console import UsageError, percent, print_json, print_note, print_table

if TYPE_CHECKING:
    from vprompt.model.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Options that name a classifier."""

    adapter: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER")]
    """Folder of the adapter, its Hub id, or an exported file."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The backbone's weights, where the adapter was trained with a file of them that is no longer where it was."""
    json: bool = False
    """Print the result as JSON."""

    def load(self, *, fold: bool) -> Classifier:
        """An adapter, folded where that is wanted, or an exported model."""
        from vprompt.exporters.base import is_exported

        if is_exported(self.adapter):
            from vprompt.exporters.exported import load_exported

            if self.weights is not None:
                raise UsageError(f"An exported model has its weights in it; leave out --weights for {self.adapter}.")
            return load_exported(self.adapter)
        from vprompt.model.load import load

        model = load(self.adapter, weights=self.weights)
        return model.fold() if fold else model


@dataclass(frozen=True, kw_only=True)
class Eval(_Source):
    """Accuracy of an adapter or an exported model on labelled images."""

    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
    """Image folder with one folder per class, or a task; the bundled task when left out."""
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out."""
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    """auto: the test images that `fit` would use, or the validation images where there are none."""
    split_seed: int = 0
    """Cuts the splits that a folder does not have; as given to `fit`."""
    skip_bad: bool = False
    """Go on without images and classes that cannot be used."""

    def run(self) -> None:
        """Loads, evaluates, prints."""
        from vprompt.data.tasks import load_labelled
        from vprompt.training.evaluate import evaluate
        from vprompt.utils.progress import bar

        model = self.load(fold=False)
        with bar("reading images") as report:
            images, split, skipped = load_labelled(
                self.data,
                model.preprocessing,
                model.class_names,
                root=self.root,
                split=self.split,
                split_seed=self.split_seed,
                skip_bad=self.skip_bad,
                progress=report,
            )
        with bar("evaluating") as report:
            result = evaluate(model, images, report=report)
        if self.json:
            print_json({**asdict(result), "split": split, "skipped": list(skipped)})
            return
        print_table(
            f"{self.adapter} on {self.data or 'the bundled task'}",
            ["split", "images", "accuracy", "loss"],
            [[split, str(result.images), percent(result.accuracy), f"{result.loss:.4f}"]],
        )
        if skipped:
            print_note(f"Skipped {len(skipped)}: {skipped[0]}" + (" ..." if len(skipped) > 1 else ""))


@dataclass(frozen=True, kw_only=True)
class Predict(_Source):
    """Classes and probabilities of images; a folder stands for all images in it."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """Image files or folders."""
    top: int = 3
    """Number of classes to name for each image."""
    skip_bad: bool = False
    """Go on without images that cannot be read."""

    def __post_init__(self) -> None:
        if not self.images:
            raise UsageError("There is no image to predict: vprompt predict ADAPTER IMAGE_OR_FOLDER ...")

    def run(self) -> None:
        """Loads, folds, predicts, prints."""
        from vprompt.serving.predict import predict
        from vprompt.utils.progress import bar

        model = self.load(fold=True)
        with bar("predicting") as report:
            predictions, skipped = predict(model, self.images, top=self.top, skip_bad=self.skip_bad, report=report)
        if self.json:
            print_json([asdict(prediction) for prediction in predictions])
        else:
            rows = [
                [p.image, p.class_name, percent(p.probability), ", ".join(f"{n} {percent(q)}" for n, q in p.top[1:])]
                for p in predictions
            ]
            print_table(f"{len(rows)} image{'s' * (len(rows) != 1)}", ["image", "class", "probability", "then"], rows)
        for sentence in skipped:
            print_note(sentence)
