"""Models of transformers: features against transformers' own, weights, names, preprocessing, adapters, refusals."""

import copy
import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import vprompt
from conftest import run_command
from vprompt.backbones.factory import as_timm, create_backbone, describe_name
from vprompt.backbones.info import describe, fingerprint
from vprompt.utils.errors import AdapterError, BackboneError

T = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
MLP = {**SMALL, "intermediate_size": 50}

FAMILIES = {
    "ViTModel": ("ViTConfig", MLP),
    "ViTForImageClassification": ("ViTConfig", MLP),
    "DeiTModel": ("DeiTConfig", MLP),
    "ViTMAEModel": ("ViTMAEConfig", MLP),
    "Dinov2Model": ("Dinov2Config", SMALL),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", SMALL),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {**MLP, "num_register_tokens": 2}),
    "CLIPVisionModel": ("CLIPVisionConfig", MLP),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", {**MLP, "projection_dim": 24}),
    "SiglipVisionModel": ("SiglipVisionConfig", MLP),
}

OPTIONS = [
    ("ViTModel", {"qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-2, "num_channels": 1}),
    ("ViTModel", {"image_size": [16, 48], "patch_size": [8, 16], "hidden_act": "gelu_new"}),
    ("ViTModel", {"intermediate_size": 33, "num_hidden_layers": 1, "hidden_dropout_prob": 0.5}),
    ("DeiTModel", {"qkv_bias": False, "hidden_act": "silu", "attention_probs_dropout_prob": 0.5}),
    ("ViTMAEModel", {"mask_ratio": 0.9, "layer_norm_eps": 1e-3}),
    ("Dinov2Model", {"use_swiglu_ffn": True, "qkv_bias": False, "drop_path_rate": 0.5}),
    ("Dinov2Model", {"mlp_ratio": 3, "hidden_act": "quick_gelu", "use_mask_token": False}),
    ("Dinov2WithRegistersModel", {"num_register_tokens": 1, "use_swiglu_ffn": True}),
    ("DINOv3ViTModel", {"key_bias": True, "query_bias": False, "rope_theta": 30.0, "hidden_act": "gelu_new"}),
    ("DINOv3ViTModel", {"use_gated_mlp": True, "mlp_bias": False, "proj_bias": False, "num_register_tokens": 0}),
    ("DINOv3ViTModel", {"query_bias": False, "value_bias": False, "image_size": [32, 48]}),
    ("CLIPVisionModel", {"hidden_act": "gelu", "layer_norm_eps": 1e-2}),
    ("SiglipVisionModel", {"vision_use_head": False}),
    ("SiglipVisionModel", {"layer_norm_eps": 1e-2, "hidden_act": "gelu"}),
]


def made(name, seed=0, **options):
    """A model whose every number is random, those that transformers starts at zero or one as well."""
    config, usual = FAMILIES[name]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = getattr(T, name)(getattr(T, config)(**{**usual, **options}))
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def feature(model, images):
    """What transformers itself gives."""
    inner = getattr(model, "vit", getattr(model, "vision_model", model))
    if type(model).__name__ == "ViTMAEModel":
        inner = copy.deepcopy(model)
        inner.config.mask_ratio = 0.0
    out = inner(images)
    if type(inner).__name__ == "CLIPVisionModel":
        return out.pooler_output
    if type(inner).__name__ == "SiglipVisionModel":
        return out.last_hidden_state.mean(1) if out.pooler_output is None else out.pooler_output
    return out.last_hidden_state[:, 0]


def images_for(model, count=3, dtype=torch.float64):
    size = model.config.image_size if isinstance(model.config.image_size, list) else [model.config.image_size] * 2
    shape = (count, model.config.num_channels, *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=dtype)


def features_of(attached, images):
    """The pooled feature of an attached linear probe, by a head that copies it."""
    width = attached.head.in_features
    attached.head.weight.data, attached.head.bias.data = torch.eye(width).to(images), torch.zeros(width).to(images)
    return attached.eval()(images)


def probe(model):
    return vprompt.attach(model, vprompt.Linear(), num_classes=32)


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in FAMILIES), *OPTIONS])
@torch.no_grad()
def test_features_are_those_of_transformers(name, options):
    model = made(name, **options).double()
    images = images_for(model)
    wanted = feature(model, images)
    got = features_of(probe(model), images)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert wanted.std() > 0.01
    assert (got[0] - got[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_of_the_model_stays(dtype):
    for name in ("Dinov2WithRegistersModel", "DINOv3ViTModel"):
        model = made(name).to(dtype)
        images = images_for(model, dtype=dtype)
        probed = probe(model)
        assert {p.dtype for p in probed.backbone.parameters()} == {dtype}
        rough = 1e-4 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(features_of(probed, images), feature(model, images), rtol=rough, atol=rough)


@pytest.mark.parametrize("name", ["ViTModel", "SiglipVisionModel", "ViTMAEModel"])
def test_model_is_left_as_it_was_and_shares_its_weights(name):
    model = made(name).train()
    model.config.name = "mine"
    next(model.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    settings = model.config.to_dict()
    torch.manual_seed(3)
    attached = vprompt.attach(model, vprompt.Full(), num_classes=3)
    drawn = torch.rand(1)
    attached(torch.rand(2, 3, 32, 32)).sum().backward()
    torch.optim.SGD(attached.parameters(), lr=1.0).step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(module.training for module in model.modules())
    assert model.config.to_dict() == settings
    ours = {p.untyped_storage().data_ptr() for p in attached.backbone.parameters()}
    theirs = {p.untyped_storage().data_ptr(): p.numel() for p in model.parameters()}
    copied = sum(p.numel() for p in attached.backbone.parameters() if p.untyped_storage().data_ptr() not in theirs)
    assert copied == 2 * 3 * (32 * 32 + 32)  # queries, keys and values of both blocks
    assert len(ours & theirs.keys()) > 10
    torch.manual_seed(3)
    vprompt.attach(as_timm(model), vprompt.Full(), num_classes=3)
    assert torch.equal(torch.rand(1), drawn)


def test_parts_of_larger_models_are_found():
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 8}
    clip = T.CLIPModel(T.CLIPConfig(vision_config=MLP, text_config=text, projection_dim=24)).eval()
    assert as_timm(clip).head.weight.shape == (24, 32)
    siglip = T.SiglipModel(T.SiglipConfig(vision_config=MLP, text_config=text)).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            features_of(probe(siglip), images), siglip.get_image_features(images).pooler_output, rtol=1e-4, atol=1e-5
        )


class Louder(T.ViTModel):
    """Not the function that its class is converted to."""

    def forward(self, pixel_values=None, **options):
        return super().forward(2 * pixel_values, **options)


def test_what_is_not_exact_is_refused():
    with pytest.raises(
        BackboneError, match=r"This Louder .* its features differ .* by 0\.\d+ of their norm; give a ViT"
    ):
        vprompt.attach(Louder(T.ViTConfig(**MLP)), num_classes=2)
    changed = made("ViTModel")
    changed.layers[1].mlp.fc3 = nn.Linear(2, 2)
    with pytest.raises(BackboneError, match=r"it has 'blocks.1.mlp.fc3.bias', which is unknown"):
        vprompt.attach(changed, num_classes=2)
    changed = made("ViTModel")
    changed.layers[1].mlp.fc1 = nn.Linear(32, 51)
    with pytest.raises(
        BackboneError, match=r"size mismatch for blocks.1.mlp.fc1.weight.*; give a ViTModel that is made"
    ):
        vprompt.attach(changed, num_classes=2)
    swin = T.SwinModel(T.SwinConfig(embed_dim=8, depths=[1], num_heads=[1], image_size=32))
    for use in (
        lambda: vprompt.attach(swin, num_classes=2),
        lambda: vprompt.Bank(swin),
        lambda: describe(as_timm(swin)),
    ):
        with pytest.raises(BackboneError, match=r"The model class SwinModel .* converted are .*ViTModel.*SiglipVision"):
            use()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every family, as transformers saves it."""
    places = {}
    for name in FAMILIES:
        places[name] = tmp_path_factory.mktemp("hf") / name
        made(name).save_pretrained(places[name])
    return places


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_folders_are_names(name, folders, capfd):
    place = f"hf:{folders[name]}"
    model = made(name)
    images = images_for(model, dtype=torch.float32)
    backbone = create_backbone(place)
    torch.testing.assert_close(features_of(probe(backbone), images), feature(model, images), rtol=1e-4, atol=1e-4)
    assert fingerprint(backbone) == fingerprint(as_timm(model))
    meta = describe_name(place)
    assert meta == describe(backbone)
    assert meta.name == place
    assert describe(as_timm(getattr(T, name).from_pretrained(folders[name]))) == meta
    random = create_backbone(place, pretrained=False)
    assert fingerprint(random) != fingerprint(backbone)
    assert not re.search("LOAD REPORT|UNEXPECTED|MISSING", "".join(capfd.readouterr()))


@pytest.mark.parametrize("size", [48, (16, 64)])
@pytest.mark.parametrize("name", ["ViTModel", "DeiTModel", "Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel"])
@torch.no_grad()
def test_other_sizes_are_those_of_transformers(name, size, folders):
    model, backbone = made(name), create_backbone(f"hf:{folders[name]}", img_size=size)
    height, width = size if isinstance(size, tuple) else (size, size)
    assert describe(backbone).preprocessing.size == (height, width)
    images = torch.randn(2, 3, height, width)
    options = {} if name.startswith(("Dino", "DINO")) else {"interpolate_pos_encoding": True}
    wanted = model(images, **options).last_hidden_state[:, 0]
    torch.testing.assert_close(features_of(probe(backbone), images), wanted, rtol=1e-4, atol=1e-4)


def test_preprocessing_is_the_image_processors(tmp_path):
    made("Dinov2Model").save_pretrained(tmp_path)
    usual = describe_name(f"hf:{tmp_path}").preprocessing
    assert (usual.size, usual.mean[0], usual.interpolation) == ((32, 32), 0.485, "bicubic")
    document = {
        "image_processor_type": "BitImageProcessor",
        "do_center_crop": True,
        "crop_size": {"height": 24, "width": 16},
        "size": {"shortest_edge": 40},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
        "resample": 2,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(document))
    by_name, alive = describe_name(f"hf:{tmp_path}"), describe(as_timm(T.Dinov2Model.from_pretrained(tmp_path)))
    assert by_name == alive
    seen = alive.preprocessing
    assert (seen.size, seen.mean, seen.std, seen.interpolation) == (
        (24, 16),
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        "bilinear",
    )
    assert describe_name(f"hf:{tmp_path}", img_size=40).preprocessing.size == (40, 40)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**document, "do_normalize": False, "size": 20}))
    plain = describe_name(f"hf:{tmp_path}").preprocessing
    assert (plain.mean, plain.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_real_image_is_seen_as_the_processor_shows_it(tmp_path):
    """The same pixels as transformers' own processor makes, where both resize to the same square."""
    made("ViTModel").save_pretrained(tmp_path)
    processor = T.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.3, 0.4, 0.5], image_std=[0.2] * 3)
    processor.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((70, 50)).save(tmp_path / "image.png")
    task = vprompt.open_data(
        {"train": [(tmp_path / "image.png", "a"), (tmp_path / "image.png", "b")]}, f"hf:{tmp_path}"
    )
    ours = task.preprocessing.normalise(next(iter(task.train.pairs(torch.tensor([0]), seed=0, epoch=0)))[0])
    theirs = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    assert (ours - theirs).abs().max() < 0.05  # 1/255/0.2 is 0.02: one step of rounding in two resizers


@pytest.mark.parametrize("name", ["ViTModel", "DINOv3ViTModel", "SiglipVisionModel"])
def test_adapters_come_back(name, folders, tmp_path):
    model = getattr(T, name).from_pretrained(folders[name])
    attached = vprompt.attach(model, vprompt.VPT(3), num_classes=4, head_init="paper").eval()
    images = torch.randn(2, 3, 32, 32)
    attached.save_pretrained(tmp_path / "adapter")
    wanted = attached(images)
    for again in (vprompt.load(tmp_path / "adapter"), vprompt.load(tmp_path / "adapter", backbone=model)):
        assert torch.equal(again(images), wanted)
    torch.testing.assert_close(attached.fold()(images), wanted, rtol=1e-4, atol=1e-5)
    bank = vprompt.Bank(model)
    bank.add("one", tmp_path / "adapter")
    torch.testing.assert_close(torch.stack(bank(images, ["one", "one"])), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(AdapterError, match="their weights differ"):
        vprompt.load(tmp_path / "adapter", backbone=made(name, seed=1))


def test_adapter_of_a_model_from_nowhere_needs_it(tmp_path):
    model = made("ViTModel")
    attached = vprompt.attach(model, vprompt.VPT(3), num_classes=4).eval()
    attached.save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"'ViTModel', which .* give the model object"):
        vprompt.load(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(vprompt.load(tmp_path, backbone=model)(images), attached(images))


def test_folders_stay_private_and_are_not_chosen_by_others(folders, tmp_path, monkeypatch):
    from vprompt.backbones.factory import names_folder, public_name

    place = f"hf:{folders['ViTModel']}"
    assert [names_folder(name) for name in (place, "hf:./mine", "hf:a/b/c", "hf:a/b")] == [True, True, True, False]
    assert (public_name(place), public_name("hf:google/vit")) == ("hf:ViTModel", "hf:google/vit")
    vprompt.attach(place, num_classes=2).save_pretrained(tmp_path)
    monkeypatch.setattr(vprompt.model.load, "_find", lambda source: tmp_path)
    with pytest.raises(AdapterError, match="no adapter from the Hub chooses folders"):
        vprompt.load("someone/adapter")


def test_names_that_are_none(tmp_path, folders, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match="'hf:some/thing' are not in the cache, and the Hub cannot be reached"):
        create_backbone("hf:some/thing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match=r"There is no model of transformers in 'hf:.*empty'.*save_pretrained"):
        create_backbone(f"hf:{tmp_path / 'empty'}")
    T.BertModel(
        T.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(BackboneError, match=r"is a model of type 'bert', and converted are .*ViTModel"):
        create_backbone(f"hf:{tmp_path / 'bert'}")
    place = f"hf:{folders['ViTModel']}"
    with pytest.raises(BackboneError, match="takes images of 3 channels, not 4"):
        create_backbone(place, in_chans=4)
    with pytest.raises(BackboneError, match="says where the weights are"):
        create_backbone(place, weights=folders["ViTModel"] / "model.safetensors")
    for size in (4, 5000):
        with pytest.raises(BackboneError, match=f"{size}"):
            create_backbone(place, img_size=size)


def test_incomplete_and_damaged_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    made("ViTModel").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    save_file({key: value for key, value in state.items() if "layer.1.intermediate" not in key}, file, {"format": "pt"})
    with pytest.raises(BackboneError, match=r"lack 'layers.1.mlp.fc1.bias' of ViTModel"):
        create_backbone(f"hf:{tmp_path}")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(BackboneError, match=r"The weights of .* cannot be read"):
        create_backbone(f"hf:{tmp_path}")
    torch.save(state, tmp_path / "pytorch_model.bin")
    file.unlink()
    with pytest.raises(BackboneError, match=r"cannot be read .* save them again as .safetensors"):
        create_backbone(f"hf:{tmp_path}")


def test_command_trains_on_a_folder_and_reads_it_again(folders, tmp_path):
    out, place, photos = tmp_path / "run", f"hf:{folders['Dinov2Model']}", tmp_path / "photos"
    for number in range(20):
        (photos / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (12 * number, 200 * (number % 2), 0)).save(
            photos / "ab"[number % 2] / f"{number}.png"
        )
    options = ["--backbone", place, "--epochs", "1", "--prompts", "2", "--out", str(out)]
    assert run_command("fit", str(photos), *options).status == 0
    assert json.loads((out / "adapter_config.json").read_text())["backbone"]["name"] == place
    assert run_command("eval", str(out), str(photos)).status == 0
    shown = run_command("cost", place)
    assert shown.status == 0
    assert "hf:" in shown.out


def test_timm_is_not_converted():
    model = timm.create_model("test_vit")
    assert as_timm(model) is model
