"""Comparisons: numbers against the runs' own results, runs made once, failures that cost nothing else, any end."""

import hashlib
import json
import math
import random
import shutil
import signal
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from conftest import run_command
from plans import TORCHRUN
from processes import Command
from vprompt.cli.compare import compare_command
from vprompt.cli.options import values_of
from vprompt.experiments.bench.grid import cells_of
from vprompt.experiments.compare import Comparison
from vprompt.experiments.report.comparison import markdown, tables
from vprompt.experiments.settings import setting_types
from vprompt.methods.registry import METHODS as METHODS_BY_NAME
from vprompt.report.markdown import escaped
from vprompt.utils.errors import VPromptError
from vprompt.utils.statistics import mean_of

METHODS = ("pc", "linear", "vpt-shallow", "e2vpt")  # pc's own vpt-deep is not shown
FAST = ["--prompts", 2, "--kv-prompts", 1, "--epochs", 2, "--fine-tune-epochs", 1, "--batch-size", 9, "--ratio", 0.5]
FAST += ["--lr", 0.02]
TIMES = ("seconds", "training_seconds", "milliseconds", "time_ratio", "folder", "adapter")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A ViT of six blocks for images of 32 pixels, with random weights and a classifier of five classes."""
    folder = tmp_path_factory.mktemp("backbone") / "vit"
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=32, num_classes=5)
    save_for_hf(model, str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Colours that say little about the class, so that accuracies differ from seed to seed; 12, 8 and 24 images."""
    root = tmp_path_factory.mktemp("noise") / "data"
    chance = random.Random(3)
    for split, count in (("train", 6), ("val", 4), ("test", 12)):
        for name in ("apple", "pear"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.frombytes("RGB", (8, 8), chance.randbytes(8 * 8 * 3)).resize((32, 32))
                image.save(root / split / name / f"{number}.png")
    return root


def arguments(backbone, data, out, methods, seeds, *more):
    command = ["compare", data, "--methods", ",".join(methods), "--seeds", seeds, "--backbone", backbone]
    return [*command, "--img-size", 32, *FAST, "--out", out, *more]


@pytest.fixture(scope="module")
def compared(backbone, noise, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "all"
    outcome = run_command(*arguments(backbone, noise, out, METHODS, 3, "--json"))
    assert outcome.status == 0, outcome.err
    return out, outcome


def folder_of(out, method, seed):
    """Where a run of a comparison lies; those that are not shown, by the words in their names."""
    document = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    shown = [run["folder"] for run in document["runs"] if (run["method"], run["seed"]) == (method, seed)]
    names = [path for path in (out / "adapters").glob(f"*-{method}-*") if f"seed{seed}-" in path.name]
    return Path(shown[0]) if shown else next(path for path in names if "keep" not in path.name)


def result_of(out, method, seed):
    return json.loads((folder_of(out, method, seed) / "result.json").read_text(encoding="utf-8"))


def state(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def timeless(value):
    """A document without what differs from time to time and from folder to folder."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_the_means_and_sample_deviations_of_the_runs(compared, backbone):
    out, outcome = compared
    document = outcome.document
    assert [row["method"] for row in document["rows"]] == list(METHODS)
    model = timm.create_model(backbone, img_size=32)
    parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("head."))
    assert sum(p.numel() for p in model.parameters()) == parameters + 5 * 64 + 5
    assert document["bare"]["parameters"] == parameters
    spreads = []
    for row in document["rows"]:
        results = [result_of(out, row["method"], seed) for seed in range(3)]
        tests = [result["test_accuracy"] for result in results]
        mean = sum(tests) / 3
        spreads.append(row["test_std"])
        assert row["runs"] == 3
        assert row["test_accuracy"] == pytest.approx(mean, abs=1e-12)
        assert row["test_std"] == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in tests) / 2), abs=1e-12)
        assert row["val_accuracy"] == pytest.approx(sum(r["val_accuracy"] for r in results) / 3, abs=1e-12)
        learned = sum(result["learned_params"] for result in results) / 3
        assert row["learned_params"] == pytest.approx(learned)
        assert row["learned_share"] == pytest.approx(learned / parameters)
        assert (row["converged"], row["unknown"]) == (0, 3)
        assert row["milliseconds"] > 0
        assert row["failed"] == []
    assert max(spreads) > 0  # else this test would say little
    prompts = {row["method"]: row["prompts"] for row in document["rows"]}
    left = sum(sum(result_of(out, "e2vpt", seed)["prompt_counts"]) for seed in range(3)) / 3
    assert prompts == {"pc": 6, "linear": 0, "vpt-shallow": 2, "e2vpt": pytest.approx(left + 6 * 1)}


def test_the_seconds_are_those_of_all_that_was_trained(compared):
    out, outcome = compared
    row = outcome.document["rows"][0]
    mine, deep = ([result_of(out, m, s)["training_seconds"] for s in range(3)] for m in ("pc", "vpt-deep"))
    assert row["training_seconds"] == pytest.approx((sum(mine) + sum(deep)) / 3)
    pruned = next(row for row in outcome.document["rows"] if row["method"] == "e2vpt")
    runs = [result_of(out, "e2vpt", seed) for seed in range(3)]
    spent = [run["before"]["training_seconds"] * run["pruning"]["trainings"] for run in runs]
    assert pruned["training_seconds"] == pytest.approx(sum(spent) / 3)
    before = result_of(out, "pc", 0)["before"]
    assert before["test_accuracy"] == result_of(out, "vpt-deep", 0)["test_accuracy"]


def test_seeds_differ_and_splits_do_not(compared):
    runs = compared[1].document["runs"]
    assert len({run["provenance"]["data_fingerprint"] for run in runs}) == 1
    seeds = {"pc": [], "linear": []}
    for run in runs:
        seeds.setdefault(run["method"], []).append(run["seed"])
    assert all(sorted(found) == [0, 1, 2] for found in seeds.values())
    assert len(runs) == 3 * len(METHODS)


def test_what_a_comparison_leaves(compared):
    out, outcome = compared
    names = {path.name for path in out.iterdir()}
    store = {"plans", "results", "adapters", "work", "failures", "paths"}
    assert names - store == {"compare.json", "compare.md", "compare.png"}
    assert len(list((out / "adapters").iterdir())) == 3 * (1 + 1 + 2 + 2)  # pc and e2vpt begin with a run of their own
    assert json.loads((out / "compare.json").read_text(encoding="utf-8")) == outcome.document
    assert (out / "compare.md").read_text(encoding="utf-8") == markdown(outcome.document)
    lines = [line for line in outcome.err.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == [f"[{n}" for n in range(1, 19)]
    assert run_command("report", out, "--json").status == 0


def test_pc_takes_the_run_that_is_there(backbone, noise, tmp_path):
    out = tmp_path / "out"
    first = run_command(*arguments(backbone, noise, out, ["vpt-deep"], 1))
    assert first.status == 0, first.err
    before = state(folder_of(out, "vpt-deep", 0))
    second = run_command(*arguments(backbone, noise, out, ["pc", "vpt-deep"], 1, "--resume", "--json"))
    assert second.status == 0, second.err
    assert state(folder_of(out, "vpt-deep", 0)) == before
    assert len([line for line in second.err.splitlines() if line.startswith("[")]) == 1
    rows = second.document["rows"]
    assert [row["method"] for row in rows] == ["pc", "vpt-deep"]
    assert rows[0]["learned_params"] < rows[1]["learned_params"]
    assert [row["test_std"] for row in rows] == [None, None]


# ── again ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_finished_comparison_is_read_and_can_grow(compared, backbone, noise, tmp_path):
    out = shutil.copytree(compared[0], tmp_path / "all")
    before = state(out / "adapters")
    copy = shutil.copytree(noise, tmp_path / "copy")  # the same images elsewhere
    again = run_command(*arguments(backbone, copy, out, METHODS, 3, "--resume", "--json"))
    assert again.status == 0, again.err
    assert state(out / "adapters") == before
    assert timeless(again.document["rows"]) == timeless(compared[1].document["rows"])
    fewer = run_command(*arguments(backbone, noise, out, ["linear"], 4, "--resume", "--json"))
    assert fewer.status == 0, fewer.err
    assert fewer.document["rows"][0]["runs"] == 4
    assert state(out / "adapters").items() >= before.items()


def test_other_settings_are_other_runs(compared, backbone, noise, tmp_path):
    out = shutil.copytree(compared[0], tmp_path / "all")
    before = state(out / "adapters")
    other = run_command(*arguments(backbone, noise, out, ["linear"], 1, "--resume", "--lr", 0.5, "--json"))
    assert other.status == 0, other.err
    assert other.document["runs"][0]["settings"]["lr"] == 0.5
    assert state(out / "adapters").items() >= before.items()


def refused(*command):
    outcome = run_command(*command)
    assert outcome.status == 1, outcome.out + outcome.err
    assert outcome.out == ""
    sentence = outcome.err.splitlines()[-1]
    assert sentence.startswith("vprompt: ")
    assert sentence.endswith(".")
    assert "Traceback" not in outcome.err
    return sentence


def test_a_comparison_goes_on_only_when_asked_and_other_folders_are_refused(compared, backbone, noise, tmp_path):
    out = compared[0]
    before = state(out)
    command = arguments(backbone, noise, out, METHODS, 3)
    assert "--resume" in refused(*command)
    assert state(out) == before
    (tmp_path / "notes.txt").write_text("mine")
    for more in ([], ["--resume"]):
        assert str(tmp_path) in refused(*arguments(backbone, noise, tmp_path, METHODS, 3, *more))
        assert "is a file" in refused(*arguments(backbone, noise, tmp_path / "notes.txt", METHODS, 3, *more))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--methods", "linear,magic"], ["'magic'", "vpt-deep", "pc"]),
        (["--methods", "linear,,pc"], ["''"]),
        (["--methods", ""], ["no method", "linear"]),
        (["--methods", "linear,pc, linear"], ["'linear'", "twice"]),
        (["--seeds", 0], ["seed", "0"]),
        (["--seeds", -2], ["seed", "-2"]),
        (["--ratio", 0], ["above 0"]),
        (["--prompts", 0], ["at least one prompt"]),
        (["--fine-tune-epochs", -1], ["epochs"]),
        (["--backbone", "vit_nope"], ["vit_nope"]),
        (["--out", ""], []),
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_trained(backbone, noise, tmp_path, change, words):
    outcome = run_command(*arguments(backbone, noise, tmp_path / "out", METHODS, 2), *change)
    assert outcome.status in (1, 2)
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1
    assert all(word in outcome.err for word in words)
    assert not (tmp_path / "out").exists()


def test_wrong_data_are_one_sentence_and_leave_nothing(backbone, tmp_path):
    sentence = refused(*arguments(backbone, tmp_path / "nowhere", tmp_path / "out", METHODS, 2))
    assert "nowhere" in sentence
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(backbone, noise, tmp_path, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    outcome = run_command(*arguments(backbone, noise, tmp_path / "out", METHODS, 2))
    assert outcome.status == 2
    assert "torchrun" in outcome.err
    assert not (tmp_path / "out").exists()


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_diverges_is_reported_and_the_others_survive(backbone, noise, tmp_path):
    """A rate at which only what passes many layers becomes infinite; pc has nothing to start from then."""
    out = tmp_path / "out"
    rate = ["--lr", 1e30, "--optimizer", "adamw", "--weight-decay", 0]
    outcome = run_command(*arguments(backbone, noise, out, ["linear", "vpt-deep", "pc"], 1), *rate, "--json")
    assert outcome.status == 1
    linear, deep, small = outcome.document["rows"]
    assert linear["failed"] == []
    assert (deep["runs"], deep["test_accuracy"], deep["milliseconds"]) == (0, None, None)
    assert "loss became" in deep["failed"][0]["failed"]
    assert "first stage failed: The loss became" in small["failed"][0]["failed"]
    assert outcome.err.splitlines()[-1].startswith("vprompt: 2 of 3 runs failed (vpt-deep, seed 0; pc, seed 0)")
    text = (out / "compare.md").read_text(encoding="utf-8")
    assert f"| vpt-deep, seed 0 | {escaped('failed: ' + deep['failed'][0]['failed'])} |" in text
    assert (out / "compare.png").exists()


def test_where_every_run_fails_there_is_a_document_and_no_picture(backbone, noise, tmp_path):
    out = tmp_path / "out"
    command = arguments(backbone, noise, out, ["vpt-deep", "vpt-shallow"], 2)
    outcome = run_command(*command, "--lr", 1e30, "--optimizer", "sgd")
    assert outcome.status == 1
    assert outcome.out.count("failed: ") == 4
    assert "4 of 4 runs failed" in outcome.err.splitlines()[-1]
    document = json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert [row["runs"] for row in document["rows"]] == [0, 0]
    assert "compare.png" not in (out / "compare.md").read_text(encoding="utf-8")
    assert not (out / "compare.png").exists()


def test_without_test_images_the_picture_shows_the_validation_accuracy(backbone, noise, tmp_path):
    data = shutil.copytree(noise, tmp_path / "data", ignore=shutil.ignore_patterns("test"))
    outcome = run_command(*arguments(backbone, data, tmp_path / "out", ["linear", "vpt-shallow"], 2))
    assert outcome.status == 0, outcome.err
    row = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))["rows"][0]
    assert (row["test_accuracy"], row["test_std"]) == (None, None)
    assert row["val_accuracy"] > 0
    assert (tmp_path / "out" / "compare.png").exists()


@pytest.mark.parametrize("damage", ["{", "[]", "key"])
def test_a_damaged_result_is_not_believed_and_run_again(compared, backbone, noise, tmp_path, damage):
    out = shutil.copytree(compared[0], tmp_path / "all")
    path = out / "results" / f"{folder_of(out, 'vpt-shallow', 1).name}.json"
    if damage == "key":
        document = json.loads(path.read_text(encoding="utf-8"))
        del document["test_accuracy"]
        damage = json.dumps(document)
    path.write_text(damage)
    again = run_command(*arguments(backbone, noise, out, ["linear", "vpt-shallow"], 3, "--resume", "--json"))
    assert again.status == 0, again.err
    assert len([line for line in again.err.splitlines() if line.startswith("[")]) == 1
    assert timeless(again.document["rows"][1]) == timeless(compared[1].document["rows"][2])


def test_a_damaged_adapter_costs_its_method_the_measurements_only(compared, backbone, noise, tmp_path):
    out = shutil.copytree(compared[0], tmp_path / "all")
    tensors = out / "adapters" / folder_of(out, "linear", 0).name / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    outcome = run_command(*arguments(backbone, noise, out, ["linear", "vpt-shallow"], 3, "--resume", "--json"))
    assert outcome.status == 1
    linear, shallow = outcome.document["rows"]
    assert (linear["runs"], linear["milliseconds"]) == (3, None)
    assert str(tensors) in linear["failed"][0]["failed"]
    assert shallow["milliseconds"] > 0


def test_images_that_changed_between_runs_are_no_comparison(backbone, noise, tmp_path):
    data, out = shutil.copytree(noise, tmp_path / "data"), tmp_path / "out"
    assert run_command(*arguments(backbone, data, out, ["linear"], 1)).status == 0
    (data / "train" / "pear" / "5.png").unlink()
    assert "images have changed" in refused(*arguments(backbone, data, out, ["linear"], 2, "--resume"))


# ── any kind of end ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_a_comparison_that_was_ended_goes_on_to_the_same_document(compared, backbone, noise, tmp_path, number):
    out = tmp_path / "all"
    command = [str(part) for part in arguments(backbone, noise, out, METHODS[:2], 3)]
    child = Command(*command, folder=tmp_path)
    status, printed, err = child.when(lambda: any((out / "work").glob("*vpt-deep*/*")), number)
    assert printed == ""
    assert not (out / "compare.json").exists()
    if number == signal.SIGINT:
        assert status == 130, err
        assert "Traceback" not in err
        assert err.splitlines()[-1].endswith(f"Go on with the same command and --resume (in {out}).")
    before = state(out / "adapters")
    outcome = run_command(*command, "--resume", "--json")
    assert outcome.status == 0, outcome.err
    assert state(out / "adapters").items() >= before.items()
    if not torch.accelerator.is_available():
        assert timeless(outcome.document["rows"]) == timeless(compared[1].document["rows"][:2])


# ── tables and pictures ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("columns", [50, 80])
def test_a_terminal_shows_every_number_whole(compared, capsys, monkeypatch, columns):
    from vprompt.cli.compare import show

    monkeypatch.setenv("COLUMNS", str(columns))
    document = json.loads(json.dumps(compared[1].document))
    document["rows"][0] |= {"learned_params": 303_123_456, "training_seconds": 90_000, "test_std": None}
    document["rows"][1]["failed"] = [{"seed": 1, "failed": "The loss became [bold]nan[/bold]."}]
    show(document, compared[0])
    printed = capsys.readouterr().out
    assert "…" not in printed
    for table in tables(document)[:4]:
        for row in table.texts:
            assert any(all(cell in line for cell in row) for line in printed.splitlines()), row
    assert "303,123,456" in printed
    assert "± –" in printed
    assert "[bold]" in printed


def test_only_classes_have_a_commonest_one(compared, capsys):
    from vprompt.cli.compare import show

    document = json.loads(json.dumps(compared[1].document))
    document["rows"] = [{**document["rows"][0], "target": "regression", "test_r2": -0.9, "val_r2": -0.9}]
    document["rows"][0]["test_interval"] = [-2.0, -0.1]
    del document["rows"][0]["test_majority_accuracy"]
    show(document, compared[0])
    assert "commonest" not in capsys.readouterr().err


def test_a_figure_that_one_run_has_not_has_no_mean():
    runs = [{"f1": 0.5, "interval": [0.4, 0.6]}, {"f1": 0.7, "interval": None}]
    assert mean_of(runs) == {"f1": pytest.approx(0.6), "interval": None}


def test_text_from_data_is_no_markup_in_markdown(compared):
    document = json.loads(json.dumps(compared[1].document))
    name = "</td>|`x`\n# [a](b) <img src=x>"
    document["data"] = document["backbone"] = name
    document["rows"][0]["failed"] = [{"seed": 0, "failed": name}]
    text = markdown(document)
    assert "<img" not in text
    assert "\n# [" not in text
    assert text.count(escaped(name)) == 3
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count(" | ") for line in table[: 2 + len(METHODS)]} == {12}


def test_methods_with_rates_of_their_own_join_and_a_rate_that_is_known_stays(backbone, noise, tmp_path):
    out = tmp_path / "out"
    first = run_command(*arguments(backbone, noise, out, ["linear"], 1, "--rates", "linear=0.05", "--json"))
    assert first.status == 0, first.err
    before = state(out / "adapters")
    assert result_of(out, "linear", 0)["settings"]["lr"] == 0.05
    more = ["--rates", "linear=0.05,vpt-shallow=0.01", "--no-prune", "--resume", "--json"]
    both = run_command(*arguments(backbone, noise, out, ["linear", "vpt-shallow"], 1, *more))
    assert both.status == 0, both.err
    assert state(out / "adapters").items() >= before.items()
    assert result_of(out, "vpt-shallow", 0)["settings"]["lr"] == 0.01


@pytest.mark.parametrize("rates", ["full=nan", "full=0", "full=-1", "full=inf", "nobody=0.1"])
def test_rates_that_cannot_be_are_refused(backbone, noise, tmp_path, rates):
    out = tmp_path / "out"
    refused(*arguments(backbone, noise, out, ["linear"], 1, "--rates", rates))
    assert not out.exists()


@pytest.mark.parametrize("rates", ["full", "full=x", "full=0.1,full=0.2"])
def test_rates_that_cannot_be_read_are_wrong_usage(backbone, noise, tmp_path, rates):
    outcome = run_command(*arguments(backbone, noise, tmp_path / "out", ["linear"], 1, "--rates", rates))
    assert outcome.status == 2
    assert "METHOD=RATE" in outcome.err


def test_options_of_condensing_are_for_pc_and_those_of_pruning_for_what_prunes():
    values = {"backbone": "x", "condense": 0.5, "merge": True, "criterion": "removal", "scope": "local"}
    comparison = Comparison(methods=("vpt-shallow", "pc", "e2vpt"), values=values)
    condensing = comparison.settings_of("pc").condense
    assert (condensing.merge, condensing.criterion, condensing.scope) == (True, "removal", "local")
    assert comparison.settings_of("vpt-shallow").condense is None
    pruned = Comparison(methods=("vpt-deep", "e2vpt"), values={"backbone": "x", "prune_tokens": 0.5})
    assert pruned.settings_of("vpt-deep").prune is None
    assert pruned.settings_of("e2vpt").prune.tokens == 0.5


def test_a_search_chooses_on_validation_images_and_says_what(backbone, noise, tmp_path):
    out = tmp_path / "searched"
    more = ["--search", "--epochs", 4, "--json"]
    outcome = run_command(*arguments(backbone, noise, out, ("bias",), 2, *more))
    assert outcome.status == 0, outcome.err
    document = json.loads(outcome.out)
    settings = {(run["method"], run["seed"]): run["settings"] for run in document["runs"]}
    for row in document["rows"]:
        assert row["tries"] == 12
        assert row["chosen"].keys() == {"lr", "weight_decay"}
        rates = {0.02 * share for share in (0.03, 0.1, 0.3, 1, 3, 10)}  # --lr 0.02 is the middle
        assert any(row["chosen"]["lr"] == pytest.approx(rate) for rate in rates)
        assert row["chosen"]["weight_decay"] in (1e-4, 1e-2)
        for seed in (0, 1):
            run = settings[row["method"], seed]
            assert {key: run[key] for key in row["chosen"]} == row["chosen"]
    trials = [path.name for path in (out / "results").iterdir() if "until" in path.name]
    assert sum("-bias-" in name for name in trials) == 12 + 6 + 3
    chosen = next(table for table in tables(document) if "Chosen" in table.caption)
    assert [row[:2] for row in chosen.texts] == [["bias", "12"]]
    assert f"lr {document['rows'][0]['chosen']['lr']:g}" in chosen.texts[0][2]
    assert chosen.texts[0][2] in markdown(document)


@pytest.mark.parametrize("epochs", [{}, {"epochs": "auto"}, {"time": "1m"}])
def test_a_search_needs_a_number_of_epochs(epochs):
    with pytest.raises(VPromptError, match="needs a number of epochs; give --epochs"):
        Comparison(methods=("linear",), search=True, values={"backbone": "test_vit", **epochs})


def test_methods_with_and_without_sizes_have_as_many_tries():
    values = {"backbone": "test_vit", "epochs": 4, "condense": 0.5}
    names = (*METHODS_BY_NAME.names(), "pc")
    plan = Comparison(methods=names, search=True, values=values).plan()
    found = cells_of(plan, plan.tasks)
    assert {math.prod(map(len, cell.search.space.values())) for cell in found} == {12}
    spaces = {cell.method: cell.search.space for cell in found}
    assert spaces["pc"] == spaces["vpt-deep"]


def test_each_method_has_its_own_numbers():
    """The default of another is none of its."""
    command = compare_command(["compare", "--methods", "vpt-deep,e2vpt,bpt,lora"])
    values = values_of(command(), setting_types()) | {"backbone": "test_vit"}
    comparison = Comparison(methods=("vpt-deep", "e2vpt", "bpt", "lora"), values=values)
    for name in comparison.methods:
        assert comparison.settings_of(name).method == METHODS_BY_NAME.get(name).method()
    given = Comparison(methods=("vpt-deep", "e2vpt"), values={**values, "prompts": 3})
    assert [given.settings_of(name).method.num_prompts for name in given.methods] == [3, 3]
    with pytest.raises(VPromptError, match="A search chooses --prompts of vpt-deep"):
        Comparison(methods=("vpt-deep",), search=True, values={**values, "prompts": 3, "epochs": 4})


def test_what_diverged_is_tried_again(noise, backbone, tmp_path):
    options = [
        "--methods",
        "vpt-deep",
        "--prompts",
        2,
        "--seeds",
        1,
        "--no-prune",
        "--epochs",
        2,
        "--img-size",
        32,
        "--lr",
        1e29,
    ]
    tried = []
    for more in ([], ["--resume"]):
        outcome = run_command("compare", noise, "--backbone", backbone, *options, *more, "--out", tmp_path / "out")
        assert outcome.status == 1
        tried.append(outcome.err.count("failed:"))
    assert tried == [1, 1]
