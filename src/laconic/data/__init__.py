"""Images and labels: folders, the bundled task, and what a training loop reads from them."""

from laconic.data.benchmarks import find_task, transforms_of
from laconic.data.bundled import load_bundled
from laconic.data.dataset import ImageDataset, Task
from laconic.data.folder import load_folder
from laconic.data.images import decode
from laconic.data.labelled import SplitChoice, load_labelled
from laconic.data.scan import list_images
from laconic.data.tasks import open_task

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
