"""A kind of data set that vprompt does not know: one class, registered, opens like all others."""

import io
import zipfile
from dataclasses import replace

import pytest
import torch
from PIL import Image

from vprompt.data import load_labelled, open_task
from vprompt.data.listing import UNSPLIT, Item, Listing
from vprompt.data.pipeline import load
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.sources.base import SOURCES
from vprompt.data.tasks import find_listing
from vprompt.experiments.bench.tasks import split_sizes, why_missing
from vprompt.utils.errors import DataError

PLAIN = Preprocessing(size=(4, 4), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class ZipFiles:
    """Images in an archive, by their names in it."""

    def __init__(self, path):
        self.path = path

    def read(self, name):
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name)

    def size(self, name):
        with zipfile.ZipFile(self.path) as archive:
            return archive.getinfo(name).file_size


class Zip:
    """`zip:PATH`, an archive of CLASS/NAME."""

    name = "zip"

    def find(self, query):
        spec = query.spec
        if not spec.startswith("zip:"):
            return None
        path = spec.removeprefix("zip:")
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except OSError as error:
            raise DataError(f"The archive {path} cannot be read.") from error
        items = [Item(name, name.split("/")[0]) for name in names]
        return Listing(name="photos", source=spec, where=path, splits={UNSPLIT: items}, files=ZipFiles(path))


@pytest.fixture
def spec(tmp_path):
    SOURCES.register(Zip())
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for number in range(50):
            buffer = io.BytesIO()
            Image.new("RGB", (5, 5), (number % 2, 0, number)).save(buffer, "PNG")
            archive.writestr(f"{('ant', 'bee')[number % 2]}/{number}.png", buffer.getvalue())
    yield f"zip:{tmp_path / 'photos.zip'}"
    del SOURCES._members["zip"]


def colours(dataset):
    first = dataset.pixels(torch.arange(len(dataset)))[:, 0, 0, 0]
    return list(zip(first.tolist(), dataset.labels.tolist(), strict=True))


def test_it_is_cut_and_labelled_like_a_folder(spec):
    task = open_task(spec, PLAIN)
    assert task.classes == ("ant", "bee")
    assert sum(map(len, (task.train, task.val, task.test))) == 50
    for part in (task.train, task.val, task.test):
        assert all(red == label for red, label in colours(part))
    images, split, skipped = load_labelled(spec, PLAIN, ("bee", "ant"))
    assert (split, skipped) == ("test", ())
    assert images.paths == task.test.paths
    assert images.labels.tolist() == [1 - label for label in task.test.labels.tolist()]


def test_what_does_not_fit_is_read_again(spec):
    held = open_task(spec, PLAIN)
    lazy = load(find_listing(spec), PLAIN, memory_limit=0)
    assert (held.train.in_memory, lazy.train.in_memory) == (True, False)
    assert colours(lazy.train) == colours(held.train)
    assert len(lazy.fingerprint()) == 16
    assert len(lazy.train.with_augment("crop-flip").training_pixels(torch.arange(3), seed=0, epoch=1)) == 3


def test_bad_images_are_named_and_can_be_skipped(spec):
    with zipfile.ZipFile(spec.removeprefix("zip:"), "a") as archive:
        archive.writestr("ant/51.png", b"no image")
    with pytest.raises(DataError, match=r"photos\.zip, file ant/51\.png is not an image.*--skip-bad"):
        open_task(spec, PLAIN)
    task = open_task(spec, PLAIN, skip_bad=True)
    assert len(task.skipped) == 1
    assert sum(map(len, (task.train, task.val, task.test))) == 50


def test_it_may_define_the_classes(spec):
    task = load(replace(find_listing(spec), classes=("cat", "bee", "ant")), PLAIN)
    assert task.classes == ("cat", "bee", "ant")
    assert [len(part) for part in (task.train, task.val, task.test)] == [33, 8, 9]
    assert all(label == 2 - red for red, label in colours(task.train))


def test_images_to_test_on_alone_are_no_task(spec):
    listing = find_listing(spec)
    alone = replace(listing, splits={"test": listing.splits[UNSPLIT]})
    with pytest.raises(DataError, match="class ant is in test but not in train"):
        load(alone, PLAIN)
    with pytest.raises(DataError, match="no class with usable images to learn from"):
        load(alone, PLAIN, skip_bad=True)


def test_a_plan_knows_it(spec):
    assert why_missing(spec, None) is None
    assert split_sizes(spec, None) == (32, 8, 10)
    assert "cannot be read" in why_missing(f"{spec}.gone", None)


def test_every_source_is_a_file():
    assert {"benchmark", "bundled", "hub", "synthetic", "table"} <= set(SOURCES.names())
    assert find_listing("synthetic:counting").classes[0] == "3 objects"
