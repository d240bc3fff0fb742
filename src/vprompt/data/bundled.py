"""The task that comes with vprompt, so that everything runs on a fresh machine without a download."""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.images import render
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.threads import in_threads

SOURCE = "bundled:fashion-mnist"

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
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
    splits = {name: _arrays(name) for name in ("train", "val", "test")}

    def dataset(split: str) -> ImageDataset:
        images, labels = splits[split]
        pixels = _rendered(images, preprocessing)
        return ImageDataset(torch.from_numpy(labels.astype(np.int64)), preprocessing, pixels=pixels)

    return Task(
        name="fashion-mnist",
        source=SOURCE,
        classes=CLASSES,
        preprocessing=preprocessing,
        train=dataset("train"),
        val=dataset("val"),
        test=dataset("test"),
    )


def bundled_images(preprocessing: Preprocessing, count: int) -> Tensor:
    """The first test images of the bundled task, uint8 pixels (count, 3, H, W)."""
    return _rendered(_arrays("test")[0][:count], preprocessing)


def _arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Grey images (N, 28, 28) and labels (N,)."""
    file = resources.files("vprompt.data").joinpath("fashion_mnist.npz")
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"]


def _rendered(images: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    pictures = (Image.fromarray(image) for image in images)
    pixels = torch.empty((len(images), 3, *preprocessing.size), dtype=torch.uint8)
    for row, rendered in enumerate(in_threads(lambda picture: render(picture, preprocessing), pictures)):
        pixels[row] = rendered
    return pixels
