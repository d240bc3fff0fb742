"""Random crops and flips: against Pillow done slowly, evenly spread, and decided by seed, epoch and image alone."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from vprompt.data.dataset import ImageDataset
from vprompt.data.images import decode
from vprompt.data.preprocessing import Preprocessing, View
from vprompt.data.tasks import load_folder
from vprompt.training.loader import TrainingEpoch, identity, in_order, iterate
from vprompt.utils.errors import DataError

COUNT = 12
CPU = torch.device("cpu")


def plain(size=(14, 14), **options):
    return Preprocessing(size=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), **{"resize": "crop", **options})


def smooth(height, width):
    """Different in every direction, so that no crop is like another, without anything that rounding could flip."""
    down, across = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * down + 4 * across), np.cos(7 * across), np.sin(5 * down - 8 * across)]
    return np.stack([127 + 120 * wave for wave in waves], 2).astype(np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images of several shapes, two classes."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        place = folder / ("even", "odd")[number % 2]
        place.mkdir(exist_ok=True)
        shape = (20 + number, 40 - number, 3)
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(place / f"{number:02}.png")
    return folder


@pytest.fixture
def lazy(root):
    paths = [f"{('even', 'odd')[number % 2]}/{number:02}.png" for number in range(COUNT)]
    return ImageDataset(torch.arange(COUNT) % 2, plain(), root=root, paths=paths)


@pytest.fixture
def held(lazy, root):
    pixels = lazy.pixels(torch.arange(COUNT))
    return ImageDataset(lazy.labels, plain(), pixels=pixels, root=root, paths=lazy.paths)


# ── one view ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def slow(image, view, size, resize, method):
    """All of the image is resized, then cut, then mirrored."""
    height, width = image.height, image.width
    full = [round(side / 0.875) for side in size]
    if resize == "crop":
        larger = max(full[0] / height, full[1] / width)
        full = [max(full[0], int(height * larger + 1e-9)), max(full[1], int(width * larger + 1e-9))]
    whole = np.asarray(image.resize((full[1], full[0]), method))
    top = int(view.top * (full[0] - size[0] + 1))
    left = int(view.left * (full[1] - size[1] + 1))
    part = whole[top : top + size[0], left : left + size[1]]
    return part[:, ::-1] if view.mirrored else part


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(56, 56), (40, 64)])
@pytest.mark.parametrize("shape", [(90, 130), (131, 70), (64, 64), (30, 45)])
def test_a_view_is_resize_then_crop_then_mirror(shape, size, interpolation, resize):
    image = Image.fromarray(smooth(*shape))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    method = Image.Resampling[interpolation.upper()]
    views = [View.drawn(seed=1, epoch=0, index=index) for index in range(12)]
    ends = (0.0, 1 - 2.0**-53)
    views += [View(top=top, left=left, mirrored=False) for top in ends for left in ends]
    for view in views:
        preprocessing = plain(size, interpolation=interpolation, resize=resize)
        found = decode(buffer.getvalue(), preprocessing, view=view)
        assert found.is_contiguous()
        expected = slow(image, view, size, resize, method).astype(int)
        # Pillow rounds to whole numbers across and then down; bicubic weights carry the first into the second.
        assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 2


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_large_jpegs_give_nearly_the_same_view(resize):
    image, buffer = Image.fromarray(smooth(900, 1300)), io.BytesIO()
    image.save(buffer, "JPEG", quality=98, subsampling=0)
    for index in range(6):
        view = View.drawn(seed=0, epoch=0, index=index)
        found = decode(buffer.getvalue(), plain((56, 56), resize=resize), view=view).permute(1, 2, 0).numpy()
        expected = slow(image, view, (56, 56), resize, Image.Resampling.BICUBIC).astype(int)
        assert np.abs(found - expected).max() <= 8  # what JPEG does, and no shift by a pixel


def test_views_are_the_same_on_every_machine():
    view = View.drawn(seed=5, epoch=2, index=1234)
    assert view == View(top=0.8562740882638837, left=0.41272989788300174, mirrored=True)


def test_views_differ_between_seeds_epochs_and_images():
    numbers = [(seed, epoch, index) for seed in (0, 1, 11) for epoch in (0, 1, 11) for index in (0, 1, 11)]
    assert len({View.drawn(seed=s, epoch=e, index=i) for s, e, i in numbers}) == len(numbers)


# ── a data set ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_crops_cover_all_places_evenly_and_half_are_mirrored(tmp_path):
    # As large as the resized image: nothing is interpolated, and the pixels say where they come from.
    down, across = np.mgrid[:16, :32]
    Image.fromarray(np.stack([down * 16, across * 8, down * 0], 2).astype(np.uint8)).save(tmp_path / "a.png")
    dataset = ImageDataset(torch.zeros(1), plain(), root=tmp_path, paths=["a.png"]).with_augment("crop-flip")
    draws = 2550
    found = torch.cat([dataset.training_pixels(torch.tensor([0]), seed=0, epoch=epoch) for epoch in range(draws)])
    top, corners = found[:, 0, 0, 0].numpy() // 16, found[:, 1, 0, [0, -1]].numpy() // 8
    left, mirrored = corners.min(1), corners[:, 0] > corners[:, 1]
    assert set((corners.max(1) - left).tolist()) == {13}
    for values, places in ((top, 3), (left, 19), (mirrored.astype(int), 2)):
        counts = np.bincount(values, minlength=places)
        assert len(counts) == places
        expected = draws / places
        assert np.abs(counts - expected).max() < 4 * expected**0.5
    for one, other in ((top, left), (top, mirrored), (left, mirrored)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / draws**0.5


def seen(dataset, batches, *, seed=3, epoch=1):
    found = torch.empty(len(dataset), 3, *dataset.preprocessing.size)
    training = TrainingEpoch(seed=seed, epoch=epoch)
    for index, (images, labels) in zip(batches, iterate(dataset, batches, device=CPU, training=training), strict=True):
        found[index] = images
        assert torch.equal(labels, dataset.labels[index])
    return found


def test_batches_order_and_memory_change_nothing(lazy, held):
    wanted = seen(lazy.with_augment("crop-flip"), in_order(COUNT, COUNT))
    for dataset in (lazy.with_augment("crop-flip"), held.with_augment("crop-flip")):
        for size in (1, 5):
            assert torch.equal(seen(dataset, in_order(COUNT, size)), wanted)
        shuffled = list(torch.randperm(COUNT, generator=torch.Generator().manual_seed(1)).split(5))
        torch.manual_seed(17)
        before = torch.get_rng_state()
        assert torch.equal(seen(pickle.loads(pickle.dumps(dataset)), shuffled), wanted)
        assert torch.equal(torch.get_rng_state(), before)
        processes = [shuffled[number][rank::2] for number in range(len(shuffled)) for rank in (0, 1)]
        assert torch.equal(seen(dataset, processes), wanted)


def test_every_epoch_and_seed_sees_something_else(held):
    dataset = held.with_augment("crop-flip")
    occasions = [(0, 0), (0, 1), (1, 0), (1, 1)]
    views = [seen(dataset, in_order(COUNT, 4), seed=seed, epoch=epoch) for seed, epoch in occasions]
    for number, one in enumerate(views):
        for other in views[:number]:
            assert sum(torch.equal(a, b) for a, b in zip(one, other, strict=True)) < COUNT / 2


def test_nothing_else_is_augmented(lazy, held):
    for dataset in (lazy, held):
        augmented, every = dataset.with_augment("crop-flip"), torch.arange(COUNT)
        assert (dataset.augment, augmented.augment) == ("none", "crop-flip")
        assert torch.equal(augmented.pixels(every), dataset.pixels(every))
        assert torch.equal(augmented[3][0], dataset[3][0])
        (images, _), *_ = iterate(augmented, in_order(COUNT, COUNT), device=CPU)
        assert torch.equal(images, dataset.preprocessing.normalise(dataset.pixels(every)))
        assert augmented.fingerprint() == dataset.fingerprint() == identity(augmented)
        again = augmented.with_augment("none")
        assert torch.equal(again.training_pixels(every, seed=0, epoch=0), dataset.pixels(every))
        assert torch.equal(dataset.training_pixels(every, seed=0, epoch=0), dataset.pixels(every))


def test_parts_and_unions_are_augmented_like_the_whole(held, root):
    dataset = held.with_augment("crop-flip")
    part = dataset.subset([4, 2])
    assert part.augment == dataset.joined(part).augment == "crop-flip"
    view = View.drawn(seed=0, epoch=0, index=1)
    expected = decode(root / held.paths[2], held.preprocessing, view=view)
    assert torch.equal(part.training_pixels(torch.tensor([1]), seed=0, epoch=0)[0], expected)


def test_folders_can_be_augmented(root):
    task = load_folder(root, plain())
    assert task.train.in_memory
    augmented = task.train.with_augment("crop-flip")
    every = torch.arange(len(augmented))
    assert not torch.equal(augmented.training_pixels(every, seed=0, epoch=0), augmented.pixels(every))


def test_images_without_files_are_cut_from_what_is_held(held):
    every = torch.arange(COUNT)
    only_pixels = ImageDataset(held.labels, held.preprocessing, pixels=held.pixels(every)).with_augment("crop-flip")
    found = only_pixels.training_pixels(every, seed=0, epoch=1)
    for index, pixels in enumerate(held.pixels(every)):
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        view = View.drawn(seed=0, epoch=1, index=index)
        assert torch.equal(found[index], decode(buffer.getvalue(), held.preprocessing, view=view))
    assert only_pixels.fingerprint() == only_pixels.with_augment("none").fingerprint()


def test_unknown_augmentations_are_refused(held):
    with pytest.raises(DataError, match=r"none, crop-flip, .*, not 'mixup'"):
        held.with_augment("mixup")


def test_a_file_that_has_gone_is_named(tmp_path):
    Image.fromarray(smooth(20, 20)).save(tmp_path / "a.png")
    pixels = torch.zeros(1, 3, 14, 14, dtype=torch.uint8)
    dataset = ImageDataset(torch.zeros(1), plain(), pixels=pixels, root=tmp_path, paths=["a.png"])
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png"):
        dataset.with_augment("crop-flip").training_pixels(torch.tensor([0]), seed=0, epoch=0)
