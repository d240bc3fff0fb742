"""Whole runs on disk: what they leave, that they repeat, and that no end of the process costs more than time."""

import hashlib
import itertools
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

import vprompt
import vprompt.training.trainer as training
from conftest import interrupt_once, run_command, write_classes
from plans import TORCHRUN
from processes import Command
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import describe, fingerprint
from vprompt.cli.fit import default_out
from vprompt.data.tasks import load_folder
from vprompt.experiments import folder as runfolder
from vprompt.experiments import run as experiment
from vprompt.experiments import stages as sources
from vprompt.experiments.settings import settings_from
from vprompt.utils.errors import TrainingError

FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md", "result.json", "log.jsonl", "report.html"}
STAGES = {"full", "condensed"}
"""Folders that a condensing run leaves beside them: with all prompts, and without fine-tuning."""
BLOCKS, WIDTH = 2, 64
"""Of the backbone of most runs here, `two_blocks`."""
NUMBERS = ("val_accuracy", "test_accuracy", "prompt_counts", "learned_params", "method", "converged", "epochs")
"""What must repeat; times may differ."""

SMALL = ("--img-size", 32)
"""A quarter of the work, where the size of the images does not matter."""

on_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="bit for bit on a CPU only")


def numbers(result):
    found = {key: result[key] for key in NUMBERS}
    return {**found, "before": numbers(result["before"])} if "before" in result else found


def adapter_hash(folder):
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def done(*arguments):
    outcome = run_command(*arguments, "--json")
    assert outcome.status == 0, outcome.err
    return outcome.document


def refused(*arguments):
    outcome = run_command(*arguments)
    assert outcome.status == 1
    assert outcome.out == ""
    sentence = outcome.err.splitlines()[-1]
    assert sentence.startswith("vprompt: ")
    assert "Traceback" not in outcome.err
    return sentence


def learned(prompts, classes, width=WIDTH):
    return prompts * width + (width + 1) * classes


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Colours that say little about the class, so that accuracies are neither 0 nor 1; 12 train, 4 val, 12 test."""
    root = tmp_path_factory.mktemp("noise")
    chance = random.Random(3)
    for split, count in (("train", 6), ("val", 4), ("test", 12)):
        for name in ("apple", "pear"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.frombytes("RGB", (8, 8), chance.randbytes(8 * 8 * 3)).resize((40, 40))
                image.save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def noisy(noise, two_blocks, tmp_path_factory):
    """An adapter trained on noise, and its result."""
    out = tmp_path_factory.mktemp("noisy") / "run"
    options = ["--backbone", two_blocks, "--prompts", 2, "--epochs", 2, "--batch-size", 6]
    return out, done("fit", noise, *options, "--out", out)


def test_convergence_is_told_by_a_training_of_twice_the_epochs(noise, two_blocks, tmp_path):
    options = ["--backbone", two_blocks, "--prompts", 2, "--batch-size", 6, *SMALL]
    found = done("fit", noise, *options, "--epochs", 2, "--check-convergence", "--out", tmp_path / "checked")
    ends = []
    for epochs in (2, 4):
        done("fit", noise, *options, "--epochs", epochs, "--out", tmp_path / str(epochs))
        model = vprompt.load(tmp_path / str(epochs), weights=None)
        val = load_folder(noise, model.preprocessing).val
        with torch.no_grad():
            logits = model(torch.stack([image for image, _ in val])).double()
        labels = torch.tensor([label for _, label in val])
        ends.append([-float(row.log_softmax(0)[label]) for row, label in zip(logits, labels, strict=True)])
    changes = [longer - shorter for shorter, longer in zip(*ends, strict=True)]
    mean = sum(changes) / len(changes)
    error = math.sqrt(sum((c - mean) ** 2 for c in changes) / (len(changes) - 1) / len(changes))
    assert found["convergence"] == {
        "epochs": 4,
        "difference": pytest.approx(mean, abs=1e-5),
        "standard_error": pytest.approx(error, abs=1e-5),
    }
    assert found["converged"] is (abs(mean) <= error)
    assert adapter_hash(tmp_path / "checked") == adapter_hash(tmp_path / "2")  # the check changes nothing
    plain = json.loads((tmp_path / "2" / "result.json").read_text())
    assert plain["converged"] is None
    assert "convergence" not in plain


# ── what a run leaves ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_folder_holds_the_adapter_and_the_result_and_nothing_else(trained):
    assert {path.name for path in trained.folder.iterdir()} == FILES


def test_the_result_on_standard_output_is_the_one_on_disk(trained):
    assert json.loads((trained.folder / "result.json").read_text(encoding="utf-8")) == trained.result


def test_the_result_says_what_was_learned(trained, two_blocks):
    result = trained.result
    assert result["method"] == "vpt-deep"
    assert result["backbone"] == two_blocks
    assert result["seed"] == 0
    assert result["prompt_counts"] == [3] * BLOCKS
    assert result["learned_params"] == learned(3 * BLOCKS, 3)
    assert 0 <= result["val_accuracy"] <= 1
    assert 0 <= result["test_accuracy"] <= 1
    assert "before" not in result
    assert [row["epoch"] for row in result["epochs"]] == [1, 2]
    assert result["seconds"] >= result["training_seconds"] >= 0  # rounded, and it was quick
    assert (
        sum(p.numel() for p in load_file(trained.folder / "adapter_model.safetensors").values())
        == (result["learned_params"])
    )


def test_the_result_says_where_it_comes_from(trained, two_blocks):
    origin = trained.result["provenance"]
    task = load_folder(trained.data, describe(create_backbone(two_blocks, img_size=32)).preprocessing)
    assert origin["data"]["source"] == str(trained.data)
    assert origin["data"]["fingerprint"] == task.fingerprint()
    assert origin["data"]["classes"] == ["blue", "green", "red"]
    assert origin["data"]["images"] == {"train": 16, "val": 5, "test": 9}
    assert origin["data"]["skipped"] == []
    assert origin["preprocessing"]["size"] == [32, 32]
    assert origin["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert origin["preprocessing"]["resize"] == "squash"
    assert origin["versions"]["vprompt"] == vprompt.__version__
    assert torch.__version__.startswith(origin["versions"]["torch"])
    assert "epoch" in origin["epoch_rule"]
    config = json.loads((trained.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert origin["backbone_fingerprint"] == config["backbone"]["fingerprint"]


def test_the_backbone_fingerprint_is_that_of_the_weights(noise, tmp_path):
    before = fingerprint(create_backbone(BUNDLED_BACKBONE))
    result = done("fit", noise, "--method", "linear", "--epochs", 0, "--out", tmp_path / "run")
    after = fingerprint(create_backbone(BUNDLED_BACKBONE))
    assert result["provenance"]["backbone_fingerprint"] in (before, after)


def test_the_settings_are_those_that_were_given(trained):
    settings = trained.result["settings"]
    assert settings["data"] == str(trained.data)
    assert settings["prompts"] == 3
    assert "condense" not in settings
    assert settings["epochs"] == 2
    assert settings["batch_size"] == 8
    assert settings["lr"] == 0.001


@pytest.mark.parametrize(
    ("method", "counts"), [("linear", [0] * 12), ("vpt-shallow", [4] + [0] * 11), ("vpt-deep", [4] * 12)]
)
def test_every_method_from_end_to_end(noise, tmp_path, method, counts):
    """On the bundled backbone: 12 blocks."""
    out, prompts = tmp_path / "run", ["--prompts", 4] if any(counts) else []
    result = done("fit", noise, "--method", method, *prompts, "--epochs", 1, *SMALL, "--out", out)
    assert result["method"] == method
    assert result["prompt_counts"] == counts
    assert result["learned_params"] == learned(sum(counts), 2, width=192)
    judged = done("eval", out, noise)
    assert judged["accuracy"] == result["test_accuracy"]
    assert judged["images"] == 24


def test_a_run_that_is_given_no_folder_names_one_after_itself(noise, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_command("fit", noise, "--method", "linear", "--epochs", "0", "--seed", "5")
    assert outcome.status == 0, outcome.err
    out = tmp_path / "runs" / f"{noise.name}-linear-epochs0-seed5"
    assert {path.name for path in out.iterdir()} == FILES - {"log.jsonl"}  # of no epoch there is a line
    assert str(out.relative_to(tmp_path)) in outcome.err


SIDE_BY_SIDE = [
    {},
    {"lr": 0.1},
    {"lr": 0.01},
    {"epochs": 2},
    {"seed": 1},
    {"split_seed": 1},
    {"backbone": "test_vit"},
    {"backbone": "test_vit2"},
    {"img_size": 32},
    {"weights": "/a/w.npz"},
    {"weights": "/b/w.npz"},
    {"data": "/a/other"},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.5},
    {"prompts": 3},
    {"method": "vpt-shallow"},
    {"method": "lora", "rank": 4},
    {"method": "lora", "rank": 4, "alpha": 4.0},
    {"condense": 0.3},
    {"condense": 0.3, "criterion": "random"},
    {"condense": 0.3, "merge": True},
    {"condense": 0.3, "fine_tune": False},
    {"prune_tokens": 0.3, "prune_segments": 0.5},
    {"prune_tokens": 0.5, "prune_segments": 0.3},
    {"skip_bad": True},
    {"train_on": "train+val"},
]


def test_no_two_runs_share_a_folder_by_default():
    common = {"data": "/a/photos", "backbone": BUNDLED_BACKBONE}
    folders = [default_out(settings_from({**common, **values})) for values in SIDE_BY_SIDE]
    assert len(set(map(str, folders))) == len(SIDE_BY_SIDE)
    assert folders[0].name == "photos-vpt-deep-p20-seed0"
    assert folders[1].name == "photos-vpt-deep-p20-lr0.1-seed0"
    assert all(len(folder.name) < 160 and folder.parent.name == "runs" for folder in folders)


# ── splits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def layout(root, *splits):
    for number, split in enumerate(splits):
        write_classes(root / split if split else root, 10, start=20 * number)
    return root


@pytest.mark.parametrize(
    ("splits", "images"),
    [
        (["train", "val", "test"], {"train": 30, "val": 30, "test": 30}),
        (["train", "test"], {"train": 21, "val": 9, "test": 30}),
        (["train", "val"], {"train": 30, "val": 30, "test": None}),
        (["train"], {"train": 21, "val": 9, "test": None}),
        ([""], {"train": 16, "val": 5, "test": 9}),
    ],
)
def test_every_layout_of_a_folder(two_blocks, tmp_path, splits, images):
    data = layout(tmp_path / "data", *splits)
    probe = ["--method", "linear", "--backbone", two_blocks, "--epochs", 3]
    result = done("fit", data, *probe, "--out", tmp_path / "run")
    assert result["provenance"]["data"]["images"] == images
    assert (result["test_accuracy"] is None) == (images["test"] is None)
    assert isinstance(result["val_accuracy"], float)
    judged = done("eval", tmp_path / "run", data)
    auto = "val" if images["test"] is None else "test"
    assert (judged["split"], judged["images"]) == (auto, images[auto])
    assert judged["accuracy"] == result[f"{auto}_accuracy"]


def test_too_few_images_for_a_val_split_leave_its_accuracy_null(tmp_path):
    data = write_classes(tmp_path / "data" / "train", 2)
    result = done("fit", data.parent, "--method", "linear", "--epochs", 1, "--out", tmp_path / "run")
    assert result["provenance"]["data"]["images"] == {"train": 6, "val": None, "test": None}
    assert result["val_accuracy"] is None
    assert result["test_accuracy"] is None
    table = run_command("fit", data.parent, "--method", "linear", "--epochs", 1, "--out", tmp_path / "run", "--resume")
    assert table.status == 0


def test_seeds_share_their_splits_and_a_split_seed_cuts_others(colours, two_blocks, tmp_path):
    quick = ["fit", colours, "--backbone", two_blocks, "--method", "vpt-shallow", "--prompts", 1, "--epochs", 1]
    first = done(*quick, "--seed", 0, "--out", tmp_path / "a")
    second = done(*quick, "--seed", 1, "--out", tmp_path / "b")
    third = done(*quick, "--split-seed", 1, "--out", tmp_path / "c")
    prints = [run["provenance"]["data"]["fingerprint"] for run in (first, second, third)]
    assert prints[0] == prints[1] != prints[2]
    assert second["seed"] == 1
    assert adapter_hash(tmp_path / "a") != adapter_hash(tmp_path / "b")


def test_eval_asks_the_images_that_fit_left_out_also_when_some_files_were_skipped(two_blocks, tmp_path):
    data = write_classes(tmp_path / "data", 8)
    for name in ("blue", "green", "red"):
        (data / name / "05.png").write_bytes(b"no image")
    quick = ["--method", "linear", "--backbone", two_blocks, "--epochs", 1, "--skip-bad", "--out", tmp_path / "run"]
    result = done("fit", data, *quick)
    images = result["provenance"]["data"]["images"]
    assert sum(images.values()) == 21
    for split in ("train", "val", "test"):
        judged = done("eval", tmp_path / "run", data, "--skip-bad", "--split", split)
        assert judged["images"] == images[split], split


# ── eval and predict agree with the run ──────────────────────────────────────────────────────────────────────────────


def test_eval_reproduces_the_accuracies_exactly(noisy, noise):
    out, result = noisy
    assert 0 < result["test_accuracy"] < 1  # else this test would say little
    for split in ("test", "val"):
        judged = done("eval", out, noise, "--split", split)
        assert judged["accuracy"] == result[f"{split}_accuracy"]
        assert judged["images"] == result["provenance"]["data"]["images"][split]
        assert judged["loss"] > 0
    train = done("eval", out, noise, "--split", "train")
    everything = done("eval", out, noise, "--split", "all")
    assert everything["images"] == 12 + 8 + 24
    hits = train["accuracy"] * 12 + result["val_accuracy"] * 8 + result["test_accuracy"] * 24
    assert everything["accuracy"] == pytest.approx(hits / 44, abs=1e-12)


def test_predictions_of_a_new_process_are_those_that_eval_counts(noisy, noise, tmp_path):
    out, result = noisy
    status, printed, err = Command("predict", out, noise / "test", "--json", folder=tmp_path).end()
    assert status == 0, err
    predictions = json.loads(printed)
    assert len(predictions) == 24
    hits = sum(f"/{found['class_name']}/" in found["image"] for found in predictions)
    assert hits / 24 == result["test_accuracy"]
    here = done("predict", out, noise / "test")
    for there, mine in zip(predictions, here, strict=True):
        assert there["image"] == mine["image"]
        assert there["probability"] == pytest.approx(mine["probability"], abs=1e-6)


def test_predictions_are_probabilities_that_fall(trained):
    images = sorted((trained.data / "red").iterdir())[:3]
    predictions = done("predict", trained.folder, *images, "--top", 3)
    assert [found["image"] for found in predictions] == [str(image) for image in images]
    for found in predictions:
        values = [value for _, value in found["top"]]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)  # all three classes
        assert all(0 <= value <= 1 and math.isfinite(value) for value in values)
        assert found["top"][0] == [found["class_name"], found["probability"]]
        assert {name for name, _ in found["top"]} == {"blue", "green", "red"}
    one = done("predict", trained.folder, images[0], "--top", 1)
    assert [len(found["top"]) for found in one] == [1]


# ── condensation ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def condensed(trained, tmp_path_factory):
    """`fit --condense`, and its result."""
    out = tmp_path_factory.mktemp("condensed") / "run"
    return out, done("fit", trained.data, *trained.options, "--condense", 0.5, "--fine-tune-epochs", 2, "--out", out)


def test_a_condensed_run_says_the_same_of_the_model_before(condensed, trained):
    out, result = condensed
    assert {path.name for path in out.iterdir()} == FILES | STAGES
    assert sum(result["prompt_counts"]) == 3
    assert max(result["prompt_counts"]) <= 3
    assert result["learned_params"] == learned(3, 3)
    assert set(result["before"]) == {
        key for key in result if key in sources.REPORT_KEYS or key.startswith(("val_", "test_"))
    }
    assert [row["epoch"] for row in result["epochs"]] == [1, 2]


@on_cpu
def test_training_before_condensation_is_the_run_without_it(condensed, trained):
    assert numbers(condensed[1]["before"]) == numbers(trained.result)


@on_cpu
def test_condensing_later_is_the_same_as_at_once(condensed, trained, tmp_path):
    out, at_once = condensed
    arguments = ["--ratio", 0.5, "--fine-tune-epochs", 2, "--out", tmp_path / "later"]
    later = done("condense", trained.folder, trained.data, *arguments)
    assert numbers(later) == numbers(at_once)
    assert adapter_hash(tmp_path / "later") == adapter_hash(out)
    assert {path.name for path in (tmp_path / "later").iterdir()} == FILES | {"condensed"}
    assert later["backbone"] == at_once["backbone"]
    assert later["before"]["training_seconds"] == trained.result["training_seconds"]


def kept_prompts(folder, trained):
    """Indices of the prompts of `trained` that an adapter holds unchanged, block by block."""
    all_of_them, kept = (load_file(f / "adapter_model.safetensors") for f in (trained.folder, folder))
    found = []
    for block in range(BLOCKS):
        rows = kept.get(f"prompts.{block}", torch.zeros(0, WIDTH))
        places = [(all_of_them[f"prompts.{block}"] == row).all(1).nonzero().flatten().tolist() for row in rows]
        assert all(len(place) == 1 for place in places)
        found.append([place[0] for place in places])
    assert torch.equal(kept["head.weight"], all_of_them["head.weight"])
    return found


def test_scores_that_are_all_the_same_are_said(noise, two_blocks, tmp_path):
    """A head of zeros that never learns: no prompt has any effect."""
    options = ["--backbone", two_blocks, "--prompts", 3, "--epochs", 0, *SMALL, "--condense", 0.5]
    outcome = run_command("fit", noise, *options, "--no-fine-tune", "--no-report", "--out", tmp_path / "run")
    words = " ".join((outcome.out + outcome.err).split())
    assert "Prompts that were kept by their place alone: 3 of 3; they score no higher than others that went." in words
    assert "The scores of 6 prompts are spread as those of 6.0 equal ones;" in words
    assert "; the prompts that were kept have 50.0 % of the sum." in words
    found = json.loads((tmp_path / "run" / "result.json").read_text())["scores"]
    assert found == {"prompts": 6, "effective": pytest.approx(6), "kept_share": pytest.approx(0.5), "tied": 3}


@pytest.mark.parametrize("criterion", ["taylor", "cls-similarity", "magnitude", "random"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_without_fine_tuning_the_kept_prompts_are_the_best_of_the_trained(trained, tmp_path, criterion, scope):
    out = tmp_path / "run"
    arguments = ["--criterion", criterion, "--scope", scope, "--no-fine-tune", "--ratio", 0.34, "--out", out]
    result = done("condense", trained.folder, trained.data, *arguments)
    assert result["epochs"] == []
    kept = kept_prompts(out, trained)
    assert [len(block) for block in kept] == result["prompt_counts"]
    record = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["condensation"]
    assert (record["criterion"], record["scope"], record["ratio"]) == (criterion, scope, 0.34)
    assert record["kept"] == kept
    if scope == "local":
        assert result["prompt_counts"] == [1] * BLOCKS
    else:
        assert sum(result["prompt_counts"]) == 2
        scores = record["scores"]
        chosen = [scores[block][i] for block in range(BLOCKS) for i in kept[block]]
        left = [scores[block][i] for block in range(BLOCKS) for i in range(3) if i not in kept[block]]
        assert min(chosen) >= max(left)


def test_random_scores_follow_the_seed(trained, tmp_path):
    def choice(seed, name):
        out = tmp_path / name
        arguments = ["--criterion", "random", "--no-fine-tune", "--seed", seed, "--out", out]
        done("condense", trained.folder, trained.data, *arguments)
        return kept_prompts(out, trained)

    assert choice(0, "a") == choice(0, "b")
    assert choice(1, "c") != choice(0, "d")


def test_an_adapter_without_its_result_is_judged_anew(trained, tmp_path):
    moved = shutil.copytree(trained.folder, tmp_path / "moved")
    (moved / "result.json").unlink()
    out = tmp_path / "out"
    result = done("condense", moved, trained.data, "--no-fine-tune", "--out", out)
    for key in ("val_accuracy", "test_accuracy", "prompt_counts", "learned_params", "method"):
        assert result["before"][key] == trained.result[key]


def test_the_numbers_of_other_data_are_not_taken_for_those_of_the_adapter(trained, tmp_path):
    other = write_classes(tmp_path / "other", 10, start=50)
    sentences = done("condense", trained.folder, other, "--no-fine-tune", "--out", tmp_path / "out")
    assert sentences["provenance"]["data"]["fingerprint"] != trained.result["provenance"]["data"]["fingerprint"]
    assert sentences["before"]["epochs"] == []  # judged anew on the other data, not copied from result.json


def test_a_ratio_of_one_keeps_every_prompt(trained, tmp_path):
    result = done("condense", trained.folder, trained.data, "--ratio", 1, "--no-fine-tune", "--out", tmp_path / "out")
    assert result["prompt_counts"] == [3] * BLOCKS
    assert kept_prompts(tmp_path / "out", trained) == [[0, 1, 2]] * BLOCKS
    assert result["test_accuracy"] == trained.result["test_accuracy"]


def test_how_images_are_read_stays_that_of_the_adapter(trained, tmp_path):
    """The adapter knows how its images are read; an option that says otherwise is refused rather than ignored."""
    out = tmp_path / "out"
    outcome = run_command("condense", trained.folder, trained.data, "--no-fine-tune", "--resize", "crop", "--out", out)
    if outcome.status == 0:
        result = json.loads((out / "result.json").read_text(encoding="utf-8"))
        assert result["provenance"]["preprocessing"]["resize"] == "crop"
    else:
        assert outcome.status in (1, 2)


# ── again ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@on_cpu
def test_the_same_seed_gives_the_same_numbers_and_the_same_bytes(trained, tmp_path):
    again = done("fit", trained.data, *trained.options, "--out", tmp_path / "again")
    assert numbers(again) == numbers(trained.result)
    assert adapter_hash(tmp_path / "again") == adapter_hash(trained.folder)
    assert again["provenance"] == trained.result["provenance"]


def test_a_finished_run_is_not_overwritten(trained):
    before = {path.name: path.read_bytes() for path in trained.folder.iterdir()}
    sentence = refused("fit", trained.data, *trained.options, "--out", trained.folder)
    assert str(trained.folder) in sentence
    assert "finished" in sentence
    assert {path.name: path.read_bytes() for path in trained.folder.iterdir()} == before


def test_resuming_a_finished_run_gives_its_result_and_leaves_it_alone(trained):
    before = {path.name: path.stat().st_mtime_ns for path in trained.folder.iterdir()}
    assert done("fit", trained.data, *trained.options, "--out", trained.folder, "--resume") == trained.result
    assert {path.name: path.stat().st_mtime_ns for path in trained.folder.iterdir()} == before


def test_another_process_of_torchrun_reads_a_finished_run_and_trains_nothing(trained, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    before = {path.name: path.stat().st_mtime_ns for path in trained.folder.iterdir()}
    outcome = run_command("fit", trained.data, *trained.options, "--out", trained.folder, "--resume")
    assert (outcome.status, outcome.out) == (0, "")
    assert run_command("fit", trained.data, *trained.options, "--out", trained.folder).status == 1
    assert {path.name: path.stat().st_mtime_ns for path in trained.folder.iterdir()} == before


def test_resuming_a_finished_run_with_other_settings_names_them(trained):
    sentence = refused("fit", trained.data, *trained.options, "--split-seed", 3, "--out", trained.folder, "--resume")
    assert "split_seed" in sentence
    assert "recipe" not in sentence


def other_spellings(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    return [f"{folder}/", f"./{folder}", os.path.abspath(folder), "link", shutil.copytree(folder, tmp_path / "copy")]


def test_the_same_data_however_written_and_wherever_it_lies_is_the_same_run(colours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probe = ["--method", "linear", "--epochs", 1, *SMALL, "--out", tmp_path / "run"]
    shutil.copytree(colours, "d")
    result = done("fit", "d", *probe)
    for data in other_spellings("d", tmp_path):
        assert done("fit", data, *probe, "--resume") == result
    (tmp_path / "e").mkdir()
    monkeypatch.chdir("e")
    assert done("fit", "../d", *probe, "--resume") == result
    shutil.copy("../d/red/00.png", "../copy/blue/01.png")
    assert "(data)" in refused("fit", "../copy", *probe, "--resume")
    shutil.rmtree("../d")
    assert "does not exist" in refused("fit", "../d", *probe, "--resume")


def test_an_unfinished_run_goes_on_with_a_copy_of_its_data_and_of_its_weights(
    colours, tiny_weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    shutil.copytree(colours, "d")
    shutil.copy(tiny_weights, "w.safetensors")
    probe = ["--backbone", "test_vit", *SMALL, "--epochs", 20, "--batch-size", 8, "--prompts", 1]
    probe += ["--out", "run", "--weights"]
    with interrupt_once(lambda: checkpoint_step(tmp_path / "run" / ".run" / "training.safetensors") >= 2):
        assert run_command("fit", "d", *probe, "w.safetensors").status == 130
    os.rename("d", "moved")
    os.rename("w.safetensors", "moved.safetensors")
    other = write_classes(tmp_path / "other", 10, start=50)
    assert "(data)" in refused("fit", other, *probe, "moved.safetensors", "--resume")
    shutil.copy("moved/red/00.png", "moved/blue/00.png")
    assert "(data)" in refused("fit", "moved", *probe, "moved.safetensors", "--resume")
    shutil.copy(colours / "blue" / "00.png", "moved/blue/00.png")
    assert len(done("fit", "moved", *probe, "moved.safetensors", "--resume")["epochs"]) == 20


def test_a_copy_of_an_adapter_is_the_same_adapter(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.folder, "adapter")
    rest = [trained.data, "--no-fine-tune", "--out", tmp_path / "out"]
    result = done("condense", "adapter", *rest)
    for adapter in other_spellings("adapter", tmp_path):
        assert done("condense", adapter, *rest, "--resume") == result
    tensors = Path("copy/adapter_model.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\0")
    assert "(adapter)" in refused("condense", "copy", *rest, "--resume")


def test_a_folder_that_another_process_works_in_is_left_alone(noise, tmp_path):
    probe = ["fit", noise, "--method", "linear", "--epochs", 0, *SMALL, "--out", tmp_path / "run"]
    with runfolder.locked(tmp_path / "run" / ".run" / "lock", "run"):
        for more in ([], ["--resume"]):
            sentence = refused(*probe, *more)
            assert f"(process {os.getpid()} on {platform.node()}) is at work on {tmp_path / 'run'}" in sentence
        assert {path.name for path in tmp_path.rglob("*")} == {"run", ".run", "lock"}
    assert run_command(*probe).status == 0


RESULTS = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "a list": "[]",
    "cut off": "{",
    "no counts": {"prompt_counts": None},
    "counts of words": {"prompt_counts": ["many"]},
    "accuracy of words": {"test_accuracy": "0.5"},
    "accuracy beyond numbers": {"val_accuracy": 10**400},
    "rows": {"epochs": [1, 2]},
    "provenance": {"provenance": []},
    "source": {"provenance": {"data": {"source": 3}}},
    "settings": {"settings": [1]},
    "before": {"before": {}},
    "pruning": {"pruning": {"tokens": "all"}},
}


@pytest.mark.parametrize("what", RESULTS)
def test_a_result_of_another_structure_is_damaged(trained, tmp_path, what):
    change = RESULTS[what]
    if isinstance(change, dict):
        document = {key: value for key, value in {**trained.result, **change}.items() if value is not None}
        change = json.dumps(document)
    (tmp_path / "result.json").write_text(change)
    sentence = refused("fit", trained.data, *trained.options, "--out", tmp_path, "--resume")
    assert "damaged" in sentence
    assert str(tmp_path / "result.json") in sentence
    assert len(sentence) < 300


def test_a_folder_with_an_adapter_but_no_result_is_not_overwritten(trained, tmp_path):
    out = shutil.copytree(trained.folder, tmp_path / "adapter")
    (out / "result.json").unlink()
    assert "adapter" in refused("fit", trained.data, *trained.options, "--out", out)
    assert adapter_hash(out) == adapter_hash(trained.folder)


def test_resume_where_there_is_nothing_starts(noise, tmp_path):
    result = done("fit", noise, "--method", "linear", "--epochs", 1, "--out", tmp_path / "new", "--resume")
    assert len(result["epochs"]) == 1


def test_files_of_the_user_survive(noise, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    for name in ("README.md", "notes.txt"):
        (out / name).write_text("mine", encoding="utf-8")
    (out / ".run").mkdir()  # as a run leaves it that was killed before it saved anything
    (out / ".run" / "settings.json").write_text("{}", encoding="utf-8")
    assert "README.md" in refused("fit", noise, "--method", "linear", "--epochs", 0, "--out", out)
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert (out / "README.md").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "mistake",
    [
        ["DATA/nowhere"],
        ["DATA", "--backbone", "vit_nope"],
        ["DATA", "--optimizer", "sgd", "--lr", "1e30", "--batch-size", "4"],
    ],
)
def test_after_a_mistake_the_right_command_runs_in_the_same_folder(noise, tmp_path, mistake):
    options = ["--prompts", 1, "--epochs", 2, *SMALL, "--out", tmp_path / "run"]
    refused("fit", *(part.replace("DATA", str(noise)) for part in mistake), *options)
    outcome = run_command("fit", noise, *options)
    assert outcome.status == 0, outcome.err


# ── any kind of end ──────────────────────────────────────────────────────────────────────────────────────────────────

LONG = ["--prompts", "2", "--epochs", "12", "--batch-size", "3", "--condense", "0.5", "--fine-tune-epochs", "10"]
LONG += map(str, SMALL)


def checkpoint_step(path):
    """How many steps a checkpoint has behind it; -1 where there is none, or while it is being replaced."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["vprompt"])["state"]["step"]
    except (OSError, RuntimeError, SafetensorError):  # it is opened twice, and may be another one by then
        return -1


def saving_always():
    training.SAVE_EVERY_SECONDS = 0.0


def end(arguments, ready, number, folder):
    """Starts the command in a process, ends it with a signal once `ready()`, and returns (status, what it said)."""
    status, _, err = Command(*arguments, folder=folder, prepare=saving_always).when(ready, number)
    return status, err


@pytest.fixture(scope="module")
def uninterrupted(colours, two_blocks, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    return out, done("fit", colours, *LONG, "--backbone", two_blocks, "--out", out)


@on_cpu
def test_killed_again_and_again_a_run_ends_with_the_same_bytes(colours, two_blocks, uninterrupted, tmp_path):
    out = tmp_path / "run"
    state = out / ".run"
    command = ["fit", colours, *LONG, "--backbone", two_blocks, "--out", out]

    # before the first checkpoint
    status, _ = end(command, (state / "settings.json").exists, signal.SIGKILL, tmp_path)
    assert status == -signal.SIGKILL
    assert not (out / "adapter_config.json").exists()

    # in the midst of training
    trained = state / "training.safetensors"
    status, _ = end([*command, "--resume"], lambda: checkpoint_step(trained) >= 4, signal.SIGKILL, tmp_path)
    assert status == -signal.SIGKILL
    assert 4 <= checkpoint_step(trained) < 72
    assert not (state / "fine-tuning.safetensors").exists()
    sentence = refused(*command, "--prompts", "5", "--resume")
    assert "prompts" in sentence
    assert "settings" in sentence

    # in the midst of fine-tuning, and Ctrl-C a little later
    tuned = state / "fine-tuning.safetensors"
    status, _ = end([*command, "--resume"], lambda: checkpoint_step(tuned) >= 2, signal.SIGKILL, tmp_path)
    assert status == -signal.SIGKILL
    reached = checkpoint_step(tuned)
    status, err = end([*command, "--resume"], lambda: checkpoint_step(tuned) > reached + 1, signal.SIGINT, tmp_path)
    assert status == 130
    assert "Traceback" not in err
    assert "--resume" in err.splitlines()[-1]
    assert str(out) in err.splitlines()[-1]
    assert not (out / "result.json").exists()

    result = done(*command, "--resume")
    assert numbers(result) == numbers(uninterrupted[1])
    assert uninterrupted[1]["training_seconds"] > 0
    assert adapter_hash(out) == adapter_hash(uninterrupted[0])
    assert {path.name for path in out.iterdir()} == FILES | STAGES
    assert "Warning" not in err  # what libraries tell programmers is not for users


@on_cpu
def test_ctrl_c_while_an_adapter_is_condensed(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    tune = ["condense", trained.folder, trained.data, "--ratio", 0.5, "--fine-tune-epochs", 20, "--out"]
    straight = done(*tune, tmp_path / "straight")
    out = tmp_path / "stopped"
    tuned = out / ".run" / "fine-tuning.safetensors"
    with interrupt_once(lambda: checkpoint_step(tuned) >= 2):
        outcome = run_command(*tune, out)
    assert outcome.status == 130
    assert outcome.out == ""
    assert "--resume" in outcome.err
    assert 2 <= checkpoint_step(tuned) < 40
    assert "--resume" in refused(*tune, out)
    assert "ratio" in refused(*tune[:4], 0.4, *tune[5:], out, "--resume")
    assert numbers(done(*tune, out, "--resume")) == numbers(straight)
    assert adapter_hash(out) == adapter_hash(tmp_path / "straight")


def test_ctrl_c_before_anything_was_trained_also_says_how_to_go_on(colours, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def stopped(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(sources, "open_task", stopped)
    outcome = run_command("fit", colours, "--out", out, "--epochs", 0)
    assert outcome.status == 130
    assert "--resume" in outcome.err
    monkeypatch.undo()
    done("fit", colours, "--out", out, "--epochs", 0, "--resume")


@pytest.mark.parametrize("moment", ["before the result", "after the result"])
def test_an_end_between_the_last_files_is_mended_by_resuming(noise, two_blocks, tmp_path, monkeypatch, moment):
    quick = ["fit", noise, "--backbone", two_blocks, "--prompts", 1, "--epochs", 1, "--out", tmp_path / "run"]
    straight = done(*quick[:-1], tmp_path / "straight")
    if moment == "before the result":
        written = runfolder.write_json

        def write(path, document):
            if path.name == "result.json":
                raise KeyboardInterrupt
            written(path, document)

        monkeypatch.setattr(runfolder, "write_json", write)
    else:
        monkeypatch.setattr(runfolder.RunFolder, "_tidy", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run_command(*quick).status == 130
    monkeypatch.undo()
    assert numbers(done(*quick, "--resume")) == numbers(straight)
    page = {"report.html"} if moment == "after the result" else set()  # the run is finished then, and draws nothing
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES - page


def test_a_linear_probe_is_resumed_too(colours, two_blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    probe = ["fit", colours, "--method", "linear", "--epochs", 24, "--batch-size", 2, "--backbone", two_blocks, "--out"]
    straight = done(*probe, tmp_path / "straight")
    out = tmp_path / "stopped"
    checkpoint = out / ".run" / "training.safetensors"
    with interrupt_once(lambda: checkpoint_step(checkpoint) >= 3):
        assert run_command(*probe, out).status == 130
    assert 3 <= checkpoint_step(checkpoint) < 192
    assert numbers(done(*probe, out, "--resume")) == numbers(straight)
    assert adapter_hash(out) == adapter_hash(tmp_path / "straight")


@pytest.mark.parametrize("file", ["settings.json", "training.safetensors"])
def test_a_damaged_state_is_named(colours, tmp_path, monkeypatch, file):
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0.0)
    out = tmp_path / "run"
    command = ["fit", colours, "--prompts", 1, "--epochs", 20, "--batch-size", 4, "--out", out]
    with interrupt_once(lambda: checkpoint_step(out / ".run" / "training.safetensors") >= 1):
        assert run_command(*command).status == 130
    path = out / ".run" / file
    path.write_bytes(path.read_bytes()[:-20])
    sentence = refused(*command, "--resume")
    assert str(path) in sentence
    assert "damaged" in sentence


# ── the same from Python ─────────────────────────────────────────────────────────────────────────────────────────────


def test_run_from_python_gives_the_document_that_it_writes(noise, tmp_path, capfd):
    settings = experiment.Settings(
        data=str(noise), backbone=BUNDLED_BACKBONE, method=vprompt.Linear(), recipe=vprompt.Recipe(epochs=1)
    )
    result = experiment.run(settings, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8")) == result
    written = capfd.readouterr()
    assert written.out == written.err == ""
    with pytest.raises(TrainingError, match="finished"):
        experiment.run(settings, tmp_path / "run")
    assert experiment.run(settings, tmp_path / "run", resume=True) == result


def test_settings_that_cannot_be_are_refused_before_anything_is_read():
    bad = [{"condense": 0.0}, {"condense": 1.01}, {"condense": math.nan}, {"prompts": 0}, {"method": "magic"}]
    bad += [{"condense": 0.5, "method": "linear"}, {"condense": 0.5, "fine_tune_epochs": -1}, {"criterion": "luck"}]
    bad += [{"scope": "cosmic"}, {"resize": "bend"}, {"img_size": 0}, {"img_size": -64}]
    accepted = []
    for change in bad:
        try:
            settings_from({"backbone": BUNDLED_BACKBONE, **change})
        except vprompt.VPromptError:
            continue
        accepted.append(change)
    assert accepted == []


def test_no_two_images_of_the_fixture_are_equal(colours):
    # Equal images in several splits would make an accuracy of 1 mean little.
    contents = [path.read_bytes() for path in colours.rglob("*.png")]
    assert len(set(contents)) == len(contents) == 30
    assert all(a != b for a, b in itertools.pairwise(sorted(contents)))


def test_two_processes_give_one_run_and_one_document(colours, two_blocks, tmp_path):
    """Both train; the first one alone speaks and writes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "vprompt"]
    arguments = ["fit", colours, "--backbone", two_blocks, "--prompts", "2", "--epochs", "2", "--batch-size", "7"]
    arguments += ["--backbone-precision", "fp8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*command, *map(str, arguments), "--json", "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result == json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


def test_a_criterion_that_cannot_be_is_refused_before_training(tmp_path, colours, vprompt_command, monkeypatch):
    monkeypatch.setattr("vprompt.experiments.stages.Stages.train", lambda *_, **__: pytest.fail("it was trained"))
    name = "test_vit_relpos"  # no class token
    arguments = ["--backbone", name, "--condense", "0.5", "--criterion", "cls-similarity", "--out", tmp_path / "run"]
    outcome = vprompt_command("fit", colours, *arguments)
    assert outcome.status == 1
    assert "needs a class token" in outcome.err
