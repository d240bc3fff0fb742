"""Labelled images: sources that list them, the pipeline that makes tasks of them, and the data sets of a task."""

from vprompt.data.benchmarks.tasks import find_task, transforms_of
from vprompt.data.dataset import ImageDataset, Summary, Task
from vprompt.data.images import decode
from vprompt.data.scan import list_images
from vprompt.data.tasks import SplitChoice, load_bundled, load_folder, load_labelled, open_task
from vprompt.tasks.columns import Columns

__all__ = [
    "Columns",
    "ImageDataset",
    "SplitChoice",
    "Summary",
    "Task",
    "decode",
    "find_task",
    "list_images",
    "load_bundled",
    "load_folder",
    "load_labelled",
    "open_task",
    "transforms_of",
]
