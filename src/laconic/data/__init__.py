"""Images and labels: folders, the bundled task, and what a training loop reads from them."""

from .bundled import load_bundled
from .dataset import ImageDataset, Task
from .folder import load_folder
from .images import decode
from .scan import list_images
from .tasks import open_task

__all__ = ["ImageDataset", "Task", "decode", "list_images", "load_bundled", "load_folder", "open_task"]
