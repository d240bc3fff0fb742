"""The table of tasks against the facts of the papers, and names as people write them."""

import pytest

from vprompt.data.benchmarks.tasks import benchmark_tasks, find_task, transforms_of
from vprompt.utils.errors import DataError


def test_the_suites_are_those_of_the_papers():
    groups = ("natural", "specialized", "structured", "fgvc")
    assert [len(benchmark_tasks(group=group)) for group in groups] == [7, 4, 8, 5]
    assert [len(benchmark_tasks(suite)) for suite in ("vtab", "fgvc", None)] == [19, 5, 24]
    assert all((task.train, task.val) == (800, 200) for task in benchmark_tasks("vtab"))
    assert len({task.spec for task in benchmark_tasks()}) == 24


def test_fgvc_adds_up_to_the_official_sizes():
    # Training images of CUB (5994), NABirds (23929), Dogs (12000) and Cars (8144); of Flowers 1020 and 1020.
    official = {"cub": 5994, "nabirds": 23929, "flowers": 2040, "dogs": 12000, "cars": 8144}
    assert {task.name: task.train + task.val for task in benchmark_tasks("fgvc")} == official


def test_all_images_of_data_sets_of_known_size():
    tests = {task.name: task.test for task in benchmark_tasks()}
    assert tests["dsprites_loc"] == tests["dsprites_ori"] == 3 * 6 * 40 * 32 * 32 // 10
    assert tests["smallnorb_azi"] == tests["smallnorb_ele"] == 5 * 5 * 9 * 18 * 6 // 2
    assert tests["resisc45"] == 45 * 700 // 5
    assert tests["eurosat"] == 27000 // 5
    assert tests["cub"] == 11788 - 5994
    assert tests["flowers"] == tests["oxford_flowers102"] == 8189 - 2040
    assert tests["cars"] == 16185 - 8144
    assert tests["dogs"] == 20580 - 12000


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("vtab:cifar", "vtab:cifar"),
        ("VTAB:CIFAR-100", "vtab:cifar"),
        (" vtab : clevr-count ", "vtab:clevr_count"),
        ("vtab:dsprites_orientation", "vtab:dsprites_ori"),
        ("vtab:sNORB-azi", "vtab:smallnorb_azi"),
        ("vtab:Flowers", "vtab:oxford_flowers102"),
        ("fgvc:flowers", "fgvc:flowers"),
        ("Fgvc:CUB_200_2011", "fgvc:cub"),
        ("fgvc:Stanford Dogs", "fgvc:dogs"),
    ],
)
def test_names_as_people_write_them(written, meant):
    assert find_task(written).spec == meant


def test_every_task_is_found_by_its_own_names():
    for task in benchmark_tasks():
        for name in (task.name, *task.aliases, task.name.upper(), task.name.replace("_", "-")):
            assert find_task(f"{task.suite}:{name}") is task


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("vtab:cifer", ["vtab:cifar"]),
        ("cifar", ["vtab:cifar"]),
        ("fgvc:nabird", ["fgvc:nabirds"]),
        ("fgvc:cifar", ["fgvc:cifar"]),
        ("vtab:", ["vprompt tasks"]),
        ("", ["vprompt tasks"]),
        ("imagenet:cifar", ["imagenet", "vtab:NAME"]),
        ("vtab:\x1b[2J", ["vprompt tasks"]),
    ],
)
def test_unknown_names_are_one_sentence(spec, words):
    with pytest.raises(DataError) as raised:
        find_task(spec)
    assert all(word in str(raised.value) for word in words)
    assert "\x1b" not in str(raised.value)


def test_transforms_follow_the_suite():
    for task in benchmark_tasks():
        wanted = ("crop", "crop-flip") if task.suite == "fgvc" else ("squash", "none")
        for found in (transforms_of(task.spec), transforms_of(task.spec.upper())):
            assert (found.resize, found.augment) == wanted
    for spec in (None, "", "images", "data/fgvc", "bundled:fashion-mnist", "C:\\fgvc"):
        assert (transforms_of(spec).resize, transforms_of(spec).augment) == ("squash", "none")
