"""Tasks that are broken on purpose: each break is found, named, and nothing else is said."""

import hashlib
import json
import os
from dataclasses import replace

import pytest

from benchmark_folders import SIZES, VTAB, fgvc, read_list, vtab, write_image, write_lines
from vprompt.data.benchmarks.check import check
from vprompt.data.benchmarks.tasks import find_task

CIFAR = find_task("vtab:cifar")
SMALL = replace(CIFAR, classes=3, **SIZES)
"""What the small folders would be if they were a benchmark's."""


def found(folder, severity="fatal", task=None, **options):
    """The sentences of one severity, each a sentence."""
    problems = check(folder, task, **options)
    assert all(p.sentence.endswith(".") and "\n" not in p.sentence and p.where for p in problems)
    return [p.sentence for p in problems if p.severity == severity]


@pytest.fixture
def folder(tmp_path):
    return vtab(tmp_path / "task")


@pytest.mark.parametrize("make", [vtab, fgvc])
@pytest.mark.parametrize("task", [None, SMALL])
def test_nothing_is_said_of_a_whole_task(tmp_path, make, task):
    assert check(make(tmp_path), task, hashes=True) == []


@pytest.mark.parametrize("split", VTAB)
def test_missing_and_empty_lists(folder, split):
    (folder / VTAB[split]).write_text("\n \r\n")
    assert found(folder, task=SMALL)[0].startswith(f"{VTAB[split]} lists no image; get it anew: ")
    (folder / VTAB[split]).unlink()
    (sentence,) = found(folder, task=SMALL)
    assert sentence.startswith(f"{VTAB[split]} is missing; ")
    assert CIFAR.site in sentence
    assert found(folder) == [f"{VTAB[split]} is missing; write the list, or get it anew."]


def test_missing_files_and_what_is_no_file(folder):
    (folder / "images/test/000000.png").unlink()
    (folder / "images/test/000001.png").unlink()
    (folder / "images/test/000001.png").mkdir()
    (folder / "images/test/000002.png").unlink()
    (folder / "images/test/000002.png").symlink_to("000002.png")
    sentences = found(folder)
    assert [sentence.split()[0] for sentence in sentences] == [f"images/test/00000{i}.png" for i in range(3)]
    assert "does not exist; put the image there" in sentences[0]
    assert "is a folder, not an image" in sentences[1]
    assert "cannot be read" in sentences[2]


def test_links_to_images_are_images(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file = folder / "images/test/000000.png"
    file.rename(tmp_path / "elsewhere" / "0.png")
    file.symlink_to(tmp_path / "elsewhere" / "0.png")
    assert check(folder, None) == []


def test_damaged_images_are_found(folder):
    (folder / "images/val/000000.png").write_text("not an image")
    whole = (folder / "images/val/000001.png").read_bytes()
    (folder / "images/val/000001.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images/val/000002.png").write_bytes(b"")
    assert [sentence.split()[0] for sentence in found(folder)] == [f"images/val/00000{i}.png" for i in range(3)]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is unreadable to root")
def test_files_that_must_not_be_read(folder):
    (folder / "images/val/000000.png").chmod(0)
    (folder / "test.txt").chmod(0)
    sentences = found(folder)
    assert any(sentence.startswith("test.txt cannot be read") for sentence in sentences)
    assert any(sentence.startswith("images/val/000000.png cannot be read") for sentence in sentences)


@pytest.mark.parametrize(("one", "other"), [("train", "test"), ("val", "test"), ("train", "val")])
def test_images_in_two_splits(folder, one, other):
    path, label = read_list(folder, one)[0]
    with (folder / VTAB[other]).open("a") as file:
        file.write(f"./{path} {label}\n")
    assert found(folder) == [f"{path} is both in {VTAB[one]} and in {VTAB[other]}; take it off one of them."]


def test_images_listed_twice(folder):
    pairs = read_list(folder, "train")
    write_lines(folder / "train800.txt", [*pairs, pairs[0]])
    assert found(folder) == []
    assert f"train800.txt lists some images more than once: {pairs[0][0]}." in found(folder, "differs")
    write_lines(folder / "train800.txt", [*pairs, (pairs[0][0], 1)])
    (sentence,) = found(folder)
    assert f"lists {pairs[0][0]} twice, as 0 and 1" in sentence
    where = [problem.where for problem in check(folder, None) if problem.severity == "fatal"]
    assert where == [f"train800.txt, line {len(pairs) + 1}"]


def test_duplicate_keys_in_json(tmp_path):
    folder = fgvc(tmp_path)
    text = (folder / "val.json").read_text()
    path = next(iter(json.loads(text)))
    (folder / "val.json").write_text(text[:-1] + f", {json.dumps(path)}: 20}}")
    (sentence,) = found(folder)
    assert f"{path} twice, as 3 and 20" in sentence


def test_sizes_and_classes_against_the_table(folder):
    assert found(folder, "differs", CIFAR)[:3] == [
        "train800.txt lists 9 images; VTAB-1k has 800.",
        "val200.txt lists 3 images; VTAB-1k has 200.",
        "test.txt lists 6 images; VTAB-1k has 10000.",
    ]
    assert found(folder, "differs", replace(SMALL, classes=2)) == ["The lists have 3 classes; VTAB-1k has 2."]
    assert found(folder, "differs") == []  # a task of the user's own is compared with nothing


def test_fgvc_sizes_against_the_table(tmp_path):
    sentences = found(fgvc(tmp_path), "differs", find_task("fgvc:cub"))
    assert "train.json lists 9 images; FGVC has 5394." in sentences
    assert "The lists have 3 classes; FGVC has 200." in sentences


def test_classes_without_training_images_are_named(folder):
    write_lines(folder / "train800.txt", [(path, 0) for path, _ in read_list(folder, "train")])
    (folder / "train800val200.txt").unlink()
    (folder / "classes.txt").write_text("ant\nbee\ncat\n")
    assert found(folder, "differs") == ["2 classes have no training image: bee and cat."]
    assert found(folder, "differs", replace(SMALL, classes=30, test=7))[-1] == (
        "29 classes have no training image: bee, cat, 3, 4, 5, 6, 7, 8, 9, 10 and 19 more."
    )
    # A benchmark's own draw may be like that.
    assert found(folder, "differs", SMALL) == []


def test_a_manifest_is_believed(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    manifest = {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert check(folder, None, hashes=True) == []
    write_image(folder / "images/test/000000.png")
    manifest["gone.png"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert check(folder, None) == []  # only on demand
    assert [sentence.split()[0] for sentence in found(folder, hashes=True)] == ["images/test/000000.png", "gone.png"]


@pytest.mark.parametrize(
    "text", ["[]", "{", "7", '{"a": 7}', '{"a": "xyz"}', '{"../a": "' + "0" * 64 + '"}', '{"a": true}']
)
def test_a_manifest_that_is_none(folder, text):
    (folder / "manifest.json").write_text(text)
    (sentence,) = found(folder, hashes=True)
    assert "manifest.json" in sentence
    assert "SHA-256" in sentence


def test_names_from_the_data_are_escaped(folder):
    (folder / "test.txt").write_bytes(b"images/\x1b[2J.png 0\nimages/\xff.png 1\n")
    for sentence in found(folder):
        assert "\x1b" not in sentence
        sentence.encode()


def test_a_folder_that_is_not_there(tmp_path):
    assert len(found(tmp_path / "nowhere", task=CIFAR)) == 3


def test_progress_counts_every_image_once(folder):
    told = []
    check(folder, None, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 18) for i in range(1, 19)]


def test_file_names_keep_their_case(folder):
    write_lines(folder / "test.txt", [("b", 0)])
    assert found(folder) == ["b does not exist; put the image there, or take it off the list."]
