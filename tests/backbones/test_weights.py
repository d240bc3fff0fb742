"""Weights from files: every layout gives the model it was saved from, and every other file is a sentence."""

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf

import vprompt
from conftest import run_command, write_classes
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import can_create, create_backbone, describe_name
from vprompt.backbones.info import fingerprint
from vprompt.backbones.weights import _conversion, load_weights, weights_file, weights_origin
from vprompt.model import load as adapters
from vprompt.utils.errors import AdapterError, BackboneError, VPromptError

NAME = "test_vit"


def random_model(name=NAME, seed=0, **options):
    """A timm model whose every number is random: fresh ones have zeros and ones that hide what was not loaded."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **options).eval()
    for tensor in model.state_dict().values():
        tensor.normal_(std=0.2)
    return model


def save_as(state, path):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def same(model, other):
    """Whether two models are equal but for their classifiers."""
    return fingerprint(model) == fingerprint(other)


@pytest.fixture(scope="module")
def source():
    return random_model(img_size=32)


@pytest.fixture(scope="module")
def file(source, tmp_path_factory):
    return save_as(source.state_dict(), tmp_path_factory.mktemp("weights") / "vit.safetensors")


def refused(match, call, *arguments, error=BackboneError, **options):
    """The call fails with one sentence; returns it."""
    with pytest.raises(error, match=match) as caught:
        call(*arguments, **options)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


# ── kinds of files ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth", "vit.bin", "no-suffix"])
@pytest.mark.parametrize("classes", [0, 7, 1000])
def test_files_of_timm_with_any_classifier(tmp_path, name, classes):
    source = random_model(img_size=32, num_classes=classes)
    model = create_backbone(NAME, weights=save_as(source.state_dict(), tmp_path / name), img_size=32)
    assert same(model, source)
    images = torch.randn(2, 3, 32, 32)
    features = [m.eval().forward_head(m.forward_features(images), pre_logits=True) for m in (model, source)]
    assert torch.equal(*features)


@pytest.mark.parametrize("wrap", [{"model": 0, "epoch": 3}, {"state_dict": 0}, {"state_dict_ema": 0, "state_dict": {}}])
@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints(tmp_path, source, wrap, legacy):
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    document = {key: state if value == 0 else value for key, value in wrap.items()}
    torch.save(document, tmp_path / "vit.pth", _use_new_zipfile_serialization=not legacy)
    assert same(create_backbone(NAME, weights=tmp_path / "vit.pth", img_size=32), source)


def test_half_precision_files_make_single_precision_models(tmp_path, source):
    half = {key: value.half() for key, value in source.state_dict().items()}
    model = create_backbone(NAME, weights=save_as(half, tmp_path / "half.safetensors"), img_size=32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.pos_embed, source.pos_embed.half().float())


def test_a_relative_path_and_no_other_weights_are_asked_for(monkeypatch, file):
    monkeypatch.setattr("vprompt.backbones.factory.require_weights", lambda name: pytest.fail("asked the Hub"))
    monkeypatch.chdir(file.parent)
    model = create_backbone(f"{NAME}.r160_in1k", weights=file.name, img_size=32)
    assert weights_file(model) == file


# ── what trainers save around them ───────────────────────────────────────────────────────────────────────────────────


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def chunked(state):
    return {
        re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) // 3}.{found[1]}", key): v
        for key, v in state.items()
    }


WRAPPERS = {
    "DINO's backbone": lambda state: under("module.backbone.", state),
    "Lightning": lambda state: {"state_dict": under("model.", state), "hyper_parameters": {"lr": 1.0}, "epoch": 9},
    "a network in a network": lambda state: {
        "state_dict": under("net.encoder.vit.", state) | {"net.loss.weight": torch.ones(3)}
    },
    "MoCo v3": lambda state: {
        "arch": "vit",
        "state_dict": under(
            "module.base_encoder.", {**state, "head.0.weight": torch.ones(3, 64), "head.4.bias": torch.ones(3)}
        ),
    },
    "a loop of one's own": lambda state: {
        "net": state,
        "acc": 0.9,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
    },
    "compiled": lambda state: {"model_state_dict": under("_orig_mod.module.", state)},
    "compiled, sharded and checkpointed by block": lambda state: under(
        "_fsdp_wrapped_module.",
        {
            re.sub(r"^blocks.(\d+).", r"blocks.\1._checkpoint_wrapped_module._orig_mod.", key): value
            for key, value in state.items()
        },
    ),
    "deep down": lambda state: {"ckpt": {"weights": {"vit": under("x.y.z.", state)}}},
    "DINOv2 in chunks": lambda state: {
        "teacher": under("backbone.", {**chunked(state), "mask_token": torch.ones(1, 64)})
    },
    "an open_clip trunk": lambda state: (
        under("visual.trunk.", state) | {"logit_scale": torch.ones(()), "text.norm.weight": torch.ones(5)}
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_weights_are_found_in_whatever_a_trainer_saved_around_them(tmp_path, source, wrapper):
    torch.save(WRAPPERS[wrapper](source.state_dict()), tmp_path / "vit.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is only one such part
        assert same(create_backbone(NAME, weights=tmp_path / "vit.pth", img_size=32), source)


def test_safetensors_by_another_name(tmp_path, file, source):
    shutil.copy(file, tmp_path / "pytorch_model.bin")
    assert same(create_backbone(NAME, weights=tmp_path / "pytorch_model.bin", img_size=32), source)


@pytest.mark.parametrize(
    ("wanted", "other"),
    [
        ("teacher.backbone.", "student.module.backbone."),
        ("state_dict_ema.", "state_dict."),
        ("model_ema.module.", "model."),
        ("state_dict.ema_model.", "state_dict.online_model."),
        ("state_dict.module.base_encoder.", "state_dict.module.momentum_encoder."),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_of_several_such_parts_the_average_is_taken_and_said(tmp_path, source, wanted, other, first):
    parts = [under(wanted, source.state_dict()), under(other, random_model(seed=5, img_size=32).state_dict())]
    save_as({**parts[first], **parts[not first]}, tmp_path / "both.safetensors")
    with pytest.warns(UserWarning, match=f"'{wanted[:-1]}', '{other[:-1]}'; the first were taken"):
        assert same(create_backbone(NAME, weights=tmp_path / "both.safetensors", img_size=32), source)


def test_a_part_of_another_size_is_not_taken_for_the_backbone(tmp_path, source):
    larger = random_model(seed=5, img_size=32, embed_dim=128)
    save_as({**under("teacher.", larger.state_dict()), **under("student.", source.state_dict())}, tmp_path / "w.pth")
    assert same(create_backbone(NAME, weights=tmp_path / "w.pth", img_size=32), source)


def test_what_is_missing_in_a_part_names_the_part(tmp_path, source):
    state = under("teacher.backbone.", source.state_dict())
    del state["teacher.backbone.norm.weight"]
    torch.save(state, tmp_path / "vit.pth")
    refused(
        r"\(under 'teacher.backbone'\).*they lack 'norm.weight'", create_backbone, NAME, weights=tmp_path / "vit.pth"
    )


def test_a_mapping_that_holds_itself(tmp_path):
    document = {"x": torch.zeros(2)}
    document["again"] = document
    torch.save(document, tmp_path / "loop.pth")
    refused("not those of the backbone", create_backbone, NAME, weights=tmp_path / "loop.pth")


FORMS = {
    "meta": (lambda tensor: tensor.to("meta"), "on the meta device"),
    "sparse": (lambda tensor: tensor.to_sparse(), "sparse"),
    "compressed rows": (lambda tensor: tensor[:, None].to_sparse_csr(), "sparse"),
    "nested": (lambda tensor: torch.nested.nested_tensor([tensor, tensor[:3]]), "nested"),
    "quantised": (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "quantised"),
    "repeated": (lambda tensor: torch.zeros(1).expand(10**12), "larger than what the file holds"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "torch.complex64, not floating point"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("all_of_them", [False, True])
def test_tensors_without_ordinary_numbers(tmp_path, source, form, all_of_them):
    change, match = FORMS[form]
    names = [name for name, value in source.state_dict().items() if value.ndim == 1] if all_of_them else ["norm.weight"]
    torch.save({k: change(v) if k in names else v for k, v in source.state_dict().items()}, tmp_path / "w.pth")
    refused(match, create_backbone, NAME, weights=tmp_path / "w.pth", img_size=32)


@pytest.mark.parametrize("name", ["bomb.npz", "bomb.pth"])
def test_a_file_that_unpacks_to_much_more(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("a.npy", b"x")
    data = bytearray((tmp_path / name).read_bytes())
    size = data.index(b"PK\x01\x02") + 24  # of the file, in the directory at the end
    data[size : size + 4] = (2 * 10**9).to_bytes(4, "little")
    (tmp_path / name).write_bytes(data)
    refused("unpacks to 2 GB", create_backbone, "vit_tiny_patch16_224", weights=tmp_path / name)


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "spelling",
    ["test_vit.r160_in1k", "timm/test_vit.r160_in1k", "TEST_VIT.r160_in1k", "test-vit.r160_in1k",
     " test_vit.r160_in1k\n", "https://huggingface.co/timm/test_vit.r160_in1k", "hf.co/timm/Test-ViT.R160-In1k"],
)  # fmt: skip
def test_names_in_another_spelling(spelling):
    assert can_create(spelling)
    assert describe_name(spelling).name == "test_vit.r160_in1k"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("vit_base_patch16_223", "close names: vit_base_patch16_224"),
        (
            "google/vit-base-patch16-224",
            "close names: vit_base_patch16_224,.* or hf-hub:google/vit-base-patch16-224 for",
        ),
        ("swin_tini_patch4_window7_224", "close names: swin_tiny_patch4_window7_224"),
        ("ViT-B/16", "`vprompt backbones` lists the names|close names"),
        ("", "`vprompt backbones` lists the names"),
        ("resnet_of_tomorrow", "`vprompt backbones` lists the names|close names"),
        ("vit_base_patch16_224.augreg_in22k", "no weights called.*vit_base_patch16_224.augreg_in21k"),
    ],
)
def test_names_that_timm_does_not_have(name, match):
    refused(match, create_backbone, name)


@pytest.mark.parametrize("name", ["local-dir:/etc", "LOCAL_DIR:/etc", " local-dir:/etc"])
def test_an_adapter_from_the_hub_chooses_no_folder_here(tmp_path, monkeypatch, name):
    vprompt.attach(NAME, vprompt.VPT(2), num_classes=3, pretrained=False).save_pretrained(tmp_path / "hub")
    edit_backbone(tmp_path / "hub", name=name)
    monkeypatch.setattr(adapters.adapter_hub, "fetch", lambda repo_id, files: tmp_path / "hub")
    assert "/etc" not in refused(
        "folder of the machine that it was made on", vprompt.load, "me/birds", error=AdapterError
    )
    with pytest.raises(BackboneError, match="/etc"):  # of an adapter of one's own it is read
        vprompt.load(tmp_path / "hub")


# ── layouts that timm converts ───────────────────────────────────────────────────────────────────────────────────────

SMALL_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL_SWIN = {"embed_dim": 16, "depths": (2, 2, 2), "num_heads": (1, 2, 4)}
SMALL = {
    "test_vit": {},
    "test_vit2": {},
    "test_vit3": {},
    "test_vit4": {},
    "vit_small_patch16_224.dino": SMALL_VIT,
    "vit_base_patch16_clip_224.openai": SMALL_VIT,
    "vit_small_patch14_reg4_dinov2": SMALL_VIT,
    "vit_base_patch16_siglip_224": SMALL_VIT,
    "flexivit_small.300ep_in1k": SMALL_VIT,
    "vit_base_patch16_radio_v3": SMALL_VIT,
    "deit_tiny_distilled_patch16_224": SMALL_VIT,
    "deit3_small_patch16_224": SMALL_VIT,
    "eva02_tiny_patch14_224": SMALL_VIT,
    "beit_base_patch16_224": SMALL_VIT,
    "beitv2_base_patch16_224": SMALL_VIT,
    "swin_tiny_patch4_window7_224": SMALL_SWIN,
    "swinv2_tiny_window8_256": SMALL_SWIN,
}


@pytest.mark.parametrize("name", [name for name in SMALL if timm.is_model(name)])
@pytest.mark.parametrize("size", [None, 84])
def test_we_load_exactly_what_timm_loads(tmp_path, name, size):
    size = None if size is None else 96 if "patch16" in name or "swin" in name else size
    resized = {} if size is None else {"img_size": size}
    path = save_as(random_model(name, **SMALL[name]).state_dict(), tmp_path / "w.safetensors")
    timms = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **SMALL[name], **resized
    )
    ours = random_model(name, 1, num_classes=0, **SMALL[name], **resized)
    load_weights(ours, path, name)
    assert same(ours, timms)


def test_every_model_of_the_table_is_still_in_timm():
    assert [name for name in SMALL if not timm.is_model(name)] == []


def original_swin(model):
    """A Swin in Microsoft's layout: downsampling at the end of a stage, buffers saved, a flat head."""
    state = {}
    for name, value in model.state_dict().items():
        key = re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
        state[key.replace("head.fc.", "head.")] = value
        if key.endswith("relative_position_bias_table"):
            state[key.replace("bias_table", "index")] = torch.zeros(49, 49, dtype=torch.long)
        if key.endswith("blocks.1.norm1.weight"):
            state[key.replace("norm1.weight", "attn_mask")] = torch.zeros(4, 49, 49)
    return state


def test_an_original_swin(tmp_path):
    source = random_model("swin_tiny_patch4_window7_224", num_classes=21841)
    torch.save({"model": original_swin(source)}, tmp_path / "swin_tiny_patch4_window7_224_22k.pth")
    model = create_backbone("swin_tiny_patch4_window7_224", weights=tmp_path / "swin_tiny_patch4_window7_224_22k.pth")
    assert same(model, source)
    images = torch.randn(1, 3, 224, 224)
    features = [m.eval().forward_head(m.forward_features(images), pre_logits=True) for m in (model, source)]
    assert torch.equal(*features)


def test_an_original_swin_v2(tmp_path):
    source = random_model("swinv2_tiny_window8_256", **SMALL_SWIN)
    torch.save({"model": original_swin(source)}, tmp_path / "swinv2.pth")
    model = random_model("swinv2_tiny_window8_256", 1, num_classes=0, **SMALL_SWIN)
    load_weights(model, tmp_path / "swinv2.pth", "swinv2")
    assert same(model, source)


def original_dinov2(model):
    state = model.state_dict()
    state["mask_token"] = torch.zeros(1, 32)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 32), state["pos_embed"]], dim=1)
    return state


def original_deit3(model):
    return {"model": {re.sub(r"ls([12])\.gamma", r"gamma_\1", key): v for key, v in model.state_dict().items()}}


CLIP_NAMES = {
    "patch_embed.proj": "conv1",
    "pos_embed": "positional_embedding",
    "norm_pre": "ln_pre",
    "blocks.": "transformer.resblocks.",
    "cls_token": "class_embedding",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "norm1": "ln_1",
    "norm2": "ln_2",
}


def clip_name(name):
    for ours, theirs in CLIP_NAMES.items():
        name = name.replace(ours, theirs)
    return "visual." + re.sub(r"^norm\.", "ln_post.", name)


def original_clip(model):
    text = {"logit_scale": torch.ones(()), "transformer.resblocks.0.ln_1.weight": torch.ones(5)}
    state = {clip_name(key): value for key, value in model.state_dict().items() if not key.startswith("head")}
    state["visual.positional_embedding"] = state["visual.positional_embedding"][0]
    state["visual.class_embedding"] = state["visual.class_embedding"].flatten()
    return {**text, **state, "visual.proj": torch.randn(32, 512)}


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("vit_small_patch14_reg4_dinov2", original_dinov2),
        ("deit3_small_patch16_224", original_deit3),
        ("vit_base_patch16_clip_224.openai", original_clip),
        ("beitv2_base_patch16_224", lambda model: {"module": model.state_dict()}),
    ],
)
def test_other_original_layouts(tmp_path, name, original):
    source = random_model(name, img_size=112, **SMALL_VIT)
    torch.save(original(source), tmp_path / "original.pth")
    model = random_model(name, 1, img_size=112, num_classes=0, **SMALL_VIT)
    load_weights(model, tmp_path / "original.pth", name)
    assert same(model, source)


def google_arrays(model, *, big_vision=False):
    """A ViT in the layout of Google's .npz files; in that of Big Vision, blocks are stacked."""
    heads = model.blocks[0].attn.num_heads
    attention, mlp, norm = (0, 0, 1) if big_vision else (1, 3, 2)
    arrays = {
        "embedding/kernel": model.patch_embed.proj.weight.permute(2, 3, 1, 0),
        "embedding/bias": model.patch_embed.proj.bias,
        "cls": model.cls_token,
        ("" if big_vision else "Transformer/posembed_input/") + "pos_embedding": model.pos_embed,
        "Transformer/encoder_norm/scale": model.norm.weight,
        "Transformer/encoder_norm/bias": model.norm.bias,
        "head/kernel": model.head.weight.T,
        "head/bias": model.head.bias,
    }
    blocks = []
    for block in model.blocks:
        width = block.norm1.weight.numel()
        found = {"LayerNorm_0/scale": block.norm1.weight, "LayerNorm_0/bias": block.norm1.bias}
        found |= {f"LayerNorm_{norm}/scale": block.norm2.weight, f"LayerNorm_{norm}/bias": block.norm2.bias}
        place = f"MultiHeadDotProductAttention_{attention}"
        parts = zip(
            ("query", "key", "value"), block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True
        )
        for part, weight, bias in parts:
            found[f"{place}/{part}/kernel"] = weight.T.reshape(width, heads, -1)
            found[f"{place}/{part}/bias"] = bias.reshape(heads, -1)
        found[f"{place}/out/kernel"] = block.attn.proj.weight.reshape(width, heads, -1).permute(1, 2, 0)
        found[f"{place}/out/bias"] = block.attn.proj.bias
        for number, layer in enumerate((block.mlp.fc1, block.mlp.fc2)):
            found[f"MlpBlock_{mlp}/Dense_{number}/kernel"] = layer.weight.T
            found[f"MlpBlock_{mlp}/Dense_{number}/bias"] = layer.bias
        blocks.append(found)
    if big_vision:
        arrays |= {f"Transformer/encoderblock/{key}": torch.stack([b[key] for b in blocks]) for key in blocks[0]}
        arrays = {f"params/{key}": value for key, value in arrays.items()}
    else:
        arrays |= {
            f"Transformer/encoderblock_{n}/{key}": v for n, block in enumerate(blocks) for key, v in block.items()
        }
    return {key: value.detach().numpy() for key, value in arrays.items()}


@pytest.fixture(scope="module")
def google_source():
    return random_model("vit_tiny_patch16_224", num_classes=11)


@pytest.fixture(scope="module")
def arrays(google_source):
    return google_arrays(google_source)


@pytest.mark.parametrize("big_vision", [False, True])
def test_google_arrays(tmp_path, google_source, big_vision):
    path = tmp_path / "Ti_16-i21k.npz"
    np.savez(path, **google_arrays(google_source, big_vision=big_vision))
    model = create_backbone("vit_tiny_patch16_224.augreg_in21k", weights=path).eval()
    assert same(model, google_source)
    images = torch.randn(1, 3, 224, 224)
    features = [m.forward_head(m.forward_features(images), pre_logits=True) for m in (model, google_source)]
    assert torch.equal(*features)


def test_google_arrays_at_another_size(tmp_path, google_source, arrays):
    path = tmp_path / "google.npz"
    np.savez(path, **arrays)
    model = create_backbone("vit_tiny_patch16_224", weights=path, img_size=(96, 160))
    options = {"num_prefix_tokens": 1, "interpolation": "bilinear", "antialias": False}
    expected = resample_abs_pos_embed(google_source.pos_embed, [6, 10], **options)
    assert torch.equal(model.pos_embed, expected)
    assert model.patch_embed.grid_size == (6, 10)


# ── input sizes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [48, (48, 80), (64, 32)])
def test_position_embeddings_are_resized_by_timm(file, source, size):
    height, width = (size, size) if isinstance(size, int) else size
    model = create_backbone(NAME, weights=file, img_size=size).eval()
    grid = [height // 16, width // 16]
    assert torch.equal(model.pos_embed, resample_abs_pos_embed(source.pos_embed, grid, num_prefix_tokens=1))
    adapted = vprompt.attach(NAME, vprompt.VPT(2), num_classes=3, head_init="paper", weights=file, img_size=size).eval()
    assert adapted.preprocessing.size == (height, width)
    assert adapted(torch.randn(1, 3, height, width)).shape == (1, 3)


def test_windows_of_a_swin_shrink_with_the_map_and_their_tables_with_them(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    path = save_as(random_model(name, **SMALL_SWIN).state_dict(), tmp_path / "swin.safetensors")
    model = random_model(name, 1, num_classes=0, img_size=64, **SMALL_SWIN)
    load_weights(model, path, name)
    attentions = [stage.blocks[0].attn for stage in model.layers]
    assert [attention.window_size for attention in attentions] == [(7, 7), (7, 7), (4, 4)]
    assert [len(a.relative_position_bias_table) for a in attentions] == [13 * 13, 13 * 13, 7 * 7]


@pytest.mark.parametrize("size", [0, -16, (32,), (0, 32), "32"])
def test_sizes_that_cannot_be(file, size):
    refused(
        r"could not be made with images|cannot be cut", vprompt.attach, NAME, num_classes=2, weights=file, img_size=size
    )


# ── files that are refused ───────────────────────────────────────────────────────────────────────────────────────────


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def broken(tmp_path_factory, source, file, arrays):
    """A folder with a file for everything that can be wrong with one."""
    root, state = tmp_path_factory.mktemp("broken"), source.state_dict()
    for name in ("empty.safetensors", "empty.pth", "empty.npz"):
        (root / name).write_bytes(b"")
    for suffix in ("safetensors", "pth", "npz", "npy", "zip"):
        (root / f"garbage.{suffix}").write_bytes(np.random.default_rng(1).bytes(3000))
        (root / f"text.{suffix}").write_text("hello world\n")
    save_as(state, root / "good.pth")
    torch.save(state, root / "legacy.pth", _use_new_zipfile_serialization=False)
    np.savez(root / "good.npz", **arrays)
    shutil.copy(file, root / "good.safetensors")
    for name in ("good.pth", "legacy.pth", "good.npz", "good.safetensors"):
        data = (root / name).read_bytes()
        (root / f"cut-{name}").write_bytes(data[: len(data) // 2])
    bomb = Bomb(root / "exploded")
    torch.save({"model": state, "extra": bomb}, root / "bomb.pth")
    torch.save({"model": state, "extra": bomb}, root / "bomb-legacy.pth", _use_new_zipfile_serialization=False)
    for protocol in range(6):
        (root / f"bomb-{protocol}.bin").write_bytes(pickle.dumps(bomb, protocol))
    shutil.copy(root / "bomb.pth", root / "bomb.safetensors")
    shutil.copy(root / "bomb.pth", root / "bomb.npz")
    shutil.copy(root / "bomb-4.bin", root / "pickled.npz")
    np.savez(root / "objects.npz", **{**arrays, "embedding/kernel": np.array([bomb], dtype=object)})
    torch.save(source, root / "module.pth")
    torch.save(torch.zeros(3), root / "tensor.pth")
    torch.save([state], root / "list.pth")
    torch.save({"model": torch.zeros(3)}, root / "nested.pth")
    torch.jit.script(torch.nn.Linear(2, 2)).save(root / "script.pth")
    return root


@pytest.mark.parametrize("name", ["empty.safetensors", "empty.pth", "empty.npz"])
def test_empty_files(broken, name):
    refused(f"{name} is empty", create_backbone, "vit_tiny_patch16_224", weights=broken / name)


@pytest.mark.parametrize(
    "name",
    [
        *(f"{kind}.{suffix}" for kind in ("garbage", "text") for suffix in ("safetensors", "pth", "npz", "npy", "zip")),
        *("cut-good.pth", "cut-legacy.pth", "cut-good.npz", "cut-good.safetensors"),
        *("bomb.npz", "pickled.npz", "bomb.safetensors", "objects.npz", "tensor.pth", "list.pth", "script.pth"),
        *(f"bomb-{protocol}.bin" for protocol in range(6)),
    ],
)
def test_damaged_files(broken, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        match = "is damaged|runs code" if name.startswith("bomb-") else "is damaged"
        sentence = refused(match, create_backbone, "vit_tiny_patch16_224", weights=broken / name)
    assert str(broken / name) in sentence
    assert len(sentence) < 600
    assert not (broken / "exploded").exists()


@pytest.mark.parametrize("name", ["bomb.pth", "bomb-legacy.pth", "module.pth"])
def test_pickles_that_need_code_are_not_read(broken, name):
    sentence = refused("runs code when it is read", create_backbone, NAME, weights=broken / name, img_size=32)
    assert str(broken / name) in sentence
    assert "posix.mkdir" in sentence or "timm" in sentence
    assert not (broken / "exploded").exists()


def test_nothing_ever_unpickles_freely():
    sources = [path for path in Path(vprompt.__file__).parent.rglob("*.py") if path.name != "__init__.py"]
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"weights_only\s*=\s*(?!True)|allow_pickle\s*=\s*(?!False)|pickle\.loads?\(", text), path


@pytest.mark.parametrize(("name", "match"), [("nowhere.pth", "There is no weights file"), (".", "is a folder")])
def test_no_file(tmp_path, name, match):
    assert str(tmp_path) in refused(match, create_backbone, NAME, weights=tmp_path / name)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "beit_base_patch16_224", "test_efficientnet"])
def test_arrays_for_a_backbone_that_timm_reads_none_for(broken, name):
    refused("no .npz file for the backbone", create_backbone, name, weights=broken / "good.npz")


def drop_norm(state):
    del state["norm.weight"]


def add_register(state):
    state["reg_token"] = torch.zeros(1, 4, 64)


def widen(state):
    state["blocks.3.mlp.fc1.bias"] = torch.zeros(300)


def quantise(state):
    state["blocks.0.attn.proj.weight"] = state["blocks.0.attn.proj.weight"].to(torch.int8)


def spoil(state):
    state["blocks.0.attn.proj.weight"] = torch.full((64, 64), float("nan"))


def overflow(state):
    state["norm.bias"] = state["norm.bias"].double() + 1e300


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (drop_norm, "not those of the backbone 'test_vit': they lack 'norm.weight';"),
        (add_register, "they have 'reg_token', which it does not have"),
        (widen, r"'blocks.3.mlp.fc1.bias' is 300 in the file, and 192 in the backbone"),
        (quantise, "'blocks.0.attn.proj.weight' is of type torch.int8"),
        (spoil, "'blocks.0.attn.proj.weight' .*NaN or infinite"),
        (overflow, "'norm.bias' .*NaN or infinite"),
    ],
)
@pytest.mark.parametrize("classes", [0, 7, 1000])
def test_tensors_that_do_not_fit(tmp_path, change, match, classes):
    state = random_model(img_size=32, num_classes=classes).state_dict()
    change(state)
    path = save_as(state, tmp_path / "bad.safetensors")
    assert str(path) in refused(match, create_backbone, NAME, weights=path, img_size=32)


def test_a_value_that_is_no_tensor(tmp_path, source):
    torch.save({**source.state_dict(), "norm.weight": 3}, tmp_path / "bad.pth")
    refused("'norm.weight' is no tensor", create_backbone, NAME, weights=tmp_path / "bad.pth", img_size=32)


def test_a_bundle_of_something_else(tmp_path, broken, source):
    torch.save({"student": {"fc.weight": torch.zeros(3, 4)}, "epoch": 3}, tmp_path / "other.pth")
    refused("have 'student.fc.weight'", create_backbone, NAME, weights=tmp_path / "other.pth")
    refused("they lack 'cls_token', and have 'model'", create_backbone, NAME, weights=broken / "nested.pth")


def test_a_conversion_that_fails_still_names_a_key(file):
    beit = timm.create_model("beit_base_patch16_224", num_classes=0, **SMALL_VIT)  # has no pos_embed to resize
    refused("they lack 'blocks.0.gamma_1', and have '", load_weights, beit, file, "beit_base_patch16_224")


@pytest.mark.parametrize("name", ["test_vit2", "test_vit3", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_another_architecture(file, name):
    sentence = refused("are not those of the backbone", create_backbone, name, weights=file)
    assert name in sentence
    assert str(file) in sentence


@pytest.mark.parametrize(("there", "here"), [(6, 4), (4, 6)])
def test_another_depth(tmp_path, there, here):
    path = save_as(random_model(depth=there).state_dict(), tmp_path / "vit.safetensors")
    match = "they have 'blocks.4." if there > here else "they lack 'blocks.4.norm1.weight'"
    refused(match, load_weights, random_model(depth=here, num_classes=0), path, NAME)


def lose_a_block(arrays):
    return {key: value for key, value in arrays.items() if "encoderblock_11/" not in key}


def grow_a_block(arrays):
    more = {key.replace("_11/", "_12/"): value for key, value in arrays.items() if "encoderblock_11/" in key}
    return {**arrays, **more}


def narrow(arrays):
    return {**arrays, "Transformer/encoder_norm/scale": arrays["Transformer/encoder_norm/scale"][:7]}


def spoil_arrays(arrays):
    bias = arrays["Transformer/encoder_norm/bias"].copy()
    bias[3] = np.inf
    return {**arrays, "Transformer/encoder_norm/bias": bias}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lose_a_block, "they lack 'Transformer/encoderblock_11/LayerNorm_0/scale'"),
        (grow_a_block, "they have 13 blocks, and it has 12"),
        (narrow, "not those of the backbone 'vit_tiny_patch16_224': RuntimeError"),
        (spoil_arrays, "'norm.bias' .*NaN or infinite"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, change, match):
    np.savez(tmp_path / "bad.npz", **change(arrays))
    refused(match, create_backbone, "vit_tiny_patch16_224", weights=tmp_path / "bad.npz")


def test_stacked_arrays_of_another_depth(tmp_path, google_source):
    np.savez(tmp_path / "big.npz", **google_arrays(google_source, big_vision=True))
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=11)
    refused("they have 12 blocks, and it has 11", load_weights, model, tmp_path / "big.npz", "vit")


def test_what_the_arrays_have_no_place_for_is_not_left_random(tmp_path, arrays):
    np.savez(tmp_path / "google.npz", **arrays)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, init_values=1e-5)
    refused("they lack 'blocks.0.ls1.gamma'", load_weights, model, tmp_path / "google.npz", "vit")


# ── arguments that do not go together ────────────────────────────────────────────────────────────────────────────────


def test_weights_go_with_a_plain_name(file, tmp_path):
    refused("a model object has its weights already", vprompt.attach, random_model(), num_classes=2, weights=file)
    refused("pretrained=False", vprompt.attach, NAME, num_classes=2, weights=file, pretrained=False)
    save_for_hf(timm.create_model(NAME, img_size=32), tmp_path / "vit", safe_serialization=True)
    for name in (f"local-dir:{tmp_path / 'vit'}", "hf-hub:timm/test_vit.r160_in1k"):
        refused("says where the weights are", create_backbone, name, weights=file)
    refused("timm has no model called 'vit_nope'", create_backbone, "vit_nope", weights=file)
    refused("Invalid pretrained tag", create_backbone, f"{NAME}.nope", weights=file)


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mine(file, tmp_path):
    """A weights file of the test's own."""
    return Path(shutil.copy(file, tmp_path / "my weights.safetensors"))


@pytest.fixture
def adapted(mine):
    torch.manual_seed(1)
    return vprompt.attach(NAME, vprompt.VPT(2), num_classes=3, head_init="paper", weights=mine, img_size=32).eval()


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def edit_backbone(folder, **changes):
    config = config_of(folder)
    config.pop("checksum", None)
    config["backbone"] = {key: v for key, v in {**config["backbone"], **changes}.items() if v is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def logits(model):
    return model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)))


def test_an_adapter_finds_its_weights_again(adapted, mine, tmp_path, monkeypatch):
    adapted.save_pretrained(tmp_path / "a")
    assert config_of(tmp_path / "a")["backbone"]["weights"] == str(mine)
    monkeypatch.chdir("/")
    again = vprompt.load(tmp_path / "a")
    assert torch.equal(logits(again), logits(adapted))
    again.save_pretrained(tmp_path / "b")
    assert config_of(tmp_path / "b") == config_of(tmp_path / "a")
    mine.rename(tmp_path / "a" / mine.name)
    assert torch.equal(logits(vprompt.load(tmp_path / "a")), logits(adapted))


def test_an_adapter_whose_weights_have_gone(adapted, mine, tmp_path):
    adapted.save_pretrained(tmp_path / "a")
    mine.rename(tmp_path / "moved.safetensors")
    sentence = refused("not there; give the file", vprompt.load, tmp_path / "a", error=AdapterError)
    assert str(mine) in sentence
    assert "weights=FILE" in sentence
    assert "--weights FILE" in sentence
    assert torch.equal(logits(vprompt.load(tmp_path / "a", weights=tmp_path / "moved.safetensors")), logits(adapted))
    model = create_backbone(NAME, weights=tmp_path / "moved.safetensors", img_size=32)
    assert torch.equal(logits(vprompt.load(tmp_path / "a", model)), logits(adapted))
    refused("has its weights already", vprompt.load, tmp_path / "a", model, weights=tmp_path / "moved.safetensors")


def test_other_weights_are_noticed_whatever_they_are_called(adapted, mine, tmp_path):
    adapted.save_pretrained(tmp_path / "a")
    save_as(random_model(seed=1, img_size=32).state_dict(), mine)
    match = r"weights differ \(fingerprints .*weights=FILE.*--weights FILE.*backbone=model"
    refused(match, vprompt.load, tmp_path / "a", error=AdapterError)
    refused(match, vprompt.load, tmp_path / "a", weights=mine, error=AdapterError)


def test_an_adapter_without_a_record_of_weights(adapted, mine, tmp_path):
    adapted.save_pretrained(tmp_path / "a")
    for absent in (..., None):  # as vprompt 0.1.0 wrote it, and as it is written where the name says it all
        edit_backbone(tmp_path / "a", weights=absent)
        assert torch.equal(logits(vprompt.load(tmp_path / "a", weights=mine)), logits(adapted))
    for junk in (3, [], {}):
        edit_backbone(tmp_path / "a", weights=junk)
        refused("'backbone.weights' should be text", vprompt.load, tmp_path / "a", error=AdapterError)
    for strange in ("", "\0", "..", "/"):
        edit_backbone(tmp_path / "a", weights=strange)
        refused("not there; give the file", vprompt.load, tmp_path / "a", error=VPromptError)


def test_published_weights_are_not_recorded_as_a_file(tmp_path):
    for backbone in (create_backbone(BUNDLED_BACKBONE), random_model(img_size=32)):
        assert weights_file(backbone) is None
        assert weights_origin(backbone) is None
        vprompt.attach(backbone, vprompt.Linear(), num_classes=2).save_pretrained(tmp_path / "a")
        assert config_of(tmp_path / "a")["backbone"]["weights"] is None


def test_published_weights_can_be_given_as_a_file(tmp_path):
    model = vprompt.attach(BUNDLED_BACKBONE, vprompt.Linear(), num_classes=2, head_init="paper").eval()
    model.save_pretrained(tmp_path / "a")
    copy = save_as(model.backbone.state_dict(), tmp_path / "copy.safetensors")
    assert torch.equal(
        vprompt.load(tmp_path / "a", weights=copy)(torch.ones(1, 3, 64, 64)), model(torch.ones(1, 3, 64, 64))
    )


def test_a_file_that_timm_was_given_is_recorded_too(file, tmp_path):
    overlay = {"file": str(file), "tag": "my_own"}
    backbone = timm.create_model(NAME, pretrained=True, img_size=32, pretrained_cfg_overlay=overlay)
    assert weights_file(backbone) == file
    assert weights_origin(backbone) == {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest()[:16],
    }
    backbone.pretrained_cfg["file"] = str(tmp_path / "gone.pth")
    refused("cannot be read any more", weights_origin, backbone)


def test_a_pushed_adapter_does_not_say_where_the_weights_lay(adapted, mine, tmp_path, monkeypatch):
    pushed = {}

    def upload(repo_id, files, **options):
        pushed.update({name: Path(file).read_bytes() for name, file in files.items()})
        return "url"

    monkeypatch.setattr(adapters.adapter_hub, "upload", upload)
    adapted.push_to_hub("me/birds")
    config = json.loads(pushed["adapter_config.json"])
    assert config["backbone"]["weights"] == mine.name
    assert not any(str(mine.parent).encode() in data for data in pushed.values())


def test_the_card_says_how_to_load(adapted, mine, tmp_path):
    adapted.save_pretrained(tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert 'vprompt.load("path/to/this/folder", weights="my weights.safetensors")' in text
    assert str(mine.parent) not in text
    assert huggingface_hub.ModelCard.load(tmp_path / "a" / "README.md").data.base_model == f"{NAME}.r160_in1k"


def test_a_detached_backbone_can_be_saved_for_timm(adapted, mine, tmp_path):
    backbone = adapted.detach()
    save_for_hf(backbone, tmp_path / "vit", safe_serialization=True)
    assert str(mine.parent) not in (tmp_path / "vit" / "config.json").read_text()
    assert same(timm.create_model(f"local-dir:{tmp_path / 'vit'}", pretrained=True), backbone)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("data"), 6)


def fit_arguments(data, weights, out, *more):
    quick = ["--prompts", 2, "--epochs", 1, "--img-size", 32, "--json"]
    return ["fit", data, "--backbone", NAME, "--weights", weights, *quick, "--out", out, *more]


def succeeded(*arguments):
    outcome = run_command(*arguments)
    assert outcome.status == 0, outcome.err
    return outcome.document


def failed(*arguments):
    outcome = run_command(*arguments)
    assert outcome.status == 1
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    return outcome.err


def test_fit_condense_eval_predict(data, mine, tmp_path, monkeypatch):
    monkeypatch.chdir(mine.parent)
    result = succeeded(*fit_arguments(data, mine.name, tmp_path / "run"))
    assert result["settings"]["weights"] == str(mine)
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()[:16]
    assert result["provenance"]["weights"] == {"file": mine.name, "sha256": digest}
    assert result["provenance"]["preprocessing"]["size"] == [32, 32]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    judged = succeeded("eval", "../run", data, "--json")
    assert judged["accuracy"] == result["test_accuracy"]
    assert len(succeeded("predict", "../run", data / "red", "--json")) == 6
    moved = mine.rename(tmp_path / "moved.safetensors")
    assert str(mine) in failed("eval", "../run", data)
    assert "--weights FILE" in failed("predict", "../run", data / "red")
    assert succeeded("eval", "../run", data, "--weights", "../moved.safetensors", "--json") == judged
    assert len(succeeded("predict", "../run", data / "red", "--weights", moved, "--json")) == 6
    condense = ["condense", "../run", data, "--fine-tune-epochs", 1, "--out", "small", "--json"]
    assert str(mine) in failed(*condense)
    small = succeeded(*condense, "--weights", "../moved.safetensors")
    assert small["provenance"]["weights"] == {"file": moved.name, "sha256": digest}
    assert config_of(Path("small"))["backbone"]["weights"] == str(moved)
    assert succeeded("eval", "small", data, "--json")["accuracy"] == small["test_accuracy"]


def test_runs_without_a_file_say_so(trained):
    assert trained.result["settings"]["weights"] is None
    assert trained.result["provenance"]["weights"] is None


def test_a_resumed_run_must_have_the_same_weights(data, mine, tmp_path, monkeypatch):
    arguments = fit_arguments(data, mine, tmp_path / "run")
    result = succeeded(*arguments)
    again = fit_arguments(data, mine.name, tmp_path / "run", "--resume")
    monkeypatch.chdir(mine.parent)
    assert succeeded(*again) == result
    copy = shutil.copy(mine, tmp_path / "copy.safetensors")
    assert succeeded(*fit_arguments(data, copy, tmp_path / "run", "--resume")) == result
    other = tmp_path / "other.safetensors"
    save_as(random_model(seed=1, img_size=32).state_dict(), other)
    assert "other settings (weights)" in failed(*fit_arguments(data, other, tmp_path / "run", "--resume"))


def test_an_unfinished_run_notices_that_the_file_has_changed(data, mine, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(
            "vprompt.experiments.folder.RunFolder.finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        assert run_command(*fit_arguments(data, mine, out)).status == 130
    assert any((out / ".run").glob("*.safetensors"))
    before = mine.read_bytes()
    save_as(random_model(seed=1, img_size=32).state_dict(), mine)
    assert "changed since" in failed(*fit_arguments(data, mine, out, "--resume"))
    mine.write_bytes(before)
    succeeded(*fit_arguments(data, mine, out, "--resume"))


@pytest.mark.parametrize(
    "name", ["nowhere.pth", ".", "empty.pth", "garbage.pth", "bomb.pth", "good.npz", "cut-good.pth"]
)
def test_fit_looks_at_the_file_before_the_data(broken, tmp_path, name):
    (tmp_path / "no data").mkdir()
    sentence = failed(*fit_arguments(tmp_path / "no data", broken / name, tmp_path / "run"))
    assert str(broken) in sentence
    assert "no data" not in sentence
    assert not (tmp_path / "run").exists()
    assert not (broken / "exploded").exists()


def test_weights_with_an_empty_name(data, tmp_path):
    assert "is a folder" in failed(*fit_arguments(data, "", tmp_path / "run"))


# ── names that say where ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_local_folder_in_the_hubs_format(tmp_path):
    source = random_model("test_vit", 3)
    save_for_hf(source, tmp_path / "vit", safe_serialization=True)
    name = f"local-dir:{tmp_path / 'vit'}"
    model = vprompt.attach(name, vprompt.VPT(2), num_classes=3, head_init="paper").eval()
    assert model.info.name == name
    assert fingerprint(model.backbone) == fingerprint(source)
    model.save_pretrained(tmp_path / "adapter")
    images = torch.randn(1, 3, 160, 160)
    assert torch.equal(vprompt.load(tmp_path / "adapter")(images), model(images))


def test_a_hub_name_from_the_cache_without_a_network(tmp_path):
    source = random_model("test_vit", 3)
    repository = tmp_path / "hub" / "models--me--vit"
    save_for_hf(source, repository / "snapshots" / "0123abc", safe_serialization=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    code = (
        "import vprompt; from vprompt.backbones.info import fingerprint;"
        "model = vprompt.attach('hf-hub:me/vit', vprompt.VPT(2), num_classes=3);"
        "print(model.info.name, fingerprint(model.backbone))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["hf-hub:me/vit", fingerprint(source)], done.stderr


def test_an_original_file_of_qwens_encoder(tmp_path):
    """Its conversion goes by another name in timm."""
    small = {"embed_dim": 48, "depth": 2, "num_heads": 4}
    source = random_model("qwen3_vit_88m", 1, num_classes=0, **small)
    state = {key: value.contiguous() for key, value in source.state_dict().items()}
    path = save_as(state, tmp_path / "qwen.safetensors")
    model = random_model("qwen3_vit_88m", 2, num_classes=0, **small)
    load_weights(model, path, "qwen3_vit_88m")
    assert same(model, source)


def test_every_module_that_converts_checkpoints_is_asked():
    for name in ("qwen3_vit_88m", "deepseek_vit_412m", "swin_tiny_patch4_window7_224", "beit_base_patch16_224"):
        assert "checkpoint_filter_fn" in str(_conversion(name)), name


def test_a_pushed_adapter_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    save_for_hf(random_model("test_vit", 3), tmp_path / "mine" / "vit", safe_serialization=True)
    model = vprompt.attach(f"local-dir:{tmp_path / 'mine' / 'vit'}", vprompt.VPT(2), num_classes=3, head_init="paper")
    pushed = {}

    def upload(repo_id, files, **options):
        pushed.update({name: path.read_bytes() for name, path in files.items()})
        return "url"

    monkeypatch.setattr(adapters.adapter_hub, "upload", upload)
    model.push_to_hub("me/birds")
    assert json.loads(pushed["adapter_config.json"])["backbone"]["name"] == "local-dir:vit"
    assert all(str(tmp_path).encode() not in content for content in pushed.values())


def test_an_adapter_from_the_hub_chooses_no_file_here(file, tmp_path, monkeypatch):
    model = vprompt.attach(NAME, vprompt.VPT(2), num_classes=3, head_init="paper", weights=file)
    model.save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr(adapters.adapter_hub, "fetch", lambda repo_id, files: tmp_path / "adapter")
    with pytest.raises(AdapterError, match="give the file"):
        vprompt.load("me/birds")
    assert vprompt.load("me/birds", weights=file).prompt_counts == model.prompt_counts
    assert vprompt.load(tmp_path / "adapter").prompt_counts == model.prompt_counts


def test_patches_of_another_size_are_another_backbone(tmp_path):
    path = save_as(timm.create_model("vit_tiny_patch16_224", depth=1).state_dict(), tmp_path / "p16.safetensors")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, patch_size=32, num_classes=0)
    refused("patches are 16×16 pixels, and its 32×32", load_weights, model, path, "vit_tiny_patch32_224")


def test_a_size_that_timm_does_not_fit_positions_to_is_named(tmp_path):
    small = {"embed_dim": 48, "depth": 1, "num_heads": 4}
    path = save_as(timm.create_model("cait_xxs24_224", **small).state_dict(), tmp_path / "cait.safetensors")
    model = timm.create_model("cait_xxs24_224", img_size=64, num_classes=0, **small)
    refused("another image size", load_weights, model, path, "cait_xxs24_224")
