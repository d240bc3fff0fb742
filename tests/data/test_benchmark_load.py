"""Tasks by name: found below a root, decoded once, with the labels of the lists, and with what differs."""

import json

import pytest
import torch

import vprompt.data.images
from benchmark_folders import PLAIN, SIZES, VTAB, colours, fgvc, read_list, vtab, write_image, write_lines
from vprompt.data.tasks import load_folder, load_labelled, open_task
from vprompt.utils.errors import DataError


def refused(spec, **options):
    with pytest.raises(DataError) as raised:
        open_task(spec, PLAIN, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def parts(task):
    return {"train": task.train, "val": task.val, "test": task.test}


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        ("vtab:cifar", "cifar"),
        ("vtab:cifar", "vtab-1k/cifar"),
        ("VTAB:cifar-100", "VTAB/Cifar"),
        ("vtab:mine", "vtab/mine"),
        ("vtab:My task", "My task"),
        ("vtab:oxford_iiit_pet", "vtab_1k/oxford-iiit-pet"),
    ],
)
def test_vtab_tasks_below_a_root(tmp_path, monkeypatch, spec, place):
    vtab(tmp_path / place)
    task = open_task(spec, PLAIN, root=tmp_path)
    assert task.source == spec
    for split, dataset in parts(task).items():
        assert colours(dataset) == [(i % 3, i % 3) for i in range(SIZES[split])]
        assert dataset.paths == [path for path, _ in read_list(tmp_path / place, split)]
        assert dataset.in_memory
    monkeypatch.setenv("VPROMPT_DATA", str(tmp_path))
    assert open_task(spec, PLAIN).fingerprint() == task.fingerprint()
    monkeypatch.delenv("VPROMPT_DATA")
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "data").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path / "cwd")
    assert open_task(spec, PLAIN).fingerprint() == task.fingerprint()


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        ("fgvc:cub", "CUB_200_2011"),
        ("fgvc:nabirds", "fgvc/NABirds"),
        ("fgvc:flowers", "FGVC/OxfordFlower"),
        ("fgvc:dogs", "Stanford_dogs"),
        ("fgvc:cars", "fgvc/stanford-cars"),
        ("fgvc:cars", "cars"),
        ("fgvc:mine", "mine"),
    ],
)
@pytest.mark.parametrize("below", ["", "images"])
def test_fgvc_tasks_below_a_root(tmp_path, spec, place, below):
    fgvc(tmp_path / place, below=below)
    task = open_task(spec, PLAIN, root=tmp_path)
    assert (task.source, task.classes) == (spec, ("3", "10", "20"))
    for split, dataset in parts(task).items():
        # JPEG may move a colour a little, but not to another class's.
        assert [label for _, label in colours(dataset)] == [i % 3 for i in range(SIZES[split])]


def test_a_folder_with_lists_goes_before_one_without(tmp_path):
    (tmp_path / "cifar").mkdir()
    vtab(tmp_path / "vtab-1k" / "cifar")
    assert len(open_task("vtab:cifar", PLAIN, root=tmp_path).train) == 9
    write_image(tmp_path / "dtd" / "images" / "a.png")
    assert "train800.txt is missing" in refused("vtab:dtd", root=tmp_path)


@pytest.mark.parametrize("make", [vtab, fgvc])
def test_a_plain_path_with_lists_is_read_by_them(tmp_path, make):
    folder = make(tmp_path / "cifar")
    write_image(folder / "train" / "cat" / "0.png")  # folders beside the lists have no say
    by_path, by_folder = open_task(str(folder), PLAIN), load_folder(folder, PLAIN)
    assert by_path.fingerprint() == by_folder.fingerprint()
    assert len(by_path.classes) == 3
    assert by_path.source == by_folder.source == str(folder)
    assert by_path.name == "cifar"
    assert by_path.differences == ()


def test_differences_from_the_benchmark_are_told(tmp_path):
    vtab(tmp_path / "cifar")
    task = open_task("vtab:cifar", PLAIN, root=tmp_path)
    assert len(task.classes) == 100
    assert task.differences[:3] == tuple(
        f"{VTAB[split]} lists {SIZES[split]} images; VTAB-1k has {count}."
        for split, count in (("train", 800), ("val", 200), ("test", 10000))
    )
    assert task.skipped == ()


def test_classes_may_be_missing_from_training(tmp_path):
    folder = vtab(tmp_path / "mine")
    write_lines(folder / "train800.txt", [(path, int(label) % 2) for path, label in read_list(folder, "train")])
    task = open_task(str(folder), PLAIN)
    assert len(task.classes) == 3
    assert set(task.train.labels.tolist()) == {0, 1}
    assert set(task.test.labels.tolist()) == {0, 1, 2}
    write_lines(folder / "train800.txt", [(path, 1) for path, _ in read_list(folder, "train")])
    assert "only the class 1" in refused(str(folder))


def test_nothing_to_find(tmp_path):
    message = refused("vtab:dtd", root=tmp_path / "nowhere")
    assert all(word in message for word in ("vtab:dtd", "nowhere/vtab-1k", "--root", "VPROMPT_DATA", "vgg/data/dtd"))
    assert "vtab:cifar" in refused("vtab:cifarr", root=tmp_path)
    (tmp_path / "file").write_text("")
    assert "not found" in refused("fgvc:cub", root=tmp_path / "file")


def test_a_name_is_no_path(tmp_path):
    vtab(tmp_path / "outside")
    (tmp_path / "root").mkdir()
    for name in ("../outside", "/outside", str(tmp_path / "outside"), "..", "", " "):
        refused(f"vtab:{name}", root=tmp_path / "root")
    vtab(tmp_path / "root" / "outside")
    assert "no folder" in refused("vtab:../outside", root=tmp_path / "root")


def test_a_leak_is_refused_also_with_skip_bad(tmp_path):
    folder = vtab(tmp_path / "cifar")
    leaked = read_list(folder, "train")[:2]
    write_lines(folder / "test.txt", read_list(folder, "test") + leaked)
    for skip_bad in (False, True):
        message = refused("vtab:cifar", root=tmp_path, skip_bad=skip_bad)
        assert f"{leaked[0][0]} is both in train800.txt and in test.txt" in message
        assert "(1 more: vprompt tasks --check vtab:cifar)" in message


@pytest.mark.parametrize("held", [True, False])
def test_bad_images_are_refused_or_skipped(tmp_path, held):
    folder = vtab(tmp_path / "mine")
    limit = 2**30 if held else 0
    (folder / "images/train/000001.png").unlink()
    (folder / "images/test/000002.png").write_text("no image")
    with pytest.raises(DataError, match=r"images/train/000001.png does not exist \(and 1 more problem\).*--skip-bad"):
        load_folder(folder, PLAIN, memory_limit=limit)
    task = load_folder(folder, PLAIN, skip_bad=True, memory_limit=limit)
    assert [len(dataset) for dataset in parts(task).values()] == [8, 3, 5]
    assert colours(task.train) == [(i % 3, i % 3) for i in range(9) if i != 1]
    assert colours(task.test) == [(i % 3, i % 3) for i in range(6) if i != 2]
    assert len(task.skipped) == 2
    assert task.train.in_memory is held


def test_all_images_of_a_split_may_be_bad(tmp_path):
    folder = vtab(tmp_path)
    for number in range(3):
        (folder / f"images/val/{number:06}.png").write_text("no image")
    assert open_task(str(folder), PLAIN, skip_bad=True).val is None
    for number in range(9):
        (folder / f"images/train/{number:06}.png").unlink()
    assert "no class" in refused(str(folder), skip_bad=True)


@pytest.mark.parametrize(("limit", "held"), [(18 * 108, (True, True)), (17 * 108, (True, False)), (0, (False, False))])
def test_images_are_decoded_once(tmp_path, monkeypatch, limit, held):
    """What fits is decoded when it is read, training images first; the rest when it is used."""
    folder = vtab(tmp_path)
    seen = []
    render = vprompt.data.images.render
    monkeypatch.setattr(vprompt.data.images, "render", lambda *given: seen.append(1) or render(*given))
    task = load_folder(folder, PLAIN, memory_limit=limit)
    assert (task.train.in_memory, task.test.in_memory) == held
    for dataset in parts(task).values():
        dataset.pixels(torch.arange(len(dataset)))
    assert len(seen) == 18


def test_progress_goes_over_all_images(tmp_path):
    told = []
    load_folder(vtab(tmp_path), PLAIN, memory_limit=0, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 18) for i in range(1, 19)]


def test_the_place_has_no_part_in_the_task(tmp_path):
    """The same data in two places, and the same spec: nothing about the machine is left in the task."""
    tasks = []
    for place in ("here", "there/vtab-1k"):
        folder = vtab(tmp_path / place / "cifar")
        for file in folder.rglob("*.png"):
            file.write_bytes((tmp_path / "here" / "cifar" / file.relative_to(folder)).read_bytes())
        tasks.append(open_task("vtab:cifar", PLAIN, root=tmp_path / place.split("/")[0]))
    one, other = tasks
    assert (one.name, one.source, one.differences) == (other.name, other.source, other.differences)
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(("split", "name", "count"), [("auto", "test", 6), ("val", "val", 3), ("train", "train", 9)])
def test_labelled_images_of_a_named_task(tmp_path, split, name, count):
    folder = vtab(tmp_path / "cifar")
    (folder / "classes.txt").write_text("ant\nbee\ncat\n")
    task = open_task("vtab:cifar", PLAIN, root=tmp_path)
    images, found, skipped = load_labelled("vtab:cifar", PLAIN, task.classes, root=tmp_path, split=split)
    assert (found, len(images), skipped) == (name, count, ())
    assert sorted(colours(images)) == sorted(colours(parts(task)[name]))
    # By name, whatever numbers the classes have in the adapter.
    images, _, _ = load_labelled(str(folder), PLAIN, ("cat", "bee", "ant"), split=split)
    assert all(label == 2 - red for red, label in colours(images))


def test_labelled_images_of_unknown_classes(tmp_path):
    folder = fgvc(tmp_path)
    with pytest.raises(DataError, match="class 20 is not known"):
        load_labelled(str(folder), PLAIN, ("3", "10"))
    images, _, skipped = load_labelled(str(folder), PLAIN, ("3", "10"), skip_bad=True)
    assert (len(images), len(skipped)) == (4, 1)
    assert len(load_labelled(str(folder), PLAIN, ("3", "10", "20"), split="all")[0]) == 18


def test_labelled_images_are_refused_with_their_lists(tmp_path):
    folder = fgvc(tmp_path)
    (folder / "test.json").write_text(json.dumps(["a.png"]))
    with pytest.raises(DataError, match=r"test.json holds a list"):
        load_labelled(str(folder), PLAIN, ("3", "10", "20"), split="val")
