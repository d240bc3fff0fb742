"""Lists of images in every state that files get into: read right, or refused with the line."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark_folders import VTAB, fgvc, read_list, vtab, write_image, write_lines
from vprompt.data.benchmarks.lists import clean, parse_list, read_layout, recognise
from vprompt.data.benchmarks.tasks import find_task
from vprompt.utils.errors import DataError

CIFAR = find_task("vtab:cifar")

paths = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\\/:"), min_size=1, max_size=12).filter(
    lambda name: name == name.strip() and name not in (".", "..") and not name.startswith("\ufeff")
)


@given(st.lists(st.tuples(paths, st.integers(0, 10**6)), max_size=8), st.sampled_from(["\n", "\r\n", "\r"]))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, pairs, end):
    file = tmp_path_factory.mktemp("lists") / "test.txt"
    write_lines(file, pairs, end)
    entries, problems = parse_list(file, "vtab")
    assert [(entry.path, int(entry.label)) for entry in entries] == pairs
    assert problems == []


@pytest.mark.parametrize(
    "text",
    [
        b"images/a b.png 0\nimages/c.png 1",
        b"\xef\xbb\xbfimages/a b.png 0\nimages/c.png 1\n",
        b"images/a b.png\t0\r\n\r\n  images/c.png    1  \r\n\r\n",
        b"images\\a b.png 0\nimages\\c.png 1\n",
        b"./images//a b.png 00\nimages/./c.png +1\n",
    ],
    ids=["no final newline", "BOM", "tabs and CRLF", "Windows", "untidy"],
)
def test_one_list_written_in_many_ways(tmp_path, text):
    (tmp_path / "test.txt").write_bytes(text)
    entries, problems = parse_list(tmp_path / "test.txt", "vtab")
    assert [(entry.path, entry.label) for entry in entries] == [("images/a b.png", "0"), ("images/c.png", "1")]
    assert problems == []


def test_a_backslash_in_a_name_that_is_there_stays(tmp_path):
    write_image(tmp_path / "a\\b.png")
    assert clean(tmp_path, "a\\b.png") == ("a\\b.png", "")
    assert clean(tmp_path, "c\\b.png") == ("c/b.png", "")


@pytest.mark.parametrize(
    "line",
    [
        *("images/a.png", "images/a.png 7.0", "images/a.png seven", "7", "images/a.png 7,", "a.png 0x7", "a.png ٣"),
        *("a 1e3", "a.png " + "9" * 5000),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line):
    (tmp_path / "test.txt").write_text(f"\nimages/b.png 1\n{line}\nimages/c.png 2\n", encoding="utf-8")
    entries, problems = parse_list(tmp_path / "test.txt", "vtab")
    assert [entry.path for entry in entries] == ["images/b.png", "images/c.png"]
    (problem,) = problems
    assert (problem.severity, problem.where) == ("fatal", "test.txt, line 3")
    assert "line 3 of test.txt" in problem.sentence.lower()
    assert len(problem.sentence) < 250


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("../a.png", "leaves the folder"),
        ("images/../../a.png", "leaves the folder"),
        ("..\\a.png", "leaves the folder"),
        ("/etc/passwd", "absolute"),
        ("C:\\images\\a.png", "absolute"),
        ("\\\\server\\a.png", "absolute"),
        (".", "no path"),
    ],
)
def test_paths_stay_in_the_folder(tmp_path, path, word):
    write_image(tmp_path.parent / "a.png")
    (tmp_path / "test.txt").write_text(f"{path} 0\n")
    (tmp_path / "test.json").write_text(json.dumps({path: 0}))
    for entries, problems in (parse_list(tmp_path / "test.txt", "vtab"), parse_list(tmp_path / "test.json", "fgvc")):
        assert entries == []
        assert [problem.severity for problem in problems] == ["fatal"]
        assert word in problems[0].sentence


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "utf16.txt").write_bytes("images/a.png 0\n".encode("utf-16"))
    (tmp_path / "folder.txt").mkdir()
    for name in ("utf16.txt", "folder.txt", "missing.txt"):
        entries, problems = parse_list(tmp_path / name, "vtab")
        assert entries == []
        assert [problem.severity for problem in problems] == ["fatal"]
        assert problems[0].sentence.startswith(name)


def test_names_of_files_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"images/caf\xe9.png")
    write_image(tmp_path / name)
    (tmp_path / "test.txt").write_bytes(b"images/caf\xe9.png 0\n")
    entries, _ = parse_list(tmp_path / "test.txt", "vtab")
    assert (tmp_path / entries[0].path).exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('["a.png"]', "a list"),
        ("7", "a single value"),
        ("null", "a single value"),
        ('{"a.png": 1', "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a.png": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a.png": true}', "true"),
        ('{"a.png": null}', "null"),
        ('{"a.png": 7.0}', "7.0"),
        ('{"a.png": [1]}', "[1]"),
        ('{"a.png": {"b": 1}}', '[["b", 1]]'),
        ('{"a.png": " "}', "neither a number nor a name"),
        ('{"": 1}', "no path"),
        ('{"a\\u0000.png": 1}', "no path"),
    ],
)
def test_json_that_is_no_list_of_images(tmp_path, text, word):
    (tmp_path / "test.json").write_text(text)
    entries, problems = parse_list(tmp_path / "test.json", "fgvc")
    assert entries == []
    (problem,) = problems
    assert problem.severity == "fatal"
    assert word in problem.sentence


def test_keys_that_stand_twice_are_both_kept(tmp_path):
    (tmp_path / "test.json").write_text('{"a.png": 1, "a.png": 2}')
    entries, _ = parse_list(tmp_path / "test.json", "fgvc")
    assert [(entry.path, entry.label) for entry in entries] == [("a.png", "1"), ("a.png", "2")]


def test_layouts_are_recognised_by_their_lists(tmp_path):
    assert recognise(vtab(tmp_path / "v")) == "vtab"
    assert recognise(fgvc(tmp_path / "f")) == "fgvc"
    (tmp_path / "other" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "other" / "train.json").write_text("{}")
    (tmp_path / "other" / "test.txt").write_text("a.png 0")
    assert recognise(tmp_path / "other") is None
    with pytest.raises(DataError, match=r"other has no lists of images; put train800\.txt"):
        read_layout(tmp_path / "other", None)


@pytest.mark.parametrize(
    "text",
    [
        '{"image_names": ["train/cat/0.jpg"], "image_labels": [0]}',
        '{"info": {"year": 2017}, "images": []}',
        '{"version": "1.0", "images": {}}',
        '{"0": "cat", "1": "dog"}',
        '["train/cat/0.jpg"]',
        "null",
        "",
    ],
)
def test_json_of_something_else_beside_folders_is_no_list(tmp_path, text):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_text(text)
    assert recognise(tmp_path) is None
    (tmp_path / "val.json").write_text('\ufeff {"train/cat/0.jpg": 1,', encoding="utf-8")  # a list, but damaged
    assert recognise(tmp_path) == "fgvc"


def test_a_vtab_folder_is_read_as_it_is_written(tmp_path):
    layout = read_layout(vtab(tmp_path), None)
    assert layout.problems == ()
    assert layout.classes == ("0", "1", "2")
    for split in VTAB:
        assert list(layout.splits[split]) == [(path, int(label)) for path, label in read_list(tmp_path, split)]


def test_the_number_of_classes(tmp_path):
    folder = vtab(tmp_path)
    assert len(read_layout(folder, CIFAR).classes) == 100  # the table's
    (folder / "classes.txt").write_text("ant\nbee\ncat\ndog\n\n")
    assert read_layout(folder, None).classes == ("ant", "bee", "cat", "dog")  # those that are named
    named = read_layout(folder, CIFAR)
    assert named.classes[:5] == ("ant", "bee", "cat", "dog", "4")
    assert [problem.severity for problem in named.problems] == ["differs"]
    (folder / "classes.txt").unlink()
    write_lines(folder / "test.txt", [("images/test/000000.png", 120)])
    assert len(read_layout(folder, CIFAR).classes) == 121  # labels do not fit the table


def test_names_are_printable_and_different(tmp_path):
    folder = vtab(tmp_path)
    (folder / "classes.txt").write_bytes("\ufeffant\r\nant\r\n\x1b[2Jcat\r\n".encode())
    assert read_layout(folder, None).classes == ("ant (0)", "ant (1)", "\\x1b[2Jcat")
    (folder / "classes.txt").write_text("ant\nant\nant (0)\n")
    assert len(set(read_layout(folder, None).classes)) == 3


@pytest.mark.parametrize(("label", "named"), [(-1, False), (10**9, False), (10**17, False), (3, True), (-1, True)])
def test_labels_that_no_class_has(tmp_path, label, named):
    folder = vtab(tmp_path)
    if named:
        (folder / "classes.txt").write_text("ant\nbee\ncat\n")
    write_lines(folder / "test.txt", [("images/test/000000.png", 0), ("images/test/000001.png", label)])
    layout = read_layout(folder, None)
    assert len(layout.classes) == 3
    assert [problem.where for problem in layout.problems] == ["test.txt, line 2"]
    assert str(label) in layout.problems[0].sentence


@pytest.mark.parametrize("below", ["", "images", "Images"])
def test_fgvc_paths_may_begin_below_a_folder_of_images(tmp_path, below):
    folder = fgvc(tmp_path, below=below)
    (folder / "imgs").mkdir()
    layout = read_layout(folder, None)
    assert layout.problems == ()
    assert all((folder / path).is_file() for pairs in layout.splits.values() for path, _ in pairs)


@pytest.mark.parametrize(
    ("ids", "order"),
    [((20, 3, 10), ("3", "10", "20")), (("20", "3", "b", "a"), ("3", "20", "a", "b")), ((-1, 0, 1), ("0", "1", "-1"))],
)
def test_class_ids_are_mapped_once_for_all_splits(tmp_path, ids, order):
    folder = fgvc(tmp_path, ids=ids)
    # A split without the first class must not move the others.
    known = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps({path: c for path, c in known.items() if str(c) != order[0]}))
    layout = read_layout(folder, None)
    assert layout.classes == order
    for split in ("train", "test"):
        written = json.loads((folder / f"{split}.json").read_text())
        assert {path: layout.classes[label] for path, label in layout.splits[split]} == {
            path: str(c) for path, c in written.items()
        }


def test_ids_are_the_same_as_numbers_and_as_strings(tmp_path):
    folder = fgvc(tmp_path)
    known = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps({path: str(c) for path, c in known.items()}))
    assert read_layout(folder, None).classes == ("3", "10", "20")


def test_names_of_fgvc_classes(tmp_path):
    folder = fgvc(tmp_path)
    (folder / "classes.txt").write_text("1 Birds\n3 Rook\n10 Crow (male)\n20 Jay\n")  # as in CUB and NABirds
    assert read_layout(folder, None).classes == ("Rook", "Crow (male)", "Jay")
    (folder / "classes.txt").write_text("Rook\nCrow\nJay\n")
    assert read_layout(folder, None).classes == ("Rook", "Crow", "Jay")
    (folder / "classes.txt").write_text("Rook\nCrow\n")
    layout = read_layout(folder, None)
    assert layout.classes == ("3", "10", "20")
    assert [problem.severity for problem in layout.problems] == ["differs"]
