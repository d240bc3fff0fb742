"""Labelled images for a model that already knows its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vprompt.data.dataset import ImageDataset
from vprompt.data.pipeline import DEFAULT_MEMORY_LIMIT, Progress, as_sentences, check, listed_classes, refuse
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.sources.base import UNSPLIT
from vprompt.data.sources.bundled import SOURCE
from vprompt.data.split import Splits, cut, missing_splits
from vprompt.data.tasks import find_listing
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

SplitChoice = Literal["auto", "train", "val", "test", "all"]
"""Images to read: those of one split, `all`, or (`auto`) those of the last of train, val and test that is there."""


def load_labelled(
    spec: str | Path | None,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    *,
    root: str | Path | None = None,
    split: SplitChoice = "auto",
    split_seed: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> tuple[ImageDataset, str, tuple[str, ...]]:
    """Reads the images of one split, with labels by the names of known classes.

    Args:
        spec: As for `open_task`; in an image folder, classes may be missing.
        preprocessing: How the images are resized, and later normalised.
        classes: Names in the order of the labels.
        root: As for `open_task`.
        split: `"auto"` takes the test split that `load_folder` would make or find, or else the validation split, or
            else what there is; `"all"` takes every image.
        split_seed: As in `load_folder`.
        skip_bad: Go on without files that cannot be decoded and classes that are not known.
        progress: Called after every image with (done, total).

    Returns:
        The images, the name of the split, and one sentence for each thing that was skipped.

    Raises:
        DataError: If the folder has no such images, or a class or file that cannot be used.
    """
    listing = find_listing(spec, root=root, training=False)
    if listing.rendered is not None and tuple(classes) != listing.classes:
        what = "the bundled task" if listing.source == SOURCE else listing.source
        raise DataError(f"The adapter was not made for {what}; give the folder of images to evaluate on.")
    splits = {name: list(items) for name, items in listing.splits.items()}
    listed = listed_classes(listing, splits)
    cutting = split != "all" and missing_splits(splits)
    if split == "all":
        splits = {"all": [item for items in splits.values() for item in items]}
        listed = {"all": set[str]().union(*listed.values())}
    elif not cutting:
        # Only what is asked for has to be decoded; where splits are cut, bad files move the cut.
        splits = _pick(splits, split)
    names = set[str]().union(*(listed.get(name, set()) for name in splits))
    unknown = [name for name in sorted(names) if printable(name) not in classes]
    problems = [f"class {printable(name)} is not known to the adapter" for name in unknown]
    refuse(listing, problems, skip_bad)
    splits = {name: [item for item in items if item.label not in unknown] for name, items in splits.items()}
    group = [item.name for items in splits.values() for item in items]
    checked = check(listing, [group], preprocessing, DEFAULT_MEMORY_LIMIT, progress, decode_all=True)
    refuse(listing, checked.problems, skip_bad)
    splits = checked.usable(splits)
    if cutting:
        splits = _pick(cut(splits, split_seed), split)
    [(name, items)] = splits.items()
    if not items:
        which = "" if split == "auto" else f" in its split {split!r}"
        kind = "usable image" if checked.bad else "images of known classes"
        raise DataError(f"{printable(str(spec))} has no {kind}{which}.")
    label_of = {name: label for label, name in enumerate(classes)}
    images = checked.dataset([item.name for item in items], [label_of[printable(item.label)] for item in items])
    return images, name, as_sentences(problems + checked.problems)


def _pick(splits: Splits, split: SplitChoice) -> Splits:
    """The split asked for alone, under its name."""
    order = ("test", "val", UNSPLIT, "train") if split == "auto" else (split,)
    name = next((name for name in order if splits.get(name)), order[0])
    return {name: splits.get(name, [])}
