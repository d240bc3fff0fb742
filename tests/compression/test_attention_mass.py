"""Attention that prompts take: against matrices written out by hand, and what a run says of it."""

import json
import math

import pytest
import timm
import torch

import families
import reference
import vprompt
from conftest import run_command
from vprompt.compression.gradients import attention_mass
from vprompt.compression.merge import merge


def rows_that_run(info, block, weights, at, count):
    """Attention (rows, keys) of the tokens that are no prompts, and in the last block of those that are read."""
    rows = [row for row in range(weights.shape[2]) if not at <= row < at + count]
    if block == len(info.blocks) - 1 and info.leading_tokens is not None:
        rows = rows[: info.leading_tokens]
    weights = weights.abs()
    return (weights / weights.sum(-1, keepdim=True)).mean((0, 1))[rows]


@pytest.mark.parametrize("depth", ["deep", "shallow"])
@pytest.mark.parametrize("name", ["eva-rope-unfused", "beit-both", "cait", "diff"])
def test_mass_of_prompts_is_that_of_the_matrices_of_the_reference(name, depth):
    counts = None if depth == "shallow" else [2, 0, 3]
    model = families.attached(name, vprompt.VPT(3, depth), counts=counts, dtype=torch.float64)
    images = families.some_images(name, 3, dtype=torch.float64)
    found = attention_mass(model, images)
    prompts = [p.detach() for p in model.prompts]
    _, maps = families.run(model.backbone, prompts, images, shallow=depth == "shallow")
    at = families.leading(model.backbone)
    assert len(found) == len(maps)
    if name == "cait":  # values are mixed by what its heads say of each other's weights
        talk = [block.attn.proj_w for block in model.backbone.blocks]
        spoken = [families.linear(m.permute(0, 2, 3, 1), each) for m, each in zip(maps, talk, strict=True)]
        maps = [m.permute(0, 3, 1, 2) for m in spoken]
    for block, weights in enumerate(maps):
        count = model.prompt_counts[0 if depth == "shallow" else block]
        rows = rows_that_run(model.info, block, weights, at, count)
        expected = float(rows[:, at : at + count].sum(1).mean())
        assert found[block] == (pytest.approx(expected, abs=1e-6), 0.0)


def by_hand(vit, prompts, ready, images):
    """By block the mean shares of a ViT's attention that prompts and key-value prompts take, one head at a time."""
    x, at = reference.embed(vit, images), vit.num_prefix_tokens
    shares = []
    for number, block in enumerate(vit.blocks):
        own = prompts[number].double().expand(len(images), -1, -1)
        seen = reference.norm(torch.cat([own, x], 1), block.norm1)
        attn, count = block.attn, own.shape[1]
        heads, d = attn.num_heads, attn.head_dim
        qkv = reference.linear(seen, attn.qkv)
        outputs, paid = [], []
        for head in range(heads):
            q, k, v = (qkv[..., (part * heads + head) * d : (part * heads + head + 1) * d] for part in range(3))
            more = ready[number][head].double().expand(len(images), -1, -1)
            k, v = (torch.cat([t[:, :count], more, t[:, count:]], 1) for t in (k, v))
            weights = reference.softmax_rows(q[:, count:] @ k.transpose(1, 2) / math.sqrt(d))
            paid.append(weights)
            outputs.append(weights @ v)
        x = x + reference.linear(torch.cat(outputs, -1), attn.proj)
        x = x + reference.mlp(reference.norm(x, block.norm2), block.mlp)
        rows = torch.stack(paid).mean(0)[:, : (1 if number == len(vit.blocks) - 1 else None)]
        ends = (count, count + ready[number].shape[1])
        shares.append((float(rows[..., : ends[0]].sum(-1).mean()), float(rows[..., ends[0] : ends[1]].sum(-1).mean())))
    assert at == 1
    return shares


@pytest.mark.parametrize(("visual", "key_value"), [(3, 2), (0, 4), (2, 0)])
def test_mass_of_key_value_prompts_is_that_of_a_loop_over_blocks_and_heads(visual, key_value):
    torch.manual_seed(0)
    vit = reference.randomise(timm.models.VisionTransformer(16, 8, embed_dim=24, depth=3, num_heads=3, num_classes=0))
    model = vprompt.attach(vit, vprompt.E2VPT(visual, key_value), num_classes=2).eval()
    with torch.no_grad():
        for p in (*model.prompts, *model.kv_prompts):
            p.copy_(torch.randn(p.shape))
    images = torch.randn(5, 3, 16, 16)
    none = torch.zeros(3, 0, 8)
    ready = [p.detach() for p in model.kv_prompts] or [none] * 3
    expected = by_hand(vit, [p.detach() for p in model.prompts], ready, images)
    for found, wanted in zip(attention_mass(model, images), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


def test_alike_keys_share_attention_evenly_and_a_merged_prompt_counts_as_often():
    model = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.VPT(4), num_classes=2).eval()
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attn.qkv.weight.zero_()  # all keys are the same
    tokens = model.backbone.pos_embed.shape[1]
    images = torch.randn(2, 3, 32, 32)
    for each in (model, merge(model, [torch.arange(1)] * 6)):
        for share, ready in attention_mass(each, images):
            assert (share, ready) == (pytest.approx(4 / (4 + tokens)), 0)


def test_windows_have_a_mass_for_every_block():
    model = families.attached("swin-padded", vprompt.VPT(3), counts=[2, 0, 3])
    mass = attention_mass(model, families.some_images("swin-padded", 2))
    assert [share > 0 for share, _ in mass] == [count > 0 for count in model.prompt_counts]
    assert all(share < 1 for share, _ in mass)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────

SHORT = ["--epochs", "1", "--batch-size", "8", "--img-size", "16", "--no-report"]


def test_a_run_says_where_prompts_dominate_and_nothing_where_there_are_none(colours, two_blocks, tmp_path):
    said = {}
    for name, prompts, method in (("few", 1, "vpt-deep"), ("many", 200, "vpt-deep"), ("none", 0, "linear")):
        options = ["--method", method, *(["--prompts", prompts] if prompts else [])]
        outcome = run_command("fit", colours, "--backbone", two_blocks, *SHORT, *options, "--out", tmp_path / name)
        assert outcome.status == 0, outcome.err
        said[name] = json.loads((tmp_path / name / "result.json").read_text()), outcome.err
    few, many, none = (result for result, _ in said.values())
    assert "attention" not in none
    model = vprompt.load(tmp_path / "few")
    task = vprompt.open_data(str(colours), model.backbone)
    images = torch.stack([task.val[number][0] for number in range(len(task.val))])
    expected = attention_mass(model, images)
    assert few["attention"]["prompts"] == pytest.approx([share for share, _ in expected], abs=1e-4)
    assert few["attention"]["kv_prompts"] == [0, 0]
    assert not any("attention" in note for note in few["notes"])
    assert min(many["attention"]["prompts"]) > 0.5
    [note] = [note for note in many["notes"] if "attention" in note]
    assert "in 2 of 2 blocks more than the image" in note
    assert " ".join(note.split()) in " ".join(said["many"][1].split())
