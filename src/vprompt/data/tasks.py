"""From what a user writes as DATA to a task."""

from __future__ import annotations

from pathlib import Path

from vprompt.data.benchmarks.load import load_lists
from vprompt.data.benchmarks.places import locate
from vprompt.data.bundled import SOURCE, load_bundled
from vprompt.data.checked import DEFAULT_MEMORY_LIMIT, Progress
from vprompt.data.dataset import Task
from vprompt.data.folder import load_folder
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.synthetic.tasks import PREFIX, load_synthetic
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
    if spec is None or spec == SOURCE:
        return load_bundled(preprocessing)
    refuse_unknown(spec)
    if str(spec).startswith(PREFIX):
        return load_synthetic(str(spec), preprocessing)
    if (place := locate(spec, root)) is not None:
        return load_lists(place, preprocessing, skip_bad=skip_bad, memory_limit=DEFAULT_MEMORY_LIMIT, progress=progress)
    return load_folder(spec, preprocessing, split_seed=split_seed, skip_bad=skip_bad, progress=progress)


def refuse_unknown(spec: str | Path) -> None:
    """Raises a `DataError` for what looks like a named task and is none that this version has."""
    text = str(spec)
    if not text:
        raise DataError("The name of the image folder is empty; give a folder, or leave it away for the bundled task.")
    if text.startswith("bundled:"):
        raise DataError(f"There is no bundled task {text}; the one that comes with vprompt is {SOURCE}.")
