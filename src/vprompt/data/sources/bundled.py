"""Tasks that come with vprompt, so that everything runs on a fresh machine without a download: a file, and drawings."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vprompt.data.images import render_arrays
from vprompt.data.listing import Item, Listing
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.sources.base import SOURCES, Query
from vprompt.data.synthetic.tasks import PREFIX, synthetic_listing
from vprompt.utils.errors import DataError

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


class Bundled:
    """A part of Fashion-MNIST: 800 train, 200 val and 2000 test images, each class equally often."""

    name = "bundled"
    renders = True

    def find(self, query: Query) -> Listing | None:
        """See `DataSource`; there is one such task."""
        if not query.spec.startswith("bundled:"):
            return None
        if query.spec != SOURCE:
            raise DataError(f"There is no bundled task {query.spec}; the one that comes with vprompt is {SOURCE}.")
        return bundled_listing()


class Synthetic:
    """Tasks that are specified by their factors: nothing to download, the same everywhere."""

    name = "synthetic"
    renders = True

    def find(self, query: Query) -> Listing | None:
        """See `DataSource`; the tasks are those of `synthetic_names`."""
        return synthetic_listing(query.spec) if query.spec.startswith(PREFIX) else None


def bundled_listing() -> Listing:
    """The images of the bundled task, which are 28 x 28 pixels and grey."""
    splits = {name: _arrays(name) for name in ("train", "val", "test")}
    return Listing(
        name="fashion-mnist",
        source=SOURCE,
        where="the bundled task",
        splits={
            name: [Item(f"{name}/{number}", CLASSES[label]) for number, label in enumerate(labels)]
            for name, (_, labels) in splits.items()
        },
        rendered=lambda: np.concatenate([images for images, _ in splits.values()]),
        classes=CLASSES,
    )


def bundled_images(preprocessing: Preprocessing, count: int) -> Tensor:
    """The first test images of the bundled task, uint8 pixels (count, C, H, W)."""
    grey = replace(preprocessing, mean=preprocessing.mean[:1], std=preprocessing.std[:1])
    return render_arrays(_arrays("test")[0][:count], grey).expand(-1, preprocessing.shape[0], -1, -1)


def _arrays(split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Grey images (N, 28, 28) and labels (N,)."""
    file = resources.files("vprompt.data").joinpath("fashion_mnist.npz")
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
        return arrays[f"{split}_images"], arrays[f"{split}_labels"]


SOURCES.register(Bundled())
SOURCES.register(Synthetic())
