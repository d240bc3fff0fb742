from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image

from vprompt.data.preprocessing import Preprocessing
from vprompt.data.tasks import load_bundled, open_task
from vprompt.utils.errors import DataError

NATIVE = Preprocessing(size=(28, 28), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def task():
    return load_bundled(NATIVE)


@pytest.fixture(scope="module")
def arrays():
    with resources.files("vprompt.data").joinpath("fashion_mnist.npz").open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


def test_sizes_and_balance(task):
    for split, count in ((task.train, 80), (task.val, 20), (task.test, 200)):
        assert torch.bincount(split.labels, minlength=10).tolist() == [count] * 10
        assert split.in_memory
    assert len(task.classes) == 10
    assert task.source == "bundled:fashion-mnist"


def test_pixels_are_the_stored_ones_in_three_channels(task, arrays):
    for name, split in (("train", task.train), ("val", task.val), ("test", task.test)):
        pixels = split.pixels(torch.arange(len(split))).numpy()
        assert all(np.array_equal(pixels[:, channel], arrays[f"{name}_images"]) for channel in range(3))
        assert split.labels.tolist() == arrays[f"{name}_labels"].tolist()


def test_no_image_is_in_two_splits(arrays):
    images = np.concatenate([arrays[f"{name}_images"] for name in ("train", "val", "test")])
    assert len({image.tobytes() for image in images}) == 3000


def test_labels_mean_what_the_classes_say(task):
    # Trousers are narrow and tall; sneakers fill only the lower part; both are plain in the mean image.
    mean = {
        name: task.train.pixels(torch.nonzero(task.train.labels == label)[:, 0])[:, 0].float().mean(0)
        for label, name in enumerate(task.classes)
    }
    assert mean["Trouser"][:, :6].mean() < 5
    assert mean["Trouser"][:, 9:19].mean() > 80
    assert mean["Sneaker"][:8].mean() < 5
    assert mean["Ankle boot"][:8].mean() > 20


def test_resizing_goes_through_pillow(arrays):
    larger = Preprocessing(size=(32, 40), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")
    found = load_bundled(larger).val.pixels(torch.tensor([7]))[0]
    expected = Image.fromarray(arrays["val_images"][7]).resize((40, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(found[1].numpy(), np.asarray(expected))


def test_open_task_without_data_is_the_bundled_one(task):
    assert open_task(None, NATIVE).fingerprint() == task.fingerprint()
    assert open_task(task.source, NATIVE).fingerprint() == task.fingerprint()
    with pytest.raises(DataError, match="no bundled task bundled:other"):
        open_task("bundled:other", NATIVE)


def test_the_licence_comes_with_it():
    text = resources.files("vprompt.data").joinpath("LICENSE.fashion-mnist").read_text()
    assert "MIT License" in text
    assert "2017 Zalando SE" in text
