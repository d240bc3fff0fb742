"""Images that were checked: every one decodes, or is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vprompt.data.dataset import ImageDataset
from vprompt.data.images import try_decode
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.scan import Splits
from vprompt.data.threads import in_threads
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

Progress = Callable[[int, int], None]
"""Called with the number of images checked so far and of all."""

DEFAULT_MEMORY_LIMIT = 2 * 1024**3


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Decoded pixels (where they fit), the row of each file in them, and what is wrong with bad files."""

    store: Tensor | None
    rows: dict[str, int]
    bad: dict[str, str]


def check_images(
    root: Path, splits: Splits, preprocessing: Preprocessing, memory_limit: int, progress: Progress | None
) -> Checked:
    """Decodes every file once; holds the pixels where they take no more than `memory_limit` bytes."""
    files = [path for classes in splits.values() for paths in classes.values() for path in paths]
    shape = (len(files), 3, *preprocessing.size)
    fits = len(files) * 3 * preprocessing.size[0] * preprocessing.size[1] <= memory_limit
    store = torch.empty(shape, dtype=torch.uint8) if fits else None
    bad: dict[str, str] = {}
    decoded = in_threads(lambda path: try_decode(root / path, preprocessing), files)
    for row, found in enumerate(decoded):
        if isinstance(found, str):
            bad[files[row]] = found
        elif store is not None:
            store[row] = found
        if progress is not None:
            progress(row + 1, len(files))
    return Checked(store=store, rows={path: row for row, path in enumerate(files)}, bad=bad)


def refuse(root: Path, problems: list[str], skip_bad: bool) -> None:
    """Raises a `DataError` for the first problem, unless bad files are to be skipped."""
    if not problems or skip_bad:
        return
    more = f" (and {len(problems) - 1} more problems)" if len(problems) > 2 else ""
    more = " (and 1 more problem)" if len(problems) == 2 else more
    them = "it" if len(problems) == 1 else "them"
    raise DataError(
        f"In {printable(str(root))}, {problems[0]}{more}; fix {them}, or go on without {them} by --skip-bad "
        "(skip_bad=True)."
    )


def to_dataset(
    root: Path, preprocessing: Preprocessing, pairs: Sequence[tuple[str, int]], checked: Checked
) -> ImageDataset:
    """A dataset of checked files, given as (path relative to the root, label)."""
    return ImageDataset(
        torch.tensor([label for _, label in pairs]),
        preprocessing,
        pixels=checked.store,
        rows=None if checked.store is None else torch.tensor([checked.rows[path] for path, _ in pairs]),
        root=root,
        paths=[path for path, _ in pairs],
    )
