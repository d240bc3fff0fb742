import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vprompt.data.preprocessing import Preprocessing
from vprompt.data.tasks import load_folder, open_task
from vprompt.utils.errors import DataError

PLAIN = Preprocessing(size=(4, 4), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CLASSES = ("ant", "bee", "cat")


def add(root, folder, count, colour=(0, 0, 0), start=0):
    """Adds `count` images of one colour; the blue channel is the image's number."""
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        Image.new("RGB", (5, 5), (*colour[:2], i)).save(place / f"{i}.png")


@pytest.fixture
def unsplit(tmp_path):
    for number, name in enumerate(CLASSES):
        add(tmp_path, name, 25, (number, 0, 0))
    return tmp_path


@pytest.fixture
def split(tmp_path):
    for number, name in enumerate(CLASSES):
        add(tmp_path, f"train/{name}", 10, (number, 1, 0))
        add(tmp_path, f"val/{name}", 3, (number, 2, 0))
        add(tmp_path, f"test/{name}", 4, (number, 3, 0))
    return tmp_path


def colours(dataset):
    """The (red, green, blue) of every image, and its label."""
    first = dataset.pixels(torch.arange(len(dataset)))[:, :, 0, 0]
    return [(*row, label) for row, label in zip(first.tolist(), dataset.labels.tolist(), strict=True)]


def refused(root, **options):
    with pytest.raises(DataError) as raised:
        load_folder(root, PLAIN, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_given_splits_are_used_as_they_are(split):
    task = load_folder(split, PLAIN)
    assert task.classes == CLASSES
    for dataset, green, count in ((task.train, 1, 10), (task.val, 2, 3), (task.test, 3, 4)):
        assert colours(dataset) == [(c, green, i, c) for c in range(3) for i in range(count)]
        assert dataset.in_memory
    assert task.train.paths[:2] == ["train/ant/0.png", "train/ant/1.png"]
    assert (task.name, task.source, task.skipped) == (split.name, str(split), ())


@pytest.mark.parametrize("names", [("Train", "VALID", "Testing"), ("training", "Validation", "TEST")])
def test_other_names_of_splits(split, names):
    for old, new in zip(("train", "val", "test"), names, strict=True):
        (split / old).rename(split / new)
    task = load_folder(split, PLAIN)
    assert [len(task.train), len(task.val), len(task.test)] == [30, 9, 12]


def test_two_folders_for_one_split(split):
    add(split, "valid/ant", 1)
    message = refused(split)
    assert "both val and valid" in message


def test_unsplit_folder_is_cut_by_class(unsplit):
    task = load_folder(unsplit, PLAIN)
    for dataset in (task.train, task.val, task.test):
        assert set(dataset.labels.tolist()) == {0, 1, 2}
        assert all(red == label for red, _, _, label in colours(dataset))
    together = [path for dataset in (task.train, task.val, task.test) for path in dataset.paths]
    assert len(set(together)) == len(together) == 75


def test_cut_does_not_depend_on_the_file_system(unsplit, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for path in sorted(unsplit.rglob("*.png"), reverse=True):
        (copy / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, copy / path.parent.name / path.name)
    one, two = load_folder(unsplit, PLAIN), load_folder(copy, PLAIN)
    assert one.fingerprint() == two.fingerprint()
    assert one.train.paths == two.train.paths
    add(copy, "dog", 9)
    more = load_folder(copy, PLAIN)
    assert [path for path in more.test.paths if not path.startswith("dog")] == one.test.paths
    assert load_folder(unsplit, PLAIN, split_seed=1).fingerprint() != one.fingerprint()


def test_classes_of_one_image_stay_in_train(tmp_path):
    add(tmp_path, "ant", 1)
    add(tmp_path, "bee", 1)
    task = load_folder(tmp_path, PLAIN)
    assert task.train.labels.tolist() == [0, 1]
    assert task.val is None
    assert task.test is None


def test_val_is_cut_from_train_when_missing(split):
    shutil.rmtree(split / "val")
    task = load_folder(split, PLAIN)
    assert set(task.train.labels.tolist()) == set(task.val.labels.tolist()) == {0, 1, 2}
    assert len(task.train) + len(task.val) == 30
    assert len(task.val) < 12
    assert {green for _, green, _, _ in colours(task.val)} == {1}
    assert len(task.test) == 12


def test_no_test_beside_train_means_none(split):
    shutil.rmtree(split / "test")
    task = load_folder(split, PLAIN)
    assert task.test is None
    assert len(task.val) == 9


def test_labels_are_mapped_over_all_splits(split):
    shutil.rmtree(split / "val" / "ant")
    shutil.rmtree(split / "test" / "bee")
    task = load_folder(split, PLAIN)
    assert task.val.labels.tolist() == [1] * 3 + [2] * 3
    assert task.test.labels.tolist() == [0] * 4 + [2] * 4
    assert all(red == label for red, _, _, label in colours(task.val) + colours(task.test))


def test_splits_without_train(split):
    shutil.rmtree(split / "train")
    assert "has test and val but no train folder" in refused(split)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        add(tmp_path, name, 5)
    assert load_folder(tmp_path, PLAIN).classes == ("bus", "train")


def test_splits_without_class_folders_are_not_taken_for_classes(tmp_path):
    for name in ("train", "test"):
        add(tmp_path, name, 5)
    assert "has no class folder with images" in refused(tmp_path)


def test_folders_beside_the_splits_are_named(split):
    add(split, "extra", 2)
    assert load_folder(split, PLAIN).skipped == ("Folder extra beside the splits is not used.",)


def test_images_outside_classes_are_named(unsplit):
    add(unsplit, ".", 1)
    assert load_folder(unsplit, PLAIN).skipped == ("Image 0.png directly in the folder itself belongs to no class.",)


def test_unlabelled_test_images(split):
    shutil.rmtree(split / "test")
    add(split, "test", 3)
    assert "the test folder has no usable class" in refused(split)
    task = load_folder(split, PLAIN, skip_bad=True)
    assert task.test is None
    assert "3 images directly in test belong to no class." in task.skipped


def test_folders_inside_classes_count_and_other_files_do_not(unsplit):
    add(unsplit, "ant/deep/er", 2, start=100)
    add(unsplit, "ant/.hidden", 2)
    add(unsplit, ".cache", 2)
    add(unsplit, "__MACOSX", 2)
    (unsplit / "ant" / "notes.txt").write_text("no image")
    (unsplit / "ant" / "._0.png").write_bytes(b"resource fork")
    (unsplit / "README.md").write_text("no image")
    task = load_folder(unsplit, PLAIN)
    assert task.classes == CLASSES
    assert sum(map(len, (task.train, task.val, task.test))) == 77
    assert task.skipped == ()


def test_missing_root_file_root_and_empty_root(tmp_path):
    assert "does not exist" in refused(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no class folder with images" in refused(tmp_path / "empty")
    add(tmp_path, "flat", 3)
    assert "no class folder with images" in refused(tmp_path / "flat")


def test_one_class_is_too_few(tmp_path):
    add(tmp_path, "ant", 5)
    for skip_bad in (False, True):
        assert "only the class ant" in refused(tmp_path, skip_bad=skip_bad)


def test_classes_that_differ_by_case(tmp_path):
    for name in ("Ant", "ant"):
        add(tmp_path, name, 2)
    if len(os.listdir(tmp_path)) < 2:
        pytest.skip("this file system does not tell case apart")
    assert load_folder(tmp_path, PLAIN).classes == ("Ant", "ant")


@pytest.mark.parametrize("where", ["train", "val", "test"])
def test_empty_class_folder(split, where):
    shutil.rmtree(split / where / "bee")
    (split / where / "bee").mkdir()
    message = refused(split)
    assert f"class bee has no usable image in {where}" in message
    assert "--skip-bad" in message
    task = load_folder(split, PLAIN, skip_bad=True)
    assert task.skipped == (f"Class bee has no usable image in {where}.",)
    if where == "train":
        assert task.classes == ("ant", "cat")
        assert [len(task.train), len(task.val), len(task.test)] == [20, 6, 8]
        assert all(label == (red > 0) for red, _, _, label in colours(task.test))
    else:
        assert task.classes == CLASSES


@pytest.mark.parametrize("where", ["val", "test"])
def test_class_that_train_lacks(split, where):
    add(split, f"{where}/wolf", 2)
    assert f"class wolf is in {where} but not in train" in refused(split)
    task = load_folder(split, PLAIN, skip_bad=True)
    assert task.classes == CLASSES
    assert [len(task.val), len(task.test)] == [9, 12]
    assert task.skipped == (f"Class wolf is in {where} but not in train.",)


def test_bad_files_are_found_before_training_and_can_be_skipped(split):
    (split / "train/ant/3.png").write_bytes(b"")
    whole = (split / "val/cat/1.png").read_bytes()
    (split / "val/cat/1.png").write_bytes(whole[:40])
    (split / "test/bee/0.png").write_text("no image")
    message = refused(split)
    assert "file train/ant/3.png is empty (0 bytes) (and 2 more problems)" in message
    task = load_folder(split, PLAIN, skip_bad=True)
    assert [len(task.train), len(task.val), len(task.test)] == [29, 8, 11]
    assert len(task.skipped) == 3
    for name in ("train/ant/3.png", "val/cat/1.png", "test/bee/0.png"):
        assert sum(name in sentence for sentence in task.skipped) == 1
        assert name not in [*task.train.paths, *task.val.paths, *task.test.paths]
    assert colours(task.train)[:4] == [(0, 1, i, 0) for i in (0, 1, 2, 4)]


def test_one_problem_is_not_called_more(split):
    (split / "train/ant/3.png").write_bytes(b"")
    assert "more problem" not in refused(split)
    (split / "train/ant/4.png").write_bytes(b"")
    assert "(and 1 more problem)" in refused(split)


def test_class_with_only_bad_files_is_dropped(unsplit):
    for path in (unsplit / "bee").iterdir():
        path.write_bytes(b"broken")
    task = load_folder(unsplit, PLAIN, skip_bad=True)
    assert task.classes == ("ant", "cat")
    assert len(task.skipped) == 26
    assert task.skipped[-1] == "Class bee has no usable image."
    assert all(label == (red > 0) for red, _, _, label in colours(task.test))


def test_split_of_only_bad_files_counts_as_missing(split):
    for path in (split / "val").rglob("*.png"):
        path.write_bytes(b"broken")
    task = load_folder(split, PLAIN, skip_bad=True)
    assert (len(task.train) + len(task.val), len(task.test)) == (30, 12)
    assert set(task.val.labels.tolist()) == {0, 1, 2}


def test_nothing_good_left(unsplit):
    for path in unsplit.rglob("*.png"):
        path.write_bytes(b"broken")
    assert "no class with usable images" in refused(unsplit, skip_bad=True)


def test_lazy_and_held_are_the_same(unsplit):
    needed = 75 * 3 * 4 * 4
    held = load_folder(unsplit, PLAIN, memory_limit=needed)
    lazy = load_folder(unsplit, PLAIN, memory_limit=needed - 1)
    assert held.train.in_memory
    assert not lazy.train.in_memory
    for one, two in ((held.train, lazy.train), (held.val, lazy.val), (held.test, lazy.test)):
        assert colours(one) == colours(two)
        assert torch.equal(one[3][0], two[3][0])
        assert one.paths == two.paths


def test_lazy_folders_are_checked_too(unsplit):
    (unsplit / "bee" / "7.png").write_bytes(b"broken")
    assert "bee/7.png" in refused(unsplit, memory_limit=0)
    assert load_folder(unsplit, PLAIN, memory_limit=0, skip_bad=True).skipped[0].startswith("File bee/7.png")


def test_progress_counts_every_image(unsplit):
    seen = []
    load_folder(unsplit, PLAIN, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 75) for i in range(1, 76)]


def test_links(unsplit, tmp_path_factory):
    pool = tmp_path_factory.mktemp("pool")
    add(pool, "fox", 6, (3, 0, 0))
    (unsplit / "fox").symlink_to(pool / "fox")
    (unsplit / "ant" / "up").symlink_to(unsplit)
    (unsplit / "ant" / "self").symlink_to(unsplit / "ant")
    (unsplit / "bee" / "linked.png").symlink_to(pool / "fox" / "0.png")
    (unsplit / "cat" / "ring").symlink_to(unsplit / "cat" / "ring")
    task = load_folder(unsplit, PLAIN)
    assert task.classes == (*CLASSES, "fox")
    labels = torch.cat([task.train.labels, task.val.labels, task.test.labels])
    assert torch.bincount(labels).tolist() == [25, 26, 25, 6]


def test_dangling_link_is_a_bad_file(unsplit):
    (unsplit / "ant" / "gone.jpg").symlink_to(unsplit / "nothing")
    assert "file ant/gone.jpg does not exist" in refused(unsplit)


def test_unusual_names(tmp_path):
    add(tmp_path, "\u732b caf\u00e9", 3)
    raw = os.fsdecode(b"b\xffd")
    try:
        add(tmp_path, raw, 3)
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    task = load_folder(tmp_path, PLAIN)
    assert task.classes == ("b\\udcffd", "\u732b caf\u00e9")
    assert "\0".join((*task.classes, task.fingerprint())).encode()
    assert len(load_folder(tmp_path, PLAIN, memory_limit=0).fingerprint()) == 16
    (tmp_path / raw / "0.png").write_bytes(b"")
    assert refused(tmp_path).encode()


def test_real_resizing_runs_the_file_path(tmp_path):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "x.jpg", quality=95)
    pixels = load_folder(tmp_path, PLAIN).train.pixels(torch.tensor([0]))[0]
    assert pixels[:, :, 0].max() < 10
    assert pixels[:, :, -1].min() > 245


def test_open_task_reads_folders(unsplit):
    task = open_task(str(unsplit), PLAIN, split_seed=4)
    assert task.fingerprint() == load_folder(unsplit, PLAIN, split_seed=4).fingerprint()
