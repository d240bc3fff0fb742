"""Flat settings, as commands and plans have them, and what a run makes of those that are new in this file."""

import json
from dataclasses import dataclass, fields, replace

import pytest
import torch

import vprompt
from conftest import run_command, write_classes
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.cli.export import Export
from vprompt.data.dataset import ImageDataset
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.tasks import open_task
from vprompt.experiments import stages as sources
from vprompt.experiments.run import run, try_settings
from vprompt.experiments.settings import (
    CondenseSettings,
    Condensing,
    Settings,
    changed_settings,
    setting_types,
    settings_from,
)
from vprompt.methods.base import Method
from vprompt.methods.registry import METHODS, Kind
from vprompt.model.records import Recipe
from vprompt.utils.errors import DataError, VPromptError

PLAIN = Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
TINY = {"backbone": BUNDLED_BACKBONE, "img_size": 16, "epochs": 4, "batch_size": 200, "prompts": 2}


def test_every_setting_has_a_flat_name_and_its_default():
    given = settings_from({"backbone": "x"})
    assert given == Settings(backbone="x")
    own = {field.name for field in fields(Settings)} - {"recipe", "prune", "columns"}
    columns = {"image_column", "label_column", "split_column", "group"}
    recipe = {field.name for field in fields(Recipe)}
    condensing = {"fine_tune", "fine_tune_epochs", "criterion", "scope", "merge"}
    pruning = {"prune", "prune_tokens", "prune_segments", "num_segments", "saving", "rewind_epoch", "fresh_start"}
    methods = {
        "prompts",
        "kv_prompts",
        "share",
        "dropout",
        "layers",
        "blocks",
        "reduction",
        "rank",
        "alpha",
        "side_width",
        "init",
        "fourier_share",
        "moved",
        "scores",
        "targets",
        "drop_path",
        "koopman",
        "stability",
    }
    assert set(setting_types()) == own | columns | recipe | condensing | pruning | methods


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize("after", [{}, {"condense": 0.5, "merge": True}, {"prune_tokens": 0.5, "rewind_epoch": 2}])
def test_settings_survive_as_flat_plain_data(name, after):
    method = METHODS.get(name).make({})
    if after and (method.riding != "prefix" or ("prune_tokens" in after and method.relocates)):
        after = {}
    settings = settings_from({"backbone": "x", "method": name, "lr": 0.1, "workers": 3, **after})
    flat = json.loads(json.dumps(settings.to_flat()))
    assert settings_from(flat) == settings
    assert "workers" not in settings.to_flat(places=False)
    others = {flag for kind in METHODS for flag in kind.options} - METHODS.get(name).options.keys()
    assert not others & flat.keys()


def test_flat_names_reach_their_places():
    found = settings_from(
        {
            "backbone": "x",
            "lr": 1,
            "seed": 4,
            "prune_tokens": 0.5,
            "num_segments": 8,
            "scope": "local",
            "method": "e2vpt",
        }
    )
    assert (found.recipe.lr, type(found.recipe.lr), found.recipe.seed) == (1.0, float, 4)
    assert (found.prune.tokens, found.prune.segments, found.prune.num_segments) == (0.5, None, 8)
    assert found.prune.scope == "local"
    assert settings_from({"backbone": "x", "condense": 0.5, "scope": "local"}).condense.scope == "local"
    assert settings_from({"backbone": "x", "prune": False, "num_segments": 8}).prune is None
    assert settings_from({"backbone": "x", "prune": True}).prune.searched


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "name no backbone"),
        ({"backbone": "x", "promts": 3}, "did you mean prompts"),
        ({"backbone": "x", "zzzzzz": 3}, "there are .*augment"),
        ({"backbone": 3}, "backbone takes text in quotes, not 3"),
        ({"backbone": "x", "prompts": True}, "prompts takes a whole number, not True"),
        ({"backbone": "x", "lr": "fast"}, "lr takes a number or 'auto' or nothing, not 'fast'"),
        ({"backbone": "x", "fine_tune": 1}, "fine_tune takes true or false, not 1"),
        (
            {"backbone": "x", "resize": "stretch"},
            "resize takes 'squash' or 'crop' or 'keep' or 'fit' or nothing, not 'stretch'",
        ),
        ({"backbone": "x", "optimizer": True}, "optimizer takes 'adamw' or 'sgd', not True"),
        ({"backbone": "x", "train_on": "test"}, "train_on takes 'train' or 'train.val'"),
        ({"backbone": "x", "condense": 1.5}, "share of prompts to keep"),
        ({"backbone": "x", "prune": True, "criterion": "cls-similarity"}, "about whole prompts"),
        ({"backbone": "x", "prune": True, "criterion": "removal"}, "about whole prompts"),
        ({"backbone": "x", "prune_tokens": 0.5, "criterion": "removal-signed"}, "about whole prompts"),
        ({"backbone": "x", "method": "vpt-shallow", "condense": 0.5, "merge": True}, "cannot be merged"),
    ],
)
def test_what_cannot_be_meant_is_said(values, sentence):
    with pytest.raises(VPromptError, match=sentence):
        settings_from(values)


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_a_run_of_an_earlier_version_goes_on(ratio):
    """Its settings nest recipe and pruning, name what other methods read, and know nothing of merging."""
    recipe = {field.name: getattr(Recipe(), field.name) for field in fields(Recipe)}
    earlier = {
        "data": None,
        "root": "/elsewhere",
        "backbone": "x",
        "weights": None,
        "method": "vpt-deep",
        "prompts": 20,
    }
    earlier |= {"kv_prompts": 5, "share": "key-value", "layers": 2, "blocks": 1, "reduction": 8, "rank": 8}
    earlier |= {"side_width": 32, "head_init": "zero", "condense": ratio, "fine_tune": True, "fine_tune_epochs": 20}
    earlier |= {"criterion": "taylor", "scope": "global", "prune": None, "rewind_epoch": 0, "recipe": recipe}
    earlier |= {"resize": None, "augment": None, "train_on": "train", "test": True, "img_size": None}
    earlier |= {"split_seed": 0, "skip_bad": False}
    values = {"backbone": "x"} | ({} if ratio is None else {"condense": ratio})
    assert changed_settings(earlier, settings_from(values).to_flat()) == []
    assert changed_settings(earlier, settings_from({**values, "epochs": 3}).to_flat()) == ["epochs"]
    assert changed_settings(earlier, settings_from({**values, "prompts": 3}).to_flat()) == ["prompts"]
    if ratio is not None:
        assert changed_settings(earlier, settings_from({**values, "merge": True}).to_flat()) == ["merge"]
        assert changed_settings(earlier, settings_from({"backbone": "x"}).to_flat()) == ["condense"]


def test_a_condensation_of_an_earlier_version_goes_on():
    kind = CondenseSettings(adapter="x", split_seed=0)  # which is spelt out before anything is done
    earlier = {"adapter": "x", "weights": None, "data": None, "root": None, "ratio": 0.3, "criterion": "taylor"}
    earlier |= {"scope": "global", "fine_tune": True, "fine_tune_epochs": 20, "seed": 0, "split_seed": 0}
    assert changed_settings({**earlier, "skip_bad": False}, kind.to_flat()) == []
    merging = replace(kind, condense=Condensing(ratio=0.3, merge=True))
    assert changed_settings(earlier, merging.to_flat()) == ["merge"]


def test_what_is_searched_on_validation_images_cannot_train_on_them():
    with pytest.raises(VPromptError, match="validation images, so they cannot be trained on"):
        settings_from({"backbone": "x", "prune": True, "train_on": "train+val"})
    assert settings_from({"backbone": "x", "prune_tokens": 0.5, "prune_segments": 0.5, "train_on": "train+val"})


def test_joined_images_are_those_of_both():
    task = open_task(None, PLAIN)
    one, other = task.val.subset(range(3)), task.test.subset(range(4))
    both = one.joined(other)
    assert len(both) == 7
    assert torch.equal(both.labels, torch.cat([one.labels, other.labels]))
    for number in range(7):
        image, label = both[number]
        expected, wanted = one[number] if number < 3 else other[number - 3]
        assert torch.equal(image, expected)
        assert label == wanted
    shared = task.test.subset([5, 1]).joined(task.test.subset([3]))
    assert torch.equal(shared.pixels(torch.arange(3)), task.test.pixels(torch.tensor([5, 1, 3])))


def test_joined_files_are_those_of_both(colours):
    task = open_task(str(colours), PLAIN)
    files = [
        ImageDataset(part.labels, PLAIN, root=colours, paths=part.paths) for part in (task.train, task.val) if part
    ]
    both = files[0].joined(files[1])
    assert both.paths == [*task.train.paths, *task.val.paths]
    assert torch.equal(both[len(both) - 1][0], task.val[len(task.val) - 1][0])


def test_trainings_may_use_the_validation_images_and_leave_the_test_images_alone(split_colours, tmp_path):
    tiny = {**TINY, "data": str(split_colours), "batch_size": 6}
    chosen = run(settings_from({**tiny, "test": False}), tmp_path / "chosen")
    assert chosen["test_accuracy"] is None
    assert chosen["val_accuracy"] is not None
    assert "not read" in chosen["provenance"]["epoch_rule"]
    final = run(settings_from({**tiny, "train_on": "train+val"}), tmp_path / "final")
    assert final["val_accuracy"] is None
    assert final["test_accuracy"] is not None
    assert final["provenance"]["data"] == chosen["provenance"]["data"]
    assert final["epochs"][-1]["loss"] != chosen["epochs"][-1]["loss"]


def test_a_task_without_validation_images_has_none_to_train_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "open_task", lambda *a, **k: replace(open_task(*a, **k), val=None))
    with pytest.raises(DataError, match="no validation images to train on"):
        run(settings_from({**TINY, "train_on": "train+val"}), tmp_path / "final")
    with pytest.raises(DataError, match="no validation images to choose settings by"):
        try_settings(settings_from(TINY), tmp_path / "t" / "training.safetensors", until=1)


def test_a_flag_that_two_methods_share_has_the_type_of_the_one_that_is_named():
    @dataclass(frozen=True)
    class Share(Method):
        name = "rank-share"
        rank: float = 0.5

    METHODS.register(Kind(name="rank-share", method=Share, fixed={}))
    try:
        assert settings_from({"backbone": "x", "method": "rank-share", "rank": 0.25}).method == Share(rank=0.25)
        with pytest.raises(VPromptError, match=r"rank takes a whole number, not 0\.25"):
            settings_from({"backbone": "x", "method": "lora", "rank": 0.25})
        assert settings_from({"backbone": "x", "method": "linear", "rank": 0.25}).method == METHODS.get("linear").make(
            {}
        )
    finally:
        METHODS._members.pop("rank-share")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"best_epoch": True}, "found on validation images"),
        ({"early_stopping": 2}, "found on validation images"),
        (
            {"early_stopping": 2, "train_on": "train", "prune_tokens": 0.5, "prune_segments": 0.0, "rewind_epoch": 1},
            "no epoch to rewind to",
        ),
        ({"method": "pro-vpt", "prune_tokens": 0.5, "prune_segments": 0.0, "rewind_epoch": 1}, "no epoch to rewind to"),
    ],
)
def test_what_cannot_be_done_in_the_end_is_refused_at_once(values, words):
    with pytest.raises(VPromptError, match=words):
        settings_from({"backbone": "x", "train_on": "train+val", "method": "vpt-deep", "epochs": 3, **values})


def test_condensing_goes_on_with_the_images_of_the_training(tmp_path, two_blocks):
    """What was trained on validation images is not judged, and nothing is chosen, by them."""
    write_classes(tmp_path / "photos", 8)
    options = ["--backbone", two_blocks, "--prompts", 2, "--epochs", 1, "--batch-size", 8, "--no-report"]
    own = ["--train-on", "train+val", "--augment", "strong"]
    done = run_command("fit", tmp_path / "photos", *options, *own, "--out", tmp_path / "run", "--json")
    small = ["condense", tmp_path / "run", tmp_path / "photos", "--no-report", "--fine-tune-epochs", 1, "--json"]
    again = run_command(*small, "--out", tmp_path / "a").document
    assert again["provenance"]["trained_on"] == done.document["provenance"]["trained_on"]
    assert again["provenance"]["trained_on"]["augment"] == "strong"
    assert again["val_accuracy"] is None
    outcome = run_command(*small, "--ratio", "auto", "--out", tmp_path / "b")
    assert (outcome.status, "no validation images" in outcome.err) == (1, True)


@pytest.mark.parametrize("method", ["vfpt", "bpt", "pae"])
def test_prompts_that_are_saved_as_others_are_trained_in_each_run(tmp_path, two_blocks, method):
    """A run that could share its first stage ends as one that does all of it by itself."""
    write_classes(tmp_path / "photos", 8)
    values = {"backbone": two_blocks, "data": str(tmp_path / "photos"), "method": method, "prompts": 4, "epochs": 2}
    values |= {"batch_size": 8, "lr": 0.05}
    run(settings_from(values), tmp_path / "first")
    both = settings_from({**values, "condense": 0.5, "fine_tune": False})
    alone = run(both, tmp_path / "alone")
    shared = run(both, tmp_path / "shared", trained=tmp_path / "first")
    assert shared["test_loss"] == alone["test_loss"]
    assert shared["prompt_counts"] == alone["prompt_counts"]


def test_data_are_cut_as_for_the_training(tmp_path, two_blocks):
    """By `condense` and by `export`, where it is not said otherwise."""
    write_classes(tmp_path / "photos", 8)
    cut = ["--backbone", two_blocks, "--prompts", 2, "--epochs", 1, "--batch-size", 8, "--no-report", "--split-seed", 3]
    done = run_command("fit", tmp_path / "photos", *cut, "--out", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    small = ["condense", tmp_path / "run", tmp_path / "photos", "--no-fine-tune", "--no-report", "--json", "--out"]
    again, other = run_command(*small, tmp_path / "a"), run_command(*small, tmp_path / "b", "--split-seed", 0)
    seen = [one.document["provenance"]["data"]["fingerprint"] for one in (done, again, other)]
    assert seen[0] == seen[1] != seen[2]
    assert again.document["before"]["test_accuracy"] == done.document["test_accuracy"]
    data = str(tmp_path / "photos")
    measured = Export(adapter=str(tmp_path / "run"), int8=data)._int8(vprompt.load(tmp_path / "run").fold(), data)
    trained = open_task(data, measured.labelled.preprocessing, split_seed=3)
    assert measured.labelled.paths == trained.test.paths
    assert set(measured.calibration.paths) == set(trained.train.paths)
