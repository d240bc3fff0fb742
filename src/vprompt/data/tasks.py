"""Tasks from what a user writes as DATA."""

from __future__ import annotations

from pathlib import Path

from vprompt.data.dataset import Task
from vprompt.data.pipeline import DEFAULT_MEMORY_LIMIT, Progress, load
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.sources.base import SOURCES, Listing
from vprompt.data.sources.benchmark import lists_in
from vprompt.data.sources.bundled import SOURCE, bundled_listing
from vprompt.data.sources.folder import folder_listing
from vprompt.utils.errors import DataError


def open_task(
    spec: str | Path | None,
    preprocessing: Preprocessing,
    *,
    root: str | Path | None = None,
    split_seed: int = 0,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Task:
    """Opens the bundled task (`None`), one of a benchmark (`vtab:cifar`), one that is rendered, or an image folder.

    Args:
        spec: What the user wrote.
        preprocessing: How the images are resized, and later normalised.
        root: The folder that benchmark tasks lie in; `$VPROMPT_DATA`, or else `data`, when not given.
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
    listing = find_listing(spec, root=root)
    return load(listing, preprocessing, split_seed=split_seed, skip_bad=skip_bad, progress=progress)


def find_listing(spec: str | Path | None, *, root: str | Path | None = None, training: bool = True) -> Listing:
    """The images that `spec` stands for, before any is opened: of the first source that knows it, or of a folder.

    Args:
        spec: As for `open_task`.
        root: As for `open_task`.
        training: Whether they are to train on, so that there must be training images.

    Raises:
        DataError: There is no such data, or it cannot be listed.

    Example:
        >>> {split: len(images) for split, images in find_listing(None).splits.items()}
        {'train': 800, 'val': 200, 'test': 2000}
    """
    text = SOURCE if spec is None else str(spec)
    if not text:
        raise DataError("The name of the image folder is empty; give a folder, or leave it away for the bundled task.")
    for source in SOURCES:
        if (listing := source.find(text, root=root, training=training)) is not None:
            return listing
    return folder_listing(Path(text), training=training)


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

    Without splits, every class is cut into 64 % train, 16 % val and 20 % test; with `train` but no `val`, 20 % of
    train become val. Shares are rounded, and every class keeps a train image. Labels follow the sorted class names.
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
    folder = Path(root)
    return load(
        lists_in(folder) or folder_listing(folder),
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
