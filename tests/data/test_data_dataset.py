import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.preprocessing import Preprocessing
from vprompt.utils.errors import DataError

PLAIN = Preprocessing(size=(6, 8), mean=(0.2, 0.5, 0.7), std=(0.5, 0.25, 0.1))
COUNT = 7


@pytest.fixture
def lazy(tmp_path):
    generator = np.random.default_rng(0)
    paths = [f"image {i}.png" for i in range(COUNT)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8)).save(tmp_path / path)
    return ImageDataset(torch.arange(COUNT) % 3, PLAIN, root=tmp_path, paths=paths)


@pytest.fixture
def held(lazy):
    return ImageDataset(lazy.labels, PLAIN, pixels=lazy.pixels(torch.arange(COUNT)), paths=lazy.paths)


def test_pixels_are_those_of_the_files(lazy, held, tmp_path):
    indices = torch.tensor([5, 0, 5])
    expected = np.stack([np.asarray(Image.open(tmp_path / f"image {i}.png")).transpose(2, 0, 1) for i in indices])
    for dataset in (lazy, held):
        found = dataset.pixels(indices)
        assert found.dtype == torch.uint8
        assert np.array_equal(found.numpy(), expected)
    assert held.in_memory
    assert not lazy.in_memory


def test_items_are_normalised_and_reading_does_not_change_them(lazy, held):
    mean, std = torch.tensor(PLAIN.mean).view(3, 1, 1), torch.tensor(PLAIN.std).view(3, 1, 1)
    for dataset in (lazy, held):
        first, label = dataset[4]
        again, _ = dataset[4]
        assert first.dtype == torch.float32
        assert label == 1
        assert torch.equal(first, again)
        raw = dataset.pixels(torch.tensor([4]))[0].double() / 255
        torch.testing.assert_close(first.double(), (raw - mean) / std, atol=1e-5, rtol=0)


def test_it_is_a_sequence(lazy, held):
    for dataset in (lazy, held):
        assert len(list(dataset)) == len(dataset) == COUNT
        assert torch.equal(dataset[-1][0], dataset[COUNT - 1][0])
        assert torch.equal(dataset[torch.tensor(2)][0], dataset[2][0])
        for outside in (COUNT, -COUNT - 1):
            with pytest.raises(IndexError):
                dataset[outside]


def test_subset_of_a_subset_shares_memory(held):
    subset = held.subset([6, 2, 4]).subset(torch.tensor([2, 0]))
    assert subset.labels.tolist() == [4 % 3, 6 % 3]
    assert subset.paths == ["image 4.png", "image 6.png"]
    assert torch.equal(subset.pixels(torch.tensor([0, 1])), held.pixels(torch.tensor([4, 6])))
    assert subset._store is held._store


def test_lazy_subset(lazy):
    subset = lazy.subset([6, 2])
    assert torch.equal(subset.pixels(torch.arange(2)), lazy.pixels(torch.tensor([6, 2])))
    assert subset[1][1] == 2


def test_empty_subset_and_empty_batch(lazy, held):
    for dataset in (lazy, held):
        assert len(dataset.subset([])) == 0
        assert dataset.pixels(torch.tensor([], dtype=torch.int64)).shape == (0, 3, 6, 8)


def test_lazy_dataset_works_in_worker_processes(lazy, held):
    lazy.pixels(torch.arange(COUNT))  # threads that have run must not hang a forked worker
    batches = list(DataLoader(lazy, batch_size=4, num_workers=1))
    assert torch.equal(torch.cat([images for images, _ in batches]), torch.stack([image for image, _ in held]))


def test_fingerprints_follow_the_data(lazy, held):
    for dataset in (lazy, held):
        assert dataset.fingerprint() == dataset.subset(range(COUNT)).fingerprint()
        assert len(dataset.fingerprint()) == 16
        assert dataset.fingerprint() != dataset.subset([1, 0, *range(2, COUNT)]).fingerprint()
        relabelled = pickle.loads(pickle.dumps(dataset))
        relabelled.labels[3] += 1
        assert relabelled.fingerprint() != dataset.fingerprint()
    pixels = held.pixels(torch.arange(COUNT))
    pixels[3, 1, 2, 2] ^= 1
    assert ImageDataset(held.labels, PLAIN, pixels=pixels).fingerprint() != held.fingerprint()


def test_lazy_fingerprint_sees_sizes_and_names(lazy, tmp_path):
    before = lazy.fingerprint()
    with (tmp_path / "image 3.png").open("ab") as file:
        file.write(b"x")
    changed = lazy.fingerprint()
    os.rename(tmp_path / "image 0.png", tmp_path / "other.png")
    renamed = ImageDataset(lazy.labels, PLAIN, root=tmp_path, paths=["other.png", *lazy.paths[1:]])
    assert len({before, changed, renamed.fingerprint()}) == 3


def test_a_file_that_has_gone_is_named(lazy, tmp_path):
    (tmp_path / "image 2.png").unlink()
    for read in (lambda: lazy[2], lambda: lazy.pixels(torch.arange(COUNT)), lazy.fingerprint):
        with pytest.raises(DataError, match=r"image 2\.png"):
            read()


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    pixels = torch.zeros(2, 3, 6, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="2 images but 3 labels"):
        ImageDataset(torch.zeros(3), PLAIN, pixels=pixels)
    with pytest.raises(ValueError, match="must be uint8"):
        ImageDataset(torch.zeros(2), PLAIN, pixels=pixels.float())
    with pytest.raises(ValueError, match="needs pixels"):
        ImageDataset(torch.zeros(2), PLAIN, paths=["a", "b"])
    with pytest.raises(ValueError, match="2 paths but 3 labels"):
        ImageDataset(torch.zeros(3), PLAIN, root=tmp_path, paths=["a", "b"])


def test_task_fingerprint_covers_every_part(held):
    def task(classes=("a", "b", "c"), train=held, val=held, test=None):
        return Task(name="t", source="t", classes=classes, preprocessing=PLAIN, train=train, val=val, test=test)

    part = held.subset([0, 1])
    variants = [task(), task(("a", "b", "d")), task(train=part), task(val=part), task(test=part), task(val=None)]
    variants.append(task(val=None, test=held))
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    assert task().fingerprint() == task().fingerprint()
