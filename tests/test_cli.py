"""The command line: help, wrong usage, every mistake as a sentence, JSON that is only JSON, tables that show names."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import vprompt
from conftest import COLOURS, run_command, write_classes, write_images
from processes import Command
from vprompt.cli.fit import show_result
from vprompt.cli.main import main

COMMANDS = ("fit", "condense", "compare", "eval", "predict", "embed", "export", "serve", "cost", "tasks", "demo")
QUICK = ("--method", "linear", "--epochs", "0")


# ── help and usage ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_and_version_import_nothing_heavy():
    code = f"""
import sys
from vprompt.cli.main import main
statuses = []
helps = [[name, "--help"] for name in {COMMANDS}]
for arguments in [[], ["--help"], ["--version"], ["-V"], *helps, ["fit", "--prompts", "x"]]:
    try:
        statuses.append(main(arguments))
    except SystemExit as end:
        statuses.append(end.code or 0)
heavy = {{name.split(".")[0] for name in sys.modules}} & {{"torch", "timm", "matplotlib", "numpy", "PIL", "accelerate"}}
print(statuses, sorted(heavy), file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"{[0] * (4 + len(COMMANDS)) + [2]} []"


def test_the_installed_command_ends_with_the_status_of_what_it_did():
    script = os.path.join(os.path.dirname(sys.executable), "vprompt")
    command = [script] if os.path.exists(script) else [sys.executable, "-m", "vprompt"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, timeout=120)
    assert (version.returncode, version.stdout, version.stderr) == (0, f"vprompt {vprompt.__version__}\n", "")
    wrong = subprocess.run([*command, "fit", "--nope"], capture_output=True, text=True, check=False, timeout=120)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    module = [sys.executable, "-m", "vprompt", "prepare", "vtab:cifar", "--source", "nowhere", "--root", "."]
    problem = subprocess.run(module, capture_output=True, text=True, check=False, timeout=120)
    assert problem.returncode == 1
    assert problem.stderr.startswith("vprompt: The source nowhere does not exist")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    outcome = run_command(name, "--help")
    assert outcome.status == 0
    assert outcome.err == ""
    assert f"vprompt {name}" in outcome.out
    assert "--json" in outcome.out
    assert len(outcome.out.splitlines()) > 8


def test_help_lists_the_commands():
    outcome = run_command("--help")
    assert outcome.status == 0
    assert all(name in outcome.out for name in COMMANDS)
    assert run_command().out == outcome.out


@pytest.mark.parametrize(
    "arguments",
    [
        ["nope"],
        ["fit", "--nope"],
        ["fit", "a", "b"],
        ["fit", "--method", "magic"],
        ["fit", "--method", "magic", "--kv-prompts", "2"],
        ["fit", "--prompts", "many"],
        ["fit", "--prompts", "2.5"],
        ["fit", "--condense", "much"],
        ["fit", "--optimizer", "adam"],
        ["fit", "--precision", "fp8"],
        ["fit", "--criterion", "luck"],
        ["fit", "--scope", "cosmic"],
        ["fit", "--resize", "bend"],
        ["fit", "--out"],
        ["condense", "adapter"],
        ["condense"],
        ["eval"],
        ["eval", "adapter", "data", "--split", "best"],
        ["predict"],
        ["predict", "adapter"],
        ["compare", "--seed", "1"],
        ["compare", "--seeds", "x"],
        ["cost"],
        ["cost", "vit_tiny_patch16_224", "--img-size", "big"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_command(*arguments)
    assert outcome.status == 2, outcome.out + outcome.err
    assert outcome.out == ""
    assert outcome.err.strip()
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method", "lora", "--prompts", "3"], "The method lora has no --prompts; vpt-deep has (--method vpt-deep)."),
        (["--kv-prompts=2", "--method=linear"], "The method linear has no --kv-prompts; e2vpt has (--method e2vpt)."),
        (["--rank", "4", "--prompts", "3"], "The method vpt-deep has no --rank; lora has (--method lora)."),
    ],
)
def test_an_option_of_another_method_is_named_with_it(arguments, sentence):
    outcome = run_command("fit", *arguments)
    assert (outcome.status, outcome.out, outcome.err) == (2, "", f"vprompt: {sentence}\n")
    assert run_command("cost", "test_vit", "--img-size", 32, "--kv-prompts", 2, "--json").status == 0


@pytest.mark.parametrize("width", [60, 40, 20])
def test_no_number_of_a_table_is_cut_on_a_narrow_terminal(width, monkeypatch):
    command = ("cost", "vit_tiny_patch16_224", "--img-size", 64, "--kv-prompts", 3)
    monkeypatch.setenv("COLUMNS", "200")
    wide = run_command(*command).out
    monkeypatch.setenv("COLUMNS", str(width))
    numbers = [word for word in wide.split() if any(letter.isdigit() for letter in word)]
    assert len(numbers) > 30
    assert sorted(numbers) == sorted(
        word for word in run_command(*command).out.split() if any(letter.isdigit() for letter in word)
    )


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def bomb(path):
    """A PNG whose header promises more pixels than anybody has memory for."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def bad(tmp_path_factory, trained):
    """A folder for each thing that can be wrong; `here/NAME`."""
    root = tmp_path_factory.mktemp("bad")
    for name in ("corrupt", "zero", "hollow", "bomb", "text", "truncated"):
        write_classes(root / name, 3)
    cut = root / "truncated" / "red" / "01.png"
    cut.write_bytes(cut.read_bytes()[:-60])
    damaged = bytearray((root / "corrupt" / "red" / "01.png").read_bytes())
    damaged[60:90] = bytes(30)
    (root / "corrupt" / "red" / "01.png").write_bytes(damaged)
    (root / "zero" / "red" / "01.png").write_bytes(b"")
    (root / "hollow" / "white").mkdir()
    bomb(root / "bomb" / "red" / "bomb.png")
    (root / "text" / "red" / "01.png").write_text("I am no picture")
    (root / "empty").mkdir()
    write_images(root / "one" / "red", COLOURS["red"], 4)
    write_images(root / "loose", COLOURS["red"], 4)
    write_classes(root / "unknown-in-test" / "train", 3)
    write_classes(root / "unknown-in-test" / "test", 2)
    write_images(root / "unknown-in-test" / "test" / "white", (250, 250, 250), 2)
    write_classes(root / "no-train" / "test", 3)
    write_classes(root / "twice" / "train", 3)
    write_classes(root / "twice" / "training", 3)
    write_classes(root / "others", 3, colours={"cat": (9, 9, 9), "dog": (90, 90, 90)})
    (root / "a-file").write_text("a file")

    shutil.copytree(trained.folder, root / "damaged-tensors")
    tensors = root / "damaged-tensors" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    shutil.copytree(trained.folder, root / "damaged-config")
    (root / "damaged-config" / "adapter_config.json").write_text("{")
    for name, text in (("damaged-result", '{"val_'), ("list-result", "[]"), ("null-result", "null")):
        shutil.copytree(trained.folder, root / name)
        (root / name / "result.json").write_text(text)
    save_for_hf(timm.create_model("test_resnet"), str(root / "resnet"), safe_serialization=True)
    return root


# What is typed (HERE: the fixture's folder, DATA: good images, ADAPTER: a good adapter, OUT: a folder that is not
# there yet), and words of the sentence.
MISTAKES = {
    "folder missing": ("fit HERE/nowhere", ["HERE/nowhere", "does not exist"]),
    "file for a folder": ("fit HERE/a-file", ["HERE/a-file", "is a file"]),
    "empty folder": ("fit HERE/empty", ["HERE/empty", "no class folder"]),
    "images without classes": ("fit HERE/loose", ["HERE/loose", "no class folder"]),
    "one class": ("fit HERE/one", ["HERE/one", "red", "two or more"]),
    "corrupt image": ("fit HERE/corrupt", ["red/01.png", "--skip-bad"]),
    "truncated image": ("fit HERE/truncated", ["red/01.png", "--skip-bad"]),
    "zero-byte image": ("fit HERE/zero", ["red/01.png", "0 bytes"]),
    "text called png": ("fit HERE/text", ["red/01.png", "not an image"]),
    "decompression bomb": ("fit HERE/bomb", ["red/bomb.png", "too large", "million pixels"]),
    "empty class": ("fit HERE/hollow", ["white", "no usable image"]),
    "class in test only": ("fit HERE/unknown-in-test", ["white", "test", "not in train"]),
    "no train": ("fit HERE/no-train", ["HERE/no-train", "no train folder"]),
    "train twice": ("fit HERE/twice", ["train and training"]),
    "benchmark task": ("fit vtab:cifar", ["vtab:cifar", "not found", "--root"]),
    "benchmark task misspelt": ("fit vtab:cifer", ["vtab:cifer", "vtab:cifar"]),
    "bundled task that is none": ("fit bundled:mnist", ["bundled:mnist", "bundled:fashion-mnist"]),
    "backbone unknown": ("fit DATA --backbone vit_nope", ["'vit_nope'"]),
    "backbone misspelt": (
        "fit DATA --backbone vit_base_patch16_223",
        ["'vit_base_patch16_223'", "close names: vit_base_patch16_224"],
    ),
    "backbone of another kind": ("fit DATA --backbone local-dir:HERE/resnet", ["ResNet", "not supported"]),
    "backbone folder missing": ("fit DATA --backbone local-dir:HERE/nope", ["local-dir:HERE/nope"]),
    "no prompts": ("fit DATA --method vpt-deep --prompts 0", ["at least one prompt", "0"]),
    "negative prompts": ("fit DATA --method vpt-shallow --prompts -4", ["at least one prompt", "-4"]),
    "condense to nothing": ("fit DATA --condense 0 --method vpt-deep", ["above 0", "0.0"]),
    "condense to more": ("fit DATA --condense 1.5 --method vpt-deep", ["at most 1", "1.5"]),
    "condense to nan": ("fit DATA --condense nan --method vpt-deep", ["at most 1", "nan"]),
    "condense a probe": ("fit DATA --condense 0.5 --method linear", ["'linear' has no prompts", "--condense"]),
    "condense biases": ("fit DATA --condense 0.5 --method bias", ["'bias' has no prompts", "--condense"]),
    "too many blocks": ("fit DATA --method partial --blocks 99", ["12 blocks", "99", "fewer"]),
    "no blocks": ("fit DATA --method partial --blocks 0", ["at least 1", "0"]),
    "one layer": ("fit DATA --method mlp --layers 1", ["at least 2 and at most 100", "1"]),
    "no reduction": ("fit DATA --method adapter --reduction 0", ["at least 1", "0"]),
    "no rank": ("fit DATA --method lora --rank 0", ["at least 1", "0"]),
    "no side": ("fit DATA --method side --side-width 0", ["at least 1", "0"]),
    "rate 0": ("fit DATA --lr 0", ["learning rate", "0.0"]),
    "rate nan": ("fit DATA --lr nan", ["learning rate", "nan"]),
    "rate infinite": ("fit DATA --lr inf", ["learning rate", "inf"]),
    "negative epochs": ("fit DATA --epochs -1", ["epochs", "-1"]),
    "batches of none": ("fit DATA --batch-size 0", ["batch size", "0"]),
    "negative weight decay": ("fit DATA --weight-decay -0.1", ["weight decay", "-0.1"]),
    "warm-up above 1": ("fit DATA --warmup 1.5", ["warm-up", "1.5"]),
    "negative workers": ("fit DATA --workers -1", ["workers", "-1"]),
    "image size 0": ("fit DATA --img-size 0", ["0", "size"]),
    "seed too large": ("fit DATA --seed 100000000000000", ["seed", "100000000000000"]),
    "loss becomes nan": (
        "fit DATA --method vpt-deep --prompts 1 --epochs 2 --batch-size 4 --optimizer sgd --lr 1e30",
        ["loss became", "learning rate", "--lr"],
    ),
    "out is a file": ("fit DATA --out HERE/a-file", ["HERE/a-file", "is a file"]),
    "out inside a file": ("fit DATA --out HERE/a-file/x", ["HERE/a-file/x"]),
    "out is taken": ("fit DATA --out ADAPTER", ["ADAPTER", "finished run"]),
    "result damaged": ("fit DATA --out HERE/damaged-result --resume", ["HERE/damaged-result/result.json", "damaged"]),
    "result of another kind": ("fit DATA --out HERE/list-result --resume", ["HERE/list-result/result.json"]),
    "adapter missing": ("eval HERE/nowhere DATA", ["HERE/nowhere"]),
    "adapter that is none": ("eval HERE/empty DATA", ["HERE/empty", "no adapter"]),
    "adapter damaged": ("eval HERE/damaged-tensors DATA", ["HERE/damaged-tensors/adapter_model.safetensors"]),
    "configuration damaged": ("predict HERE/damaged-config DATA", ["HERE/damaged-config/adapter_config.json"]),
    "eval without data": ("eval ADAPTER", ["bundled task", "folder"]),
    "eval on nothing": ("eval ADAPTER HERE/nowhere", ["HERE/nowhere", "does not exist"]),
    "eval on a task that is none": ("eval ADAPTER vtab:cifar", ["vtab:cifar", "not found"]),
    "eval on other classes": ("eval ADAPTER HERE/others", ["cat", "not known"]),
    "eval on a split that is none": ("eval ADAPTER HERE/no-train --split val", ["val", "HERE/no-train"]),
    "predict nothing": ("predict ADAPTER HERE/nowhere.png", ["HERE/nowhere.png", "does not exist"]),
    "predict text": ("predict ADAPTER HERE/a-file", ["HERE/a-file", "not an image"]),
    "predict an empty folder": ("predict ADAPTER HERE/empty", ["HERE/empty", "no image"]),
    "predict no class": ("predict ADAPTER DATA --top 0", ["At least one class", "0"]),
    "condense missing": ("condense HERE/nowhere DATA --out OUT", ["HERE/nowhere"]),
    "condense to a ratio of 0": ("condense ADAPTER DATA --ratio 0 --out OUT", ["above 0"]),
    "condense into the adapter": ("condense ADAPTER DATA --out ADAPTER", ["ADAPTER", "finished run"]),
    "condense on other classes": ("condense ADAPTER HERE/others --out OUT", ["classes", "HERE/others"]),
    "condense, result damaged": (
        "condense HERE/damaged-result DATA --no-fine-tune --out OUT",
        ["HERE/damaged-result/result.json"],
    ),
    "condense, result null": (
        "condense HERE/null-result DATA --no-fine-tune --out OUT",
        ["HERE/null-result/result.json"],
    ),
    "condense, negative epochs": ("condense ADAPTER DATA --fine-tune-epochs -1 --out OUT", ["epochs", "-1"]),
    "cost of nothing": ("cost vit_nope", ["'vit_nope'"]),
    "cost of a resnet": ("cost resnet18", ["ResNet", "not supported"]),
    "cost of words": ("cost vit_tiny_patch16_224 --prompts few", ["--prompts", "'few'"]),
    "cost of a gap": ("cost vit_tiny_patch16_224 --prompts 1,,2", ["--prompts", "'1,,2'"]),
    "cost of less than nothing": ("cost vit_tiny_patch16_224 --prompts -5", ["-5"]),
    "cost of no picture": ("cost vit_tiny_patch16_224 --img-size 5", ["5", "size"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_that_names_the_culprit(name, bad, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line, words = MISTAKES[name]
    places = {"HERE": bad, "DATA": trained.data, "ADAPTER": trained.folder, "OUT": tmp_path / "out"}

    def filled(text):
        for key, path in places.items():
            text = text.replace(key, str(path))
        return text

    arguments = [filled(word) for word in line.split()]
    if arguments[0] == "fit":
        arguments += [] if "--out" in arguments else ["--out", tmp_path / "out"]
        arguments += [] if "--epochs" in arguments else ["--epochs", "0"]
        arguments += [] if "--method" in arguments else ["--method", "linear"]
    outcome = run_command(*arguments)
    assert outcome.status == 1, outcome.out + outcome.err
    assert outcome.out == ""
    *progress, sentence = outcome.err.splitlines()
    assert sentence.startswith("vprompt: ")
    assert sentence.endswith(".")
    assert not any(line.startswith("vprompt:") for line in progress)
    for word in words:
        assert filled(word) in sentence
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize("size", ["0", "4", "-64"])
def test_an_impossible_image_size_is_not_blamed_on_the_network(trained, tmp_path, size):
    outcome = run_command("fit", trained.data, "--img-size", size, "--epochs", "0", "--out", tmp_path / "out")
    assert outcome.status == 1
    assert "size" in outcome.err
    assert "network" not in outcome.err
    assert "needs no download" not in outcome.err


def test_a_mistake_that_the_command_line_shows_is_found_before_hours_of_training(trained, tmp_path):
    options = ["--prompts", 1, "--epochs", 1, "--condense", 0.5, "--fine-tune-epochs", -1, "--out", tmp_path / "out"]
    outcome = run_command("fit", trained.data, *options)
    assert outcome.status == 1
    assert "epochs" in outcome.err
    assert "training:" not in outcome.err


def test_a_probe_has_nothing_to_condense(trained, tmp_path):
    run_command("fit", trained.data, *QUICK, "--out", tmp_path / "probe")
    outcome = run_command("condense", tmp_path / "probe", trained.data, "--out", tmp_path / "out")
    assert outcome.status == 1
    assert "no prompts" in outcome.err


def test_an_out_that_is_the_empty_string_is_not_the_current_folder(trained, tmp_path, monkeypatch):
    """As from a shell variable that is not set: --out "$OUT"."""
    monkeypatch.chdir(tmp_path)
    outcome = run_command("fit", trained.data, *QUICK, "--out", "")
    assert outcome.status in (1, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_data_folder_that_is_the_empty_string_is_not_the_current_folder(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(write_classes(tmp_path / "here", 4))
    outcome = run_command("fit", "", *QUICK, "--out", tmp_path / "out")
    assert outcome.status in (1, 2)


# ── skipping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_skip_bad_goes_on_and_says_how_many(tmp_path):
    data = write_classes(tmp_path / "data", 8)
    (data / "red" / "99.png").write_bytes(b"")
    (data / "white").mkdir()
    out = tmp_path / "run"
    outcome = run_command("fit", data, *QUICK, "--skip-bad", "--out", out)
    assert outcome.status == 0, outcome.err
    assert "Skipped 2" in outcome.err
    skipped = json.loads((out / "result.json").read_text(encoding="utf-8"))["provenance"]["data"]["skipped"]
    assert len(skipped) == 2
    assert any("red/99.png" in sentence for sentence in skipped)
    assert any("white" in sentence for sentence in skipped)
    everything = run_command("eval", out, data, "--split", "all", "--skip-bad", "--json")
    assert everything.status == 0, everything.err
    assert everything.document["images"] == 24
    assert any("red/99.png" in sentence for sentence in everything.document["skipped"])


@pytest.fixture
def one_bad(tmp_path):
    """Three batches of images, one of which is none."""
    images = tmp_path / "images"
    write_images(images, COLOURS["red"], 70)
    (images / "40a.png").write_bytes(b"nothing")
    return images


def test_a_bad_file_costs_no_finished_prediction(trained, one_bad):
    outcome = run_command("predict", trained.folder, one_bad, "--json")
    assert outcome.status == 1
    rows = [json.loads(line.rstrip(",")) for line in outcome.out.splitlines()[1:-1]]
    assert rows == outcome.document
    bad = [row for row in rows if "class_name" not in row]
    assert [os.path.basename(row["image"]) for row in bad] == ["40a.png"]
    assert "not an image" in bad[0]["error"]
    assert len(rows) == 71
    sentence = outcome.err.splitlines()[-1]
    assert sentence.startswith("vprompt: 1 of 71 images")
    assert "40a.png" in sentence
    assert "--skip-bad" in sentence
    table = run_command("predict", trained.folder, one_bad)
    assert table.status == 1
    assert table.out.count(".png") == 70
    good = run_command("predict", trained.folder, *sorted(one_bad.glob("??.png")), "--json").document
    assert [row["class_name"] for row in rows if row not in bad] == [row["class_name"] for row in good]


def test_a_bad_file_costs_no_finished_evaluation(trained, tmp_path):
    data = write_classes(tmp_path / "data", 4, start=50)
    good = run_command("eval", trained.folder, data, "--json").document
    for name, content in (("60.png", b"nothing"), ("61.png", b"")):
        (data / "red" / name).write_bytes(content)
    outcome = run_command("eval", trained.folder, data, "--json")
    skipped = outcome.document["skipped"]
    assert outcome.document == good | {"skipped": skipped}
    assert ["red/60.png" in skipped[0], "red/61.png" in skipped[1], len(skipped)] == [True, True, 2]
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].startswith("vprompt: 2 of the images could not be read, and the")
    assert "red/60.png" in outcome.err.splitlines()[-1]
    table = run_command("eval", trained.folder, data)
    assert (table.status, "%" in table.out) == (1, True)
    passed = run_command("eval", trained.folder, data, "--json", "--skip-bad")
    assert (passed.status, passed.document) == (0, outcome.document)
    for path in data.rglob("*.png"):
        path.write_bytes(b"nothing")
    nothing = run_command("eval", trained.folder, data)
    assert (nothing.status, nothing.out) == (1, "")
    assert "50.png" in nothing.err


def test_predict_skips_what_is_no_image_and_says_so(trained, one_bad):
    outcome = run_command("predict", trained.folder, one_bad, "--json", "--skip-bad")
    assert outcome.status == 0
    assert [os.path.basename(found["image"]) for found in outcome.document] == [f"{n:02}.png" for n in range(70)]
    assert "40a.png" in outcome.err
    nothing = run_command("predict", trained.folder, one_bad / "40a.png", "--skip-bad")
    assert nothing.status == 1
    assert nothing.out == ""


def test_a_prediction_that_is_stopped_leaves_what_it_did(trained, tmp_path):
    write_images(tmp_path / "images", COLOURS["red"], 40)
    endless = [tmp_path / "images"] * 200
    process = Command("predict", trained.folder, *endless, "--json", folder=tmp_path)
    status, out, err = process.when(lambda: process.printed()[0].count("class_name") > 40, signal.SIGINT)
    assert status == 130
    assert 40 < len(json.loads(out)) < 8000
    assert "Traceback" not in err


def test_a_device_is_taken_by_name(trained, tmp_path):
    image = trained.data / "red" / "00.png"
    runs = (
        ["predict", trained.folder, image],
        ["eval", trained.folder, trained.data],
        ["fit", trained.data, *QUICK, "--out", tmp_path / "fitted"],
    )
    others = (
        ["condense", trained.folder, trained.data, "--out", tmp_path / "condensed"],
        ["compare", trained.data, "--methods", "linear", "--out", tmp_path / "compared"],
        ["export", trained.folder, "--format", "pt2", "--out", tmp_path / "exported.pt2"],
    )
    for arguments in (*runs, *others):
        outcome = run_command(*arguments, "--device", "abacus")
        assert outcome.status == 1
        assert "'abacus'" in outcome.err
    assert list(tmp_path.iterdir()) == []
    for arguments in runs:
        outcome = run_command(*arguments, "--device", "cpu")
        assert outcome.status == 0, outcome.err
    assert json.loads((tmp_path / "fitted" / "result.json").read_text())["machine"]["device"] == "cpu"


def test_what_the_library_notices_is_a_sentence_without_a_line_of_code(tiny_weights, tmp_path):
    weights = load_file(tiny_weights)
    both = {f"{part}.{name}": tensor for part in ("teacher", "student") for name, tensor in weights.items()}
    save_file({name: tensor.clone() for name, tensor in both.items()}, tmp_path / "both.safetensors")
    options = ["--backbone", "test_vit", "--img-size", 32, "--weights", tmp_path / "both.safetensors"]
    outcome = run_command("fit", write_classes(tmp_path / "data", 4), *QUICK, *options, "--out", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    (line,) = (line for line in outcome.err.splitlines() if "the first were taken" in line)
    assert line.startswith(f"{tmp_path / 'both.safetensors'} has weights of this backbone under 'teacher', 'student'")
    assert not any(word in outcome.err for word in ("Warning", "warn", ".py"))


def test_white_of_a_camera_goes_with_the_adapter(tmp_path):
    """An image alone does not tell how many bits the others need."""
    for name, level in (("dim", 300), ("dimmer", 150)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(6):
            values = np.random.default_rng([level, number]).normal(level, 20, (24, 24)).clip(0).astype(np.uint16)
            values[:4, :4] = 4000 * (number == 0)
            Image.fromarray(values).save(tmp_path / "data" / name / f"{number}.tif")
    assert run_command("fit", tmp_path / "data", *QUICK, "--out", tmp_path / "run").status == 0
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["preprocessing"]["white"] == 4095
    model = vprompt.load(tmp_path / "run")
    assert model.fold().preprocessing.white == 4095


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_json_is_one_document_and_progress_goes_elsewhere(trained):
    assert isinstance(json.loads(trained.outcome.out), dict)
    assert trained.outcome.out.startswith("{")
    assert trained.outcome.out.endswith("}\n")
    assert "training:" in trained.outcome.err
    assert "img/s" in trained.outcome.err


def test_eval_tells_folders_that_were_trained_on_from_others(trained, tmp_path):
    judged = run_command("eval", trained.folder, write_classes(tmp_path / "new", 4, start=50), "--json").document
    assert (judged["split"], judged["images"]) == ("all", 12)
    assert "the model has seen none" in judged["notes"][0]
    grown = shutil.copytree(trained.data, tmp_path / "elsewhere")
    for path in grown.rglob("*.png"):
        path.rename(path.with_stem(f"renamed {path.stem}"))
    same = run_command("eval", trained.folder, grown, "--json").document
    assert same == run_command("eval", trained.folder, trained.data, "--json").document | {"notes": same["notes"]}
    assert same["split"] == "test"
    assert same["images"] == trained.result["provenance"]["data"]["images"]["test"]
    seed = run_command("eval", trained.folder, grown, "--split-seed", 5, "--json").document
    assert seed["images"] < 9
    assert any("trained on" in sentence for sentence in seed["skipped"])
    alone = shutil.copytree(trained.folder, tmp_path / "alone")
    (alone / "result.json").unlink()
    unknown = run_command("eval", alone, grown)
    assert "not known which images the model was trained on" in unknown.err


def test_eval_and_predict_print_json(trained, tmp_path):
    judged = run_command("eval", trained.folder, trained.data, "--json")
    assert judged.status == 0
    assert {"accuracy", "images", "loss", "split", "skipped"} <= set(judged.document)
    assert 0 <= judged.document["accuracy"] <= 1
    predicted = run_command("predict", trained.folder, trained.data / "red", "--json")
    assert predicted.status == 0
    assert len(predicted.document) == 10
    assert {"image", "class_name", "probability", "top"} == set(predicted.document[0])


def test_condense_prints_json(trained, tmp_path):
    arguments = ["--no-fine-tune", "--criterion", "magnitude", "--out", tmp_path / "out", "--json"]
    outcome = run_command("condense", trained.folder, trained.data, *arguments)
    assert outcome.status == 0
    assert outcome.document["before"]["prompt_counts"] == [3] * 2
    assert sum(outcome.document["prompt_counts"]) == round(0.3 * 6)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────

NAMES = ["[red]x[/red]", "[/]", "<b>&amp;", "鸟 vögel", "$x_1$ `code` | pipe", "n" * 200]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Classes with names that are hard to show, and an adapter that knows them."""
    root = tmp_path_factory.mktemp("odd")
    data = write_classes(
        root / "data", 4, colours={name: (40 * i, 20, 99) for i, name in enumerate(n for n in NAMES if "/" not in n)}
    )
    outcome = run_command("fit", data, *QUICK, "--out", root / "run")
    assert outcome.status == 0, outcome.err
    return root / "run", data


def squeezed(text):
    return "".join(text.split())


def test_names_are_shown_as_they_are(odd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    adapter, data = odd
    outcome = run_command("predict", adapter, data, "--top", "9")
    assert outcome.status == 0, outcome.err
    for name in os.listdir(data):
        assert name in outcome.out
    assert len([line for line in outcome.out.splitlines() if ".png" in line]) == len(list(data.rglob("*.png")))


@pytest.mark.parametrize("place", ["[bold]a/[link=x]b", "a[/red]b"], ids=["tags", "a closing tag"])
def test_markup_in_paths_is_no_markup(trained, tmp_path, monkeypatch, place):
    monkeypatch.setenv("COLUMNS", "500")
    data = write_classes(tmp_path / place, 3)
    outcome = run_command("fit", data, *QUICK, "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert squeezed(place) in squeezed(outcome.out)
    judged = run_command("eval", tmp_path / "out", data)
    assert judged.status == 0, judged.err
    assert squeezed(f"on {data}") in squeezed(judged.out)


@pytest.mark.parametrize("columns", ["40", "1"])
def test_a_narrow_terminal_loses_no_character(odd, trained, monkeypatch, columns):
    adapter, data = odd
    monkeypatch.setenv("COLUMNS", columns)
    for arguments in (["predict", adapter, data], ["eval", adapter, data], ["cost", "test_vit", "--prompts", "7"]):
        outcome = run_command(*arguments)
        assert outcome.status == 0, outcome.err
        assert outcome.out.strip()
    finished = run_command("fit", trained.data, *trained.options, "--out", trained.folder, "--resume")
    assert finished.status == 0, finished.err


def test_a_table_of_forty_columns_still_has_all_of_its_text(trained, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    outcome = run_command("predict", trained.folder, trained.data / "red" / "00.png")
    assert all(len(line) <= 40 for line in outcome.out.splitlines())
    # A column is folded line by line: its characters are there in order, among those of the others.
    wanted = iter(squeezed(outcome.out))
    assert all(character in wanted for character in "00.png")
    assert "red" in outcome.out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_path_is_broken_at_slashes_only(trained, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ["IMG_20240512_1112.png", "b.png"]
    folder = tmp_path / "birds in the garden" / "2024"
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(trained.data / "red" / "00.png", folder / name)
    monkeypatch.chdir(tmp_path)
    outcome = run_command("predict", trained.folder, "birds in the garden")
    assert outcome.status == 0
    assert all(len(line) <= columns for line in outcome.out.splitlines())
    for part in [*names, "birds in the garden/", "2024/", *COLOURS]:
        assert part in outcome.out
    assert all(outcome.out.count(name) == 2 for name in COLOURS)


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_the_counts_of_every_block_can_be_read_on_any_terminal(capsys, monkeypatch, columns):
    """12 blocks of up to three digits, as those of ViT-B with 100 prompts."""
    monkeypatch.setenv("COLUMNS", str(columns))
    counts = [100, 3, 10, 20, 31, 42, 53, 64, 75, 86, 97, 0]
    stage = {"val_accuracy": 0.5, "test_accuracy": 0.5, "learned_params": 1, "method": "vpt-deep"}
    stage |= {"prompt_counts": counts, "training_seconds": 1.0, "converged": True, "epochs": []}
    origin = {"data": {"source": "data", "skipped": []}}
    show_result({**stage, "backbone": "vit", "provenance": origin}, Path("out"), as_json=False)
    printed = capsys.readouterr().out
    numbers = [int(word) for word in printed.split() if word.isdigit()]
    assert sum(numbers.count(count) > 0 for count in counts) == len(counts), printed


def test_the_table_of_a_run_has_its_numbers(trained, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    outcome = run_command("fit", trained.data, *trained.options, "--out", trained.folder, "--resume")
    assert outcome.status == 0
    learned, val, test = (line for line in outcome.out.splitlines() if "vpt-deep" in line)
    result = trained.result
    for line, split in ((val, "val"), (test, "test")):
        low, high = result[f"{split}_interval"]
        assert f" {100 * result[f'{split}_accuracy']:.1f} % " in line
        assert f" {100 * low:.0f}-{100 * high:.0f} " in line
        assert f" {100 * result[f'{split}_balanced_accuracy']:.1f} % " in line
        assert f"{100 * result[f'{split}_majority_accuracy']:.1f} %" in outcome.out
    assert f"{result['learned_params']:,}" in learned
    assert " 6 " in learned
    assert str(trained.folder) in outcome.err


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def on_stream(encoding, *arguments):
    """Runs a command with a standard output that is strict about its encoding, as a file or a pipe is."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
        out.flush()
    return status, out.buffer.getvalue()


@pytest.mark.parametrize("json_", [True, False], ids=["json", "table"])
def test_a_stream_that_cannot_hold_a_name_is_no_crash(odd, json_):
    """Python writes cp1252 into files and pipes on Windows."""
    adapter, data = odd
    status, written = on_stream("cp1252", "predict", adapter, data, *(["--json"] if json_ else []))
    assert status == 0
    if json_:
        classes = {name for found in json.loads(written.decode("cp1252")) for name, _ in found["top"]}
        assert "鸟 vögel" in classes


def test_a_mark_of_direction_never_reaches_the_terminal(trained, tmp_path):
    name = "photo\u202egnp.png"
    shutil.copy(trained.data / "red" / "00.png", tmp_path / name)
    (tmp_path / "bad\u2066.png").write_bytes(b"")
    for options in ([], ["--json"]):
        outcome = run_command("predict", trained.folder, tmp_path, *options)
        assert outcome.status == 1
        assert not set(outcome.out + outcome.err) & set("\u202e\u2066")
        assert "\\u202e" in outcome.out
    missing = run_command("predict", trained.folder, tmp_path / "no\u202e.png")
    assert "no\\u202e.png does not exist" in missing.err


@pytest.mark.parametrize("json_", [True, False], ids=["json", "table"])
def test_a_file_name_that_is_no_unicode_is_no_crash(trained, tmp_path, json_):
    images = os.fsencode(tmp_path / "images")
    os.mkdir(images)
    try:
        shutil.copy(trained.data / "red" / "00.png", images + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    status, written = on_stream("utf-8", "predict", trained.folder, tmp_path / "images", *(["--json"] if json_ else []))
    assert status == 0
    assert b"caf" in written
    if json_:
        assert json.loads(written)[0]["class_name"] in COLOURS


def named(name, tmp_path, weights):
    """Images, weights and an output folder below a folder of a strange name, and a short run on them."""
    here = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    write_classes(here / "data", 4)
    shutil.copy(weights, here / "w.safetensors")
    options = [
        "--backbone",
        "test_vit",
        "--img-size",
        "32",
        "--epochs",
        "1",
        "--condense",
        "0.5",
        "--fine-tune-epochs",
        "1",
    ]
    return here, [
        "fit",
        str(here / "data"),
        *options,
        "--weights",
        str(here / "w.safetensors"),
        "--out",
        str(here / "out"),
    ]


def test_paths_that_are_no_text_are_no_crash(tiny_weights, tmp_path):
    here, arguments = named(b"caf\xe9", tmp_path, tiny_weights)
    for again in ([], ["--resume"]):
        outcome = run_command(*arguments, *again)
        assert outcome.status == 0, outcome.err
    result = json.loads((here / "out" / "result.json").read_bytes())
    assert (result["settings"]["data"], result["settings"]["weights"]) == (
        str(here / "data"),
        str(here / "w.safetensors"),
    )


def test_a_locale_that_knows_no_letters_is_no_crash(tiny_weights, tmp_path):
    here, arguments = named("vögel 鸟".encode(), tmp_path, tiny_weights)
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "vprompt", *arguments]
    ended = subprocess.run(command, capture_output=True, check=False, timeout=300, env={**os.environ, **plain})
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.isascii()
    assert ended.stderr.isascii()
    assert (here / "out" / "result.json").exists()


@pytest.mark.parametrize(
    "leftovers",
    [
        {"RANK": "1"},
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"LOCAL_RANK": "1"},
        {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
        {"PMI_SIZE": "4", "PMI_RANK": "2"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "LOCAL_RANK": "0"},
    ],
    ids=str,
)
def test_what_a_launcher_left_over_is_said_and_passed_over(trained, two_blocks, tmp_path, monkeypatch, leftovers):
    for name, value in leftovers.items():
        monkeypatch.setenv(name, value)
    outcome = run_command("fit", trained.data, *QUICK, "--backbone", two_blocks, "--out", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "out" / "result.json").exists()
    assert {name: os.environ.get(name) for name in leftovers} == leftovers
    said = [name for name in leftovers if f"{name}" in outcome.err.partition("left over")[0]]
    assert bool(said) is (leftovers.get("SLURM_PROCID") is None)


def leave_little_memory():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))


def test_too_little_memory_is_a_sentence(trained, tmp_path):
    """More than a gigabyte of address space is not to be had; what is asked for takes dozens."""
    arguments = ["fit", trained.data, "--prompts", 10_000, "--img-size", 32, "--epochs", 1, "--out", tmp_path / "out"]
    status, _, errors = Command(*arguments, folder=tmp_path, prepare=leave_little_memory).end()
    assert status == 1
    assert errors.splitlines()[-1].startswith("vprompt: There is not enough memory")
    assert not (tmp_path / "out").exists()


EARLY = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
{}
from vprompt.cli import main
sys.exit(main(["tasks", "--json"]))
"""

STOPS = {
    "import": "import builtins; real = builtins.__import__\ndef late(name, *a, **k):\n"
    "    if name == 'vprompt.cli.predict': os.kill(os.getpid(), signal.SIGINT)\n"
    "    return real(name, *a, **k)\nbuiltins.__import__ = late",
    "module": "sys.path.insert(0, 'HERE'); sys.modules.pop('tyro', None)",
    "parser": "import tyro; real = tyro.cli\ndef cli(*a, **k):\n    os.kill(os.getpid(), signal.SIGINT)\n"
    "    return real(*a, **k)\ntyro.cli = cli",
}


@pytest.mark.parametrize("moment", STOPS)
def test_ctrl_c_at_the_very_beginning_is_no_traceback(moment, tmp_path):
    (tmp_path / "tyro.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    code = EARLY.format(STOPS[moment].replace("HERE", str(tmp_path)))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "vprompt: Stopped.\n")


def test_a_full_disk_behind_standard_output_is_a_sentence():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "vprompt", "backbones", "--json"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr == "vprompt: The system refused something: No space left on device.\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "no"],
        ["eval", "./no", "d"],
        ["fit", "--weights", "no"],
        ["predict", "no", "x"],
        ["fit", "--out", "FILE"],
    ],
    ids=" ".join,
)
def test_a_path_that_is_wrong_is_said_before_seconds_of_imports(arguments, tmp_path):
    (tmp_path / "FILE").write_text("mine")
    code = (
        f"import sys; from vprompt.cli import main; print(main({arguments}), *{{'torch', 'numpy'}} & {{*sys.modules}})"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert ended.stdout == "1\n", ended.stderr
    assert ended.stderr.startswith("vprompt: ")


@pytest.mark.parametrize("asked", ["tasks", "--help"])
def test_a_reader_that_goes_away_is_no_traceback(asked):
    command = [sys.executable, "-m", "vprompt", asked]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    err = process.stderr.read()
    process.wait(timeout=300)
    process.stderr.close()
    assert "Traceback" not in err
    assert "BrokenPipe" not in err
    assert process.returncode in (0, 1)


def test_images_of_every_kind_can_be_predicted(trained, tmp_path):
    for number, (name, mode) in enumerate([("a.jpg", "L"), ("b.webp", "RGBA"), ("c.gif", "P"), ("d.PNG", "1")]):
        Image.new(mode, (9 + number, 30)).save(tmp_path / name)
    outcome = run_command("predict", trained.folder, tmp_path, "--json")
    assert outcome.status == 0, outcome.err
    assert [os.path.basename(found["image"]) for found in outcome.document] == ["a.jpg", "b.webp", "c.gif", "d.PNG"]
