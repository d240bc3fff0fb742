"""What version 0.1.0 wrote, when the library was called laconic, still loads and says the same.

`old/` holds files of that version (their paths and the machine's name replaced by neutral ones). The numbers below are
what it computed from them. Its exported files are in `exporters/laconic/`.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vprompt
from conftest import run_command
from vprompt.training.checkpoint import History, State, load_checkpoint, save_checkpoint

OLD = Path(__file__).parent / "old"
RUN = "synthetic-counting-linear-s0-e363c7ac606fdbf0"

COUNTS = {
    "prompts": [2] * 12,
    "e2vpt-pruned": [0, 1, 0, 1, 2, 1, 1, 2, 1, 1, 2, 0],
    "merged": [0, 2, 3, 4, 0, 2, 2, 2, 2, 3, 1, 3],
}
LOGITS = {
    "prompts": [[0.291709303855896, -0.2917092740535736], [-0.06287291646003723, 0.06287290900945663]],
    "e2vpt-pruned": [[0.3620627820491791, -0.3620627820491791], [-0.08191320300102234, 0.08191321045160294]],
    "merged": [[0.2838555872440338, -0.2838555872440338], [-0.05480947718024254, 0.054809484630823135]],
}
PROBABILITY = {"prompts": 0.7945094704627991, "e2vpt-pruned": 0.773744523525238, "merged": 0.8013930916786194}


@pytest.mark.parametrize("name", COUNTS)
def test_adapter(name):
    model = vprompt.load(OLD / name)
    images = torch.linspace(-3, 3, 2 * 3 * 32 * 32).sin().reshape(2, 3, 32, 32)
    assert list(model.prompt_counts) == COUNTS[name]
    assert model.classes == ("blue", "red")
    for runs in (model, model.fold()):
        with torch.no_grad():
            torch.testing.assert_close(runs(images), torch.tensor(LOGITS[name]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", COUNTS)
def test_adapter_in_the_command(name):
    answer = run_command("predict", OLD / name, OLD / "red.png", "--json").document[0]
    assert answer["class_name"] == "red"
    assert answer["probability"] == pytest.approx(PROBABILITY[name], abs=1e-5)


def test_adapter_saved_again_has_the_new_name(tmp_path):
    vprompt.load(OLD / "merged").save_pretrained(tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text("utf-8"))
    assert config["vprompt_version"] == vprompt.__version__
    assert config["backbone"]["name"] == "vprompt_vit_tiny_patch8_64.tiny_imagenet"
    assert "laconic" not in json.dumps(config)
    again, old = load_file(tmp_path / "merged" / "adapter_model.safetensors"), vprompt.load(OLD / "merged")
    torch.testing.assert_close(again["prompts.3"], old.prompts[3].data, rtol=0, atol=0)


@pytest.mark.parametrize("place", ["runs", "prompts"], ids=["store", "result"])
def test_results_are_reported(place, tmp_path):
    shutil.copytree(OLD / place, tmp_path / place)
    outcome = run_command("report", tmp_path / place)
    assert outcome.status == 0, outcome.err
    with (tmp_path / place / "report.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    result = json.loads(
        next((tmp_path / place).glob("result*/*.json" if place == "runs" else "result.json")).read_text()
    )
    assert float(row["test_accuracy"]) == result["test_accuracy"] == {"runs": 0.208, "prompts": 1.0}[place]


def test_a_plan_goes_on_with_its_old_results(tmp_path):
    shutil.copytree(OLD / "runs", tmp_path / "runs")
    outcome = run_command("bench", tmp_path / "runs" / "plans" / "plan.toml", "--out", tmp_path / "runs", "--dry-run")
    assert outcome.status == 0, outcome.err
    assert "0 runs to do; 1 done already" in outcome.err


def test_checkpoint(tmp_path):
    weight = torch.nn.Parameter(torch.arange(3.0))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    state = State(step=3, sums=(0.5, 1.0), history=History(rows=[{"loss": 1.0}], seconds=2.0))
    save_checkpoint(tmp_path / "new", {"weight": weight}, optimizer, run={"images": 7}, state=state)
    with safe_open(tmp_path / "new", framework="pt") as file:
        metadata = {"laconic": file.metadata()["vprompt"]}
    save_file(load_file(tmp_path / "new"), tmp_path / "old", metadata=metadata)
    learned = torch.nn.Parameter(torch.zeros(3))
    sizes = {"epochs": 2, "steps_per_epoch": 2}
    assert load_checkpoint(tmp_path / "old", {"weight": learned}, optimizer, run={"images": 7}, **sizes) == state
    assert learned.tolist() == [0, 1, 2]
