"""Labelled images: sources that list them, the pipeline that makes tasks of them, and the data sets of a task."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vprompt.data.benchmarks.tasks import find_task as find_task
    from vprompt.data.benchmarks.tasks import transforms_of as transforms_of
    from vprompt.data.columns import Columns as Columns
    from vprompt.data.dataset import ImageDataset as ImageDataset
    from vprompt.data.dataset import Summary as Summary
    from vprompt.data.dataset import Task as Task
    from vprompt.data.images import decode as decode
    from vprompt.data.scan import list_images as list_images
    from vprompt.data.tasks import SplitChoice as SplitChoice
    from vprompt.data.tasks import load_bundled as load_bundled
    from vprompt.data.tasks import load_folder as load_folder
    from vprompt.data.tasks import load_labelled as load_labelled
    from vprompt.data.tasks import open_task as open_task

# torch takes seconds to import, and settings need the names of columns alone.
_HOMES = {
    "benchmarks.tasks": ("find_task", "transforms_of"),
    "columns": ("Columns",),
    "dataset": ("ImageDataset", "Summary", "Task"),
    "images": ("decode",),
    "scan": ("list_images",),
    "tasks": ("SplitChoice", "load_bundled", "load_folder", "load_labelled", "open_task"),
}

if not TYPE_CHECKING:  # type checkers read the imports above
    __all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"vprompt.data.{home}"), name)
    raise AttributeError(f"module 'vprompt.data' has no attribute {name!r}")
