"""Tasks, and labelled images for a model that knows its classes, from what a user writes as DATA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.listing import UNSPLIT, Listing, with_one_spelling
from vprompt.data.masks import with_masks
from vprompt.data.notes import in_sample
from vprompt.data.pipeline import (
    DEFAULT_MEMORY_LIMIT,
    Progress,
    as_sentences,
    check,
    drop_unread,
    listed_classes,
    load,
    refuse,
)
from vprompt.data.preprocessing import Preprocessing, Resize
from vprompt.data.scan import in_words
from vprompt.data.sources.base import SOURCES, Query
from vprompt.data.sources.bundled import SOURCE, bundled_listing
from vprompt.data.sources.folder import folder_listing
from vprompt.data.sources.objects import object_listing
from vprompt.data.split import Splits, missing_splits
from vprompt.tasks.base import Target
from vprompt.tasks.columns import NO_COLUMNS, Columns
from vprompt.tasks.single_label import SingleLabel
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

SplitChoice = Literal["auto", "train", "val", "test", "all"]
"""Images to read: those of one split, `all`, or (`auto`) those of the last of train, val and test that is there."""


def open_task(
    spec: Any,
    preprocessing: Preprocessing,
    *,
    root: str | Path | None = None,
    columns: Columns = NO_COLUMNS,
    target: str | None = None,
    resize: Resize | None = None,
    split_seed: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Task:
    """Opens the bundled task (`None`), one of a benchmark, one that is rendered, a table, a data set, an image folder.

    Args:
        spec: What the user wrote as DATA; or a data set in Python, see `vprompt.data.sources.objects`.
        preprocessing: How the images are resized, and later normalised.
        root: The folder that benchmark tasks lie in; `$VPROMPT_DATA`, or else `data`, when not given.
        columns: What the columns of a table are, where that does not tell itself.
        target: What is to be said of an image: `"single-label"`, `"multi-label"`, `"regression"`, `"segmentation"`, or
            another that is registered; what the labels look like when not given.
        resize: Another way of resizing than that of the preprocessing; where pixels have labels, `"keep"` when not
            given.
        split_seed: See `load_folder`.
        skip_bad: See `load_folder`.
        progress: See `load_folder`.

    Raises:
        DataError: The data cannot be used, or `spec` names a task that there is not.

    Example:
        >>> plain = Preprocessing(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> open_task(None, plain).name
        'fashion-mnist'
    """
    listing = find_listing(spec, root=root, columns=columns, target=target)
    return load(
        listing,
        preprocessing,
        target=target,
        resize=resize,
        split_seed=split_seed,
        skip_bad=skip_bad,
        progress=progress,
    )


def find_listing(
    spec: Any,
    *,
    root: str | Path | None = None,
    training: bool = True,
    columns: Columns = NO_COLUMNS,
    target: str | None = None,
) -> Listing:
    """The images that `spec` stands for, before any is opened: of the first source that knows it, or of a folder.

    Args:
        spec: As for `open_task`.
        root: As for `open_task`.
        training: Whether they are to train on, so that there must be training images.
        columns: As for `open_task`.
        target: As for `open_task`.

    Raises:
        DataError: There is no such data, or it cannot be listed, or has not these columns.

    Example:
        >>> {split: len(images) for split, images in find_listing(None).splits.items()}
        {'train': 800, 'val': 200, 'test': 2000}
    """
    if not isinstance(spec, str | Path | None):
        return object_listing(spec, columns, target)
    text = SOURCE if spec is None else str(spec)
    if not text:
        raise DataError("The name of the image folder is empty; give a folder, or leave it away for the bundled task.")
    query = Query(spec=text, root=root, training=training, columns=columns, target=target)
    found = (listing for source in SOURCES if (listing := source.find(query)) is not None)
    listing = next(found, None) or folder_listing(Path(text), training=training)
    if training and columns != NO_COLUMNS and not listing.label_names:
        raise DataError(f"{listing.where} is no table, so that it has no columns; leave out their names.")
    return listing


def load_folder(
    root: str | Path,
    preprocessing: Preprocessing,
    *,
    split_seed: int = 0,
    skip_bad: bool = False,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress | None = None,
) -> Task:
    """Reads `root/CLASS/...`, or `root/{train,val,test}/CLASS/...`, or the lists of a benchmark, and checks all of it.

    Without splits, images are cut into 64 % train, 16 % val and 20 % test; with `train` but no `val`, 20 % of train
    become val. `vprompt.data.split` says how. Labels follow the sorted class names.
    Lists as VTAB-1k (train800.txt, val200.txt, test.txt) or FGVC (train.json, ...) has them say all that themselves.

    Args:
        root: The folder.
        preprocessing: How the images are resized, and later normalised.
        split_seed: Decides which files go where when a split is cut.
        skip_bad: Goes on without files that cannot be decoded, empty classes and classes that train does not have.
        memory_limit: Decoded images are held when they take no more bytes than this.
        progress: Called after every image with (done, total).

    Returns:
        The task; with `skip_bad`, `skipped` says what was left out.

    Raises:
        DataError: There is something wrong, and it is not to be skipped; or fewer than two classes are left.
    """
    return load(
        find_listing(Path(root)),
        preprocessing,
        split_seed=split_seed,
        skip_bad=skip_bad,
        memory_limit=memory_limit,
        progress=progress,
    )


def load_bundled(preprocessing: Preprocessing) -> Task:
    """A part of Fashion-MNIST: 800 train, 200 val and 2000 test images, each class equally often.

    Args:
        preprocessing: How the 28 x 28 grey images are resized (as RGB), and later normalised.

    Example:
        >>> task = load_bundled(Preprocessing(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
        >>> len(task.train), task.classes[5]
        (800, 'Sandal')
    """
    return load(bundled_listing(), preprocessing)


def load_labelled(
    spec: str | Path | None,
    preprocessing: Preprocessing,
    target: Target | Sequence[str],
    *,
    root: str | Path | None = None,
    columns: Columns = NO_COLUMNS,
    split: SplitChoice = "auto",
    split_seed: int = 0,
    skip_bad: bool = False,
    bad: list[str] | None = None,
    sample: str | None = None,
    progress: Progress | None = None,
) -> tuple[ImageDataset, str, tuple[str, ...]]:
    """Reads the images of one split, with the labels that a model knows.

    Args:
        spec: As for `open_task`; in an image folder, classes may be missing.
        preprocessing: How the images are resized, and later normalised.
        target: The model's; or the names of its classes.
        root: As for `open_task`.
        columns: As for `open_task`.
        split: `"auto"` takes the test split that `load_folder` would make or find, or else the validation split, or
            else what there is; but of a folder without splits of which nothing is in `sample`, it takes `"all"`, which
            is every image.
        split_seed: As in `load_folder`.
        skip_bad: Go on without files that cannot be decoded and classes that are not known.
        bad: Go on without such files in any case, and put what is wrong with them here.
        sample: The images that the model has seen, see `Summary`, where that is known; `"auto"` leaves them out.
        progress: Called after every image with (done, total).

    Returns:
        The images, the name of the split, and one sentence for each thing that was skipped or is not plain.

    Raises:
        DataError: If the folder has no such images, or a class or file that cannot be used.
    """
    target = target if isinstance(target, Target) else SingleLabel(names=tuple(target))
    listing = find_listing(spec, root=root, training=False, columns=columns, target=target.name)
    if listing.rendered is not None and target.names != listing.classes:
        what = "the bundled task" if listing.source == SOURCE else listing.source
        raise DataError(f"The adapter was not made for {what}; give the folder of images to evaluate on.")
    listing = with_one_spelling(listing, target.names) if target.grouped else listing
    listing = with_masks(listing, target) if target.dense else listing
    splits = {name: list(items) for name, items in listing.splits.items()}
    listed = listed_classes(listing, splits)
    cutting = split != "all" and missing_splits(splits)
    if split == "all":
        splits = {"all": [item for items in splits.values() for item in items]}
        listed = {"all": set[str]().union(*listed.values())}
    elif not cutting:
        # Only what is asked for has to be decoded; where splits are cut, bad files move the cut.
        splits = _pick(splits, split)
    unread = drop_unread(splits, target, listing.places)
    if target.grouped:  # a class is said once, also one without images
        names = map(printable, sorted(set[str]().union(*(listed.get(name, set()) for name in splits))))
        unread = [f"class {name} is not known to the adapter" for name in names if name not in target.names]
    problems = [*listing.problems, *unread]
    refuse(listing, problems, skip_bad)
    group = [item.name for items in splits.values() for item in items]
    held = 0 if target.dense else DEFAULT_MEMORY_LIMIT
    checked = check(listing, [group], preprocessing.squashed, held, progress, decode_all=True)
    refuse(listing, checked.problems, skip_bad or (bad is not None and len(checked.bad) < len(group)))
    if bad is not None:
        bad += as_sentences(checked.problems)
    splits = checked.usable(splits)
    seen = in_sample(sample or "", checked.contents) if split == "auto" else set[str]()
    if cutting and sample and split == "auto" and not seen and "test" not in splits:
        splits = {"all": [item for items in splits.values() for item in items]}
    elif cutting:
        splits = _pick(checked.cut(splits, target, split_seed, listing.groups)[0], split)
    [(name, items)] = splits.items()
    if known := [item.name for item in items if item.name in seen]:
        more = f" and {len(known) - 1} more" if len(known) > 1 else ""
        problems.append(f"the model was trained on {printable(known[0])}{more}, which were left out of {name}")
        items = [item for item in items if item.name not in seen]
    if not items:
        which = "" if split == "auto" else f" in its split {split!r}"
        kind = "usable image" if checked.bad else "images of known classes"
        raise DataError(f"{printable(str(spec))} has no {kind}{which}.")
    images = checked.labelled(items, target, preprocessing)
    other = [f"passed over: {other}"] if (other := in_words(listing.passed_over)) else []
    return images, name, (*as_sentences([*problems, *checked.problems, *other]), *listing.remarks)


def _pick(splits: Splits, split: SplitChoice) -> Splits:
    """The split asked for alone, under its name."""
    order = ("test", "val", UNSPLIT, "train") if split == "auto" else (split,)
    name = next((name for name in order if splits.get(name)), order[0])
    return {name: splits.get(name, [])}
