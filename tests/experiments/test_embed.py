"""`vprompt embed`: features in a file, what they tell, and what a kill or a bad file costs."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import vprompt
from conftest import run_command, write_classes
from processes import Command
from vprompt.backbones.factory import create_backbone
from vprompt.experiments.embed import Embeddings
from vprompt.tasks.columns import Columns
from vprompt.utils.errors import DataError, VPromptError

SIZE = ("--img-size", 32)


def stored(path):
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, split_colours):
    out = tmp_path_factory.mktemp("embedded") / "colours.npz"
    outcome = run_command("embed", "bundled", split_colours, *SIZE, "--out", out, "--json")
    assert outcome.status == 0, outcome.err
    return out, outcome


def test_features_are_those_of_the_backbone_in_the_order_of_the_data(embedded, split_colours):
    arrays = stored(embedded[0])
    backbone = create_backbone("bundled", img_size=32).eval()
    task = vprompt.open_data(split_colours, backbone)
    pixels = torch.stack([image for part in (task.train, task.val, task.test) for image, _ in part])
    with torch.inference_mode():
        features = backbone.forward_head(backbone.forward_features(pixels), pre_logits=True)
    assert torch.allclose(torch.from_numpy(arrays["features"]), features, atol=1e-5)
    names = [*task.train.paths, *task.val.paths, *task.test.paths]
    assert arrays["image"].tolist() == names
    assert arrays["split"].tolist() == [name.split("/")[0] for name in names]
    assert arrays["label"].tolist() == [name.split("/")[1] for name in names]


def test_figures_are_printed_and_written(embedded):
    out, outcome = embedded
    document = outcome.document
    assert json.loads(out.with_suffix(".json").read_text()) == document
    assert document["images"] == {"train": 12, "val": 6, "test": 9}
    assert document["tested_on"] == "test"
    for figures in (document["linear"], *document["knn"].values()):
        low, high = figures["interval"]
        assert 0 <= low <= figures["accuracy"] <= high <= 1
        assert figures["majority_accuracy"] == pytest.approx(1 / 3)
    assert sorted(os.listdir(out.parent)) == ["colours.json", "colours.npz"]


def test_the_table_is_for_people_and_compares_models(split_colours, tmp_path, trained):
    models = f"bundled,{trained.folder}"
    outcome = run_command("embed", models, split_colours, "--out", tmp_path / "both")
    assert outcome.status == 0, outcome.err
    assert "accuracy on test: 9 images, of which the commonest class alone is 33.3 %" in outcome.out
    assert re.search(r"kNN 20 +linear +95 %", outcome.out)  # narrow enough for a terminal
    assert len(list((tmp_path / "both").glob("*.npz"))) == 2
    assert "The adapter has learned" in outcome.err
    model = vprompt.load(trained.folder).eval()
    kept = next(stored(path) for path in (tmp_path / "both").glob("*trained.npz"))
    task = vprompt.open_data(split_colours, model.backbone)
    with torch.inference_mode():
        features = model.features(torch.stack([image for image, _ in task.train]))
    assert np.allclose(kept["features"][: len(features)], features, atol=1e-4)


def test_parquet_holds_the_same_as_npz(embedded, split_colours, tmp_path):
    out = tmp_path / "colours.parquet"
    assert run_command("embed", "bundled", split_colours, *SIZE, "--out", out).status == 0
    table, arrays = parquet.read_table(out).to_pydict(), stored(embedded[0])
    assert table.keys() == arrays.keys()
    assert np.array_equal(np.array(table["features"], np.float32), arrays["features"])
    assert all(table[key] == arrays[key].tolist() for key in ("image", "split", "label"))


@pytest.mark.parametrize("labelled", [True, False])
def test_images_without_labels_have_features_alone(colours, tmp_path, labelled):
    flat, out = tmp_path / "flat", tmp_path / "flat.npz"
    if labelled:
        shutil.copytree(colours, flat)
    else:
        flat.mkdir()
        for path in sorted(colours.glob("*/*.png")):
            shutil.copy(path, flat / f"{path.parent.name}-{path.name}")
    more = ["--unlabelled"] * labelled
    outcome = run_command("embed", "bundled", flat, *SIZE, "--out", out, "--json", *more)
    assert outcome.status == 0, outcome.err
    arrays = stored(out)
    assert arrays.keys() == {"image", "split", "features"}
    assert arrays["features"].shape == (30, 192)
    assert "linear" not in outcome.document
    assert outcome.document["label_errors"] == []
    files = sorted(flat.rglob("*.png"))
    assert arrays["image"].tolist() == [str(path) for path in files]
    assert run_command("embed", "bundled", *files[:3], *SIZE, "--out", tmp_path / "some.npz").status == 0
    assert np.allclose(stored(tmp_path / "some.npz")["features"], arrays["features"][:3], atol=1e-5)


def test_a_bad_file_is_named_and_can_be_left_out(colours, tmp_path):
    folder, out = tmp_path / "bad", tmp_path / "bad.npz"
    folder.mkdir()
    for name in ("b", "a"):
        shutil.copy(colours / "red" / "00.png", folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    outcome = run_command("embed", "bundled", folder, *SIZE, "--out", out)
    assert outcome.status == 1
    assert "broken.jpg" in outcome.err
    assert "--skip-bad" in outcome.err
    assert not out.exists()
    outcome = run_command("embed", "bundled", folder, *SIZE, "--out", out, "--skip-bad", "--json")
    assert outcome.status == 0
    assert len(stored(out)["features"]) == 2
    assert any("broken.jpg" in note for note in outcome.document["notes"])
    (folder / "a.png").write_bytes(b"")
    (folder / "b.png").write_bytes(b"")
    outcome = run_command("embed", "bundled", folder, *SIZE, "--out", tmp_path / "none.npz", "--skip-bad")
    assert outcome.status == 1
    assert len(outcome.err.strip().splitlines()) == 1


def test_what_was_begun_is_gone_on_with(split_colours, tmp_path, monkeypatch):
    model, out, whole = create_backbone("bundled", img_size=32), tmp_path / "a.npz", tmp_path / "whole.npz"
    vprompt.embed(model, split_colours, out=whole, batch_size=4)
    seen = []

    def stopping(done, total):
        seen.append(done)
        if len(seen) == 30:  # of 27 images that are read, and batches
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vprompt.embed(model, split_colours, out=out, batch_size=4, report=stopping)
    [partial] = tmp_path.glob(".*.partial")
    assert not out.exists()
    assert partial.stat().st_size == 3 * 4 * (192 + 312) * 4
    with partial.open("ab") as file:
        file.write(b"torn")  # a batch that a kill cut
    ran = []
    forward = model.forward_features
    monkeypatch.setattr(model, "forward_features", lambda images: (ran.append(len(images)), forward(images))[1])
    vprompt.embed(model, split_colours, out=out, batch_size=4)
    assert sum(ran) == 27 - 12
    assert np.array_equal(stored(out)["features"], stored(whole)["features"])
    assert list(tmp_path.glob(".*")) == []


def test_a_killed_command_goes_on(colours, tmp_path):
    many = tmp_path / "many"
    for copy in range(6):
        shutil.copytree(colours / "red", many / str(copy))
    command = ["embed", "bundled", many, "--unlabelled", "--batch-size", "4", "--out", tmp_path / "x.npz"]
    process = Command(*command, folder=tmp_path)
    status, *_ = process.when(lambda: any(tmp_path.glob(".*.partial")), signal.SIGKILL)
    assert status == -signal.SIGKILL
    outcome = run_command(*command, "--json")
    assert outcome.status == 0, outcome.err
    assert stored(tmp_path / "x.npz")["features"].shape == (60, 192)


def test_a_finished_file_is_not_overwritten(embedded, split_colours):
    out, outcome = embedded
    before = out.read_bytes()
    again = ["embed", "bundled", split_colours, *SIZE, "--out", out]
    refused = run_command(*again)
    assert refused.status == 1
    assert "--resume" in refused.err
    assert run_command(*again, "--resume", "--json").document == outcome.document
    assert run_command(*again, "--resume", "--split-seed", 5).status == 1
    assert out.read_bytes() == before


def test_copies_between_splits_and_wrong_labels_are_named(tmp_path):
    root = tmp_path / "planted"
    for split, count, start in (("train", 12, 0), ("test", 6, 40)):
        write_classes(root / split, count, start=start)
    Image.open(root / "train" / "red" / "03.png").save(root / "test" / "red" / "copy.jpg", quality=95)
    shutil.move(root / "train" / "blue" / "05.png", root / "train" / "green" / "wrong.png")
    found = vprompt.embed(create_backbone("bundled", img_size=32), root)
    assert ["train/red/03.png", "test/red/copy.jpg"] in [pair["images"] for pair in found.duplicates()]
    assert len(found.duplicates()) < 10
    assert [row["image"] for row in found.label_errors()][:1] == ["train/green/wrong.png"]
    assert found.label_errors()[0]["likely"] == "blue"


def test_without_splits_there_are_features_and_sentences(colours):
    part = vprompt.open_data(colours).train
    found = vprompt.embed("bundled", part)
    assert found.tested_on is None
    assert found.label_errors() == []
    with pytest.raises(DataError, match="train split"):
        found.knn()


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["embed", "bundled", "DATA", "--out", "x.csv"], 1, ".parquet"),
        (["embed", "no_such_model", "DATA"], 2, "no_such_model"),
        (["embed", "model.onnx", "DATA"], 1, "no features"),
        (["embed", "bundled", "nowhere"], 1, "nowhere"),
        (["embed", "bundled", "nowhere.jpg"], 1, "nowhere.jpg"),
        (["embed", "bundled", "DATA", "notes.txt"], 1, "notes.txt"),
        (["embed", "bundled", "DATA", "--target", "no-target"], 1, "no-target"),
        (["embed", ",", "DATA"], 2, "model"),
        (["embed", "bundled,small", "DATA", "--img-size", "32"], 2, "--img-size"),
        (["embed", "bundled", "DATA", "--batch-size", "0"], 2, "--batch-size"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, status, word, colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_command(*[str(colours) if argument == "DATA" else argument for argument in arguments])
    assert outcome.status == status
    assert word in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_an_ending_is_checked_before_anything_is_computed(colours):
    with pytest.raises(VPromptError, match="npz"):
        vprompt.embed("bundled", colours, out="features.txt")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Images of two colours and many brightnesses, three of a site, with labels of all kinds."""
    folder = tmp_path_factory.mktemp("table")
    lines = ["file,colour,shade,tags,site"]
    for number in range(60):
        red, shade = number % 2, 60 + 3 * number
        pixels = np.random.default_rng(number).integers(0, 40, (32, 32, 3), dtype=np.uint8)
        pixels[..., 2 * red] += np.uint8(shade - 40)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        tags = "|".join(["red"] * red + ["bright"] * (number > 30)) or "none"
        lines.append(f"{number}.png,{'red' if red else 'blue'},{shade / 10},{tags},s{number // 3}")
    (folder / "shades.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "shades.csv"


@pytest.mark.parametrize(
    ("column", "target", "headline", "least"),
    [
        ("colour", "single-label", "accuracy", 0.9),
        ("tags", "multi-label", "mean_ap", 0.8),
        ("shade", "regression", "r2", 0.6),
    ],
)
def test_tables_of_any_target_have_accuracies(table, tmp_path, column, target, headline, least):
    command = [
        "embed",
        "bundled",
        table,
        *SIZE,
        "--out",
        tmp_path / "x.npz",
        "--label-column",
        column,
        "--group",
        "site",
    ]
    outcome = run_command(*command)
    assert outcome.status == 0, outcome.err
    assert re.search(r" on test: \d+ images", outcome.out)
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["target"] == target
    assert document["linear"][headline] > least
    assert document["knn"]["5"][headline] > least
    assert document["settings"]["columns"]["group"] == "site"
    assert bool(document["label_errors"]) <= (column == "colour")
    arrays = stored(tmp_path / "x.npz")
    sites = {}
    for image, split in zip(arrays["image"].tolist(), arrays["split"].tolist(), strict=True):
        sites.setdefault(int(image.removesuffix(".png")) // 3, set()).add(split)
    assert all(len(splits) == 1 for splits in sites.values())
    assert arrays["label"].shape == ((60,) if column == "colour" else (60, 1 + 2 * (column == "tags")))
    again = run_command(*command[:-2], "--resume")
    assert again.status == 1
    assert "another command" in again.err


def test_what_belongs_together_is_in_one_fold(table):
    columns = Columns(label_column="colour", group="site")
    found = vprompt.embed(create_backbone("bundled", img_size=32), table, columns=columns)
    folds = dict(zip(found.names, found._folds.tolist(), strict=True))
    for site in range(20):
        assert len({folds[f"{3 * site + number}.png"] for number in range(3)}) == 1
    assert len(set(folds.values())) == 5


def test_a_group_of_all_training_images_is_no_trouble(table):
    columns = Columns(label_column="colour")
    found = vprompt.embed(create_backbone("bundled", img_size=32), table, columns=columns)
    splits = ["train" if split == "val" else split for split in found.splits]
    whole = replace(found, splits=tuple(splits), groups=dict.fromkeys(found.names, "one"))
    assert set(whole._folds.tolist()) == {0}
    assert whole.linear().accuracy > 0.9
    assert whole.label_errors() == []


def test_a_table_without_labels_has_features(table, tmp_path):
    out = tmp_path / "x.npz"
    command = ["embed", "bundled", table, *SIZE, "--out", out, "--label-column", "colour", "--unlabelled"]
    outcome = run_command(*command)
    assert outcome.status == 0, outcome.err
    assert stored(out).keys() == {"image", "split", "features"}
    assert len(stored(out)["image"]) == 60


def test_a_bad_row_of_a_table_is_named(table, tmp_path):
    rows = table.read_text("utf-8") + "\n61.png,red,1.5,red,s9"
    (bad := table.with_name("bad.csv")).write_text(rows, encoding="utf-8")
    command = ["embed", "bundled", bad, *SIZE, "--label-column", "colour", "--out", tmp_path / "x.npz"]
    outcome = run_command(*command)
    assert outcome.status == 1
    assert "bad.csv, line 62: 61.png does not exist" in outcome.err
    assert run_command(*command, "--skip-bad").status == 0


def test_a_data_set_in_python_is_embedded():
    items = [(Image.new("RGB", (32, 32), (5 * number, 200 * (number % 2), 0)), number % 2) for number in range(40)]
    found = vprompt.embed(create_backbone("bundled", img_size=32), items)
    assert found.linear().accuracy > 0.8
    assert len(found.names) == 40


def test_several_labels_are_lists_in_parquet(tmp_path):
    labels, features = torch.tensor([[0.0, 1], [1, 1], [0, 0]]), torch.arange(12.0).view(3, 4)
    found = Embeddings(backbone="x", features=features, labels=labels, names=("a", "b", "c"), splits=("all",) * 3)
    found.save(tmp_path / "x.parquet")
    columns = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert columns["label"] == labels.tolist()
    assert columns["features"] == features.tolist()


def test_adapters_of_one_name_have_files_of_their_own(tmp_path, two_blocks):
    data = write_classes(tmp_path / "photos", 4)
    for name in ("a", "b"):
        model = vprompt.attach(two_blocks, vprompt.VPT(2), num_classes=3)
        model.save_pretrained(tmp_path / name / "full")
    models = ",".join(str(tmp_path / name / "full") for name in ("a", "b"))
    outcome = run_command("embed", models, data, "--unlabelled", "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert len(list((tmp_path / "out").glob("*.npz"))) == 2
