"""Tags, numbers and a target from a file outside the package, through every command and every room."""

import csv
import json
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from starlette.testclient import TestClient
from torch.utils.data import TensorDataset

import vprompt
from conftest import run_command, run_with_one_thread
from plugins import example, plugged
from processes import Command
from vprompt.data.tasks import open_task
from vprompt.exporters.export import Int8, compare, export
from vprompt.serving.app import create_app
from vprompt.serving.limits import Limits
from vprompt.serving.predict import predict_each
from vprompt.serving.service import Service
from vprompt.tasks.base import TARGETS
from vprompt.tasks.columns import Columns
from vprompt.tasks.multi_label import MultiLabel
from vprompt.tasks.regression import Regression
from vprompt.utils.errors import AdapterError, VPromptError

SMALL = ["--img-size", 16, "--epochs", 2, "--batch-size", 8, "--prompts", 3, "--lr", 0.01]
FEWER = ["--condense", 0.5, "--fine-tune-epochs", 1]
OPTIONS = {"tags": [*FEWER, "--merge"], "sizes": FEWER, "counts": [*FEWER, "--target", "counts"]}
SCORES = {"tags": "mean_ap", "sizes": "r2", "counts": "d2"}
KINDS = tuple(OPTIONS)
TAGS = MultiLabel(names=("big", "red", "round"))
SIZES = Regression(names=("age", "weight"), mean=(30.0, -5.0), std=(10.0, 0.5))


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    """The target of docs/extending.md, in a file that nothing in the package knows."""
    with plugged(tmp_path_factory.getbasetemp() / "counts.py", example("A target")) as path:
        yield path


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Bars of one to three colours and some widths on noise, and a table of their tags, their sizes, their number."""
    root, chance = tmp_path_factory.mktemp("bars"), random.Random(0)
    rows = []
    for number in range(32):
        pixels = np.random.default_rng(number).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        image, width = Image.fromarray(pixels), chance.randrange(4, 15)
        tags = chance.sample(["red", "lime", "blue"], number % 4)
        for place, tag in enumerate(tags):
            ImageDraw.Draw(image).rectangle([0, 5 * place, width, 5 * place + 3], fill=tag)
        image.save(root / f"{number}.png")
        split = "train" if number < 16 else "val" if number < 24 else "test"
        rows.append((f"{number}.png", split, {"tags": [";".join(tags)], "sizes": [width + 0.5, 10 * width + number]}))
        rows[-1][2]["counts"] = [len(tags)]
    heads = {"tags": ["tags"], "sizes": ["width_mm", "area"], "counts": ["bars"]}
    for kind, names in heads.items():
        with (root / f"{kind}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "split", *names])
            writer.writerows([image, split, *labels[kind]] for image, split, labels in rows)
    return root


@dataclass(frozen=True)
class Run:
    """A finished, condensed run."""

    kind: str
    data: Path
    folder: Path
    result: dict
    arguments: list

    @property
    def score(self):
        return SCORES[self.kind]

    @property
    def model(self):
        return vprompt.load(self.folder).eval()


@pytest.fixture(scope="module")
def runs(tables, two_blocks, tmp_path_factory):
    """One of each kind, made when it is first asked for."""
    made = {}

    def run(kind):
        if kind not in made:
            data, folder = tables / f"{kind}.csv", tmp_path_factory.mktemp("runs") / kind
            labels = ["--label-column", "width_mm,area"] if kind == "sizes" else []
            arguments = ["fit", data, "--backbone", two_blocks, *SMALL, *OPTIONS[kind], *labels]
            outcome = run_with_one_thread(*arguments, "--out", folder, "--json")
            assert outcome.status == 0, outcome.err
            made[kind] = Run(kind, data, folder, outcome.document, arguments)
        return made[kind]

    return run


@pytest.fixture(params=KINDS)
def run(request, runs):
    return runs(request.param)


def names_in(document):
    """All keys of a document."""
    if isinstance(document, dict):
        return {*document}.union(*map(names_in, document.values()))
    return set[str]().union(*map(names_in, document)) if isinstance(document, list) else set[str]()


def same(found, wanted):
    """Whether two documents are the same, but for rounding."""
    if isinstance(wanted, dict):
        return {*found} == {*wanted} and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found == pytest.approx(wanted, rel=1e-4, abs=1e-5) if isinstance(wanted, float) else found == wanted


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_is_compared_by_the_score_of_its_target(run):
    result = run.result
    assert result["target"] == TARGETS.get({"tags": "multi-label", "sizes": "regression"}.get(run.kind, "counts")).name
    for model in (result, result["before"]):
        assert {f"val_{run.score}", f"test_{run.score}"} <= model.keys()
        assert model["epochs"][0].keys() >= {"loss", f"val_{run.score}", TARGETS.get(result["target"]).hit}
    assert not [name for name in names_in(result) if name != "tag_accuracy" and "accuracy" in name]
    assert sum(result["prompt_counts"]) * 2 == sum(result["before"]["prompt_counts"])
    card = (run.folder / "README.md").read_text()
    assert "## Outputs" in card
    assert f"| Says | {result['target'].replace('-', '-')}" in card.replace("\\", "")
    assert ("pipeline_tag" in card) is (run.kind == "tags")


def test_a_finished_run_shows_its_figures_and_their_units(run):
    outcome = run_command(*run.arguments, "--out", run.folder, "--resume")
    assert outcome.status == 0, outcome.err
    assert {"tags": "mean AP", "sizes": "width_mm ", "counts": "explained"}[run.kind] in outcome.out
    assert "accuracy" not in outcome.out


def test_a_killed_run_goes_on_bit_for_bit(runs, tmp_path):
    run, out = runs("sizes"), tmp_path / "again"
    command = [*run.arguments, "--out", out, "--json"]
    child = Command(*command, folder=tmp_path)
    status, _, _ = child.when(lambda: any((out / ".run").glob("training*.safetensors")), signal.SIGKILL)
    assert status == -signal.SIGKILL
    outcome = run_with_one_thread(*command, "--resume")
    assert outcome.status == 0, outcome.err
    adapter = "adapter_model.safetensors"
    assert (out / adapter).read_bytes() == (run.folder / adapter).read_bytes()
    assert (out / "full" / adapter).read_bytes() == (run.folder / "full" / adapter).read_bytes()
    scores = [f"{split}_{name}" for split in ("val", "test") for name in (run.score, "interval", "loss")]
    assert [outcome.document[key] for key in scores] == [run.result[key] for key in scores]


def test_evaluating_gives_the_figures_of_the_run(run):
    outcome = run_command("eval", run.folder, run.data, "--json")
    assert outcome.status == 0, outcome.err
    for name in (run.score, "interval", "loss"):
        assert same(outcome.document[name], run.result[f"test_{name}"]), name
    evaluation = vprompt.evaluate(run.model, data_of(run).test)
    assert evaluation.score == pytest.approx(run.result[f"test_{run.score}"], abs=1e-5)
    with pytest.raises(VPromptError, match="There is no accuracy of"):
        _ = evaluation.accuracy


def data_of(run):
    columns = Columns(label_column=run.result["settings"].get("label_column"))
    return open_task(run.data, run.model.preprocessing, target=run.result["target"], columns=columns)


def test_condensing_as_far_as_it_goes(runs, tmp_path):
    run = runs("sizes")
    arguments = [run.data, "--ratio", "auto", "--fine-tune-epochs", 1, "--out", tmp_path / "small", "--json"]
    outcome = run_command("condense", run.folder / "full", *arguments)
    assert outcome.status == 0, outcome.err
    trials = outcome.document["condensing"]["trials"]
    assert all({"ratio", "val_r2", "difference", "interval"} == {*trial} for trial in trials)


def test_pruning_with_a_search(tables, two_blocks, tmp_path):
    options = ["--backbone", two_blocks, *SMALL[:-2], "--method", "e2vpt", "--prune"]
    outcome = run_command("fit", tables / "tags.csv", *options, "--out", tmp_path / "pruned", "--json")
    assert outcome.status == 0, outcome.err
    pruning = outcome.document["pruning"]
    assert pruning["trials"]
    assert outcome.document["val_mean_ap"] is not None


@pytest.mark.parametrize("target", [TAGS, SIZES], ids=lambda target: target.name)
def test_scores_are_finite_differences_of_the_loss(target):
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", img_size=32).double()
    model = vprompt.attach(backbone, vprompt.VPT(3, dropout=0.0), target=target).double().eval()
    with torch.no_grad():
        for value in model.learned.values():
            value.add_(0.3 * torch.randn_like(value))
    images = torch.randn(5, 3, 32, 32).double()
    labels = torch.tensor(target.mean) + torch.randn(5, 2) if target is SIZES else (torch.rand(5, 3) < 0.5).float()
    scores, step = vprompt.score(model, TensorDataset(images, labels)), 1e-5

    def losses():
        return target.loss(model(images), labels)

    with torch.no_grad():
        for block, prompts in enumerate(model.prompts):
            for number in range(3):
                whole = prompts[number].clone()
                ends = []
                for scale in (1 + step, 1 - step):
                    prompts[number] = scale * whole
                    ends.append(losses())
                prompts[number] = whole
                wanted = ((ends[0] - ends[1]) / (2 * step)).abs().mean()
                assert float(scores[block][number]) == pytest.approx(float(wanted), rel=1e-3, abs=1e-8)


# ── predictions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_predictions_are_the_same_everywhere(run, tables, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    files, model = [tables / f"{number}.png" for number in (3, 30)], run.model
    predictions = model.predict(files)
    answers = [{"image": str(file), **answer} for file, answer in zip(files, predictions.answers, strict=True)]
    outcome = run_command("predict", run.folder, *files, "--json")
    assert same(outcome.document, answers)
    assert run.kind == "tags" or {*answers[0]["values"]} == {*model.target.names}
    [[first, _]] = predict_each(model, files)
    assert same(first.answer, predictions.answers[0])
    table = run_command("predict", run.folder, *files).out
    assert {"tags": "most probable", "sizes": "width_mm", "counts": "bars"}[run.kind] in table
    assert repr(predictions).startswith("Predictions(")
    assert len(predictions) == 2
    with pytest.raises(VPromptError, match="ask for `answers`"):
        _ = predictions.labels


def test_a_mixed_batch_and_a_service(runs, tables, colours, tmp_path):
    folders = {kind: runs(kind).folder for kind in KINDS}
    backbone = vprompt.load(folders["tags"]).backbone
    bank = vprompt.Bank(backbone)
    models = {name: vprompt.load(folder, backbone=backbone) for name, folder in folders.items()}
    models["classes"] = vprompt.attach(backbone, vprompt.VPT(2), classes=["a\nb", "c"]).eval()
    for name, model in models.items():
        entry = bank.add(name, model)
        assert entry.target == model.target
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for name, logits, image in zip(models, bank(images, list(models)), images, strict=True):
            torch.testing.assert_close(logits, models[name](image[None])[0].float(), rtol=1e-4, atol=1e-4)
    service = Service(bank, Limits())
    try:
        with TestClient(create_app(service)) as client:
            body = (tables / "5.png").read_bytes()
            alone = {name: client.post(f"/v1/predict/{name}", content=body).json() for name in models}
            together = client.post("/v1/predict", params={"adapter": list(models)}, content=body).json()["answers"]
            assert same(together, list(alone.values()))
            for name in KINDS:
                [answer] = models[name].predict(tables / "5.png").answers
                assert same(alone[name], {"adapter": name, **answer})
            assert {*alone["classes"]} == {"adapter", "class_index", "class_name", "probability", "top"}
            assert all("\n" not in name for name, _ in alone["classes"]["top"])
            details = client.get("/v1/adapters/sizes").json()
            assert (details["target"], details["classes"]) == ("regression", ["width_mm", "area"])
            assert "values" in client.get("/openapi.json").text
    finally:
        assert service.close(60)


# ── exported files ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "suffix", "whole"),
    [("tags", ".onnx", True), ("sizes", ".pt2", True), ("counts", ".pt2", False)],
)
def test_exported_files_say_the_same(runs, tables, tmp_path, kind, suffix, whole):
    run = runs(kind)
    model, path = run.model, tmp_path / f"model{suffix}"
    exported = export(model, path, include_preprocessing=whole)
    assert exported.target == model.target
    if suffix == ".onnx":
        [output] = onnxruntime.InferenceSession(path).get_outputs()
        assert output.name == (("probabilities" if run.kind == "tags" else "values") if whole else "logits")
    files = [tables / f"{number}.png" for number in range(4)]
    torch.testing.assert_close(exported.predict(files).outputs, model.predict(files).outputs, rtol=1e-3, atol=1e-4)
    if suffix == ".onnx":
        outcome = run_command("eval", path, run.data, "--split", "test", "--json", *_columns(run))
        assert outcome.status == 0, outcome.err
        assert same(outcome.document[run.score], pytest.approx(run.result[f"test_{run.score}"], abs=1e-3))


def _columns(run):
    return ["--label-column", "width_mm,area"] if run.kind == "sizes" else []


def test_int8_is_measured_by_the_score(runs, tmp_path):
    run = runs("sizes")
    data = data_of(run)
    exported = export(run.model, tmp_path / "small.onnx", int8=Int8(calibration=data.train, labelled=data.test))
    cost = exported.about.quantisation
    assert cost.score_before == pytest.approx(run.result[f"test_{run.score}"], abs=1e-4)
    assert cost.score_after is not None
    assert (cost.accuracy_before, cost.accuracy_after) == (None, None)
    assert 0.5 < cost.same_class <= 1


def test_only_names_of_classes_and_tags_are_written_beside(runs, tmp_path):
    export(runs("tags").model, tmp_path / "tags.pt2", labels=True)
    assert (tmp_path / "labels.txt").read_text() == "blue\nlime\nred\n"
    with pytest.raises(VPromptError, match="no classes or tags"):
        export(runs("sizes").model, tmp_path / "other" / "sizes.pt2", labels=True)


def test_the_order_of_numbers_is_no_class():
    eager, exported = torch.tensor([[1.0, 1.00015]]), torch.tensor([[1.00008, 1.00007]])
    with pytest.raises(VPromptError, match="names another class"):
        compare(eager, exported, tolerance=1e-4)
    assert compare(eager, exported, tolerance=1e-4, classes=False).images == 1


def test_an_adapter_whose_target_cannot_be_is_refused(runs, tmp_path):
    wrong = [{"std": [0.0, 1.0]}, {"mean": [1.0]}, {"name": "agression"}, {"name": 3}]
    for number, values in enumerate(wrong):
        folder = shutil.copytree(runs("sizes").folder, tmp_path / str(number))
        file = folder / "adapter_config.json"
        document = json.loads(file.read_text())
        document["target"] |= values
        del document["checksum"]
        file.write_text(json.dumps(document))
        with pytest.raises(AdapterError, match="the target cannot be made"):
            vprompt.load(folder)


# ── comparisons ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_comparison_and_its_report_speak_of_the_score(tables, two_blocks, tmp_path):
    out = tmp_path / "compared"
    arguments = ["--methods", "linear,vpt-deep", "--seeds", 1, "--backbone", two_blocks, *SMALL, "--out", out]
    columns = ["--label-column", "width_mm,area"]
    outcome = run_command("compare", tables / "sizes.csv", *arguments, *columns)
    assert outcome.status == 0, outcome.err
    assert "R²" in outcome.out
    assert "width_mm " in outcome.out
    assert run_command("report", out).status == 0
    for text in (outcome.out, *((out / name).read_text() for name in ("compare.md", "report.md", "report.csv"))):
        assert "ccuracy" not in text
    assert "R² by task" in (out / "report.md").read_text()
    assert "test_r2" in (out / "report.csv").read_text()
    assert "test_r2" in (out / "compare.json").read_text()


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("multi-label", torch.randint(0, 2, (8, 2), generator=torch.Generator().manual_seed(0)).float()),
        ("regression", torch.randn(8, 2, generator=torch.Generator().manual_seed(0))),
    ],
)
def test_a_target_by_name_learns_of_tensors(name, labels):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(8, 3, 32, 32), labels)
    backbone = timm.create_model("test_vit", img_size=32)
    model = vprompt.attach(backbone, vprompt.Linear(), target=name, classes=["first", "second"])
    assert (model.target.name, model.target.names) == (name, ("first", "second"))
    history = vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=20, lr=0.01))
    assert history.rows[-1]["loss"] < history.rows[0]["loss"]
    plain = vprompt.attach(backbone, vprompt.Linear(), num_classes=2)
    with pytest.raises(VPromptError, match="attach with target='multi-label' or 'regression'"):
        vprompt.fit(plain, data, recipe=vprompt.Recipe(epochs=1))


def test_a_data_set_is_no_task():
    data = TensorDataset(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    with pytest.raises(VPromptError, match=r"data must be a task from vprompt\.open_data, not TensorDataset"):
        vprompt.attach("bundled", vprompt.Linear(), data=data)
