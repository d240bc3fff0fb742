"""`vprompt fit` says what it found and did; named backbones; every stage of a condensing run stays on disk."""

import json
import tomllib
from pathlib import Path

import pytest
import torch

import vprompt
from conftest import COLOURS, run_command, write_images
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import can_create, describe_name
from vprompt.backbones.names import SHORT_NAMES, full_name
from vprompt.compression.condense import SHARES
from vprompt.data.tasks import open_task
from vprompt.experiments import plans
from vprompt.experiments.preview import passes
from vprompt.experiments.settings import settings_from
from vprompt.experiments.stages import backbone_for
from vprompt.training.evaluate import difference, evaluate
from vprompt.training.precision import in_bf16
from vprompt.training.settle import pace
from vprompt.utils.devices import FAST_BF16
from vprompt.utils.errors import BackboneError

TINY = ("--img-size", "16", "--prompts", "4", "--epochs", "1", "--batch-size", "16")
TUNED = ("--fine-tune-epochs", "1")


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """30 red images, and 5 of each other colour, cut by hand."""
    root = tmp_path_factory.mktemp("uneven") / "photos"
    for split, start, few, many in (("train", 0, 3, 20), ("val", 30, 1, 4), ("test", 60, 1, 6)):
        for name, count in (("blue", few), ("green", few), ("red", many)):
            write_images(root / split / name, COLOURS[name], count, start=start)
    return root


@pytest.fixture(scope="module")
def condensed(uneven, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "condensed"
    outcome = run_command("fit", uneven, *TINY, *TUNED, "--condense", "0.5", "--out", out, "--json")
    assert outcome.status == 0, outcome.err
    return out, outcome


def test_five_lines_say_what_was_found_and_what_will_be_done(uneven, condensed):
    _, outcome = condensed
    offline, data, passed, backbone, learned, time = outcome.err.splitlines()[:6]
    assert offline.startswith("Offline: the weights of the backbone small")
    assert "--weights FILE" in offline
    assert data.startswith(f"Data: {uneven}, 3 classes, 40 images (train 26, val 6, test 8)")
    assert "by class (train/val/test): blue 3/1/1, green 3/1/1, red 20/4/6" in data
    assert passed.startswith("Passed over: nothing")
    assert BUNDLED_BACKBONE in backbone
    assert all(word in backbone for word in ("5.4 M parameters", "16 x 16 pixels", "cpu", "thread", "fp32"))
    assert learned.startswith("To learn: vpt-deep, started with 4 prompts per block;")
    assert f"{outcome.document['before']['learned_params']:,} parameters" in learned
    assert time.startswith("Time: about ")


def test_accuracies_are_not_left_alone_in_a_result(condensed):
    _, outcome = condensed
    for stage in (outcome.document, outcome.document["before"]):
        for split, images in (("val", 6), ("test", 8)):
            low, high = stage[f"{split}_interval"]
            assert 0 <= low <= stage[f"{split}_accuracy"] <= high <= 1
            assert stage[f"{split}_images"] == images
            assert stage[f"{split}_majority_accuracy"] == pytest.approx({6: 4 / 6, 8: 6 / 8}[images])
            assert 0 <= stage[f"{split}_balanced_accuracy"] <= 1
            assert set(stage[f"{split}_never_right"]) <= {"blue", "green", "red"}
    assert any("bundled" in note for note in outcome.document["notes"])
    assert outcome.document["machine"] == {
        "device": "cpu",
        "precision": "fp32",
        "threads": torch.get_num_threads(),
        "batch_size": 16,
    }


def test_every_stage_is_an_adapter_of_its_own(uneven, condensed):
    out, outcome = condensed
    result, full = outcome.document, json.loads((out / "full" / "result.json").read_text(encoding="utf-8"))
    models = [vprompt.load(out / "full"), vprompt.load(out / "condensed"), vprompt.load(out)]
    assert [sum(model.prompt_counts) for model in models] == [48, 24, 24]
    assert models[1].prompt_counts == models[2].prompt_counts
    assert not all(torch.equal(a, b) for a, b in zip(models[1].prompts, models[2].prompts, strict=True))
    assert "before" not in full
    assert {key: full[key] for key in result["before"]} == result["before"]
    alone = run_command("fit", uneven, *TINY, "--out", out.parent / "alone", "--json")
    keys = ("val_accuracy", "test_loss", "settings", "seed", "backbone")
    assert {key: full[key] for key in keys} == {key: alone.document[key] for key in keys}
    task = open_task(uneven, models[0].preprocessing)
    change, (low, high) = difference(evaluate(models[2], task.test), evaluate(models[0], task.test))
    assert result["lost"]["test_accuracy"] == pytest.approx(change)
    assert result["lost"]["test_interval"] == pytest.approx([low, high])
    judged = run_command("eval", out / "full", uneven, "--json")
    assert judged.document["accuracy"] == full["test_accuracy"]
    assert judged.document["interval"] == full["test_interval"]
    report = run_command("report", out, "--json")
    assert report.status == 0, report.err


def test_auto_condenses_as_far_as_validation_allows(uneven, condensed, tmp_path):
    out, _ = condensed
    outcome = run_command(
        "condense",
        out / "full",
        uneven,
        "--ratio",
        "auto",
        "--fine-tune-epochs",
        "1",
        "--out",
        tmp_path / "auto",
        "--json",
    )
    assert outcome.status == 0, outcome.err
    trials, ratio = outcome.document["condensing"]["trials"], outcome.document["condensing"]["ratio"]
    assert [trial["ratio"] for trial in trials] == list(SHARES[: len(trials)])
    fine = [trial["ratio"] for trial in trials if trial["interval"][1] >= 0]
    assert ratio == (min(fine) if fine else 1.0)
    assert sum(outcome.document["prompt_counts"]) == round(48 * ratio)
    assert vprompt.load(tmp_path / "auto").condensation.ratio == ratio


@pytest.mark.parametrize("more", [("--train-on", "train+val"), ()])
def test_auto_needs_validation_images(tmp_path, more):
    for name, colour in COLOURS.items():
        write_images(tmp_path / "d" / "train" / name, colour, 1)
    outcome = run_command("fit", tmp_path / "d", *TINY, *TUNED, "--condense", "auto", *more, "--out", tmp_path / "out")
    assert outcome.status == 1
    assert "validation images" in outcome.err.splitlines()[-1]
    assert "instead of auto" in outcome.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_precision_auto_is_recorded_as_what_it_was(uneven, tmp_path):
    arguments = ("--method", "linear", "--epochs", "1", "--img-size", "16", "--precision", "auto")
    outcome = run_command("fit", uneven, *arguments, "--backbone", "bundled", "--out", tmp_path / "out", "--json")
    assert outcome.status == 0, outcome.err
    assert "Offline" not in outcome.err
    assert outcome.document["settings"]["precision"] == "auto"
    assert outcome.document["settings"]["backbone"] == outcome.document["backbone"] == BUNDLED_BACKBONE
    wanted = "bf16" if in_bf16("auto", torch.device(outcome.document["machine"]["device"])) else "fp32"
    assert outcome.document["machine"]["precision"] == wanted
    assert f", {wanted}." in outcome.err


def test_no_plan_takes_a_machine_for_granted():
    for path in Path(plans.__file__).parent.glob("*.toml"):
        assert tomllib.loads(path.read_text(encoding="utf-8"))["settings"]["precision"] == "auto", path.name


@pytest.mark.parametrize("units", [False, True])
def test_a_processor_without_units_for_bf16_says_so_before_it_starts(uneven, tmp_path, monkeypatch, units):
    monkeypatch.setitem(FAST_BF16, "cpu", units)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    words = "The cpu has no units for bf16 and emulates it slowly; --precision auto takes fp32."
    outcome = run_command("fit", uneven, *TINY, "--precision", "bf16", "--no-report", "--out", tmp_path / "a", "--json")
    assert (words in outcome.err, words in outcome.document["notes"]) == (not units, not units)
    plan = tmp_path / "plan.toml"
    settings = '[settings]\nbackbone = "test_vit"\nimg_size = 16\nepochs = 1\nprecision = "bf16"\n'
    plan.write_text(f'tasks = ["synthetic:counting"]\n{settings}[[methods]]\nlabel = "a"\nmethod = "linear"\n')
    outcome = run_command("bench", plan, "--out", tmp_path / "runs", "--dry-run")
    assert "Reckoning how long" in outcome.err
    assert (words in outcome.err) is not units
    assert ("on this machine" in outcome.err) is units  # emulated, nothing is timed


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_short_names_are_models_that_prompts_can_be_put_into(name):
    assert can_create(name)
    assert describe_name(name).name == full_name(name) == settings_from({"backbone": name}).backbone


def test_the_backbone_of_a_run_that_names_none(uneven, tmp_path, monkeypatch):
    small = SHORT_NAMES["small"]
    assert backbone_for(None) == backbone_for("synthetic:counting") == (BUNDLED_BACKBONE, None)
    assert backbone_for(str(uneven), weights="some.safetensors") == (small, None)
    name, problem = backbone_for(str(uneven))
    assert (name, problem is None) == (BUNDLED_BACKBONE, False)
    (tmp_path / ".run").mkdir()
    (tmp_path / ".run" / "settings.json").write_text('{"backbone": "vit_tiny_patch16_224"}')
    assert backbone_for(str(uneven), out=tmp_path) == ("vit_tiny_patch16_224", None)
    with pytest.raises(BackboneError, match="not in the cache"):
        vprompt.attach("small", num_classes=2)
    cache = tmp_path / "models--timm--vit_small_patch16_224.augreg_in21k"
    for place, text in (("refs/main", "abc"), ("snapshots/abc/model.safetensors", "")):
        (cache / place).parent.mkdir(parents=True)
        (cache / place).write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert backbone_for(str(uneven)) == (small, None)


def test_the_measurement_of_the_time_changes_nothing(uneven):
    model = vprompt.attach("bundled", vprompt.VPT(2), num_classes=3, img_size=16).eval()
    task = open_task(uneven, model.preprocessing)
    before, generator = {name: value.clone() for name, value in model.state().items()}, torch.get_rng_state()
    assert 0 < pace(model, task.train, vprompt.Recipe()).seconds < 60
    assert not model.training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("values", "learned", "seen"),
    [
        ({}, 100 * 7, 20 + 30),
        ({"train_on": "train+val"}, 120 * 7, 30),
        ({"method": "linear"}, 0, 100 + 20 + 30),
        ({"method": "linear", "augment": "crop-flip"}, 100 * 7, 50),
        ({"condense": 0.3, "fine_tune_epochs": 3}, 100 * (7 + 1 + 3), 50),
        ({"condense": 0.3, "fine_tune": False}, 100 * (7 + 1), 50),
        ({"condense": "auto", "fine_tune_epochs": 3}, 100 * (7 + 1 + 3 * len(SHARES)), 50),
        ({"prune": True}, 100 * (7 + 1 + 4 * 7), 50),
    ],
)
def test_images_are_counted_as_often_as_they_are_read(values, learned, seen):
    settings = settings_from({"backbone": "bundled", "epochs": 7, **values})
    assert passes(settings, 100, 20, 30) == (learned, seen)


@pytest.mark.parametrize(("name", "rare"), [("fit", "--momentum"), ("compare", "--split-seed")])
def test_help_has_two_levels(name, rare, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    few, all_ = run_command(name, "--help"), run_command(name, "--help-all")
    assert (few.status, all_.status) == (0, 0)
    assert rare not in few.out
    assert rare in all_.out
    assert "--help-all" in few.out
    assert all(f"{option} " in few.out for option in ("--backbone", "--epochs", "--out", "--lr"))
    assert len(few.out.splitlines()) < 0.7 * len(all_.out.splitlines())
    assert "--version" in run_command("--help").out


@pytest.mark.parametrize(
    ("option", "switch"),
    [
        *(("--fine-tune-epochs=3", "--condense"), ("--merge", "--condense"), ("--criterion=random", "--condense")),
        ("--rewind-epoch=5", "--prune"),
    ],
)
def test_an_option_without_its_switch_is_refused(tmp_path, option, switch):
    outcome = run_command("fit", tmp_path, option, "--out", tmp_path / "run")
    assert outcome.status == 2
    assert f"{option.partition('=')[0]} goes with {switch}" in outcome.err
