"""Other attention families: prefix = published = folded = an independent reference; the backbone stays as it is."""

import copy
import math
from functools import cache, lru_cache

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.eva import Eva
from timm.models.naflexvit import NaFlexVit
from timm.models.swin_transformer import SwinTransformer, window_partition, window_reverse
from timm.models.swin_transformer_v2_cr import SwinTransformerV2Cr
from timm.models.vision_transformer import ParallelThingsBlock
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn
from torch.utils.data import TensorDataset

import families
import vprompt
from families import BACKBONES, EACH_CLASS, SWIN, WRAPPED, attached, blocks_of, some_images, some_prompts, widths_of
from reference import close, is_shallow, learned, loss_weights
from vprompt.utils.errors import BackboneError, VPromptError

EXACT = {torch.float64: 1e-10, torch.float32: 1e-4}
METHODS = {
    "deep": (vprompt.VPT(6), [3, 0, 6]),
    "shallow": (vprompt.VPT(6, "shallow"), None),
}
"""One backbone for every kind of attention or block."""

EXECUTIONS = ("prefix", "published", "folded")
SEQUENCES = [name for name in BACKBONES if not name.startswith(("swin", "sam"))]
SWINS = [name for name in BACKBONES if name.startswith("swin")]


def logits_and_gradients(logits, model):
    return logits, torch.autograd.grad(loss_weights(logits).sum(), learned(model))


def reference_logits(model, images, prompts=None):
    prompts = list(model.prompts) if prompts is None else prompts
    return families.logits(
        model.backbone, prompts, model.head.weight, model.head.bias, images, shallow=is_shallow(model)
    )


@cache
@torch.enable_grad()
def truth(name, method, batch=3):
    """The reference's logits and gradients for `a_model`; the same numbers whatever the type of the model."""
    model = read_only(name, method)
    logits, gradients = logits_and_gradients(reference_logits(model, some_images(name, batch)), model)
    return logits.detach(), gradients


def a_model(name, method, *, execution="prefix", dtype=torch.float64):
    how, counts = METHODS[method]
    return attached(name, how, counts=counts, execution=execution, dtype=dtype)


@lru_cache(maxsize=128)
@torch.enable_grad()
def read_only(name, method, *, dtype=torch.float64):
    """`a_model`, made once for many tests, none of which may change it or its backbone."""
    return a_model(name, method, dtype=dtype)


def executed(model, execution):
    return model.fold() if execution == "folded" else model.copy(execution=execution).eval()


# ── the reference itself ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", BACKBONES)
def test_reference_without_prompts_is_timm(name):
    model = BACKBONES[name]().double()
    images = some_images(name, 3, dtype=torch.float64)
    found, maps = families.run(model, families.no_prompts(model), images)
    with torch.no_grad():
        close(found, model.forward_head(model.forward_features(images), pre_logits=True), 1e-12)
    if not name.startswith(("diff", "naflex-diff")):
        assert all(torch.allclose(m.sum(-1), torch.ones_like(m[..., 0])) for m in maps)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_blocks_prompts_matter_to_the_reference(name):
    """Were a block's prompts without effect, agreement about them would say nothing."""
    model = BACKBONES[name]().double()
    images = some_images(name, 1, dtype=torch.float64)
    prompts = [p.requires_grad_() for p in some_prompts(model, [4])]
    features = families.prompted(model, prompts, images)
    for p, gradient in zip(prompts, torch.autograd.grad(loss_weights(features).sum(), prompts), strict=True):
        assert float((gradient.norm() * p.norm()).detach()) > 1e-3 * float(features.detach().norm())


def zeros_between(bias, at, count):
    """A bias (..., N, N) with `count` rows and columns of zeros from `at` on."""
    bias = torch.cat([bias[..., :at], bias.new_zeros(*bias.shape[:-1], count), bias[..., at:]], dim=-1)
    rows = bias.new_zeros(*bias.shape[:-2], count, bias.shape[-1])
    return torch.cat([bias[..., :at, :], rows, bias[..., at:, :]], dim=-2)


def timm_tokens(model, images):
    """Tokens before the first block, and what timm gives to every block beside them."""
    depth = len(blocks_of(model))
    if isinstance(model, NaFlexVit):
        embeds = model._forward_embeds(images, None, None, None)
        x, rope = embeds["patches"], embeds["rope_embeds"]
        return x, [{}] * depth if rope is None else [
            {"rope": rope[i] if model.rope_is_mixed else rope} for i in range(depth)
        ]
    if isinstance(model, WRAPPED):
        x, rope = model.encoder._pos_embed(model.encoder.patch_embed(images))
        return x, [{"rope": rope}] * depth
    x = model.patch_embed(images)
    if isinstance(model, Cait):
        return x + model.pos_embed, [{}] * depth
    if isinstance(model, Eva):
        x, rope = model._pos_embed(x)
        ropes = [rope[i] if model.rope_mixed and rope is not None else rope for i in range(depth)]
        return model.norm_pre(x), [{"rope": rope} for rope in ropes]
    if isinstance(model, (Beit, VisionTransformerRelPos)):
        if model.cls_token is not None:
            x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], dim=1)
        if isinstance(model, VisionTransformerRelPos):
            shared = None if model.shared_rel_pos is None else model.shared_rel_pos.get_bias()
            return x, [{"shared_rel_pos": shared}] * depth
        x = x if model.pos_embed is None else x + model.pos_embed
        shared = None if model.rel_pos_bias is None else model.rel_pos_bias()
        return x, [{"shared_rel_pos_bias": shared}] * depth
    return model.norm_pre(model._pos_embed(x)), [{}] * depth


def after_timms_blocks(model, x, images):
    """timm's pooled feature of the tokens that leave the last block."""
    if isinstance(model, WRAPPED):
        encoder = model.encoder
        grid = encoder.patch_embed.dynamic_feat_size(images.shape[-2:])
        x = getattr(encoder, "norm", nn.Identity())(x).unflatten(1, grid)
        project = getattr(encoder, "merger", None) or getattr(encoder, "aligner", None)
        return model.forward_head(x if project is None else project(x), pre_logits=True)
    x = model.forward_cls(x) if isinstance(model, Cait) else x
    return model.forward_head(model.norm(x), pre_logits=True)


def tell_of_prompts(attention, at, count):
    """Has timm's attention treat what stands at the places of prompts as prefix tokens, with zero bias."""
    if hasattr(attention, "num_prefix_tokens"):
        attention.num_prefix_tokens = at + count
    if getattr(attention, "relative_position_bias_table", None) is not None:
        bias = attention._get_rel_pos_bias()
        attention._get_rel_pos_bias = lambda: zeros_between(bias, at, count)
    if getattr(attention, "rel_pos", None) is not None:
        bias = attention.rel_pos.get_bias()
        attention.rel_pos.get_bias = lambda: zeros_between(bias, at, count)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_reference_with_prompts_is_timms_blocks_over_more_prefix_tokens(name, method):
    model = BACKBONES[name]().double()
    images = some_images(name, 2, dtype=torch.float64)
    shallow = method == "shallow"
    prompts = some_prompts(model, [4, 0, 2])
    if shallow:
        prompts = [prompts[0], *(p[:0] for p in prompts[1:])]
    wanted = families.prompted(model, prompts, images, shallow=shallow)
    at = 0 if isinstance(model, Cait) else model.num_prefix_tokens
    with torch.no_grad():
        x, beside = timm_tokens(model, images)
        for number, block in enumerate(blocks_of(model)):
            count = len(prompts[0 if shallow else number])
            if number == 0 or not shallow:
                x = torch.cat([x[:, :at], prompts[number].expand(2, -1, -1), x[:, at:]], dim=1)
            tell_of_prompts(getattr(block, "attn", block), at, count)
            biases = {n: None if b is None else zeros_between(b, at, count) for n, b in beside[number].items()}
            x = block(x, **(beside[number] if "rope" in biases else biases))
            if not shallow:
                x = torch.cat([x[:, :at], x[:, at + count :]], dim=1)
        if shallow:
            x = torch.cat([x[:, :at], x[:, at + len(prompts[0]) :]], dim=1)
        close(wanted, after_timms_blocks(model, x, images), 1e-12)


class Said(nn.Module):
    """Says the same whatever it is asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, _):
        return self.answer


def with_prompt_bias(attention, count):
    """A copy of timm's window attention whose relative bias is zero for `count` tokens before those of the window."""
    attention = copy.deepcopy(attention)
    if hasattr(attention, "cpb_mlp"):
        heads = attention.num_heads
        area = attention.window_size[0] * attention.window_size[1]
        table = attention.cpb_mlp(attention.relative_coords_table).view(-1, heads)
        pairs = table[attention.relative_position_index.flatten()].view(area, area, heads)
        wider = torch.full((area + count, area + count, heads), -math.inf, dtype=pairs.dtype)  # 16 · sigmoid: 0
        wider[count:, count:] = pairs
        attention.cpb_mlp = Said(wider)
        attention.relative_position_index = torch.arange((area + count) ** 2)
        attention.window_size = (1, area + count)
        return attention
    name = "_get_rel_pos_bias" if hasattr(attention, "_get_rel_pos_bias") else "_relative_positional_encodings"
    bias = zeros_between(getattr(attention, name)(), 0, count)
    setattr(attention, name, lambda: bias)
    return attention


def timm_window_attention(block, x, prompts):
    """timm's attention with prompts before the tokens of every window; the mean over an image's windows for these."""
    batch, height, width, channels = x.shape
    (tall, wide), (down, right), count = block.window_size, block.shift_size, prompts.shape[1]
    x = torch.roll(x, (-down, -right), (1, 2))
    x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % tall))
    padded = x.shape[1:3]
    mask = block.get_attn_mask(x)
    windows = window_partition(x, block.window_size).flatten(1, 2)
    per_image = len(windows) // batch
    tokens = torch.cat([prompts.repeat_interleave(per_image, dim=0), windows], dim=1)
    out = with_prompt_bias(block.attn, count)(tokens, mask=None if mask is None else zeros_between(mask, 0, count))
    x = window_reverse(out[:, count:].reshape(-1, tall, wide, channels), block.window_size, *padded)
    x = torch.roll(x[:, :height, :width], (down, right), (1, 2))
    return x, out[:, :count].reshape(batch, per_image, count, channels).mean(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SWINS)
def test_reference_with_prompts_is_timms_window_attention_over_more_tokens(name, method):
    model = BACKBONES[name]().double()
    images = some_images(name, 2, dtype=torch.float64)
    shallow, first = method == "shallow", isinstance(model, SwinTransformer)
    prompts = some_prompts(model, [4, 0, 2])
    if shallow:
        prompts = [prompts[0], *(p[:0] for p in prompts[1:])]
    wanted = families.prompted(model, prompts, images, shallow=shallow)
    with torch.no_grad():
        x = model.patch_embed(images)
        x = x.permute(0, 2, 3, 1) if isinstance(model, SwinTransformerV2Cr) else x
        number, y = 0, prompts[0].expand(2, -1, -1)
        for stage in model.stages if isinstance(model, SwinTransformerV2Cr) else model.layers:
            x = stage.downsample(x)
            if shallow and not isinstance(stage.downsample, nn.Identity):
                # Four times the same vector is what merging makes of a 2 x 2 map that is the same everywhere.
                y = torch.cat([stage.downsample(p[:, None, None].expand(-1, 2, 2, -1)) for p in y.unbind(1)], dim=1)
                y = y.reshape(2, -1, x.shape[-1])
            for block in stage.blocks:
                y = y if shallow else prompts[number].expand(2, -1, -1)
                number += 1
                if first:
                    mixed, shared = timm_window_attention(block, block.norm1(x), block.norm1(y))
                    x, y = x + mixed, y + shared
                    x, y = (t + block.mlp(block.norm2(t)) for t in (x, y))
                else:
                    mixed, shared = timm_window_attention(block, x, y)
                    x, y = x + block.norm1(mixed), y + block.norm1(shared)
                    x, y = (t + block.norm2(block.mlp(t)) for t in (x, y))
                if hasattr(block, "norm3"):
                    x, y = block.norm3(x), block.norm3(y)
        x = x.permute(0, 3, 1, 2) if isinstance(model, SwinTransformerV2Cr) else model.norm(x)
        close(wanted, model.forward_head(x, pre_logits=True), 1e-12)


# ── one function, however it is run ──────────────────────────────────────────────────────────────────────────────────


def assert_exact(model, name, method, dtype):
    """Logits and gradients of both executions, and the logits of the folded model, are the reference's."""
    images = some_images(name, 3, dtype=dtype)
    wanted = truth(name, method)
    for run in (model, model.copy(execution="published")):
        logits, gradients = logits_and_gradients(run(images), run)
        assert logits.dtype == dtype
        close(logits, wanted[0], EXACT[dtype])
        for found, true in zip(gradients, wanted[1], strict=True):
            close(found, true, EXACT[dtype])
    folded = model.fold()
    assert folded.prompt_counts == model.prompt_counts
    assert not any(p.requires_grad for p in folded.parameters())
    close(folded(images), wanted[0], EXACT[dtype])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BACKBONES)
def test_prefix_is_published_is_folded_is_reference(name, method):
    assert_exact(read_only(name, method), name, method, torch.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*EACH_CLASS, "eva02", "eva-dynamic", "mrope", "relpos-mlp-swin", "naflex-mixed"])
def test_float32_is_near_the_reference(name, method):
    assert_exact(read_only(name, method, dtype=torch.float32), name, method, torch.float32)


@pytest.mark.parametrize("counts", [[0, 4, 1], [4, 2, 0], [0, 0, 5], [1]], ids=str)
@pytest.mark.parametrize("name", EACH_CLASS)
def test_prompts_only_in_some_blocks(name, counts):
    model = attached(name, vprompt.VPT(5), counts=counts, dtype=torch.float64)
    images = some_images(name, 2, dtype=torch.float64)
    wanted = reference_logits(model, images)
    for execution in EXECUTIONS:
        close(executed(model, execution)(images), wanted, 1e-10)


@pytest.mark.parametrize("name", EACH_CLASS)
def test_folding_keeps_one_prefix_for_all_windows_and_images(name):
    model = read_only(name, "deep")
    folded = model.fold()
    with torch.no_grad():
        folded(some_images(name, 4, dtype=torch.float64))
    for block, prefix, count, width in zip(
        blocks_of(model.backbone), folded.prefixes, model.prompt_counts, widths_of(model.backbone), strict=True
    ):
        tensors = [t for t in prefix.state_dict().values() if t.ndim == 4]
        heads = getattr(block, "attn", block).num_heads
        heads = getattr(getattr(block, "attn", block), "num_kv_heads", heads)
        assert tensors or not count
        assert sum(t.numel() for t in prefix.state_dict().values()) <= 2 * count * width
        for t in tensors:
            assert t.shape[0] == 1
            assert t.shape[1] in (heads, 2 * heads)  # differential attention has two keys a head
            assert t.shape[2] == count
            assert not t.requires_grad


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EACH_CLASS)
def test_folded_moves_and_copies(name, method):
    folded = a_model(name, method, dtype=torch.float32).fold()
    images = some_images(name, 3)
    wanted = truth(name, method)[0]
    close(copy.deepcopy(folded)(images), wanted, 1e-4)
    state = {key: value.clone() for key, value in folded.state_dict().items()}
    folded.load_state_dict(state)
    close(folded.to(torch.float64)(images.double()), wanted, 1e-4)


@pytest.mark.parametrize("name", ["swin-dropout", "dinov3-augmented", "eva-patch-dropout"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("execution", ["prefix", "published"])
def test_backbones_own_noise_is_off_while_prompts_train(name, method, execution):
    how, counts = METHODS[method]
    model = attached(
        name, vprompt.VPT(how.num_prompts, how.depth, dropout=0.0), counts=counts, execution=execution
    ).double()
    images = some_images(name, 3, dtype=torch.float64)
    logits = model.train()(images)
    assert not any(m.training for m in model.backbone.modules())
    close(logits, truth(name, method)[0], 1e-10)
    loss_weights(logits).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("depth", ["deep", "shallow"])
@pytest.mark.parametrize("name", EACH_CLASS)
def test_dropped_prompts_give_the_reference_with_masked_prompts(name, depth, execution):
    """Every image has prompts masked for it alone, the same in all windows: the reference is given exactly those."""
    model = attached(name, vprompt.VPT(4, depth, dropout=0.4), execution=execution, dtype=torch.float64).train()
    images = some_images(name, 3, dtype=torch.float64)
    taken, take = {}, model.prompts.take

    def watch(block, batch):
        taken[block] = take(block, batch)
        return taken[block]

    model.prompts.take = watch
    logits = model(images)
    widths = widths_of(model.backbone)
    used = [taken[b].detach() if b in taken else p.detach() for b, p in enumerate(model.prompts)]
    for block, p in enumerate(used[:1] if depth == "shallow" else used):
        assert p.shape == (3, 4, widths[block])
        assert not torch.equal(p[0], p[1])
    close(logits, reference_logits(model, images, used), 1e-10)


@pytest.mark.parametrize("counts", [None, [3, 0, 6]], ids=["all", "per-block"])
@pytest.mark.parametrize("name", EACH_CLASS)
def test_prompt_dropout_is_the_same_in_both_executions(name, counts):
    prefix = attached(name, vprompt.VPT(6, dropout=0.4), counts=counts, dtype=torch.float64).train()
    images = some_images(name, 3, dtype=torch.float64)
    found = []
    for model in (prefix, prefix.copy(execution="published")):
        torch.manual_seed(11)
        found.append(logits_and_gradients(model(images), model))
    close(found[0][0], found[1][0], 1e-10)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        close(a, b, 1e-10)
    with torch.no_grad():
        assert not torch.allclose(found[0][0], prefix.eval()(images))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EACH_CLASS)
@torch.no_grad()
def test_predictions_do_not_depend_on_the_other_images(name, method):
    source = read_only(name, method)
    images = some_images(name, 5, dtype=torch.float64)
    for model in (executed(source, execution) for execution in EXECUTIONS):
        together = model(images)
        close(torch.cat([model(image[None]) for image in images]), together, 1e-12)
        close(model(images[1:3]), together[1:3], 1e-12)
        order = torch.tensor([3, 0, 4, 1, 2])
        close(model(images[order]), together[order], 1e-12)
        others = images.clone()
        others[1:] = 100 * others[1:].flip(0)
        close(model(others)[:1], together[:1], 1e-12)


SIZES = {
    "swin-dynamic": [(32, 32), (24, 56), (12, 48)],
    "swin2-dynamic": [(32, 32), (24, 56), (12, 48)],
    "swin-cr-dynamic": [(32, 32), (24, 56), (12, 48)],
    "eva-dynamic": [(32, 32), (24, 56)],
    "eva-dynamic-padded": [(32, 32), (23, 49)],
    "dinov3-dynamic": [(32, 32), (24, 56)],
    "rope-mixed-dynamic": [(32, 32), (24, 56)],
    "vit-dynamic-padded": [(32, 32), (23, 49)],
    "naflex-gap": [(32, 32), (24, 56)],
    "naflex-aspect": [(32, 32), (24, 56)],
    "naflex-axial": [(32, 32), (23, 49)],
    "naflex-mixed": [(32, 32), (24, 56)],
    "qwen3-merged": [(32, 32), (16, 48)],
    "deepseek-aligned": [(32, 32), (23, 49)],
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SIZES)
def test_one_model_takes_images_of_several_sizes(name, method):
    source = read_only(name, method)
    models = [executed(source, execution) for execution in EXECUTIONS]
    for size in SIZES[name]:
        images = some_images(name, 2, dtype=torch.float64, size=size)
        wanted = reference_logits(source, images)
        for model in models:
            close(model(images), wanted, 1e-10)


RESIZED = {
    "swin": (48, 36),
    "swin-always-partition": (36, 28),
    "swin2": (48, 36),
    "swin-cr": (48, 36),
    "eva-rope": (48, 24),
    "dinov3": (48, 24),
    "rope-mixed": (48, 24),
    "beit-both": (48, 24),
    "relpos-bias-token": (48, 24),
    "relpos-mlp": (48, 24),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", RESIZED)
def test_a_backbone_that_was_resized_before(name, method):
    """timm changes windows, bias tables and tables of sines in place."""
    backbone = BACKBONES[name]()
    backbone.set_input_size(img_size=RESIZED[name])
    backbone.double()
    images = some_images(name, 2, dtype=torch.float64, size=RESIZED[name])
    with torch.no_grad():
        bare = backbone.forward_head(backbone.forward_features(images), pre_logits=True)
        close(families.prompted(backbone, families.no_prompts(backbone), images), bare, 1e-12)
    model = vprompt.attach(backbone, METHODS[method][0], head_init="paper", num_classes=3).eval()
    wanted = reference_logits(model, images)
    for execution in EXECUTIONS:
        close(executed(model, execution)(images), wanted, 1e-10)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EACH_CLASS)
def test_it_does_not_matter_how_timm_computes_attention(name, method, fused):
    model = a_model(name, method)
    switched = [m for m in model.backbone.modules() if hasattr(m, "fused_attn") and m.fused_attn != fused]
    for module in switched:
        module.fused_attn = fused
    images = some_images(name, 3, dtype=torch.float64)
    for execution in EXECUTIONS if switched else ():
        close(executed(model, execution)(images), truth(name, method)[0], 1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EACH_CLASS)
@torch.no_grad()
def test_autocast_and_bfloat16_are_near(name, method):
    wanted, images = truth(name, method)[0], some_images(name, 3)
    model = a_model(name, method, dtype=torch.float32)
    for execution in EXECUTIONS:
        with torch.autocast("cpu", torch.bfloat16):
            found = executed(model, execution)(images)
        assert found.dtype == torch.bfloat16
        close(found, wanted, 0.1)
    model = model.to(torch.bfloat16)
    for execution in EXECUTIONS:
        found = executed(model, execution)(images.bfloat16())
        assert found.dtype == torch.bfloat16
        close(found, wanted, 0.1)


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EACH_CLASS)
def test_gradient_checkpointing_changes_nothing(name, method, execution):
    model = a_model(name, method, execution=execution)
    model.backbone.set_grad_checkpointing(True)
    model = model.copy()
    logits = model(some_images(name, 3, dtype=torch.float64))
    loss_weights(logits).sum().backward()
    wanted = truth(name, method)
    close(logits, wanted[0], 1e-10)
    for parameter, true in zip(learned(model), wanted[1], strict=True):
        close(parameter.grad, true, 1e-10)


@pytest.mark.parametrize("name", EACH_CLASS)
@torch.no_grad()
def test_prompts_have_no_order(name):
    model = attached(name, vprompt.VPT(5), dtype=torch.float64)
    images = some_images(name, 2, dtype=torch.float64)
    shuffled = model.keep([torch.randperm(len(p)) for p in model.prompts])
    for execution in EXECUTIONS:
        close(executed(shuffled, execution)(images), executed(model, execution)(images), 1e-11)


@pytest.mark.parametrize("kind", ["linear", "deep", "shallow"])
@pytest.mark.parametrize("name", EACH_CLASS)
@torch.no_grad()
def test_without_prompts_it_is_the_bare_backbone(name, kind):
    if kind == "linear":
        source = attached(name, vprompt.Linear(), dtype=torch.float64)
    else:
        source = attached(name, vprompt.VPT(2, kind), counts=[0], dtype=torch.float64)
    assert source.prompt_counts == [0] * len(widths_of(source.backbone))
    images = some_images(name, 3, dtype=torch.float64)
    bare = source.backbone.forward_head(source.backbone.forward_features(images), pre_logits=True)
    for model in (executed(source, execution) for execution in EXECUTIONS):
        close(model.features(images), bare, 1e-12)
        close(model(images), source.head(bare), 1e-12)


# ── how it starts, and the backbone ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "patch", "width"),
    [
        ("swin-three-stages", (2, 2), 16),
        ("swin-non-square-patch", (4, 2), 16),
        ("swin2", (4, 4), 16),
        ("swin-cr", (4, 4), 16),
        ("dinov3", (8, 8), 32),
        ("beit", (8, 8), 32),
        ("relpos-mlp", (8, 8), 32),
        ("naflex-gap", (8, 8), 32),
    ],
)
def test_prompts_start_uniform_with_one_bound_for_all_blocks(name, patch, width):
    torch.manual_seed(0)
    backbone = BACKBONES[name]()
    model = vprompt.attach(backbone, vprompt.VPT(500), head_init="paper", num_classes=3)
    bound = math.sqrt(6 / (3 * patch[0] * patch[1] + width))
    assert [tuple(p.shape) for p in model.prompts] == [(500, w) for w in widths_of(backbone)]
    for p in model.prompts:
        assert 0.99 * bound < float(p.detach().abs().max()) <= bound
        assert float(p.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert model.num_learned == 500 * sum(widths_of(backbone)) + model.head.weight.numel() + 3


@pytest.mark.parametrize(("name", "features"), [("swin-catavgmax", 64), ("swin", 32), ("swin-cr-max", 32), ("eva", 32)])
def test_the_head_is_as_wide_as_what_is_pooled(name, features):
    model = vprompt.attach(BACKBONES[name](), vprompt.VPT(1), head_init="paper", num_classes=3)
    assert model.head.in_features == features
    assert model.features(some_images(name, 2)).shape == (2, features)


def snapshot(module):
    return {
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "buffers": {name: value.clone() for name, value in module.named_buffers()},
        "flags": {name: p.requires_grad for name, p in module.named_parameters()},
        "modes": {name: m.training for name, m in module.named_modules()},
        "identities": {name: (type(m), id(m)) for name, m in module.named_modules()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in module.named_modules()},
        "attributes": {name: sorted(vars(m)) for name, m in module.named_modules()},
        "settings": {
            name: {k: v for k, v in vars(m).items() if isinstance(v, (int, float, str, tuple))}
            for name, m in module.named_modules()
        },
    }


def assert_same(before, after):
    for kind in before:
        assert before[kind].keys() == after[kind].keys(), kind
        for name, value in before[kind].items():
            same = value is after[kind][name] or (
                torch.equal(value, after[kind][name]) if isinstance(value, torch.Tensor) else value == after[kind][name]
            )
            assert same, (kind, name)


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*EACH_CLASS, "swin-dynamic", "dinov3-augmented"])
def test_detach_gives_the_backbone_back_bit_for_bit(name, method, execution):
    backbone = BACKBONES[name]().train()
    # A backbone with a history: some parts frozen, some in eval mode.
    blocks = blocks_of(backbone)
    blocks[1].eval()
    next(iter(blocks[0].parameters())).requires_grad_(False)
    images = some_images(name, 2)
    torch.manual_seed(5)
    answer = backbone(images)
    before = snapshot(backbone)
    model = vprompt.attach(backbone, METHODS[method][0], head_init="paper", num_classes=3, execution=execution)
    optimizer = torch.optim.AdamW(model.learned.values(), lr=0.1)
    loss_weights(model.train()(images)).sum().backward()
    optimizer.step()
    model.eval()(images)
    model.fold()(images)
    model.copy().train()
    returned = model.detach()
    assert returned is backbone
    assert_same(before, snapshot(backbone))
    assert all(p.grad is None for p in backbone.parameters())
    torch.manual_seed(5)
    assert torch.equal(backbone(images), answer)


@pytest.mark.parametrize("name", EACH_CLASS)
def test_two_models_on_one_backbone_do_not_disturb_each_other(name):
    # Frozen from the start: torch multiplies in another order where a gradient may be asked for.
    backbone = BACKBONES[name]().double().requires_grad_(False)
    images = some_images(name, 2, dtype=torch.float64)
    with torch.no_grad():
        plain = backbone(images)
    first = vprompt.attach(backbone, vprompt.VPT(4), head_init="paper", num_classes=3).eval()
    with torch.no_grad():
        alone = first(images)
    second = vprompt.attach(backbone, vprompt.VPT(2, "shallow"), head_init="paper", num_classes=6).eval()
    third = vprompt.attach(backbone, vprompt.VPT(9), head_init="paper", num_classes=2, execution="published").eval()
    with torch.no_grad():
        close(second(images), reference_logits(second, images), 1e-10)
        close(third(images), reference_logits(third, images), 1e-10)
        close(third.fold()(images), reference_logits(third, images), 1e-10)
        assert torch.equal(first(images), alone)
        assert torch.equal(backbone(images), plain)


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EACH_CLASS)
def test_deepcopy_is_a_model_of_its_own(name, method, execution):
    model = a_model(name, method, execution=execution)
    images = some_images(name, 2, dtype=torch.float64)
    with torch.no_grad():
        before = model(images)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(images), before)
        families.randomise(twin.backbone, seed=7)
        assert torch.equal(model(images), before)
        close(twin(images), reference_logits(twin, images), 1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EACH_CLASS)
def test_saved_and_loaded_is_the_same_bit_for_bit(name, method, tmp_path):
    model = read_only(name, method, dtype=torch.float32)
    images = some_images(name, 3)
    model.save_pretrained(tmp_path / "adapter")
    again = vprompt.load(tmp_path / "adapter", backbone=model.backbone)
    assert again.prompt_counts == model.prompt_counts
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        assert torch.equal(again.fold()(images), model.fold()(images))


# ── scores and selection ─────────────────────────────────────────────────────────────────────────────────────────────

LABELS = torch.tensor([0, 4, 2, 1])
SCORED = [
    "swin-padded",
    "swin2-padded",
    "swin-cr-non-square",
    "eva-rope-unfused",
    "eva-post-norm",
    "dinov3-token",
    "rope-mixed",
    "gqa",
    "beit-both",
    "relpos-bias-token",
    "diff",
    "parallel-no-qkv-bias",
    "diff-parallel",
    "naflex-gap",
    "cait",
    "deepseek",
]


def some_data(name, dtype=torch.float64):
    return TensorDataset(some_images(name, len(LABELS), dtype=dtype), LABELS)


@cache
def wanted_taylor(name, method):
    model = attached(name, vprompt.VPT(6), dtype=torch.float64) if method == "all" else a_model(name, method)
    return families.taylor(
        model.backbone,
        list(model.prompts),
        model.head.weight,
        model.head.bias,
        *some_data(name).tensors,
        shallow=is_shallow(model),
    )


def assert_scores(found, wanted, tolerance):
    """Every single score within a relative tolerance."""
    assert len(found) == len(wanted)
    for scores, true in zip(found, wanted, strict=True):
        assert scores.shape == true.shape
        assert scores.dtype == torch.float32
        error = (scores.double() - true).abs()
        assert bool((error <= tolerance * true.abs()).all()), f"relative error {float((error / true.abs()).max()):.3g}"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SCORED)
def test_taylor_is_the_slow_loop(name, method):
    data, wanted = some_data(name), wanted_taylor(name, method)
    for execution, batch_size in (("prefix", 64), ("published", 3)):
        model = a_model(name, method, execution=execution)
        assert_scores(vprompt.score(model, data, criterion="taylor", batch_size=batch_size), wanted, 1e-4)


@pytest.mark.parametrize("name", ["swin-padded", "swin2-padded", "swin-cr-non-square", "dinov3-token", "beit-both"])
def test_taylor_in_float32_is_the_slow_loop_in_float64(name):
    model, data = a_model(name, "deep", dtype=torch.float32), some_data(name, torch.float32)
    assert_scores(vprompt.score(model, data, criterion="taylor"), wanted_taylor(name, "deep"), 1e-4)


def best(scores, ratio):
    """Places (block, prompt) of the highest scores over all blocks."""
    ranked = sorted(((-float(s), b, p) for b, block in enumerate(scores) for p, s in enumerate(block)))
    return {(b, p) for _, b, p in ranked[: max(1, round(ratio * len(ranked)))]}


@pytest.mark.parametrize("name", SCORED)
def test_what_is_selected_over_blocks_of_any_width_is_kept(name):
    model, data = attached(name, vprompt.VPT(6), dtype=torch.float64), some_data(name)
    scores = vprompt.score(model, data, criterion="taylor")
    kept = vprompt.select(scores, ratio=0.3, scope="global")
    assert {(b, int(p)) for b, index in enumerate(kept) for p in index} == best(wanted_taylor(name, "all"), 0.3)
    few, images = model.keep(kept), data.tensors[0]
    assert few.prompt_counts == [len(index) for index in kept]
    wanted = reference_logits(model, images, [p[index] for p, index in zip(model.prompts, kept, strict=True)])
    for execution in EXECUTIONS:
        close(executed(few, execution)(images), wanted, 1e-10)


# Only models with a class token, whether or not it is what is pooled.
WITH_CLASS_TOKEN = [
    "eva",
    "eva-rope-unfused",
    "eva-separate-bias",
    "eva-post-norm-rope",
    "eva02",
    "dinov3",
    "rope-mixed-token",
    "mrope",
    "gqa-per-block",
    "beit-both",
    "beit-shared-token",
    "relpos-mlp-token",
    "relpos-bias-token",
    "relpos-bias-shared-token",
    "relpos-post-norm-token",
    "parallel-no-qkv-bias",
    # The map that multiplies the values: the first softmax less λ times the second.
    "diff-registers",
    "diff-parallel-scalars",
    "naflex-token",
    "naflex-mixed",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WITH_CLASS_TOKEN)
def test_similarity_to_the_class_token_is_its_attention(name, method):
    model, data = read_only(name, method), some_data(name)
    found = vprompt.score(model, data, criterion="cls-similarity")
    wanted = families.class_similarity(model.backbone, list(model.prompts), data.tensors[0], shallow=is_shallow(model))
    assert_scores(found, wanted, 1e-6)
    assert_scores(vprompt.score(model, data, criterion="cls-similarity", batch_size=3), wanted, 1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "swin",
        "swin2",
        "swin-cr",
        "eva-no-class-token",
        "eva-no-class-token-registers",
        "relpos-bias",
        "parallel-avg",
        "naflex-gap",
        "naflex-map",
        "cait",
        "qwen3",
    ],
)
def test_no_class_token_no_similarity(name):
    """Registers are no class token, and CaiT's never meets the prompts."""
    model = attached(name, vprompt.VPT(2), dtype=torch.float64)
    with pytest.raises(VPromptError, match="class token"):
        vprompt.score(model, some_data(name), criterion="cls-similarity")


# ── compiled and exported ────────────────────────────────────────────────────────────────────────────────────────────


def rolled(make):
    """The second block alone, in which windows are rolled."""
    backbone = make(depths=(2,), num_heads=(2,))
    stage = (backbone.stages if isinstance(backbone, SwinTransformerV2Cr) else backbone.layers)[0]
    stage.blocks = stage.blocks[1:]
    return backbone


ONE_BLOCK = {
    "swin": lambda: rolled(families.swin),
    "swin2": lambda: rolled(families.swin2),
    "swin-cr": lambda: rolled(families.swin_cr),
    "eva": lambda: families.eva(depth=1, use_rot_pos_emb=True),
    "rope": lambda: families.rope_vit(depth=1, num_kv_heads=1, qkv_fused=False, global_pool="token"),
    "beit": lambda: families.beit_(depth=1, use_rel_pos_bias=True, use_shared_rel_pos_bias=True),
    "relpos": lambda: families.relpos(depth=1, class_token=True, global_pool="token", rel_pos_type="bias"),
    "diff": lambda: families.diff(depth=1),
    "parallel": lambda: families.vit(depth=1, **families.PARALLEL),
    "diff-parallel": lambda: families.vit(depth=1, **families.DIFF_PARALLEL),
    "cait": lambda: families.cait(depth=1, depth_token_only=1),
}
"""One backbone, as small as it goes, for every class of attention."""


def with_one_block(name):
    model = vprompt.attach(ONE_BLOCK[name](), vprompt.VPT(6), head_init="paper", num_classes=5)
    with torch.no_grad():
        for p in learned(model):
            p.normal_(std=0.7, generator=torch.Generator().manual_seed(3))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "subject"),
    [*((name, "prefix") for name in ONE_BLOCK), *((name, "folded") for name in ("swin", "swin2", "eva", "relpos"))],
)
def test_compiles_as_one_graph(name, subject):
    """The export below shows the same of the other folded models."""
    model = with_one_block(name)
    model = model.fold() if subject == "folded" else model
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    images = some_images(name, 2)
    with torch.no_grad():
        close(compiled(images), model(images), 1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ONE_BLOCK)
def test_folded_model_exports_with_a_dynamic_batch(name):
    folded = with_one_block(name).fold()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(folded, (some_images(name, 3),), dynamic_shapes=({0: batch},)).module()
    for size in (2, 7):
        images = some_images(name, size, seed=size)
        with torch.no_grad():
            close(program(images), folded(images), 1e-5)


# ── what is not supported, in a sentence ─────────────────────────────────────────────────────────────────────────────

UNSUPPORTED = {
    "resnet18": ("resnet18", {}, "ResNet"),
    "convnext": ("convnext_atto", {}, "ConvNeXt"),
    "mvitv2": ("mvitv2_tiny", {"img_size": 64}, "MultiScaleVit"),
    "levit": ("levit_128s", {}, "Levit"),
    "xcit": ("xcit_nano_12_p16_224", {}, "Xcit"),
    "davit": (
        "davit_tiny",
        {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64), "num_heads": (1, 1, 1, 1)},
        "DaVit",
    ),
    "pvt": ("pvt_v2_b0", {}, "PyramidVisionTransformerV2"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_an_unsupported_model_is_named_and_left_alone(kind):
    name, options, class_name = UNSUPPORTED[kind]
    backbone = timm.create_model(name, pretrained=False, **options)
    before = snapshot(backbone)
    with pytest.raises(BackboneError) as error:
        vprompt.attach(backbone, vprompt.VPT(2), num_classes=3)
    text = str(error.value)
    assert class_name in text
    assert "VisionTransformer" in text
    assert "SwinTransformer" in text
    assert text[0].isupper()
    assert text.endswith((".", ")"))
    assert ". " not in text.rstrip(".")
    assert_same(before, snapshot(backbone))


def test_blocks_of_parallel_things_are_refused_or_exact():
    backbone = families.vit(block_fn=ParallelThingsBlock).double()
    before = snapshot(backbone)
    try:
        model = vprompt.attach(backbone, vprompt.VPT(4), head_init="paper", num_classes=3).eval()
    except BackboneError as error:
        text = str(error)
    else:
        text = ""
    if text:
        assert "ParallelThingsBlock" in text
        assert_same(before, snapshot(backbone))
        return
    images = some_images("diff", 2, dtype=torch.float64)
    for execution in EXECUTIONS:
        close(executed(model, execution)(images), reference_logits(model, images), 1e-10)


@pytest.mark.parametrize("name", ["swin", "eva", "beit", "relpos-mlp", "naflex-gap"])
def test_one_odd_block_among_good_ones_is_found(name):
    class Strange(nn.Module):
        dim = 32

        def forward(self, x, **_):
            return x

    backbone = BACKBONES[name]()
    (backbone.layers[1] if isinstance(backbone, SWIN) else backbone).blocks[1] = Strange()
    with pytest.raises(BackboneError, match="Strange"):
        vprompt.attach(backbone, vprompt.VPT(2), num_classes=3)


def test_attention_of_another_kind_in_a_known_block_is_found():
    class StrangeAttention(nn.Module):
        num_heads, window_size = 2, (4, 4)

        def forward(self, x, **_):
            return x

    for name in ("swin", "swin2", "eva", "beit"):
        backbone = BACKBONES[name]()
        blocks_of(backbone)[1].attn = StrangeAttention()
        with pytest.raises(BackboneError, match="StrangeAttention"):
            vprompt.attach(backbone, vprompt.VPT(2), num_classes=3)


class Lora(nn.Module):
    """A projection with a low-rank one beside it, which shows the original's weight and bias as peft does."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(4)
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=generator, dtype=torch.float64))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=generator, dtype=torch.float64))

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize(
    "name", ["swin", "relpos-bias-shared-token", "cait", "naflex-token", "sam", "swin2", "eva-rope", "beit-both"]
)
def test_a_projection_that_was_wrapped_is_called(name):
    """As LoRA or quantisation wrap it; the same as a plain projection with the sum of both weights."""
    wrapped, plain = BACKBONES[name]().double(), BACKBONES[name]().double()
    for mine, other in zip(blocks_of(wrapped), blocks_of(plain), strict=True):
        mine.attn.qkv = Lora(mine.attn.qkv)
        with torch.no_grad():
            other.attn.qkv.weight += mine.attn.qkv.up @ mine.attn.qkv.down
    images = some_images(name, 2, dtype=torch.float64)
    prompts = some_prompts(plain, [3])
    models = [
        vprompt.attach(backbone, vprompt.VPT(3), head_init="paper", num_classes=2).eval()
        for backbone in (wrapped, plain)
    ]
    with torch.no_grad():
        for model in models:
            for p, values in zip(model.prompts, prompts, strict=True):
                p.copy_(values)
        wanted = models[1].features(images)
        for run in (models[0], models[0].copy(execution="published").eval(), models[0].fold()):
            close(run.features(images), wanted, 1e-10)


def test_a_hook_on_a_projection_is_called_for_every_block():
    model = vprompt.attach(BACKBONES["swin"](), vprompt.VPT(2), head_init="paper", num_classes=2).eval()
    seen = []
    for block in blocks_of(model.backbone):
        block.attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    model(some_images("swin", 2))
    assert len(seen) == 2 * len(model.prompts)  # for the tokens, and for the prompts


@pytest.mark.parametrize("name", ["swin", "eva", "beit-both", "cait", "naflex-gap"])
def test_a_backbone_without_pooling_is_refused(name):
    backbone = BACKBONES[name]()
    backbone.reset_classifier(0, "")
    with pytest.raises(BackboneError, match="has no pooling"):
        vprompt.attach(backbone, num_classes=2)


@pytest.mark.parametrize("channels", [1, 5])
def test_images_have_as_many_channels_as_the_backbone(channels):
    model = vprompt.attach(families.vit(in_chans=channels), num_classes=2).eval()
    size = model.preprocessing.size
    assert model.preprocessing.shape == (channels, *size)
    assert model(torch.zeros(2, channels, *size)).shape == (2, 2)
