"""Folders of benchmark tasks: from `vtab:NAME` or `fgvc:NAME` to a folder below a root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vprompt.data.benchmarks.lists import recognise
from vprompt.data.benchmarks.tasks import BenchmarkTask, Suite, find_task, fold, suite_of
from vprompt.data.scan import visible_entries
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

ROOT_VARIABLE = "VPROMPT_DATA"

_ABOVE: dict[Suite, tuple[str, ...]] = {"vtab": ("vtab-1k", "vtab"), "fgvc": ("fgvc",)}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder with lists of images.

    Args:
        folder: Has the lists.
        task: The benchmark's task that it should be; None for a user's own.
        spec: The user's words for it.
    """

    folder: Path
    task: BenchmarkTask | None
    spec: str

    @property
    def name(self) -> str:
        """A short name of the task."""
        return self.task.name if self.task is not None else printable(self.folder.resolve().name)


def data_root(root: str | Path | None = None) -> Path:
    """The folder that benchmark tasks are looked for in: `root`, or else `$VPROMPT_DATA`, or else `data`."""
    return Path(root if root is not None else os.environ.get(ROOT_VARIABLE) or "data")


def locate(spec: str | Path, root: str | Path | None = None) -> Place | None:
    """The folder that `spec` stands for; None for a path to a folder without lists of images.

    Args:
        spec: `vtab:NAME`, `fgvc:NAME` (of the benchmark, or of a folder of the user's own) or a path.
        root: See `data_root`.

    Raises:
        DataError: A named task is not to be found; the message names the folders that were searched and a source.
    """
    suite = suite_of(spec)
    if suite is None:
        folder = Path(spec)
        return None if recognise(folder) is None else Place(folder=folder, task=None, spec=str(spec))
    name = str(spec).partition(":")[2].strip()
    try:
        task, unknown = find_task(str(spec)), ""
    except DataError as error:
        task, unknown = None, str(error)
    place = data_root(root)
    names = (name,) if task is None else task.folder_names
    # A name is not a path: nothing outside the root is found.
    folder = find_folder(place, suite, names) if fold(name) and not {"/", "\\"} & set(name) else None
    if folder is not None:
        return Place(folder=folder, task=task, spec=str(spec))
    searched = ", ".join(printable(str(path)) for path in (place, *(place / above for above in _ABOVE[suite])))
    if task is None:
        raise DataError(f"{printable(unknown).removesuffix('.')} (no folder of that name is in {searched}).")
    raise DataError(
        f"The task {task.spec} was not found: no folder {' or '.join(names)} is in {searched}; give the folder above "
        f"it by --root or {ROOT_VARIABLE}, or get the data: {task.source}."
    )


def find_folder(root: Path, suite: Suite, names: Sequence[str]) -> Path | None:
    """A folder with one of these names, in the root or in a suite's folder there.

    One with lists of images comes first, and then one whose name is written just so.
    """
    wanted = {fold(name) for name in names}
    above = {fold(name) for name in _ABOVE[suite]}
    top = _folders(root)
    places = [*top, *(inner for folder in top if fold(folder.name) in above for inner in _folders(folder))]
    # VTAB's flowers may lie beside FGVC's: what has the other suite's lists is not meant.
    matches = [folder for folder in places if fold(folder.name) in wanted and recognise(folder) in (suite, None)]
    return min(matches, key=lambda folder: (recognise(folder) is None, folder.name not in names), default=None)


def _folders(folder: Path) -> list[Path]:
    return visible_entries(folder)[0] if folder.is_dir() else []
