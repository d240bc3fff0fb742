"""Labelled images for a model that knows its classes: the splits that training made, and labels by name."""

import pytest
import torch
from PIL import Image

from vprompt.data.preprocessing import Preprocessing
from vprompt.data.tasks import load_bundled, load_folder, load_labelled
from vprompt.utils.errors import DataError

PLAIN = Preprocessing(size=(4, 4), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLASSES = ("ant", "bee", "cat")


def add(folder, count, colour, start=0):
    """Images of one colour; the blue channel is the image's number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        Image.new("RGB", (5, 5), (*colour, number)).save(folder / f"{number:02}.png")


@pytest.fixture
def unsplit(tmp_path):
    for red, name in enumerate(CLASSES):
        add(tmp_path / "all" / name, 25, (red, 0))
    return tmp_path / "all"


@pytest.fixture
def split(tmp_path):
    for red, name in enumerate(CLASSES):
        add(tmp_path / "split" / "train" / name, 10, (red, 1))
        add(tmp_path / "split" / "val" / name, 3, (red, 2))
        add(tmp_path / "split" / "test" / name, 4, (red, 3))
    return tmp_path / "split"


def colours(dataset):
    """(red, green, blue, label) of every image."""
    first = dataset.pixels(torch.arange(len(dataset)))[:, :, 0, 0]
    return sorted((*row, label) for row, label in zip(first.tolist(), dataset.labels.tolist(), strict=True))


def refused(root, classes=CLASSES, **options):
    with pytest.raises(DataError) as raised:
        load_labelled(root, PLAIN, classes, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("name", ["train", "val", "test"])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_split_is_the_one_that_training_cut(unsplit, name, seed):
    images, split, skipped = load_labelled(unsplit, PLAIN, CLASSES, split=name, split_seed=seed)
    wanted = getattr(load_folder(unsplit, PLAIN, split_seed=seed), name)
    assert colours(images) == colours(wanted)
    assert (split, skipped) == (name, ())


def test_another_seed_cuts_another_test_split(unsplit):
    a, b = (load_labelled(unsplit, PLAIN, CLASSES, split_seed=seed)[0] for seed in (0, 1))
    assert set(a.labels.tolist()) == set(b.labels.tolist()) == {0, 1, 2}
    assert colours(a) != colours(b)


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_given_splits_are_used_as_they_are(split, name):
    images, _, _ = load_labelled(split, PLAIN, CLASSES, split=name)
    green, count = {"train": (1, 10), "val": (2, 3), "test": (3, 4)}[name]
    assert colours(images) == [(red, green, number, red) for red in range(3) for number in range(count)]


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        (("train", "val", "test"), "test"),
        (("train", "val"), "val"),
        (("val",), "val"),
        (("test",), "test"),
        (("val", "test"), "test"),
        (("train",), "val"),  # cut from train, as training cuts it
    ],
)
def test_auto_takes_test_or_else_val(tmp_path, folders, wanted):
    for folder in folders:
        for red, name in enumerate(CLASSES):
            add(tmp_path / folder / name, 10, (red, 9))
    images, split, _ = load_labelled(tmp_path, PLAIN, CLASSES)
    assert split == wanted
    assert colours(images) == colours(load_folder(tmp_path, PLAIN).val) if folders == ("train",) else len(images) == 30


def test_auto_takes_the_test_split_of_an_unsplit_folder(unsplit):
    images, split, _ = load_labelled(unsplit, PLAIN, CLASSES)
    assert split == "test"
    assert colours(images) == colours(load_folder(unsplit, PLAIN).test)


def test_auto_takes_what_there_is_where_too_few_images_are_there_to_cut(tmp_path):
    for red, name in enumerate(CLASSES):
        add(tmp_path / name, 1, (red, 0))
    images, split, _ = load_labelled(tmp_path, PLAIN, CLASSES)
    assert split == "train"
    assert colours(images) == [(red, 0, 0, red) for red in range(3)]


def test_all_takes_every_image_once(split, unsplit):
    images, name, _ = load_labelled(split, PLAIN, CLASSES, split="all")
    assert (len(images), name) == (3 * (10 + 3 + 4), "all")
    assert len(set(colours(images))) == len(images)
    assert len(load_labelled(unsplit, PLAIN, CLASSES, split="all")[0]) == 75


def test_labels_follow_the_names_and_not_the_alphabet(unsplit):
    images, _, _ = load_labelled(unsplit, PLAIN, ("cat", "ant", "bee"), split="all")
    assert {(red, label) for red, _, _, label in colours(images)} == {(0, 1), (1, 2), (2, 0)}


def test_classes_may_be_missing(tmp_path):
    add(tmp_path / "test" / "cat", 3, (2, 0))
    images, split, skipped = load_labelled(tmp_path, PLAIN, CLASSES)
    assert (split, skipped) == ("test", ())
    assert images.labels.tolist() == [2, 2, 2]


def test_an_unknown_class_is_refused_or_skipped(split):
    add(split / "test" / "dog", 2, (7, 7))
    message = refused(split)
    assert "class dog is not known" in message
    assert "skip" in message
    images, _, skipped = load_labelled(split, PLAIN, CLASSES, skip_bad=True)
    assert len(images) == 12
    assert skipped == ("Class dog is not known to the adapter.",)
    assert len(load_labelled(split, PLAIN, CLASSES, split="val")[0]) == 9  # it is in no way of the other splits


def test_two_unknown_classes_are_counted(split):
    for name in ("dog", "eel"):
        add(split / "test" / name, 1, (7, 7))
    assert "1 more problem" in refused(split)


def test_nothing_but_unknown_classes(tmp_path):
    add(tmp_path / "test" / "dog", 2, (7, 7))
    assert "no images of known classes" in refused(tmp_path, skip_bad=True)


def test_a_damaged_image_is_refused_or_skipped(split):
    (split / "test" / "ant" / "01.png").write_bytes(b"nothing")
    assert "test/ant/01.png" in refused(split)
    images, _, skipped = load_labelled(split, PLAIN, CLASSES, skip_bad=True)
    assert colours(images) == [(r, 3, n, r) for r in range(3) for n in range(4) if (r, n) != (0, 1)]
    assert len(skipped) == 1
    assert "test/ant/01.png" in skipped[0]


def test_a_damaged_image_in_another_split_does_not_matter(split):
    (split / "train" / "ant" / "01.png").write_bytes(b"nothing")
    assert len(load_labelled(split, PLAIN, CLASSES)[0]) == 12


def test_only_damaged_images(tmp_path):
    (tmp_path / "test" / "ant").mkdir(parents=True)
    (tmp_path / "test" / "ant" / "1.png").write_bytes(b"nothing")
    assert "no usable image" in refused(tmp_path, skip_bad=True)


@pytest.mark.parametrize("broken", [["ant/03.png"], ["ant/03.png", "bee/11.png", "bee/12.png"], ["cat/24.png"]])
def test_skipped_files_leave_the_splits_that_training_cut(unsplit, broken):
    """Else images that were learned from would be counted as test images."""
    for path in broken:
        (unsplit / path).write_bytes(b"nothing")
    task = load_folder(unsplit, PLAIN, skip_bad=True)
    for name in ("train", "val", "test"):
        images, _, _ = load_labelled(unsplit, PLAIN, CLASSES, split=name, skip_bad=True)
        assert colours(images) == colours(getattr(task, name)), name


def test_skipped_files_leave_the_val_split_that_was_cut_from_train(tmp_path):
    for red, name in enumerate(CLASSES):
        add(tmp_path / "train" / name, 13, (red, 0))
    (tmp_path / "train" / "ant" / "04.png").write_bytes(b"nothing")
    task = load_folder(tmp_path, PLAIN, skip_bad=True)
    images, name, _ = load_labelled(tmp_path, PLAIN, CLASSES, skip_bad=True)
    assert name == "val"
    assert colours(images) == colours(task.val)


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_split_that_is_not_there_is_named(tmp_path, name):
    add(tmp_path / "val" / "ant", 2, (0, 0))
    assert f"{name!r}" in refused(tmp_path, split=name)


def test_a_folder_that_is_none(tmp_path):
    assert "does not exist" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(tmp_path / "empty")


def test_progress_is_told_of_every_image(split):
    told = []
    load_labelled(split, PLAIN, CLASSES, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 12) for n in range(1, 13)]


# ── the bundled task ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bundled():
    return load_bundled(PLAIN)


@pytest.mark.parametrize("spec", [None, "bundled:fashion-mnist"])
@pytest.mark.parametrize(("choice", "wanted"), [("auto", "test"), ("train", "train"), ("val", "val"), ("test", "test")])
def test_the_bundled_task_has_all_splits(bundled, spec, choice, wanted):
    images, name, skipped = load_labelled(spec, PLAIN, bundled.classes, split=choice)
    assert (name, skipped) == (wanted, ())
    assert images.fingerprint() == getattr(bundled, wanted).fingerprint()


def test_all_of_the_bundled_task_is_every_image(bundled):
    images, name, _ = load_labelled(None, PLAIN, bundled.classes, split="all")
    assert (len(images), name) == (3000, "all")


def test_the_bundled_task_is_not_for_other_classes(bundled):
    assert "bundled task" in refused(None)
    assert "bundled task" in refused(None, classes=bundled.classes[::-1])
