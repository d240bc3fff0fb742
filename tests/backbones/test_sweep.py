"""Every model of timm that prompts can be put into, built small: a new timm that breaks one of them is noticed here."""

import warnings

import pytest
import timm
import torch

import vprompt
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.catalogue import Entry, families, matching, read
from vprompt.backbones.info import describe
from vprompt.utils.errors import BackboneError

SEQUENCE = {"embed_dim": 48, "depth": 2, "num_heads": 4}
STAGES = {"embed_dim": 16, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 2, 2)}
SMALL = {
    "beit": SEQUENCE,
    "cait": SEQUENCE,
    "deepseek_vit": SEQUENCE,
    "deit": SEQUENCE,
    "eva": SEQUENCE,
    "naflexvit": SEQUENCE,
    "qwen3_vit": SEQUENCE,
    "swin_transformer": STAGES,
    "swin_transformer_v2": STAGES,
    "swin_transformer_v2_cr": STAGES,
    "vision_transformer": SEQUENCE,
    "vision_transformer_hybrid": SEQUENCE,
    "vision_transformer_relpos": SEQUENCE,
    "vision_transformer_sam": {**SEQUENCE, "global_attn_indexes": (1,)},
    # Its stem decides the width, and is large.
    "vitamin": {"depth": 1},
}
"""Module of timm -> what makes its models small."""
SIDE = 112
SIDES = {"deepseek_vit": 56, "qwen3_vit": 128, "vision_transformer_hybrid": 64, "vitamin": 32}
"""Side of the images in pixels, where the merging of patches needs another one than the rest, or the stem is large."""
OWN = {"vit_base_mci_224": {"depth": 1}}
"""Models whose stem decides their width."""
ENTRIES = {entry.name: entry for entry in read()}
NAMES = {name: module for module in SMALL for name in timm.list_models(module=module)}


def small(name):
    options = {"img_size": SIDES.get(NAMES[name], SIDE), **OWN.get(name, SMALL[NAMES[name]])}
    if "sapiens2" in name:
        options["num_kv_heads"] = 2
    if NAMES[name] == "naflexvit":
        del options["img_size"]  # takes any
    backbone = timm.create_model(name, pretrained=False, **options)
    with torch.no_grad():
        for parameter in backbone.parameters():  # fresh layer scales and norms can be next to zero
            if parameter.numel() < 100_000:  # those of large stems are neither
                parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


@pytest.mark.parametrize("name", NAMES)
def test_prompts_run_through_every_model(name):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = small(name)
    if name not in ENTRIES:
        with pytest.raises(BackboneError, match="is not supported; supported are"):
            vprompt.attach(backbone, num_classes=2)
        return
    entry = ENTRIES[name]
    found = Entry.of(name, backbone, describe(backbone), tested=True)
    same = ("model", "attention", "pooling", "prefix_tokens")
    assert [getattr(found, key) for key in same] == [getattr(entry, key) for key in same]
    side = SIDES.get(NAMES[name], SIDE)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        wanted = backbone.forward_head(backbone.eval().forward_features(images), pre_logits=True)
        for depth in ("deep", "shallow"):
            model = vprompt.attach(backbone, vprompt.VPT(3, depth), num_classes=2, head_init="paper").eval()
            for prompts in model.prompts:
                prompts.normal_()
            logits = model(images)
            assert logits.isfinite().all()
            published = model.copy(execution="published").eval()(images)
            torch.testing.assert_close(published, logits, atol=1e-4, rtol=1e-4)
            bare = model.keep([torch.arange(0)] * len(model.prompts)).eval()
            features = bare.features(images)
            assert not torch.allclose(bare.head(features), logits, atol=1e-6), "prompts change nothing"
            torch.testing.assert_close(features, wanted, atol=1e-4, rtol=1e-4)


def test_the_table_lists_what_timm_has():
    """After an update of timm, `python recipes/backbones.py` writes the table anew."""
    assert set(ENTRIES) <= set(timm.list_models())
    assert set(ENTRIES) - set(NAMES) == {BUNDLED_BACKBONE.partition(".")[0]}
    assert all(entry.tested for entry in ENTRIES.values())


def test_families_count_every_model_once():
    found = families(ENTRIES.values())
    assert sum(family.models for family in found) == len(ENTRIES)
    assert len({(family.model, family.attention) for family in found}) == len(found)
    swin = next(family for family in found if family.model == "SwinTransformer")
    assert (swin.attention, swin.width, swin.pooling, swin.tested) == ("WindowAttention", "96-1536", "avg", True)


def test_patterns():
    assert [entry.name for entry in matching(ENTRIES.values(), "SWIN_BASE")] == [
        entry.name for entry in matching(ENTRIES.values(), "swin_base*")
    ]
    assert {entry.model for entry in matching(ENTRIES.values(), "windowattention")} == {
        "SwinTransformer",
        "SwinTransformerV2",
    }
    assert matching(ENTRIES.values(), "resnext") == []


def test_command(vprompt_command):
    everything = vprompt_command("backbones")
    assert everything.status == 0
    assert "SwinTransformerV2Cr" in everything.out
    documents = vprompt_command("backbones", "--json").document
    assert {family["attention"] for family in documents} >= {"EvaAttention", "RelPosAttention", "DiffAttention"}
    (document,) = vprompt_command("backbones", "vit_base_patch16_rpn_224", "--json").document
    assert (document["blocks"], document["width"], document["tested"]) == (12, "768", True)


@pytest.mark.parametrize(("name", "words"), [("convnext_atto", "ConvNeXt is not supported"), ("nothing", "'nothing'")])
def test_command_says_what_it_does_not_find(vprompt_command, name, words):
    outcome = vprompt_command("backbones", name)
    assert outcome.status == 1
    assert words in outcome.err
    assert outcome.out == ""


def test_a_model_that_the_table_does_not_have_is_looked_at(vprompt_command, monkeypatch):
    monkeypatch.setattr("vprompt.backbones.catalogue.read", list)
    (document,) = vprompt_command("backbones", "test_vit", "--json").document
    assert (document["name"], document["tested"]) == ("test_vit", False)
