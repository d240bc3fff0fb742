"""Labelled images for a model that already knows its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vprompt.data.benchmarks.load import open_layout
from vprompt.data.benchmarks.places import locate
from vprompt.data.bundled import SOURCE
from vprompt.data.checked import DEFAULT_MEMORY_LIMIT, Progress, check_images, refuse, to_dataset
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.folder import cut
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.scan import UNSPLIT, Splits, scan
from vprompt.data.synthetic.tasks import PREFIX
from vprompt.data.tasks import open_task, refuse_unknown
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
    if spec is None or spec == SOURCE or str(spec).startswith(PREFIX):
        return _of_ours(open_task(spec, preprocessing), classes, split)
    refuse_unknown(spec)
    place = locate(spec, root)
    folder = Path(spec) if place is None else place.folder
    splits = scan(folder, need_train=False).splits if place is None else open_layout(place)[0].by_class()
    cutting = split != "all" and (UNSPLIT in splits or ("train" in splits and "val" not in splits))
    if not cutting:
        # Only what is asked for has to be decoded; where splits are cut, bad files move the cut.
        splits = {"all": _union(splits)} if split == "all" else _pick(splits, split)
    problems = _without_unknown(splits, classes)
    refuse(folder, problems, skip_bad)
    checked = check_images(folder, splits, preprocessing, DEFAULT_MEMORY_LIMIT, progress)
    bad = [f"file {printable(path)} {reason}" for path, reason in checked.bad.items()]
    refuse(folder, bad, skip_bad)
    for chosen in splits.values():
        for name in chosen:
            chosen[name] = [path for path in chosen[name] if path not in checked.bad]
    if cutting:
        splits = _pick(cut(splits, split_seed), split)
    pairs = [
        (path, classes.index(printable(name)))
        for chosen in splits.values()
        for name, files in sorted(chosen.items())
        for path in files
    ]
    if not pairs:
        which = "" if split == "auto" else f" in its split {split!r}"
        kind = "usable image" if checked.bad else "images of known classes"
        raise DataError(f"{printable(str(spec))} has no {kind}{which}.")
    images = to_dataset(folder, preprocessing, pairs, checked)
    return images, next(iter(splits)), tuple(sentence[0].upper() + sentence[1:] + "." for sentence in problems + bad)


def _without_unknown(splits: Splits, classes: Sequence[str]) -> list[str]:
    """Takes out classes that are not known, and says which."""
    unknown = sorted({name for chosen in splits.values() for name in chosen if printable(name) not in classes})
    for chosen in splits.values():
        for name in unknown:
            chosen.pop(name, None)
    return [f"class {printable(name)} is not known to the adapter" for name in unknown]


def _pick(splits: Splits, split: SplitChoice) -> Splits:
    """The split asked for alone, under its name."""
    order = ("test", "val", UNSPLIT, "train") if split == "auto" else (split,)
    for name in order:
        if any(splits.get(name, {}).values()):
            return {name: splits[name]}
    return {order[0]: {}}


def _union(splits: Splits) -> dict[str, list[str]]:
    union: dict[str, list[str]] = {}
    for classes in splits.values():
        for name, files in classes.items():
            union.setdefault(name, []).extend(files)
    return union


def _of_ours(task: Task, classes: Sequence[str], split: SplitChoice) -> tuple[ImageDataset, str, tuple[str, ...]]:
    """One split of the bundled task, or of one that is rendered; those have all three."""
    if tuple(classes) != task.classes:
        what = "the bundled task" if task.source == SOURCE else task.source
        raise DataError(f"The adapter was not made for {what}; give the folder of images to evaluate on.")
    assert task.val is not None
    assert task.test is not None
    if split == "all":
        return task.train.joined(task.val).joined(task.test), "all", ()
    name = "test" if split == "auto" else split
    return {"train": task.train, "val": task.val, "test": task.test}[name], name, ()
