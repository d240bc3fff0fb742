"""Prefix = published = folded = an independent reference, for logits and gradients; the backbone stays as it is."""

import copy
import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Attention
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import nn

import reference
import vprompt
from reference import BACKBONES, attached, close, is_shallow, learned, loss_weights, some_images
from vprompt.backbones.attention.functional import attend
from vprompt.methods.layers.prompts import Prompts, init_bound
from vprompt.utils.errors import BackboneError, VPromptError

EXACT = {torch.float64: 1e-10, torch.float32: 1e-4}
METHODS = {
    "deep": (vprompt.VPT(6), None),
    "deep-per-block": (vprompt.VPT(6), [3, 0, 6]),
    "deep-first-block-empty": (vprompt.VPT(4), [0, 4, 1]),
    "deep-last-block-empty": (vprompt.VPT(4), [4, 2, 0]),
    "deep-one-prompt": (vprompt.VPT(1), None),
    "shallow": (vprompt.VPT(6, "shallow"), None),
    "linear": (vprompt.Linear(), None),
}
SHORT = ["class-token", "registers-avg", "distilled", "post-norm", "attention-pooling", "gated-qk-scale-norm"]


def logits_and_gradients(model, images):
    logits = model(images)
    return logits, torch.autograd.grad(loss_weights(logits).sum(), learned(model))


def reference_logits(model, images):
    return reference.logits(
        model.backbone, list(model.prompts), model.head.weight, model.head.bias, images, shallow=is_shallow(model)
    )


def reference_gradients(model, images):
    logits = reference_logits(model, images)
    return logits, torch.autograd.grad(loss_weights(logits).sum(), learned(model))


# ── the reference itself ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", BACKBONES)
def test_reference_without_prompts_is_timm(name):
    vit = BACKBONES[name]().double()
    images = some_images(name, 3, dtype=torch.float64)
    found, maps = reference.prompted(vit, [torch.zeros(0, 32)] * len(vit.blocks), images)
    with torch.no_grad():
        close(found, vit.forward_head(vit.forward_features(images), pre_logits=True), 1e-12)
    assert all(torch.allclose(m.sum(-1), torch.ones_like(m[..., 0])) for m in maps)


@pytest.mark.parametrize("name", SHORT)
def test_reference_with_prompts_is_timms_blocks_over_inserted_tokens(name):
    vit = BACKBONES[name]().double()
    images = some_images(name, 2, dtype=torch.float64)
    prompts = [torch.randn(p, 32, dtype=torch.float64) for p in (3, 1, 5)]
    at = vit.num_prefix_tokens
    with torch.no_grad():
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        for block, own in zip(vit.blocks, prompts, strict=True):
            x = block(torch.cat([x[:, :at], own.expand(2, -1, -1), x[:, at:]], dim=1))
            x = torch.cat([x[:, :at], x[:, at + len(own) :]], dim=1)
        wanted = vit.forward_head(vit.norm(x), pre_logits=True)
    close(reference.prompted(vit, prompts, images)[0], wanted, 1e-12)


# ── one function, however it is run ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("method", ["deep-per-block", "shallow"])
@pytest.mark.parametrize("name", BACKBONES)
def test_prefix_is_published_is_reference_on_every_backbone(name, method, dtype):
    how, counts = METHODS[method]
    prefix = attached(name, how, counts=counts, dtype=dtype)
    published = prefix.copy(execution="published")
    images = some_images(name, 5, dtype=dtype)
    wanted = reference_gradients(prefix, images)
    for model in (prefix, published):
        logits, gradients = logits_and_gradients(model, images)
        assert logits.dtype == dtype
        close(logits, wanted[0], EXACT[dtype])
        for found, true in zip(gradients, wanted[1], strict=True):
            close(found, true, EXACT[dtype])


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SHORT)
def test_prefix_is_published_is_reference_for_every_method(name, method, batch):
    how, counts = METHODS[method]
    prefix = attached(name, how, counts=counts, dtype=torch.float64)
    images = some_images(name, batch, dtype=torch.float64)
    wanted = reference_gradients(prefix, images)
    for model in (prefix, prefix.copy(execution="published")):
        logits, gradients = logits_and_gradients(model, images)
        close(logits, wanted[0], 1e-10)
        for found, true in zip(gradients, wanted[1], strict=True):
            close(found, true, 1e-10)


@pytest.mark.parametrize("method", ["deep", "deep-per-block", "shallow"])
@pytest.mark.parametrize("name", ["class-token", "no-class-token-avg", "post-norm", "qk-norm"])
def test_training_mode_without_dropout_is_eval_mode(name, method):
    how, counts = METHODS[method]
    model = attached(name, vprompt.VPT(how.num_prompts, how.depth, dropout=0.0), counts=counts, dtype=torch.float64)
    images = some_images(name, 3, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model.train()(images), model.eval()(images))


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("name", ["dropout-everywhere", "patch-dropout"])
def test_backbones_own_dropout_is_off_while_prompts_train(name, execution):
    model = attached(name, vprompt.VPT(4, dropout=0.0), execution=execution, dtype=torch.float64).train()
    images = some_images(name, 3, dtype=torch.float64)
    close(model(images), reference_logits(model, images), 1e-10)


@pytest.mark.parametrize("counts", [None, [3, 0, 6]], ids=["deep", "per-block"])
@pytest.mark.parametrize("name", SHORT)
def test_prompt_dropout_is_the_same_in_both_executions(name, counts):
    prefix = attached(name, vprompt.VPT(6, dropout=0.4), counts=counts, dtype=torch.float64).train()
    published = prefix.copy(execution="published")
    images = some_images(name, 4, dtype=torch.float64)
    torch.manual_seed(11)
    one = logits_and_gradients(prefix, images)
    torch.manual_seed(11)
    other = logits_and_gradients(published, images)
    close(one[0], other[0], 1e-10)
    for a, b in zip(one[1], other[1], strict=True):
        close(a, b, 1e-10)
    with torch.no_grad():
        assert not torch.allclose(one[0], prefix.eval()(images))


def test_prompt_dropout_is_inverted_and_has_a_mask_per_sample():
    prompts = Prompts([torch.ones(40, 50)], dropout=0.25).train()
    drawn = prompts.take(0, 8)
    assert drawn.shape == (8, 40, 50)
    values, share = drawn.unique(), float((drawn == 0).float().mean())
    assert torch.allclose(values, torch.tensor([0.0, 4 / 3]))
    assert abs(share - 0.25) < 0.02
    assert len({tuple(sample.flatten().tolist()) for sample in drawn}) == 8
    assert torch.equal(prompts.eval().take(0, 8), torch.ones(1, 40, 50))


@pytest.mark.parametrize("name", ["class-token", "no-class-token-avg", "distilled"])
@pytest.mark.parametrize("execution", ["prefix", "published"])
def test_dropped_prompts_give_the_reference_with_masked_prompts(name, execution):
    """Under dropout every image sees its own masked prompts: the reference is given exactly those."""
    model = attached(name, vprompt.VPT(6, dropout=0.4), execution=execution, dtype=torch.float64).train()
    images = some_images(name, 3, dtype=torch.float64)
    taken, take = {}, model.prompts.take

    def watch(block, batch):
        taken[block] = take(block, batch)
        return taken[block]

    model.prompts.take = watch
    logits = model(images)
    assert all(taken[block].shape == (3, 6, 32) for block in range(3))
    wanted = reference.logits(
        model.backbone, [taken[b].detach() for b in range(3)], model.head.weight, model.head.bias, images
    )
    close(logits, wanted, 1e-10)


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("method", ["deep-per-block", "shallow", "linear"])
def test_bfloat16_is_near(method, execution):
    how, counts = METHODS[method]
    exact = attached("class-token", how, counts=counts, dtype=torch.float64, execution=execution)
    images = some_images("class-token", 5)
    wanted = reference_logits(exact, images)
    model = attached("class-token", how, counts=counts, dtype=torch.bfloat16, execution=execution)
    found = model(images.bfloat16())
    assert found.dtype == torch.bfloat16
    close(found, wanted, 0.1)
    float32 = exact.to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        close(float32(images), wanted, 0.1)
        close(float32.fold()(images), wanted, 0.1)


@pytest.mark.parametrize("name", ["class-token", "registers-avg", "post-norm"])
@pytest.mark.parametrize("execution", ["prefix", "published"])
def test_gradient_checkpointing_changes_nothing(name, execution):
    vit = BACKBONES[name]().double()
    images = some_images(name, 3, dtype=torch.float64)
    torch.manual_seed(0)
    plain = vprompt.attach(vit, vprompt.VPT(4), head_init="paper", num_classes=5, execution=execution).double()
    torch.manual_seed(1)
    wanted = logits_and_gradients(plain, images)
    vit.set_grad_checkpointing(True)
    torch.manual_seed(0)
    thrifty = vprompt.attach(vit, vprompt.VPT(4), head_init="paper", num_classes=5, execution=execution).double()
    torch.manual_seed(1)
    logits = thrifty(images)
    loss_weights(logits).sum().backward()
    close(logits, wanted[0], 1e-12)
    for parameter, true in zip(learned(thrifty), wanted[1], strict=True):
        close(parameter.grad, true, 1e-12)


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("method", ["deep", "shallow"])
def test_prompts_have_no_position_and_no_order(method, execution):
    """Permuting a block's prompts, of a deep or shallow model, leaves the logits as they are."""
    model = attached("class-token", METHODS[method][0], execution=execution, dtype=torch.float64)
    images = some_images("class-token", 2, dtype=torch.float64)
    before = model(images)
    shuffled = model.keep([torch.randperm(len(p)) for p in model.prompts])
    close(shuffled(images), before, 1e-12)


@pytest.mark.parametrize("execution", ["prefix", "published", "folded"])
@pytest.mark.parametrize("method", ["deep-per-block", "shallow", "linear"])
@pytest.mark.parametrize("name", SHORT)
def test_predictions_do_not_depend_on_the_other_images(name, method, execution):
    how, counts = METHODS[method]
    model = attached(name, how, counts=counts, dtype=torch.float64)
    model = model.fold() if execution == "folded" else model.copy(execution=execution).eval()
    images = some_images(name, 6, dtype=torch.float64)
    with torch.no_grad():
        together = model(images)
        close(torch.cat([model(image[None]) for image in images]), together, 1e-12)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        close(model(images[order]), together[order], 1e-12)
        others = images.clone()
        others[1:] = 100 * others[1:].flip(0)
        close(model(others)[:1], together[:1], 1e-12)


# ── folding ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["deep-per-block", "shallow", "linear"])
@pytest.mark.parametrize(
    ("name", "execution"), [*((name, "prefix") for name in BACKBONES), *((name, "published") for name in SHORT)]
)
def test_folded_is_the_reference(name, method, execution):
    how, counts = METHODS[method]
    model = attached(name, how, counts=counts, dtype=torch.float64, execution=execution)
    images = some_images(name, 5, dtype=torch.float64)
    folded = model.fold()
    assert folded.prompt_counts == model.prompt_counts
    close(folded(images), reference_logits(model, images), 1e-10)


@pytest.mark.parametrize("method", ["deep-per-block", "deep-last-block-empty", "shallow", "linear"])
def test_folding_leaves_the_source_as_it_was(method):
    how, counts = METHODS[method]
    model = attached("class-token", how, counts=counts).train()
    images = some_images("class-token", 3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    training, flags = model.training, {n: p.requires_grad for n, p in model.named_parameters()}
    folded = model.fold()
    assert model.training == training
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert not folded.training
    assert not any(p.requires_grad for p in folded.parameters())
    with torch.no_grad():
        frozen_answer = folded(images)
    assert not frozen_answer.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    # What happens to one afterwards does not reach the other.
    logits_and_gradients(model, images)
    with torch.no_grad():
        for p in learned(model):
            p.add_(1.0)
        assert torch.equal(folded(images), frozen_answer)
        assert not torch.allclose(model.eval()(images), frozen_answer)


def test_folding_a_model_under_dropout_folds_the_undropped_prompts():
    model = attached("class-token", vprompt.VPT(6, dropout=0.5), dtype=torch.float64).train()
    images = some_images("class-token", 3, dtype=torch.float64)
    close(model.fold()(images), reference_logits(model, images), 1e-10)


@pytest.mark.parametrize("method", ["deep-per-block", "shallow", "linear"])
def test_folded_state_dict_moves_and_copies(method):
    how, counts = METHODS[method]
    model = attached("class-token", how, counts=counts)
    folded = model.fold()
    images = some_images("class-token", 3)
    wanted = reference_logits(model, images)
    close(copy.deepcopy(folded)(images), wanted, 1e-4)
    state = {name: value.clone() for name, value in folded.state_dict().items()}
    other = attached("class-token", how, counts=counts, seed=99).fold()
    other.load_state_dict(state)
    close(other(images), wanted, 1e-4)
    assert folded.to(torch.float64)(images.double()).dtype == torch.float64
    close(folded(images.double()), wanted, 1e-4)


@pytest.mark.parametrize("name", ["class-token", "registers-avg", "distilled"])
@pytest.mark.parametrize("method", ["deep-per-block", "shallow"])
def test_folded_model_exports_with_a_dynamic_batch(name, method):
    how, counts = METHODS[method]
    folded = attached(name, how, counts=counts).fold()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(folded, (some_images(name, 3),), dynamic_shapes=({0: batch},))
    for size in (2, 7):
        images = some_images(name, size, seed=size)
        with torch.no_grad():
            close(program.module()(images), folded(images), 1e-5)


@pytest.mark.parametrize("method", ["deep-per-block", "shallow"])
@pytest.mark.parametrize("execution", ["prefix", "folded"])
def test_compiles_as_one_graph(method, execution):
    how, counts = METHODS[method]
    model = attached("class-token", how, counts=counts)
    subject = model.fold() if execution == "folded" else model
    torch._dynamo.reset()
    compiled = torch.compile(subject, backend="eager", fullgraph=True)
    images = some_images("class-token", 3)
    with torch.no_grad():
        close(compiled(images), subject(images), 1e-5)
    torch._dynamo.reset()


def test_compiled_training_gives_the_same_gradients():
    model = attached("class-token", vprompt.VPT(5, dropout=0.0), dtype=torch.float64).train()
    images = some_images("class-token", 3, dtype=torch.float64)
    wanted = reference_gradients(model, images)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss_weights(compiled(images)).sum().backward()
    for parameter, true in zip(learned(model), wanted[1], strict=True):
        close(parameter.grad, true, 1e-10)
    torch._dynamo.reset()


# ── the backbone ─────────────────────────────────────────────────────────────────────────────────────────────────────


def snapshot(module):
    return {
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "flags": {name: p.requires_grad for name, p in module.named_parameters()},
        "modes": {name: m.training for name, m in module.named_modules()},
        "types": {name: type(m) for name, m in module.named_modules()},
        "identities": {name: id(m) for name, m in module.named_modules()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in module.named_modules()
        },
        "attributes": {name: sorted(vars(m)) for name, m in module.named_modules()},
    }


def assert_same(before, after):
    for kind in before:
        assert before[kind].keys() == after[kind].keys(), kind
        for name, value in before[kind].items():
            same = torch.equal(value, after[kind][name]) if kind == "state" else value == after[kind][name]
            assert same, (kind, name)


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("method", ["deep", "shallow", "linear"])
@pytest.mark.parametrize("name", ["class-token", "distilled", "post-norm", "attention-pooling", "dropout-everywhere"])
def test_detach_gives_the_backbone_back_bit_for_bit(name, method, execution):
    vit = BACKBONES[name]()
    # A backbone with a history: some parts frozen, some in training mode, one with a hook of its owner.
    vit.train()
    vit.blocks[1].eval()
    vit.patch_embed.requires_grad_(False)
    vit.blocks[0].mlp.fc1.weight.requires_grad_(False)
    calls = []
    vit.blocks[2].norm1.register_forward_hook(lambda *_: calls.append(1))
    images = some_images(name, 4)
    torch.manual_seed(5)
    answer = vit(images)
    before = snapshot(vit)
    model = vprompt.attach(vit, METHODS[method][0], head_init="paper", num_classes=3, execution=execution)
    optimizer = torch.optim.AdamW(model.learned.values(), lr=0.1)
    for _ in range(3):
        loss_weights(model.train()(images)).sum().backward()
        optimizer.step()
    model.eval()(images)
    model.fold()(images)
    model.copy().train()
    returned = model.detach()
    assert returned is vit
    assert_same(before, snapshot(vit))
    assert all(p.grad is None for p in vit.parameters())
    torch.manual_seed(5)
    assert torch.equal(vit(images), answer)


def test_detach_restores_what_was_before_the_latest_attach():
    """A backbone that was given back may be changed by its owner and attached to again."""
    vit = BACKBONES["class-token"]().train()
    vprompt.attach(vit, vprompt.VPT(2), num_classes=3).detach()
    vit.eval()
    vit.blocks[0].requires_grad_(False)
    before = snapshot(vit)
    assert vprompt.attach(vit, vprompt.VPT(2), num_classes=3).detach() is vit
    assert_same(before, snapshot(vit))


def test_detach_of_a_deep_copy_restores_its_own_backbone():
    vit = BACKBONES["class-token"]().train()
    before = snapshot(vit)
    twin = copy.deepcopy(vprompt.attach(vit, vprompt.VPT(2), head_init="paper", num_classes=3))
    returned = twin.detach()
    assert returned is not vit
    found = snapshot(returned)
    for kind in ("state", "flags", "modes", "types"):
        assert_same({kind: before[kind]}, {kind: found[kind]})


@pytest.mark.parametrize("executions", [("prefix", "prefix"), ("prefix", "published"), ("published", "published")])
def test_two_models_on_one_backbone_do_not_disturb_each_other(executions):
    vit = BACKBONES["class-token"]()
    images = some_images("class-token", 3)
    with torch.no_grad():
        plain = vit(images)
    torch.manual_seed(0)
    first = vprompt.attach(vit, vprompt.VPT(4), head_init="paper", num_classes=3, execution=executions[0]).eval()
    with torch.no_grad():
        alone = first(images)
    second = vprompt.attach(
        vit, vprompt.VPT(2, "shallow"), head_init="paper", num_classes=6, execution=executions[1]
    ).eval()
    third = vprompt.attach(vit, vprompt.VPT(9), head_init="paper", num_classes=2, execution=executions[1])
    optimizer = torch.optim.SGD(third.learned.values(), lr=1.0)
    loss_weights(third(images)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(first(images), alone)
        assert second(images).shape == (3, 6)
        close(second(images), reference_logits(second, images), 1e-4)
        close(third.eval()(images), reference_logits(third, images), 1e-4)
        for model in (first, second, third):
            assert model.backbone is vit
            assert torch.equal(model.backbone(images), plain)


@pytest.mark.parametrize("execution", ["prefix", "published"])
def test_gradients_never_reach_the_backbone_and_it_never_trains(execution):
    model = attached("dropout-everywhere", vprompt.VPT(4), execution=execution)
    for _ in range(2):
        model.train()
        assert model.training
        assert model.prompts.training
        assert not any(m.training for m in model.backbone.modules())
        assert not any(m.training for m in model.view.modules() if isinstance(m, (VisionTransformer, nn.Dropout)))
        loss_weights(model(some_images("class-token", 2))).sum().backward()
        model.eval()
        assert not model.training
        assert not model.prompts.training
    assert all(p.grad is None and not p.requires_grad for p in model.backbone.parameters())
    assert all(p.grad is not None for p in learned(model))


def test_a_change_of_the_backbones_weights_shows_in_the_model():
    model = attached("class-token", vprompt.VPT(4), dtype=torch.float64)
    images = some_images("class-token", 2, dtype=torch.float64)
    before = model(images)
    reference.randomise(model.backbone, seed=77)
    assert not torch.allclose(model(images), before)
    close(model(images), reference_logits(model, images), 1e-10)


# ── copies, moves, state ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["deep-per-block", "shallow", "linear"])
def test_copy_shares_the_backbone_and_owns_the_rest(method):
    how, counts = METHODS[method]
    model = attached("class-token", how, counts=counts)
    images = some_images("class-token", 2)
    before = model(images).detach()
    twin = model.copy()
    assert twin.backbone is model.backbone
    ours = dict(model.named_parameters())
    for name, p in twin.named_parameters():
        if p.numel():
            assert (p.data_ptr() == ours[name].data_ptr()) == name.startswith("backbone."), name
    assert torch.equal(twin(images), before)
    assert (twin.training, twin.execution, twin.prompt_counts) == (False, model.execution, model.prompt_counts)
    assert model.copy().train().training
    with torch.no_grad():
        for p in learned(twin):
            p.mul_(-2)
    assert torch.equal(model(images), before)
    assert not torch.allclose(twin(images), before)


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("method", ["deep-per-block", "shallow"])
def test_deepcopy_is_a_model_of_its_own(method, execution):
    how, counts = METHODS[method]
    model = attached("class-token", how, counts=counts, execution=execution)
    images = some_images("class-token", 2)
    before = model(images).detach()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images), before)
    pointers = {p.data_ptr() for p in model.parameters() if p.numel()}
    assert not pointers & {p.data_ptr() for p in twin.parameters() if p.numel()}
    with torch.no_grad():
        for p in learned(twin):
            p.mul_(-2)
        reference.randomise(twin.backbone, seed=7)
    assert torch.equal(model(images), before)
    close(twin(images), reference_logits(twin, images), 1e-4)


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("method", ["deep-per-block", "shallow", "linear"])
def test_moving_after_attach_moves_everything(method, execution):
    how, counts = METHODS[method]
    model = attached("class-token", how, counts=counts, execution=execution)
    images = some_images("class-token", 2, dtype=torch.float64)
    moved = model.to(torch.float64)
    assert moved is model
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    close(model(images), reference_logits(model, images), 1e-10)
    close(model.half().float()(images.float()), reference_logits(model, images), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("method", ["deep", "shallow", "linear"])
def test_attaching_to_a_backbone_of_another_type(method, execution, dtype):
    model = vprompt.attach(
        BACKBONES["class-token"]().to(dtype), METHODS[method][0], head_init="paper", num_classes=3, execution=execution
    ).eval()
    images = some_images("class-token", 2, dtype=dtype)
    close(model(images), reference_logits(model, images), 1e-10 if dtype == torch.float64 else 0.1)
    close(model.fold()(images), reference_logits(model, images), 1e-10 if dtype == torch.float64 else 0.1)


@pytest.mark.parametrize("method", ["deep-per-block", "shallow", "linear"])
def test_state_dict_round_trip(method, tmp_path):
    how, counts = METHODS[method]
    model, other = (attached("class-token", how, counts=counts, seed=seed) for seed in (3, 4))
    images = some_images("class-token", 2)
    assert not torch.allclose(model(images), other(images))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    found = other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert not found.missing_keys
    assert not found.unexpected_keys
    assert torch.equal(model(images), other(images))
    names = set(model.state_dict())
    assert names == {f"backbone.{n}" for n in model.backbone.state_dict()} | {f"prompts.{b}" for b in range(3)} | {
        "head.weight",
        "head.bias",
    }


@pytest.mark.parametrize("execution", ["prefix", "published"])
def test_keep_removes_prompts_and_chooses_the_right_ones(execution):
    model = attached("class-token", vprompt.VPT(6), execution=execution, dtype=torch.float64)
    images = some_images("class-token", 2, dtype=torch.float64)
    kept = [torch.tensor([4, 1]), torch.tensor([], dtype=torch.int64), torch.tensor([0, 2, 5])]
    small = model.keep(kept)
    assert small.prompt_counts == [2, 0, 3]
    assert model.prompt_counts == [6, 6, 6]
    for block, index in enumerate(kept):
        assert torch.equal(small.prompts[block], model.prompts[block][index])
    chosen = [model.prompts[block][index] for block, index in enumerate(kept)]
    wanted = reference.logits(model.backbone, chosen, model.head.weight, model.head.bias, images)
    close(small(images), wanted, 1e-10)


# ── how it starts ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("patch", "width"), [((8, 8), 32), ((8, 16), 64), ((16, 16), 768)])
def test_init_bound(patch, width):
    assert init_bound(patch, width) == pytest.approx(math.sqrt(6 / (3 * patch[0] * patch[1] + width)), rel=1e-12)


@pytest.mark.parametrize(("name", "patch"), [("class-token", (8, 8)), ("non-square-patch", (8, 16))])
def test_prompts_start_uniform(name, patch):
    torch.manual_seed(0)
    model = vprompt.attach(BACKBONES[name](), vprompt.VPT(1000), head_init="paper", num_classes=3)
    bound = math.sqrt(6 / (3 * patch[0] * patch[1] + 32))
    for prompts in (p.detach() for p in model.prompts):
        assert float(prompts.abs().max()) <= bound
        assert float(prompts.max()) > 0.999 * bound
        assert float(prompts.min()) < -0.999 * bound
        assert float(prompts.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert abs(float(prompts.mean())) < 0.02 * bound
        histogram = prompts.histc(10, -bound, bound) / prompts.numel()
        assert float((histogram - 0.1).abs().max()) < 0.01
    assert not torch.equal(model.prompts[0], model.prompts[1])


def test_head_starts_with_kaimings_fan_out_and_a_low_bias():
    torch.manual_seed(0)
    model = vprompt.attach(BACKBONES["class-token"](), vprompt.VPT(1), head_init="paper", num_classes=2000)
    assert torch.equal(model.head.bias, torch.full((2000,), -math.log(99)))
    assert float(model.head.weight.std()) == pytest.approx(math.sqrt(2 / 2000), rel=0.02)
    assert abs(float(model.head.weight.mean())) < 1e-3


def test_the_global_seed_decides_the_start():
    vit = BACKBONES["class-token"]()

    def start(seed):
        torch.manual_seed(seed)
        return torch.cat(
            [p.flatten() for p in learned(vprompt.attach(vit, vprompt.VPT(3), head_init="paper", num_classes=4))]
        )

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.integers(1, 30),
    depth=st.sampled_from(["deep", "shallow", "linear"]),
    classes=st.integers(1, 20),
    blocks=st.integers(1, 4),
    width=st.sampled_from([16, 32]),
)
def test_number_of_learned_values_has_a_closed_formula(prompts, depth, classes, blocks, width):
    vit = reference.small_vit(depth=blocks, embed_dim=width)
    method = vprompt.Linear() if depth == "linear" else vprompt.VPT(prompts, depth)
    model = vprompt.attach(vit, method, head_init="paper", num_classes=classes)
    rows = {"deep": blocks * prompts, "shallow": prompts, "linear": 0}[depth]
    assert model.num_learned == rows * width + classes * width + classes
    assert model.num_learned == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(model.prompt_counts) == rows


def test_learned_leaves_empty_blocks_out():
    model = attached("class-token", vprompt.VPT(6), counts=[3, 0, 6])
    assert set(model.learned) == {"prompts.0", "prompts.2", "head.weight", "head.bias"}
    assert model.num_learned == 9 * 32 + 5 * 32 + 5


# ── the maths of a prefix ────────────────────────────────────────────────────────────────────────────────────────────


def naive_attention(q, k, v, prefix, mask, causal, scale):
    """One softmax per query, in float64, over the prefix and the keys it may see."""
    batch, heads, queries, d = q.shape
    added = 0 if prefix is None else prefix[0].shape[2]
    if mask is not None:
        mask = mask.expand(batch, heads, queries, k.shape[2])
    out = torch.zeros(batch, heads, queries, v.shape[3], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            keys, values = k[b, h], v[b, h]
            if prefix is not None:
                row = b if prefix[0].shape[0] > 1 else 0
                keys, values = torch.cat([prefix[0][row, h], keys]), torch.cat([prefix[1][row, h], values])
            for n in range(queries):
                logits = (keys @ q[b, h, n]) * (d**-0.5 if scale is None else scale)
                for m in range(k.shape[2]):
                    if causal and m > n:
                        logits[added + m] = -math.inf
                    if mask is not None:
                        if mask.dtype == torch.bool and not mask[b, h, n, m]:
                            logits[added + m] = -math.inf
                        elif mask.dtype != torch.bool:
                            logits[added + m] += mask[b, h, n, m]
                out[b, h, n] = (logits - logits.max()).exp() @ values / (logits - logits.max()).exp().sum()
    return out


MASKS = st.sampled_from(["none", "causal", "bool", "float"])


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 5),
    keys=st.integers(1, 5),
    added=st.integers(0, 4),
    d=st.integers(1, 5),
    masked=MASKS,
    mask_shape=st.sampled_from(["NM", "B1NM", "BHNM", "1M"]),
    per_sample=st.booleans(),
    has_prefix=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 10_000),
)
def test_attend_is_a_naive_softmax(
    batch, heads, queries, keys, added, d, masked, mask_shape, per_sample, has_prefix, scale, seed
):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k, v = draw(batch, heads, queries, d), draw(batch, heads, keys, d), draw(batch, heads, keys, d)
    rows = batch if per_sample else 1
    prefix = (draw(rows, heads, added, d), draw(rows, heads, added, d)) if has_prefix else None
    mask = None
    if masked in ("bool", "float"):
        shapes = {
            "NM": (queries, keys),
            "B1NM": (batch, 1, queries, keys),
            "BHNM": (batch, heads, queries, keys),
            "1M": (1, keys),
        }
        mask = draw(*shapes[mask_shape])
        if masked == "bool":
            mask = mask > 0
            mask[..., 0] = True  # a query that sees nothing at all has no defined answer
    found = attend(q, k, v, prefix, attn_mask=mask, is_causal=masked == "causal", scale=scale)
    close(found, naive_attention(q, k, v, prefix, mask, masked == "causal", scale), 1e-10)


def test_attend_prefix_is_seen_by_a_query_whose_keys_are_all_masked():
    q, k, v = (torch.randn(1, 1, 2, 3, dtype=torch.float64) for _ in range(3))
    prefix = (torch.randn(1, 1, 4, 3, dtype=torch.float64), torch.randn(1, 1, 4, 3, dtype=torch.float64))
    mask = torch.tensor([[False, False], [True, False]])
    close(attend(q, k, v, prefix, attn_mask=mask), naive_attention(q, k, v, prefix, mask, False, None), 1e-12)


def test_attend_broadcasts_a_mask_with_one_column():
    """`scaled_dot_product_attention` takes any mask that broadcasts to (B, H, N, M)."""
    q, k, v = (torch.randn(2, 2, 3, 4, dtype=torch.float64) for _ in range(3))
    prefix = (torch.randn(1, 2, 5, 4, dtype=torch.float64), torch.randn(1, 2, 5, 4, dtype=torch.float64))
    mask = torch.randn(3, 1, dtype=torch.float64)
    close(attend(q, k, v, prefix, attn_mask=mask), naive_attention(q, k, v, prefix, mask, False, None), 1e-12)


# ── what is not supported, in a sentence ─────────────────────────────────────────────────────────────────────────────


def a_sentence(error):
    text = str(error.value)
    assert len(text.split()) >= 4
    assert text[0].isupper() or text.startswith(("img_size", "timm"))
    assert text.rstrip().endswith((".", ")"))
    return text


class StrangeAttention(Attention):
    """A subclass may compute anything, so it is not taken for its parent."""


UNSUPPORTED = {
    "resnet18": (lambda: timm.create_model("resnet18"), "ResNet"),
    "hiera": (lambda: timm.create_model("hiera_tiny_224", embed_dim=24, stages=(1, 1, 1, 1)), "Hiera"),
    "parallel-things": (lambda: reference.small_vit(block_fn=ParallelThingsBlock), "ParallelThingsBlock"),
    "strange-attention": (lambda: reference.small_vit(attn_layer=StrangeAttention), "StrangeAttention"),
    "not-a-vit": (lambda: nn.Sequential(nn.Linear(2, 2)), "Sequential"),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_an_unsupported_model_is_named_and_left_alone(kind):
    make, name = UNSUPPORTED[kind]
    model = make()
    before = snapshot(model)
    with pytest.raises(BackboneError) as error:
        vprompt.attach(model, vprompt.VPT(2), num_classes=3)
    assert name in a_sentence(error)
    assert_same(before, snapshot(model))


def test_one_odd_block_among_good_ones_is_found():
    vit = reference.small_vit()
    vit.blocks[2] = ParallelThingsBlock(32, 2)
    with pytest.raises(BackboneError) as error:
        vprompt.attach(vit, vprompt.VPT(2), num_classes=3)
    assert "ParallelThingsBlock" in a_sentence(error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_classes": 0}, "0"),
        ({"num_classes": -3}, "-3"),
        ({"execution": "x"}, "x"),
        ({"classes": ["a", "b"]}, "2"),
        ({"classes": []}, "0"),
        ({"img_size": 64}, "img_size"),
    ],
)
def test_bad_arguments_of_attach(arguments, words):
    vit = BACKBONES["class-token"]().train()
    before = snapshot(vit)
    with pytest.raises(VPromptError) as error:
        vprompt.attach(vit, vprompt.VPT(2), **{"num_classes": 3, **arguments})
    assert words in a_sentence(error)
    assert_same(before, snapshot(vit))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_prompts": 0}, "0"),
        ({"num_prompts": -1}, "-1"),
        ({"dropout": 1}, "1"),
        ({"dropout": -0.1}, "-0.1"),
        ({"dropout": math.nan}, "nan"),
        ({"depth": "x"}, "x"),
    ],
)
def test_bad_arguments_of_vpt(arguments, words):
    with pytest.raises(VPromptError) as error:
        vprompt.VPT(**arguments)
    assert words in a_sentence(error)


def test_unknown_backbone_name():
    with pytest.raises(BackboneError) as error:
        vprompt.attach("vit_base_patch16_2244", vprompt.VPT(2), num_classes=3, pretrained=False)
    assert "vit_base_patch16_2244" in a_sentence(error)


@pytest.mark.parametrize(
    "kept",
    [
        [torch.arange(2)] * 2,
        [torch.arange(2)] * 4,
        [torch.tensor([0, 6]), torch.arange(2), torch.arange(2)],
        [torch.tensor([-1]), torch.arange(2), torch.arange(2)],
        [torch.arange(2), torch.tensor([1, 1]), torch.arange(2)],
        [],
    ],
    ids=["too-few", "too-many", "beyond", "negative", "twice", "none"],
)
def test_bad_indices_to_keep(kept):
    model = attached("class-token", vprompt.VPT(6))
    with pytest.raises(VPromptError) as error:
        model.keep(kept)
    a_sentence(error)
    assert model.prompt_counts == [6, 6, 6]
