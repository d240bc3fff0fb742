"""`vprompt analyze sweep`, `schedule` and `e2vpt` as they are typed."""

import json

import pytest

from conftest import run_command, write_classes
from study_runs import fill, made
from vprompt.analysis.options import Training
from vprompt.analysis.schedule import Schedule
from vprompt.analysis.schedule.measure import plan_of
from vprompt.experiments.bench.plan import load_plan
from vprompt.experiments.bench.store import open_store

COMMANDS = ("sweep", "schedule", "e2vpt")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_says_what_and_leaves_nothing(name, tmp_path):
    small = ["--backbone", "test_vit", "--img-size", 32, "--seeds", 1]
    found = run_command("analyze", name, "--dry-run", "--json", *small, "--out", tmp_path / "runs")
    assert found.status == 0, found.err
    assert found.document["plan"] == name
    assert {run["done"] for run in found.document["runs"]} == {False}
    assert found.document["seconds"] > 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("more", [["--dry-run"], ["--epochs", 1]])
def test_images_without_classes_are_refused_before_anything_is_trained(name, more, tmp_path):
    tags = write_classes(tmp_path / "photos", 4) / "tags.csv"
    files = sorted(tags.parent.rglob("*.png"))
    rows = [f"{file.relative_to(tags.parent)},{('a;b', 'a', 'b')[n % 3]}" for n, file in enumerate(files)]
    tags.write_text("\n".join(["image,tags", *rows]))
    found = run_command("analyze", name, tags, "--backbone", "test_vit", *more, "--out", tmp_path / "runs")
    assert found.status == 1
    assert "there is none of multi-label" in found.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["sweep", ""], 2, "empty"),
        (["sweep", "--out", ""], 2, "empty"),
        (["sweep", "--out", "s3://bucket/x"], 2, "this machine"),
        (["sweep", "--seeds", "0"], 2, "at least one seed"),
        (["sweep", "--workers", "0"], 2, "at least one"),
        (["sweep", "--method", "linear"], 2, "linear"),
        (["sweep", "--shares", "a"], 1, "--shares"),
        (["sweep", "--shares", ""], 1, "--shares"),
        (["sweep", "--shares", "2"], 1, "at most 1"),
        (["sweep", "--lrs", "0.1,"], 1, "--lrs"),
        (["sweep", "--lrs", "-1"], 1, "learning rate"),
        (["sweep", "--criterion", "x"], 1, "criterion"),
        (["sweep", "--backbone", "no_such"], 1, "no_such"),
        (["sweep", "--prompts", "paper"], 1, "papers say nothing"),
        (["sweep", "--prompts", "0"], 1, "at least one prompt"),
        (["sweep", "--epochs", "-1"], 1, "epochs"),
        (["schedule", "--ratio", "0"], 1, "above 0"),
        (["schedule", "--fine-tune-epochs", "1.5"], 1, "--fine-tune-epochs"),
        (["schedule", "--fine-tune-epochs=-1"], 1, "at least 0"),
        (["e2vpt", "--parts", "x"], 1, "sharing"),
        (["e2vpt", "--pruned", "1"], 1, "below 1"),
        (["e2vpt", "--kv-prompts", "0"], 1, "at least 1"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, status, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run_command("analyze", *arguments, "--dry-run")
    assert found.status == status, found.err
    assert word in found.err
    assert "Traceback" not in found.err
    if status == 1:
        assert found.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_shown_without_training(tmp_path):
    plan = plan_of(Schedule(training=Training(epochs=50, lrs=(0.01,)), fine_tune_epochs=(0, 20)))
    options = ["--fine-tune-epochs", "0,20", "--epochs", 50, "--lrs", 0.01, "--out", tmp_path, "--read-only"]
    fill(plan, open_store(str(tmp_path)), lambda job: made(job) if job.settings.recipe.seed else None)
    found = run_command("analyze", "schedule", *options)
    assert found.status == 0, found.err
    assert "3 of 9 runs are missing" in found.err
    assert "(2)" in found.out
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results", "schedule.json", "schedule.png", "analyses.html", "analyses.md")
    }
    written = json.loads((tmp_path / "schedule.json").read_text())["result"]
    assert run_command("analyze", "schedule", *options, "--json").document["curves"] == written["curves"]


def test_it_trains_says_what_failed_and_does_nothing_twice(split_colours, tiny_weights, tmp_path):
    out = tmp_path / "runs"
    options = ["--backbone", "test_vit", "--weights", tiny_weights, "--img-size", 32, "--epochs", 1, "--seeds", 1]
    options += ["--prompts", 2, "--shares", 0.5, "--fine-tune-epochs", 1, "--batch-size", 6, "--out", out]
    first = run_command("analyze", "sweep", split_colours, tmp_path / "nowhere", *options)
    assert first.status == 1
    assert "5 of 10 cells have no result, the first Linear on" in first.err
    assert "But 5 of 10 runs failed" in first.err
    assert "Traceback" not in first.err
    shown = json.loads((out / "sweep.json").read_text())["result"]
    assert [len(curve["points"]) for curve in shown["curves"] if curve["task"] is None] == [3, 1, 1]
    before = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    assert len(before) == 5
    again = run_command("analyze", "sweep", split_colours, *options, "--json")
    assert again.status == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()} == before
    at = {(curve["kind"], point["share"]): point for curve in again.document["curves"] for point in curve["points"]}
    assert [at["scratch", share]["prompts"] for share in (0.0, 0.5, 1.0)] == [0, 1, 2]
    assert at["condensed", 0.5]["prompts"] == 1
    accuracies = [point["accuracy"]["values"] for curve in again.document["curves"] for point in curve["points"]]
    assert all(0 <= value <= 1 for [value] in accuracies)
    # What it ran is a plan like any other.
    assert load_plan(str(out / "plans" / "sweep.toml")).tasks == (str(split_colours),)
    report = run_command("report", out, "--json")
    assert (report.status, report.document["finished"]) == (0, 5)
