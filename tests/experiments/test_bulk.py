"""Answers in bulk: those of the plain commands, whatever is killed, and from Parquet as from files."""

import itertools
import os
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import vprompt
from conftest import interrupt_once, run_command, write_images
from vprompt.experiments.bulk import image_column
from vprompt.tasks.multi_label import MultiLabel
from vprompt.tasks.regression import Regression
from vprompt.utils.errors import DataError

IMAGES = 70


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in two folders, one of them broken."""
    root = tmp_path_factory.mktemp("photos")
    write_images(root / "a", (200, 40, 40), IMAGES // 2)
    write_images(root / "b", (40, 40, 200), IMAGES // 2)
    (root / "b" / "07.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_weights):
    torch.manual_seed(1)
    options = {"classes": ["wren", "owl", "café"], "weights": tiny_weights, "img_size": 32}
    model = vprompt.attach("test_vit", vprompt.VPT(num_prompts=3), **options)
    torch.nn.init.normal_(model.head.weight, std=0.2)
    model.save_pretrained(path := tmp_path_factory.mktemp("adapters") / "birds")
    return path


@pytest.fixture(scope="module")
def plain(adapter, folder):
    """What the plain command says, image by image."""
    outcome = run_command("predict", adapter, folder, "--json", "--top", 2)
    assert outcome.status == 1  # one is broken
    return outcome.document


def read(out):
    files = sorted(out.glob("part-*.parquet"))
    assert [file.name for file in files] == [f"part-{number:06}.parquet" for number in range(len(files))]
    table = parquet.read_table(out)  # the folder is a data set, all shards of one schema
    assert table.num_rows == sum(parquet.read_metadata(file).num_rows for file in files)
    return [row for file in files for row in parquet.read_table(file).to_pylist()]


def assert_as(rows, plain, *, names=None):
    """Rows are those of the plain command, in its order, each once."""
    assert [row["image"] for row in rows] == (names or [row["image"] for row in plain])
    for row, wanted in zip(rows, plain, strict=True):
        if "error" in wanted:
            assert {key for key, value in row.items() if value is not None} == {"image", "error"}
            continue
        assert row["error"] is None
        assert row["class_name"] == wanted["class_name"]
        assert row["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
        assert [item["name"] for item in row["top"]] == [name for name, _ in wanted["top"]]
        assert [item["value"] for item in row["top"]] == pytest.approx([v for _, v in wanted["top"]], abs=1e-5)


def bulk(adapter, *images, out, **options):
    options = itertools.chain(*((f"--{key.replace('_', '-')}", value) for key, value in options.items()))
    return run_command("predict", adapter, *images, "--workers", 0, "--top", 2, "--out", out, "--json", *options)


# ── the answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [1000, 32, 7])
def test_answers_are_those_of_the_plain_command_in_its_order(adapter, folder, plain, tmp_path, size):
    outcome = bulk(adapter, folder, out=tmp_path, shard_size=size)
    assert outcome.status == 1
    assert "1 of 70 images could not be read" in outcome.err
    assert outcome.document == {"images": 70, "shards": -(-70 // size), "bad": 1, "out": str(tmp_path)}
    rows = read(tmp_path)
    assert_as(rows, plain)
    [broken] = [row for row in rows if row["error"]]
    assert "07.png" in broken["error"]


def test_what_is_there_is_not_done_again(adapter, folder, plain, tmp_path):
    assert bulk(adapter, folder, out=tmp_path, shard_size=20).status == 1
    files = sorted(tmp_path.glob("part-*"))
    files[1].unlink()
    (tmp_path / ".part-000001.parquet.1234.part").write_bytes(b"half")  # of one that was killed
    before = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    again = bulk(adapter, folder, out=tmp_path, shard_size=20)
    assert (again.status, again.document["bad"]) == (1, 1)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert_as(read(tmp_path), plain)


def test_ctrl_c_leaves_whole_files_and_says_how_to_go_on(adapter, folder, plain, tmp_path):
    with interrupt_once((tmp_path / "part-000000.parquet").exists):
        stopped = bulk(adapter, folder, out=tmp_path, shard_size=1)
    assert (stopped.status, stopped.out, stopped.err) == (
        130,
        "",
        f"vprompt: The same command goes on (in {tmp_path}).\n",
    )
    there = {file: file.stat().st_mtime_ns for file in tmp_path.glob("part-*")}
    assert 1 <= len(there) < IMAGES
    assert bulk(adapter, folder, out=tmp_path, shard_size=1).status == 1
    assert {file: file.stat().st_mtime_ns for file in there} == there
    assert_as(read(tmp_path), plain)


def test_answers_to_another_question_are_refused(adapter, folder, tmp_path, tiny_weights):
    first = tmp_path / "first"
    out = tmp_path / "out"
    write_images(first, (1, 2, 3), 3)
    assert bulk(adapter, first, out=out).status == 0
    rows = read(out)
    write_images(first, (1, 2, 3), 1, start=7)
    outcome = bulk(adapter, first, out=out)
    assert (outcome.status, outcome.err.count("\n")) == (1, 1)
    assert "answers with another images" in outcome.err
    (first / "07.png").unlink()
    assert "another top" in run_command("predict", adapter, first, "--workers", 0, "--out", out).err
    model = vprompt.attach("test_vit", vprompt.VPT(2), num_classes=3, weights=tiny_weights, img_size=32)
    model.save_pretrained(other := tmp_path / "other")
    assert "another model" in bulk(other, first, out=out).err
    assert bulk(adapter, first, out=out).status == 0
    assert read(out) == rows


@pytest.mark.parametrize("kind", ["struct", "bytes", "paths"])
def test_images_come_from_parquet_as_well(adapter, folder, plain, tmp_path, kind):
    """In several files and groups of rows, larger and smaller than a shard; an empty cell is an image that is none."""
    files = [Path(row["image"]) for row in plain]
    cells = {
        "struct": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "bytes": [file.read_bytes() for file in files],
        "paths": [os.path.relpath(file, tmp_path / "tables") for file in files],
    }[kind]
    tables = tmp_path / "tables"
    tables.mkdir()
    for number, (start, stop) in enumerate([(0, 30), (30, 70)]):
        columns = {"id": list(range(start, stop)), "photo": cells[start:stop]}
        parquet.write_table(pa.table(columns), tables / f"{number}.parquet", row_group_size=25)
    outcome = bulk(adapter, tables, out=tmp_path / "out", shard_size=10)
    assert outcome.status == 1
    assert outcome.document["shards"] == (3 + 1) + (3 + 2)
    rows = read(tmp_path / "out")
    names = [f"{tables}/{int(n >= 30)}.parquet#{n - 30 * (n >= 30) + 1}" for n in range(70)]
    assert_as(rows, plain, names=names if kind != "paths" else cells)
    empty = tmp_path / "empty.parquet"
    parquet.write_table(pa.table({"photo": pa.array([None, cells[0]], pa.table({"c": cells}).schema[0].type)}), empty)
    outcome = bulk(adapter, empty, out=tmp_path / "out2", image_column="photo")
    assert (outcome.status, outcome.document["bad"]) == (1, 1 + (kind == "paths"))


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"meta": [{"w": 1}], "image": [b"x"]}, "image"),
        ({"thumb": [b"x"], "photo": [b"x"]}, "photo"),
        ({"caption": ["nice"], "file": ["a.png"]}, "file"),
        ({"scan": [{"bytes": b"x", "path": None}], "text": ["nice"]}, "scan"),
        ({"scan": ["a.png"]}, "scan"),
        ({"caption": ["nice"], "scan": ["a.png"]}, None),
        ({"left": [b"x"], "right": [b"x"]}, None),
        ({"meta": [{"w": 1}], "number": [1]}, None),
    ],
)
def test_the_column_of_images_is_the_one_that_is_clearly_meant(columns, found):
    schema = pa.table(columns).schema
    if found is not None:
        assert image_column(schema, None, "t.parquet") == found
    else:
        with pytest.raises(DataError, match=r"no column that is clearly of images; name one of .*: --image-column"):
            image_column(schema, None, "t.parquet")
    with pytest.raises(DataError, match="no column photograph"):
        image_column(schema, "photograph", "t.parquet")


def test_a_shard_in_which_nothing_can_be_read_has_the_same_columns(adapter, tmp_path):
    write_images(tmp_path / "in", (9, 9, 9), 4)
    for name in ("00", "01"):
        (tmp_path / "in" / f"{name}.png").write_bytes(b"")
    assert bulk(adapter, tmp_path / "in", out=tmp_path / "out", shard_size=2).status == 1
    assert [row["error"] is None for row in read(tmp_path / "out")] == [False, False, True, True]
    first, second = (parquet.read_schema(file) for file in sorted((tmp_path / "out").glob("part-*")))
    assert first.equals(second)


@pytest.mark.parametrize("kind", ["tags", "numbers"])
def test_other_answers_than_classes(kind, tmp_path, tiny_weights):
    """Also where all lists of a shard are empty, which tell no type."""
    number = Regression(names=("age",), mean=(3.0,), std=(2.0,))
    target = MultiLabel(names=("red", "blue")) if kind == "tags" else number
    model = vprompt.attach("test_vit", vprompt.VPT(2), target=target, weights=tiny_weights, img_size=32)
    with torch.no_grad():
        model.head.bias.fill_(-50.0)
    model.save_pretrained(tmp_path / "adapter")
    write_images(tmp_path / "in", (9, 9, 9), 3)
    assert bulk(tmp_path / "adapter", tmp_path / "in", out=tmp_path / "out", shard_size=2).status == 0
    outcome = run_command("predict", tmp_path / "adapter", tmp_path / "in", "--json", "--top", 2)
    for row, wanted in zip(read(tmp_path / "out"), outcome.document, strict=True):
        if kind == "tags":
            assert row["tags"] == wanted["tags"] == []
            assert [item["name"] for item in row["top"]] == [name for name, _ in wanted["top"]]
        else:
            assert row["values"]["age"] == pytest.approx(wanted["values"]["age"], rel=1e-5)


def test_features_are_those_of_the_plain_command(adapter, tmp_path, tiny_weights):
    import numpy as np

    write_images(tmp_path / "in", (90, 9, 9), 9)
    for model, options in ((adapter, ()), ("test_vit", ("--weights", tiny_weights, "--img-size", 32))):
        out = tmp_path / Path(model).name
        arguments = ["embed", model, tmp_path / "in", *options]
        assert run_command(*arguments, "--unlabelled", "--out", f"{out}.npz", "--json").status == 0
        outcome = run_command(*arguments, "--workers", 0, "--shard-size", 4, "--out", out, "--json")
        assert (outcome.status, outcome.document["shards"]) == (0, 3)
        wanted = np.load(f"{out}.npz")
        rows = read(out)
        assert [row["image"] for row in rows] == wanted["image"].tolist()
        np.testing.assert_allclose(np.array([row["features"] for row in rows]), wanted["features"], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--workers", 0], 2, "--workers goes with a folder --out"),
        (["--workers", -1, "--out", "out"], 1, "at least 0 workers"),
        (["--workers", 0, "--out", "out", "--shard-size", 0], 1, "1 image in a shard"),
        (["--workers", 0, "--out", "out", "--top", 0], 2, "a --top of at least 1"),
        (["nowhere", "--workers", 0, "--out", "out"], 1, "does not exist"),
        (["broken.parquet", "--workers", 0, "--out", "out"], 1, "cannot be read as Parquet"),
        (
            ["numbers.parquet", "--workers", 0, "--out", "out"],
            1,
            "has no column that is clearly of images; name one of n: --image-column",
        ),
        (["numbers.parquet", "--workers", 0, "--out", "out", "--image-column", "x"], 1, "has no column x"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, status, words, adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.parquet").write_bytes(b"PAR1 no")
    parquet.write_table(pa.table({"n": [1]}), "numbers.parquet")
    Image.new("RGB", (9, 9)).save("image.png")
    outcome = run_command("predict", adapter, "image.png", *arguments)
    assert (outcome.status, outcome.err.count("\n")) == (status, 1), outcome.err
    assert words in outcome.err


def test_an_adapter_that_is_not_there_is_told_before_ray_starts(tmp_path):
    write_images(tmp_path / "in", (9, 9, 9), 1)
    outcome = run_command("predict", "no/where", tmp_path / "in", "--workers", 2, "--out", tmp_path / "out")
    assert (outcome.status, outcome.err.count("\n")) == (1, 1)
    assert "no/where" in outcome.err
