"""Maps of features: without prompts those of timm, with them those of a reference, the same however a model runs."""

import pytest
import timm
import torch

import families
import reference
import vprompt
from families import EACH_CLASS
from reference import close, embed, run_block, wide
from vprompt.utils.errors import VPromptError

VITS = ["class-token", "no-class-token-avg", "registers-avg", "distilled", "post-norm"]
DEEP, SHALLOW = vprompt.VPT(6), vprompt.VPT(6, "shallow")


def wanted(model, images, *, shallow):
    """Patch tokens (B, D, h, w) after every block of a plain ViT, from the reference's own blocks."""
    vit, prompts = model.backbone, list(model.prompts)
    x, at, maps = embed(vit, images), vit.num_prefix_tokens, []
    side = images.shape[-1] // vit.patch_embed.patch_size[0]
    for number, block in enumerate(vit.blocks):
        own = wide(prompts[0 if shallow else number]).expand(len(images), -1, -1)
        if not shallow or number == 0:
            x = torch.cat([x[:, :at], own, x[:, at:]], dim=1)
        x, _ = run_block(x, block)
        if not shallow:
            x = torch.cat([x[:, :at], x[:, at + own.shape[1] :]], dim=1)
        maps.append(x[:, at + (own.shape[1] if shallow else 0) :].transpose(1, 2).unflatten(2, (-1, side)))
    return maps


@pytest.mark.parametrize("method", [DEEP, SHALLOW], ids=["deep", "shallow"])
@pytest.mark.parametrize("name", VITS)
def test_maps_of_every_block_are_those_of_the_reference(name, method):
    shallow = method is SHALLOW
    images = reference.some_images(name, 2).double()
    for execution in ("prefix", "published", "folded"):
        started = "prefix" if execution == "folded" else execution
        counts = None if shallow else [3, 0, 6]
        model = reference.attached(name, method, execution=started, counts=counts, dtype=torch.float64)
        expected = wanted(model, images, shallow=shallow)
        model = model.fold() if execution == "folded" else model
        found = model.features(images, blocks=range(len(expected)))
        for one, other in zip(found, expected, strict=True):
            close(one, other, 1e-9)


@pytest.mark.parametrize("name", EACH_CLASS)
def test_without_prompts_maps_are_timms(name):
    model = families.attached(name, vprompt.Linear(), dtype=torch.float64)
    images, backbone = families.some_images(name, 2).double(), model.backbone
    expected, blocks = backbone.forward_intermediates(images, norm=False)[1], range(len(model.prompt_counts))
    if isinstance(backbone, families.SWIN):  # timm gives the end of each stage only
        ends = [len(stage.blocks) for stage in (getattr(backbone, "stages", None) or backbone.layers)]
        blocks = [sum(ends[: number + 1]) - 1 for number in range(len(ends))]
    for found, other in zip(model.features(images, blocks=blocks), expected, strict=True):
        close(found, other, 1e-9)


@pytest.mark.parametrize("name", EACH_CLASS)
def test_all_executions_give_the_same_maps_and_prompts_reach_them(name):
    images = families.some_images(name, 2).double()
    model = families.attached(name, DEEP, counts=[3, 0, 6], dtype=torch.float64)
    found = model.features(images, blocks=[0, -1])
    bare = families.attached(name, vprompt.Linear(), dtype=torch.float64).features(images, blocks=[0, -1])
    for one, other in zip(model.fold().features(images, blocks=[0, -1]), found, strict=True):
        close(one, other, 1e-9)
    for one, other in zip(model.copy(execution="published").features(images, blocks=[0, -1]), found, strict=True):
        close(one, other, 1e-9)
    for one, other, width in zip(bare, found, (model.info.widths[0], model.info.widths[-1]), strict=True):
        assert one.shape == other.shape
        assert other.shape[:2] == (2, width)
        assert not torch.allclose(one, other)


def test_the_pooled_feature_is_the_mean_of_the_last_map():
    for name in ("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"):
        window = {"window_size": 2} if "swin" in name else {"class_token": False, "fc_norm": False}
        backbone = timm.create_model(name, img_size=64, global_pool="avg", **window)
        model = vprompt.attach(backbone, vprompt.VPT(3), num_classes=2).eval()
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            (last,) = model.features(images, blocks=[-1], norm=True)
            close(last.mean((2, 3)), model.features(images), 1e-4)


@pytest.mark.parametrize("method", [DEEP, SHALLOW, vprompt.LoRA(), vprompt.E2VPT(), vprompt.Full()])
def test_gradients_of_maps_reach_all_that_is_learned_before_them(method):
    model = vprompt.attach(timm.create_model("test_vit", img_size=32), method, num_classes=2)
    maps = model.features(torch.randn(2, 3, 32, 32), blocks=[-1])
    maps[0].square().mean().backward()
    reached = {name for name, p in model.learned.items() if p.grad is not None}
    assert reached >= {name for name in model.learned if name.startswith(("prompts.", "kv_prompts."))} - {
        f"prompts.{number}" for number, count in enumerate(model.prompt_counts) if not count
    }
    assert reached or not model.learned.keys() - {"head.weight", "head.bias"}


def test_maps_that_are_not_there_are_refused():
    vit = vprompt.attach(timm.create_model("test_vit", img_size=32), DEEP, num_classes=2)
    images = torch.randn(1, 3, 32, 32)
    for number in (6, -7):
        with pytest.raises(VPromptError, match=f"6 blocks, 0 to 5; there is no block {number}"):
            vit.features(images, blocks=[0, number])
    assert vit.features(images, blocks=[]) == []
    with pytest.raises(TypeError):
        vit.features(images, blocks=[0.5])
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2)
    assert (
        vprompt.attach(swin, SHALLOW, num_classes=2).features(torch.randn(1, 3, 64, 64), blocks=[0])[0].shape[1] == 96
    )
    with pytest.raises(VPromptError, match="no last norm for the 96 channels of block 0"):
        vprompt.attach(swin, DEEP, num_classes=2).features(torch.randn(1, 3, 64, 64), blocks=[0], norm=True)
    for model in (vit, vit.fold(), vit.copy(execution="published")):
        for call in (model.view.forward_intermediates, model.view.get_intermediate_layers):
            with pytest.raises(VPromptError, match="not of its view"):
                call(images)
    assert len(vit.backbone.forward_intermediates(images)[1]) == 6  # the plain backbone is as ever
    side = vprompt.attach(timm.create_model("test_vit", img_size=32), vprompt.Side(), num_classes=2)
    with pytest.raises(VPromptError, match="acts on pooled features"):
        side.features(images, blocks=[0])


def test_the_model_itself_is_as_before():
    model = vprompt.attach(timm.create_model("test_vit", img_size=32), DEEP, num_classes=2).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        maps = model.features(images, blocks=[1, -1])
        assert torch.equal(model(images), before)
        assert torch.equal(model.features(images, blocks=[1])[0], maps[0])
