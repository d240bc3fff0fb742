import os
import shutil
from dataclasses import replace

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


def noise(root, layout):
    """Writes images of noise, no two of them equal: folder -> number."""
    random = np.random.default_rng(0)
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(root / folder / f"{number:02}.png")
    return root


def sizes(task):
    return [None if part is None else len(part) for part in (task.train, task.val, task.test)]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("training_set", "test_set"), ("train2017", "test2017"), ("seg_train/seg_train", "seg_test/seg_test")),
        *(("Training Data", "Test Data"), ("TrainingSet", "TestSet"), ("trainset", "testdata"), ("trainval", "test")),
        *(("birds_train", "birds_test"), ("train/images", "test/images"), ("data/train", "data/test")),
        *(("x/y/Train", "x/y/TEST"), ("train-images", "test-images"), ("01_train", "02_test"), ("TRAIN DATA", "tst")),
    ],
)
def test_splits_by_many_names(tmp_path, train, test):
    layout = {f"{train}/ant": 12, f"{train}/bee": 12, f"{test}/ant": 4, f"{test}/bee": 5}
    task = load_folder(noise(tmp_path, layout), PLAIN)
    assert task.classes == ("ant", "bee")
    assert (len(task.train) + len(task.val), len(task.test)) == (24, 9)
    assert task.test.labels.tolist() == [0] * 4 + [1] * 5
    if train.lower() not in ("train", "trainval"):
        assert any(test.split("/")[0] in note for note in task.summary.notes) or train.startswith(("train/", "x/"))


@pytest.mark.parametrize("names", [("train", "test"), ("Training Set", "Test Set"), ("train", "val", "test")])
def test_splits_inside_the_classes(tmp_path, names):
    layout = {f"{label}/{name}": 5 + row for label in ("ant", "bee") for row, name in enumerate(names)}
    task = load_folder(noise(tmp_path, layout), PLAIN)
    assert task.classes == ("ant", "bee")
    assert len(task.test) == 2 * (4 + len(names))
    assert any(names[-1] in note and "splits" in note for note in task.summary.notes)
    noise(tmp_path, {f"lynx/{names[0]}": 3})
    assert load_folder(tmp_path, PLAIN).classes == ("ant", "bee", "lynx")
    noise(tmp_path, {"cat": 5})
    assert "cat has not" in refused(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        *(("images", "masks"), ("img", "label"), ("JPEGImages", "SegmentationClass"), ("train/images", "train/masks")),
        *(
            ("images/train", "masks/train"),
            ("Photos", "Ground Truth gt"),
            ("train2017", "val2017"),
            ("inputs", "targets"),
        ),
        ("training_set", "test_set"),
    ],
)
def test_what_is_never_a_pair_of_classes(tmp_path, names):
    message = refused(noise(tmp_path, dict.fromkeys(names, 6)))
    assert any(words in message for words in ("not two classes", "no class folder", "too many to be classes"))


@pytest.mark.parametrize(
    "names", [("train station", "test tube"), ("steam train", "bus"), ("dev board", "val d'isere"), ("mask", "helmet")]
)
def test_classes_whose_names_have_such_words(tmp_path, names):
    task = load_folder(noise(tmp_path, dict.fromkeys(names, 6)), PLAIN)
    assert sorted(task.classes) == sorted(names)


def test_folders_that_all_classes_have_are_said(tmp_path):
    layout = {f"{outer}/{inner}": 4 for outer in ("fold1", "fold2") for inner in ("ant", "bee")}
    task = load_folder(noise(tmp_path, layout), PLAIN)
    assert task.classes == ("fold1", "fold2")
    assert "The classes are fold1 and fold2; the folders ant and bee" in " ".join(task.summary.notes)


def test_what_is_not_the_users_is_no_data(unsplit):
    clean = load_folder(unsplit, PLAIN)
    names = ["$RECYCLE.BIN/S-1-5-21", "#recycle/bee", "@Recycle", "System Volume Information", "lost+found", "mine"]
    noise(
        unsplit, dict.fromkeys(["ant/@eaDir/0.png", "__MACOSX/ant", "bee/.thumbnails", *names], 2) | {"runs/ant-vpt": 0}
    )
    (unsplit / "runs" / "ant-vpt" / "adapter_config.json").write_text("{}")
    (unsplit / "mine" / ".run").mkdir()
    (unsplit / "bee" / "._3.png").write_bytes(b"resource fork")
    for name in ("ant/IMG_1.HEIC", "ant/IMG_2.heic", "bee/a.txt", "train.json", "val.json"):
        (unsplit / name).write_text("[]")
    task = load_folder(unsplit, PLAIN)
    assert task.fingerprint() == clean.fingerprint()
    assert task.skipped == ()
    passed = task.summary.passed_over
    assert passed[".heic"] == ["ant/IMG_1.HEIC", "ant/IMG_2.heic"]
    assert passed["output of vprompt"] == ["mine", "runs"]
    assert {*passed["made by a system"]} >= {"ant/@eaDir", "$RECYCLE.BIN", "__MACOSX"}
    assert passed["hidden"] == ["bee/._3.png", "bee/.thumbnails"]
    assert {reason: len(names) for reason, names in passed.items() if reason.startswith(".")} == {
        ".heic": 2,
        ".json": 2,
        ".txt": 1,
    }


def test_a_folder_of_heic_alone(tmp_path):
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    assert "1 .heic file (convert them to JPEG)" in refused(tmp_path)


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("train", "val", "word"),
    [
        ("\u00e9l\u00e9phant", "e\u0301le\u0301phant", "Unicode form"),
        ("e\u0301le\u0301phant", "\u00e9l\u00e9phant", "Unicode form"),
        *(
            ("cat", "cat ", "blanks"),
            (" cat", "cat", "blanks"),
            ("big  cat", "big cat", "blanks"),
            ("cat", "Cat", "case"),
        ),
    ],
)
def test_names_that_look_alike_are_one_class(tmp_path, train, val, word):
    noise(tmp_path, {f"train/{train}": 8, "train/zebra": 8, f"val/{val}": 3, "val/zebra": 4})
    if len(os.listdir(tmp_path / "train")) < 2:
        pytest.skip("this file system does not tell them apart")
    task = load_folder(tmp_path, PLAIN)
    assert sorted(task.classes)[0] in ("\u00e9l\u00e9phant", "cat", "big cat", "zebra")
    assert sorted(task.val.labels.bincount().tolist()) == [3, 4]
    assert any(word in note for note in task.summary.notes)


def test_names_in_one_split(tmp_path):
    noise(tmp_path, {"Cat": 6, "cat": 6, "dog": 3, "dog ": 3})
    if len(os.listdir(tmp_path)) < 4:
        pytest.skip("this file system does not tell case apart")
    task = load_folder(tmp_path, PLAIN)
    assert task.classes == ("Cat", "cat", "dog")
    assert sum(counts["dog"] for counts in task.summary.per_split.values()) == 6
    assert any("Cat and cat differ in case only" in note for note in task.summary.notes)


def test_a_decomposed_folder_is_the_same_data(tmp_path):
    for name, label in (("nfc", "\u00e9l\u00e9phant"), ("nfd", "e\u0301le\u0301phant")):
        noise(
            tmp_path / name, {f"train/{label}": 6, "train/elk": 6, "train/zebra": 6, f"val/{label}": 3, "val/zebra": 3}
        )
    for limit in (0, 10**6):
        one, other = (load_folder(tmp_path / name, PLAIN, memory_limit=limit) for name in ("nfc", "nfd"))
        assert one.fingerprint() == other.fingerprint()
        assert other.summary.notes == one.summary.notes


# ── what a figure is worth ───────────────────────────────────────────────────────────────────────────────────────────


def test_counts_and_doubts_are_said(tmp_path):
    task = load_folder(noise(tmp_path, {"ant": 90, "bee": 20, "cat": 1}), PLAIN)
    counts = task.summary.per_split
    assert list(counts) == ["train", "val", "test"]
    assert [sum(part[name] for part in counts.values()) for name in task.classes] == [90, 20, 1]
    assert [sum(part.values()) for part in counts.values()] == sizes(task)
    notes = " ".join(task.summary.notes)
    assert "Of class cat there is no image in val and test: accuracy there says nothing of it" in notes
    assert "fewer than 5 images to learn from: cat (1)." in notes
    assert "The classes are uneven" in notes
    even = load_folder(noise(tmp_path / "even", {"ant": 40, "bee": 40}), PLAIN)
    assert even.summary.notes == ()


def test_copies_stay_together(tmp_path):
    random = np.random.default_rng(0)
    for number in range(40):
        place = tmp_path / ("ant", "bee")[number % 2] / f"{number:02}.png"
        place.parent.mkdir(exist_ok=True)
        blobs = Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8))
        blobs.resize((60, 60), Image.Resampling.BICUBIC).save(place)
    for path in sorted(tmp_path.glob("*/*.png")):
        shutil.copy(path, path.with_name(f"{path.stem} (1).png"))
        with Image.open(path) as image:
            image.resize((45, 45)).save(path.with_name(f"{path.stem} small.jpg"), quality=60)
    task = load_folder(tmp_path, replace(PLAIN, size=(32, 32)))
    originals = [{path[:6] for path in part.paths} for part in (task.train, task.val, task.test)]
    assert [3 * len(part) for part in originals] == sizes(task)
    assert sum(map(len, originals)) == 40
    assert "120 images are copies or near copies of others" in " ".join(task.summary.notes)


def test_copies_between_given_splits_are_said(split):
    noise(split, {"train/ant": 5, "test/ant": 2})
    shutil.copy(split / "train/ant/03.png", split / "test/ant/copy.png")
    task = load_folder(split, PLAIN)
    (note,) = task.summary.notes
    assert "1 of the 15 images of test are copies or near copies of images of train" in note
    assert "test/ant/copy.png and train/ant/03.png" in note
    shutil.rmtree(split / "val")
    shutil.copytree(split / "train", split / "val")
    assert any(note.startswith("All 35 images of val") for note in load_folder(split, PLAIN).summary.notes)


def test_one_file_in_two_classes(unsplit):
    shutil.copy(unsplit / "ant" / "3.png", unsplit / "bee" / "x.png")
    notes = load_folder(unsplit, PLAIN).summary.notes
    assert any("1 file is in two classes" in note and "bee/x.png" in note for note in notes)


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


def add_deep(root, folder, values):
    """Adds an image of 16 bits for each (H, W) of values."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(values):
        Image.fromarray(image.astype(np.uint16)).save(root / folder / f"{number}.tif")


@pytest.mark.parametrize(("most", "white"), [(4000, 4095), (900, 1023), (200, 255), (20_000, 32_767), (40_000, 65_535)])
def test_white_of_deep_images_is_that_of_all_of_them(tmp_path, most, white):
    """Of each alone, a dark image would come out as bright as a bright one."""
    dark, bright = np.full((5, 4, 4), most // 4), np.full((5, 4, 4), most)
    add_deep(tmp_path, "dark", dark)
    add_deep(tmp_path, "bright", bright)
    task = load_folder(tmp_path, PLAIN)
    assert task.preprocessing.white == white
    assert task.train.preprocessing == task.preprocessing
    pixels = task.train.pixels(torch.arange(len(task.train))).flatten(1).float().mean(1)
    for name, value in (("dark", most // 4), ("bright", most)):
        seen = pixels[task.train.labels == task.classes.index(name)]
        assert (seen == int(value * 255 / white + 0.5)).all()
    notes = [note for note in task.summary.notes if "16 bits" in note]
    assert len(notes) == (white != 65_535)
    assert all(str(white) in note for note in notes)


def test_white_that_is_given_is_not_looked_for(tmp_path):
    add_deep(tmp_path, "dark", np.full((5, 4, 4), 100))
    add_deep(tmp_path, "bright", np.full((5, 4, 4), 900))
    task = load_folder(tmp_path, replace(PLAIN, white=4095))
    assert task.preprocessing.white == 4095
    assert not any("16 bits" in note for note in task.summary.notes)
