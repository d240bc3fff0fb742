"""`vprompt tasks`: the table, what is on the machine, and every problem of a task."""

import json

import pytest

from benchmark_folders import fgvc, vtab
from conftest import run_command


@pytest.fixture
def root(tmp_path):
    vtab(tmp_path / "vtab-1k" / "cifar")
    fgvc(tmp_path / "CUB_200_2011", below="images")
    (tmp_path / "dtd").mkdir()
    return tmp_path


def test_the_table_says_what_is_there(root):
    ended = run_command("tasks", "--root", root)
    assert ended.status == 0
    lines = {words[0]: words[1:] for line in ended.out.splitlines() if ":" in (words := line.split() or [""])[0]}
    assert len(lines) == 24
    assert lines["vtab:cifar"][:4] == ["100", "800/200/10000", "10", "differs:"]
    assert lines["vtab:dtd"][-2:] == ["unusable:", "3"]
    assert lines["fgvc:cars"] == ["196", "7329/815/8041", "200", "not", "found"]
    assert lines["vtab:kitti"][2:5] == ["100", "or", "50"]
    assert "3 of 24" in ended.err


@pytest.mark.parametrize("columns", ["20", "40", "79", "80", "200"])
def test_nothing_is_cut_off(root, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    ended = run_command("tasks", "--root", root, "--suite", "vtab")
    assert "…" not in ended.out
    for word in ("vtab:diabetic_retinopathy", "800/200/42670", "vtab:dsprites_loc", "100 or 10", "not found"):
        assert word in ended.out
    if int(columns) >= 40:
        assert max(len(line) for line in ended.out.splitlines()) <= int(columns)


def test_json_has_all_of_it(root):
    rows = {row["task"]: row for row in run_command("tasks", "--root", root, "--json").document}
    assert len(rows) == 24
    assert rows["fgvc:cub"]["state"] == "differs"
    assert rows["fgvc:cub"]["folder"] == str(root / "CUB_200_2011")
    assert rows["vtab:svhn"]["state"] == "not found"
    assert rows["vtab:svhn"]["images"] == {"train": 800, "val": 200, "test": 26032}
    assert len(run_command("tasks", "--root", root, "--suite", "fgvc", "--json").document) == 5


def test_check_prints_every_problem_and_its_status_tells(root):
    ended = run_command("tasks", "--root", root, "--check", "vtab:cifar")
    assert ended.status == 0
    assert all(line.startswith("differs: ") for line in ended.out.splitlines())
    assert "can be used" in ended.err
    folder = root / "vtab-1k" / "cifar"
    (folder / "images/test/000000.png").write_text("no image")
    (folder / "images/test/000001.png").unlink()
    ended = run_command("tasks", "--root", root, "--check", "vtab:cifar")
    assert ended.status == 1
    assert sum(line.startswith("fatal: ") for line in ended.out.splitlines()) == 2
    assert "2 fatal problems" in ended.err
    ended = run_command("tasks", "--check", folder, "--json")
    assert ended.status == 1
    assert ended.document["usable"] is False
    assert [problem["severity"] for problem in ended.document["problems"]] == ["fatal", "fatal"]


def test_check_with_hashes(root):
    folder = root / "CUB_200_2011"
    (folder / "manifest.json").write_text(json.dumps({"train.json": "0" * 64}))
    assert run_command("tasks", "--check", folder).status == 0
    ended = run_command("tasks", "--check", folder, "--hashes")
    assert ended.status == 1
    assert "train.json is not the file" in ended.out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ("tasks --hashes", 2, ["--check"]),
        ("tasks --check HERE/nowhere", 1, ["nowhere", "no folder with lists"]),
        ("tasks --check vtab:nothing", 1, ["vtab:nothing"]),
        ("tasks --root HERE --check vtab:svhn", 1, ["vtab:svhn", "not found"]),
        ("tasks --suite imagenet", 2, []),
    ],
)
def test_mistakes(root, arguments, status, words):
    ended = run_command(*arguments.replace("HERE", str(root)).split())
    assert ended.status == status
    assert ended.out == ""
    assert all(word in ended.err for word in words)


def test_a_run_records_what_differs(root, tmp_path, monkeypatch):
    monkeypatch.setenv("VPROMPT_DATA", str(root))
    out = tmp_path / "run"
    ended = run_command("fit", "vtab:cifar", "--method", "linear", "--epochs", "0", "--out", out)
    assert ended.status == 0, ended.err
    data = json.loads((out / "result.json").read_text())["provenance"]["data"]
    assert data["source"] == "vtab:cifar"
    assert "test.txt lists 6 images; VTAB-1k has 10000." in data["differences"]
    ended = run_command("eval", out, "vtab:cifar", "--json")
    assert (ended.status, ended.document["images"], ended.document["split"]) == (0, 6, "test")
