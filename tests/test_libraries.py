"""The page on other libraries: its blocks run; loops of one's own train what is learned and nothing else."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vprompt
from vprompt.backbones.info import fingerprint

PAGE = Path(__file__).parents[1] / "docs" / "libraries.md"


def blocks(section):
    text = PAGE.read_text("utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    opened = vprompt.open_data
    few = {"train": torch.arange(0, 800, 16), "val": torch.arange(8)}

    def smaller(*arguments, **options):
        task = opened(*arguments, **options)
        return replace(task, **{split: getattr(task, split).subset(index) for split, index in few.items()})

    monkeypatch.setattr(vprompt, "open_data", smaller)
    return tmp_path


def test_models_of_transformers_and_zero_shot(here):
    pytest.importorskip("transformers")
    ran: dict = {}
    for block in blocks("Models of transformers") + blocks("Zero-shot heads"):
        exec(block, ran)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(ran["again"](images), ran["model"].eval()(images))
    assert ran["again"].info.name == f"hf:{here / 'my-dino'}"
    assert fingerprint(ran["same"].backbone) == fingerprint(ran["model"].backbone)
    clip, seen = ran["clip"].eval(), torch.randn(6, 3, 64, 64)
    wanted = clip(pixel_values=seen, **ran["tokens"]).logits_per_image.argmax(1)
    assert torch.equal(ran["zero_shot"].eval()(seen).argmax(1), wanted)


def check_trained(model, task):
    assert fingerprint(model.backbone) == fingerprint(vprompt.attach("bundled", num_classes=2).backbone)
    assert all(p.grad is None for p in model.backbone.parameters())
    assert vprompt.evaluate(model, task.train).loss < 0.97 * math.log(len(task.classes))  # where its zero head started
    images = torch.stack([task.val[number][0] for number in range(2)])
    assert torch.equal(vprompt.load("mine")(images), model.eval()(images))


def test_a_loop_of_ones_own_trains(here, capfd):
    (block,) = blocks("A loop of your own")
    ran: dict = {}
    exec(block, ran)
    check_trained(ran["model"], ran["task"])


def test_lightning_trains_and_goes_on_from_what_is_learned(here, capfd):
    lightning = pytest.importorskip("lightning")
    (block,) = blocks("Lightning")
    ran: dict = {}
    exec(block, ran)
    check_trained(ran["module"].model, ran["task"])
    saved = torch.load("lightning/last.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == ran["module"].model.state().keys()
    assert Path("lightning/last.ckpt").stat().st_size < 5_000_000
    fresh = ran["Prompted"](vprompt.attach("bundled", vprompt.VPT(num_prompts=10), data=ran["task"]))
    again = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    loader = ran["DataLoader"](ran["task"].train, batch_size=32)
    again.fit(fresh, loader, ckpt_path="lightning/last.ckpt")
    for name, value in ran["module"].model.state().items():
        assert torch.equal(fresh.model.state()[name], value), name
    assert again.global_step == ran["trainer"].global_step > 0
