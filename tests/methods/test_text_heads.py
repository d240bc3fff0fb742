"""Heads from text features: their answers are those of zero-shot classification by transformers, or by hand."""

import json
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import vprompt
from conftest import run_command
from vprompt.utils.errors import VPromptError

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "intermediate_size": 48,
}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 40}
TEXT |= {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 1}
NAMES = ["ant", "bee", "cat", "dog", "eel"]


def lively(model):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if not name.startswith("logit"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def clip():
    T = pytest.importorskip("transformers")
    return lively(T.CLIPModel(T.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)))


def siglip():
    T = pytest.importorskip("transformers")
    return lively(T.SiglipModel(T.SiglipConfig(vision_config=VISION, text_config=TEXT)))


@torch.no_grad()
def texts_of(model):
    tokens = torch.cat(
        [torch.randint(3, 40, (5, 7), generator=torch.Generator().manual_seed(1)), torch.full((5, 1), 2)], 1
    )
    return tokens, model.get_text_features(input_ids=tokens).pooler_output


@pytest.mark.parametrize("make", [clip, siglip])
@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("method", [vprompt.Linear(), vprompt.Adapter()])  # which changes nothing before the first step
@torch.no_grad()
def test_answers_are_those_of_transformers(make, ending, method, tmp_path):
    model = make()
    tokens, features = texts_of(model)
    file = str(tmp_path / f"texts.{ending}")
    extra = {"logit_scale": model.logit_scale.reshape(())}
    if hasattr(model, "logit_bias"):
        extra["logit_bias"] = model.logit_bias.reshape(())
    if ending == "npz":
        np.savez(file, features=features, names=NAMES, **extra)
    else:
        save_file({"features": features.contiguous(), **extra}, file, {"names": json.dumps(NAMES)})
    attached = vprompt.attach(model, method, head_init=file).eval()
    assert attached.classes == tuple(NAMES)
    images = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    wanted = model(input_ids=tokens, pixel_values=images).logits_per_image
    got = attached(images)
    assert torch.equal(got.argmax(1), wanted.argmax(1))
    assert len(wanted.argmax(1).unique()) > 1
    bias = float(extra.get("logit_bias", 0))
    ratio = (got - bias) / (wanted - bias)  # one number for each image: its norm over the mean norm
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=2e-2, atol=2e-2)
    assert 0.5 < float(ratio.median()) < 2
    folded = attached.fold()
    torch.testing.assert_close(folded(images), got, rtol=1e-3, atol=1e-3)
    attached.save_pretrained(tmp_path / "adapter")
    assert torch.equal(vprompt.load(tmp_path / "adapter", backbone=model)(images), got)


@torch.no_grad()
def test_logits_by_hand(tmp_path):
    """In float64, with a biased projection, classes in another order, and images that the scale is taken from."""
    backbone = timm.create_model("test_vit", num_classes=12, img_size=32).double().eval()
    nn.init.normal_(backbone.head.bias)
    features = torch.randn(5, 12, dtype=torch.float64)
    np.savez(tmp_path / "t.npz", features=7 * features, names=NAMES, logit_scale=3.0, logit_bias=-2.0)
    wanted_classes = ["dog", "ant", "cat"]
    pictures = [(np.full((32, 32, 3), 40 * n, np.uint8), wanted_classes[n % 3]) for n in range(6)]
    task = vprompt.open_data({"train": pictures, "val": pictures}, backbone)
    attached = vprompt.attach(backbone, vprompt.Linear(), data=task, head_init=str(tmp_path / "t.npz")).eval()
    seen = [task.preprocessing.normalise(p).double() for p, _ in task.train.pairs(torch.arange(6), seed=0, epoch=0)]
    norm = torch.stack([backbone(one).norm() for images in seen for one in images.split(1)]).mean()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    order = [NAMES.index(name) for name in task.classes]
    wanted = math.exp(3.0) * backbone(images) @ F.normalize(features, dim=1)[order].T / norm - 2.0
    torch.testing.assert_close(attached(images), wanted, rtol=1e-9, atol=1e-9)


def test_training_goes_on_from_there_and_command(tmp_path):
    model = clip()
    model.save_pretrained(tmp_path / "clip")
    _, features = texts_of(model)
    np.savez(tmp_path / "t.npz", features=features[:2], names=["b", "a"])
    for number in range(20):
        (tmp_path / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (20, 20), (12 * number, 200 * (number % 2), 0))
        image.save(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png")
    place, out = f"hf:{tmp_path / 'clip'}", tmp_path / "run"
    options = ["--backbone", place, "--method", "linear", "--epochs", "1", "--lr", "1e-20", "--weight-decay", "0"]
    options = [*options, "--out", out, "--head-init", tmp_path / "t.npz"]
    done = run_command("fit", tmp_path / "photos", *options)
    assert done.status == 0, done.err
    trained = vprompt.load(out)
    start = vprompt.attach(place, vprompt.Linear(), classes=["a", "b"], head_init=str(tmp_path / "t.npz"))
    torch.testing.assert_close(F.normalize(trained.head.weight, dim=1), F.normalize(start.head.weight, dim=1))
    assert "text features" in " ".join(run_command("fit", "--help-all").out.split())


def test_bad_files_and_names(tmp_path):
    backbone = timm.create_model("test_vit", num_classes=12, img_size=32)

    def refused(match, *, classes=None, num_classes=None, method=None, file="t.npz", **arrays):
        if arrays:
            np.savez(tmp_path / "t.npz", **arrays)
        with pytest.raises(VPromptError, match=match):
            vprompt.attach(
                backbone,
                method or vprompt.Linear(),
                classes=classes,
                num_classes=num_classes,
                head_init=str(tmp_path / file),
            )

    refused("cannot be read .*FileNotFound", file="none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    refused("cannot be read", file="bad.npz")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678")
    refused("cannot be read", file="bad.safetensors")
    refused("'paper', 'zero' or a file of text features", file="t.pt")
    good = np.ones((3, 12)) + np.eye(3, 12)
    refused("cannot be read .*KeyError: 'features'", texts=good)
    refused("cannot be read", features=np.array([{}], dtype=object))
    refused("not finite", features=good * np.nan)
    refused("not finite", features=good[0])
    refused("all zero", features=good * [[1], [0], [1]])
    refused("not 3 different names", features=good, names=["a", "b"])
    refused("not 3 different names", features=good, names=["a", "b", "b"])
    refused("'logit_scale' is a logarithm .* not 100", features=good, logit_scale=100.0)
    refused("no class 'z'", features=good, names=["a", "b", "c"], classes=["a", "z"])
    refused("are 3 × 12, and this model's head is 4 × 64", features=good, num_classes=4)
    refused("are 3 × 13, and this model's head is 3 × 64", features=np.ones((3, 13)))
    refused("this model's head", features=good, method=vprompt.MLP(2))
    with pytest.raises(VPromptError, match="'paper', 'zero' or a file"):
        vprompt.attach(backbone, num_classes=2, head_init="ones")
