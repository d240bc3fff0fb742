"""The method of PEFT: against vprompt's prefixes, through PEFT's own saving and the Trainer, into vprompt."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vprompt
from vprompt.utils.errors import VPromptError

T = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
bridge = pytest.importorskip("vprompt.peft")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
MLP = {**SMALL, "intermediate_size": 50}
PAGE = Path(__file__).parents[1] / "docs" / "libraries.md"

MODELS = {
    "vit": lambda: T.ViTModel(T.ViTConfig(**MLP), add_pooling_layer=False),
    "deit": lambda: T.DeiTModel(T.DeiTConfig(**MLP)),
    "mae": lambda: T.ViTMAEModel(T.ViTMAEConfig(**MLP, mask_ratio=0.0)),
    "dinov2": lambda: T.Dinov2Model(T.Dinov2Config(**SMALL)),
    "registers": lambda: T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(**SMALL)),
    "dinov3": lambda: T.DINOv3ViTModel(T.DINOv3ViTConfig(**MLP, num_register_tokens=2)),
    "clip": lambda: T.CLIPVisionModel(T.CLIPVisionConfig(**MLP)),
    "siglip": lambda: T.SiglipVisionModel(T.SiglipVisionConfig(**MLP)),
}


def seeded(make, seed=0):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = make()
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def classifier(kind="ViT", labels=3):
    return getattr(T, f"{kind}ForImageClassification")(getattr(T, f"{kind}Config")(**MLP, num_labels=labels))


def wrapped(base, **options):
    return peft.get_peft_model(base, bridge.VPTConfig(num_prompts=4, modules_to_save=["classifier"], **options)).eval()


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_vprompt(name):
    """vprompt's prefixes on timm's module, with the same prompts, against tokens in transformers' model."""
    base = seeded(MODELS[name]).double()
    attached = vprompt.attach(copy.deepcopy(base), vprompt.VPT(5), num_classes=32).double().eval()
    adapted = peft.get_peft_model(base, bridge.VPTConfig(num_prompts=5), autocast_adapter_dtype=False).double().eval()
    learned = {key: p for key, p in adapted.named_parameters() if p.requires_grad}
    assert [p.shape for p in learned.values()] == [(5, 32)] * 2
    with torch.no_grad():
        attached.head.weight.copy_(torch.eye(32))
        for number, values in enumerate(learned.values()):
            attached.prompts[number].copy_(values)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    out = adapted(images)
    pooled = out.pooler_output if name in ("clip", "siglip") else out.last_hidden_state[:, 0]
    torch.testing.assert_close(pooled, attached(images), rtol=1e-6, atol=1e-6)
    with adapted.disable_adapter():
        bare = adapted(images)
        bare = bare.pooler_output if name in ("clip", "siglip") else bare.last_hidden_state[:, 0]
    assert (bare - pooled).abs().max() > 1e-4
    pooled.square().sum().backward()
    attached(images).square().sum().backward()
    for number, values in enumerate(learned.values()):
        torch.testing.assert_close(values.grad, attached.prompts[number].grad, rtol=1e-6, atol=1e-6)
    assert all(p.grad is None for key, p in adapted.named_parameters() if key not in learned)


def test_saved_as_peft_saves_and_loaded_bit_for_bit(tmp_path):
    model = wrapped(seeded(classifier))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "VPT"
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4_000
    again = peft.PeftModel.from_pretrained(seeded(classifier), tmp_path).eval()
    assert torch.equal(again(images).logits, model(images).logits)
    assert not any(p.requires_grad for p in again.parameters())
    assert peft.PeftConfig.from_pretrained(tmp_path) == bridge.VPTConfig.from_pretrained(tmp_path)
    torch.testing.assert_close(again.unload()(images).logits.shape, (2, 3))


def test_adapters_stand_beside_each_other(tmp_path):
    images = torch.randn(2, 3, 32, 32)
    model = wrapped(seeded(classifier))
    first = model(images).logits
    model.add_adapter("second", bridge.VPTConfig(num_prompts=7, modules_to_save=["classifier"]))
    assert torch.equal(model(images).logits, first)
    model.set_adapter("second")
    assert not torch.equal(model(images).logits, first)
    assert {key.rsplit(".", 1)[1] for key, p in model.named_parameters() if p.requires_grad and "vpt" in key} == {
        "second"
    }
    model.set_adapter("default")
    assert torch.equal(model(images).logits, first)
    with model.disable_adapter():
        assert torch.equal(model(images).logits, seeded(classifier)(images).logits)


@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
def test_taken_over_by_vprompt(kind, tmp_path):
    base = seeded(lambda: classifier(kind))
    base.config.id2label = {0: "ant", 1: "bee", 2: "cat"}
    model = wrapped(base)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    prompted = bridge.to_vprompt(model)
    images = torch.randn(3, 3, 32, 32)
    wanted = model(images).logits
    for other in (prompted, prompted.fold()):
        torch.testing.assert_close(other(images), wanted, rtol=1e-3, atol=1e-4)
    assert prompted.classes == ("ant", "bee", "cat")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    prompted.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, backbone=seeded(lambda: classifier(kind)))
    assert torch.equal(again(images), prompted(images))


@pytest.mark.parametrize(
    ("problem", "target"),
    [("multi_label_classification", "multi-label"), ("regression", "regression"), (None, "single-label")],
)
def test_the_kind_of_problem_is_taken_over(problem, target):
    base = seeded(lambda: classifier("ViT"))
    base.config.problem_type = problem
    prompted = bridge.to_vprompt(wrapped(base))
    assert prompted.target.name == target
    images = torch.randn(2, 3, 32, 32)
    logits = wrapped(base)(images).logits.shape
    assert prompted(images).shape == logits


def test_what_cannot_be_is_said():
    with pytest.raises(VPromptError, match="at least one prompt"):
        bridge.VPTConfig(num_prompts=0)
    dino = seeded(lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**SMALL, num_labels=3)))
    with pytest.raises(
        VPromptError, match="classifier of Dinov2ForImageClassification has 64 features and vprompt's has 32"
    ):
        bridge.to_vprompt(wrapped(dino))
    lora = peft.get_peft_model(seeded(classifier), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(VPromptError, match="Only a model with a VPTConfig"):
        bridge.to_vprompt(lora)
    with pytest.raises(VPromptError, match="some blocks have no prompts"):
        bridge.to_vprompt(wrapped(seeded(classifier), target_modules=["layers.1"]))
    clip = T.CLIPForImageClassification(
        T.CLIPConfig(vision_config=MLP, text_config={"num_hidden_layers": 1}, num_labels=3)
    )
    with pytest.raises(VPromptError, match="reads other features"):
        bridge.to_vprompt(wrapped(seeded(lambda: clip)))


def test_the_trainer_trains(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    opened = vprompt.open_data()
    monkeypatch.setattr(vprompt, "open_data", lambda: replace(opened, train=opened.train.subset(torch.arange(32))))
    text = PAGE.read_text("utf-8").partition("\n## PEFT and the Trainer\n")[2]
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    torch.manual_seed(0)
    ran: dict = {}
    exec(block, ran)
    trained = torch.cat(
        [p.flatten() for key, p in ran["model"].named_parameters() if key.endswith("vpt_prompts.default")]
    )
    assert trained.shape == (3 * 4 * 64,)
    again = ran["again"].eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(vprompt.load("mine")(images), ran["prompted"](images))
    assert torch.equal(again(images).logits, ran["model"].eval()(images).logits)
    torch.testing.assert_close(ran["prompted"](images), again(images).logits, rtol=1e-3, atol=1e-4)
    bias = ran["model"].get_base_model().classifier.modules_to_save["default"].bias
    assert bias.abs().max() > 1e-3  # it started at zero
