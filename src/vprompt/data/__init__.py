"""Images and labels: folders, the bundled task, and what a training loop reads from them."""

from vprompt.data.benchmarks.tasks import find_task, transforms_of
from vprompt.data.bundled import load_bundled
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.folder import load_folder
from vprompt.data.images import decode
from vprompt.data.labelled import SplitChoice, load_labelled
from vprompt.data.scan import list_images
from vprompt.data.tasks import open_task

__all__ = [
    "ImageDataset",
    "SplitChoice",
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
