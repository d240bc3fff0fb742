"""Key-value prompts: what they are, that they are nothing else than rows joined behind the projections, and E2VPT."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import families
import reference
import vprompt
from families import BACKBONES
from reference import close, loss_weights, some_images
from vprompt.methods.layers.prompts import KVPrompts
from vprompt.utils.errors import AdapterError, BackboneError, VPromptError

pytestmark = pytest.mark.filterwarnings("ignore:The head starts from the VPT paper")
"""Heads that say something from the start, trained for a moment."""

SHARES = ("key-value", "heads", "none")
FUSED = {
    "class-token": reference.BACKBONES,
    "qk-norm": reference.BACKBONES,
    "gated-qk-scale-norm": reference.BACKBONES,
    "distilled": reference.BACKBONES,
    "attention-pooling": reference.BACKBONES,
    "wide-heads": reference.BACKBONES,
    "swin": BACKBONES,
    "swin-padded": BACKBONES,
    "swin-three-stages": BACKBONES,
    "dinov3": BACKBONES,
    "eva-rope-unfused": BACKBONES,
    "gqa": BACKBONES,
    "beit-both": BACKBONES,
    "relpos-bias-shared-token": BACKBONES,
    "parallel-no-qkv-bias": BACKBONES,
    "sam": BACKBONES,
}
"""Backbones whose attention timm can run by torch's fused function, through which the tests can see it."""


def make(name):
    backbone = FUSED[name][name]().double()
    for module in backbone.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    return backbone


def images_of(name, batch):
    some = some_images if FUSED.get(name) is reference.BACKBONES else families.some_images
    return some(name, batch, dtype=torch.float64)


def prompted(backbone, method, seed=5):
    model = vprompt.attach(backbone, method, head_init="paper", num_classes=4).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in [*model.prompts, *model.kv_prompts, model.head.weight, model.head.bias]:
            p.copy_(0.7 * torch.randn(p.shape, generator=generator))
    return model


def joined(monkeypatch, backbone, model, images):
    """Logits of timm's own forward, in which every attention finds its block's prompts before its keys and values."""
    fused, share, blocks = F.scaled_dot_product_attention, model.method.share, iter(model.kv_prompts)

    def attention(q, k, v, attn_mask=None, **options):
        own = next(blocks, None)
        if own is None:  # attention pooling
            return fused(q, k, v, attn_mask=attn_mask, **options)
        keys, values = (own, own) if share == "key-value" else (own[0], own[1])
        groups = k.shape[1] // keys.shape[0] if share != "heads" and k.ndim == 4 else 1
        if share == "heads":
            keys, values = (t.expand(model_heads(k, q), -1, -1) for t in (keys, values))
        keys, values = (t.repeat_interleave(groups, 0) for t in (keys, values))
        flat = k.ndim == 3  # SAM holds images and heads in one dimension
        if flat:
            heads = keys.shape[0]
            keys, values = (t.repeat(k.shape[0] // heads, 1, 1) for t in (keys, values))
        else:
            keys, values = (t.expand(k.shape[0], -1, -1, -1) for t in (keys, values))
        if attn_mask is not None:
            attn_mask = torch.cat([attn_mask.new_zeros(*attn_mask.shape[:-1], keys.shape[-2]), attn_mask], dim=-1)
        k, v = torch.cat([keys, k], dim=-2), torch.cat([values, v], dim=-2)
        return fused(q, k, v, attn_mask=attn_mask, **options)

    def model_heads(k, q):
        return k.shape[1] if k.ndim == 4 else 2

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        return model.head(backbone.forward_head(backbone.forward_features(images), pre_logits=True))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", FUSED)
def test_they_are_rows_joined_behind_the_projections(monkeypatch, name, share):
    backbone = make(name)
    model = prompted(backbone, vprompt.E2VPT(0, 3, share))
    images = images_of(name, 3)
    wanted = joined(monkeypatch, backbone, model, images)
    learned = [*model.kv_prompts, model.head.weight]
    gradients = torch.autograd.grad(loss_weights(wanted).sum(), learned)
    for run in (model, model.copy(execution="published").eval()):
        logits = run(images)
        close(logits, wanted, 1e-10)
        mine = [*run.kv_prompts, run.head.weight]
        for found, true in zip(torch.autograd.grad(loss_weights(logits).sum(), mine), gradients, strict=True):
            close(found, true, 1e-10)
    with torch.no_grad():
        close(model.fold()(images), wanted, 1e-10)


EVERY = ["swin2-padded", "swin-cr-padded", "cait", "eva-post-norm-rope", "rope-mixed-token", "naflex-gap-resized"]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", [*FUSED, *EVERY])
def test_with_prompts_of_both_kinds_all_executions_agree(name, share):
    where = FUSED.get(name, BACKBONES)
    model = prompted(where[name]().double(), vprompt.E2VPT(4, 2, share, dropout=0.0))
    counts = [[2, 0, 4][block % 3] for block in range(len(model.prompts))]
    model = model.keep([torch.arange(count) for count in counts]).eval()
    images = images_of(name, 3)
    wanted = model(images)
    close(model.copy(execution="published").eval()(images), wanted, 1e-10)
    with torch.no_grad():
        close(model.fold()(images), wanted, 1e-10)
        close(torch.cat([model(image[None]) for image in images]), wanted, 1e-10)
        bare = (
            vprompt.attach(model.backbone, vprompt.VPT(4, dropout=0.0), head_init="paper", num_classes=4)
            .double()
            .eval()
        )
        for mine, other in zip(bare.prompts, prompted(where[name](), vprompt.E2VPT(4, 2, share)).prompts, strict=True):
            mine.copy_(other)
        bare.head.load_state_dict(model.head.state_dict())
        bare = bare.keep([torch.arange(count) for count in counts]).eval()
        assert not torch.allclose(bare(images), wanted, atol=1e-6), "key-value prompts change nothing"


@pytest.mark.parametrize(
    ("share", "shape"), [("key-value", (2, 3, 16)), ("heads", (2, 3, 16)), ("none", (2, 2, 3, 16))]
)
def test_shapes_counts_and_start(share, shape):
    torch.manual_seed(0)
    model = vprompt.attach(reference.small_vit(), vprompt.E2VPT(4, 3, share), head_init="paper", num_classes=5)
    assert [tuple(p.shape) for p in model.kv_prompts] == [shape] * 3
    assert model.num_learned == 3 * 4 * 32 + 3 * math.prod(shape) + 5 * 32 + 5
    bound = math.sqrt(6 / (3 * 16))
    values = torch.cat([p.detach().flatten() for p in model.kv_prompts])
    assert 0.9 * bound < float(values.abs().max()) <= bound
    assert model.prompt_counts == [4, 4, 4]
    assert model.prompts.dropout == pytest.approx(0.1)
    folded = model.fold()
    assert [tuple(prefix.keys.shape) for prefix in folded.prefixes] == [(1, 2, 7, 16)] * 3


def test_shapes_follow_the_stages_of_a_swin():
    model = vprompt.attach(BACKBONES["swin"](), vprompt.E2VPT(1, 3), head_init="paper", num_classes=5)
    assert [tuple(p.shape) for p in model.kv_prompts] == [(2, 3, 8)] * 2 + [(4, 3, 8)] * 2


def test_dropout_takes_none_of_them():
    model = prompted(reference.small_vit().double(), vprompt.E2VPT(0, 3, dropout=0.9))
    images = some_images("class-token", 2, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model.train()(images), model.eval()(images))


@pytest.mark.parametrize("share", SHARES)
def test_saved_and_loaded(tmp_path, share):
    backbone = reference.small_vit()
    model = prompted(backbone, vprompt.E2VPT(2, 3, share))
    model.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, backbone=backbone)
    images = some_images("class-token", 2)
    assert torch.equal(again(images), model(images))
    assert again.method == model.method
    assert "key-value" in (tmp_path / "README.md").read_text()


def test_condensed_and_scored_beside_them():
    """The score of the other prompts is what it is with the key-value prompts in place."""
    model = prompted(reference.small_vit().double(), vprompt.E2VPT(4, 2))
    images = some_images("class-token", 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3])
    found = vprompt.score(model, TensorDataset(images, labels))
    wanted = [torch.zeros(4, dtype=torch.float64) for _ in range(3)]
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(model(image[None]), label[None])
        gradients = torch.autograd.grad(loss, list(model.prompts))
        for block, (p, gradient) in enumerate(zip(model.prompts, gradients, strict=True)):
            wanted[block] += (gradient * p.detach()).sum(1).abs() / len(images)
    for mine, true in zip(found, wanted, strict=True):
        close(mine.double(), true, 1e-6)
    small = vprompt.condense(model, TensorDataset(images, labels), ratio=0.5, fine_tune=False)
    assert sum(small.prompt_counts) == 6
    assert all(torch.equal(a, b) for a, b in zip(small.kv_prompts, model.kv_prompts, strict=True))


def test_training_changes_them():
    torch.manual_seed(0)
    model = vprompt.attach(reference.small_vit(), vprompt.E2VPT(0, 2), head_init="paper", num_classes=2)
    before = [p.detach().clone() for p in model.kv_prompts]
    data = TensorDataset(some_images("class-token", 8), torch.tensor([0, 1] * 4))
    vprompt.fit(model, data, recipe=vprompt.Recipe(epochs=2, batch_size=4))
    assert all(not torch.equal(p, old) for p, old in zip(model.kv_prompts, before, strict=True))


def test_keys_and_values_of_two_shapes_are_refused():
    with pytest.raises(BackboneError, match="DiffAttention"):
        vprompt.attach(BACKBONES["diff"](), vprompt.E2VPT(2, 2), num_classes=2)
    assert (
        len(vprompt.attach(BACKBONES["diff"](), vprompt.E2VPT(2, 0), head_init="paper", num_classes=2).kv_prompts) == 0
    )


def test_the_wrong_heads_are_refused(tmp_path):
    vprompt.attach(reference.small_vit(), vprompt.E2VPT(0, 2), num_classes=2).save_pretrained(tmp_path)
    with pytest.raises(AdapterError):
        vprompt.load(tmp_path, backbone=reference.small_vit(num_heads=4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_prompts": -1}, "-1"),
        ({"num_kv_prompts": -2}, "-2"),
        ({"num_prompts": 0, "num_kv_prompts": 0}, "at least one prompt"),
        ({"share": "all"}, "'all'"),
        ({"dropout": 1.0}, "1.0"),
    ],
)
def test_settings_that_cannot_be(arguments, words):
    with pytest.raises(VPromptError, match=words):
        vprompt.E2VPT(**arguments)


def test_no_prompts_are_an_empty_list():
    assert len(KVPrompts.initial(0, [(2, 16)], "none")) == 0
    assert len(vprompt.attach(reference.small_vit(), vprompt.VPT(2), head_init="paper", num_classes=2).kv_prompts) == 0
