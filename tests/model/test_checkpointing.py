"""Gradient checkpointing: the same numbers from fewer kept tensors, in every family and under every circumstance."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import TensorDataset

import families
import vprompt
from reference import small_vit
from vprompt.methods.adapter import Adapter
from vprompt.methods.cvpt import CVPT
from vprompt.methods.e2vpt import E2VPT
from vprompt.methods.finetune import Bias, Full, Partial
from vprompt.methods.side import Side
from vprompt.methods.vpt import VPT
from vprompt.model.wrappers import checkpointed_parts
from vprompt.training.trainer import fit


def gradients(model, images, checkpointing, *, first=0, bf16=False):
    """Loss and gradients of a step with prompt dropout, and how many bytes the forward pass kept for it."""
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    parts = model.exchanged(checkpointed_parts(model, first)) if checkpointing else nullcontext()
    torch.manual_seed(7)
    with parts:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), saved_tensors_hooks(note, lambda tensor: tensor):
            loss = F.cross_entropy(model(images).float(), torch.arange(len(images)) % 3)
        state = torch.get_rng_state()
        found = torch.autograd.grad(loss, list(model.learned.values()))
    assert torch.equal(torch.get_rng_state(), state)  # drawing again must not be noticed
    return [loss.detach(), *found], sum(kept.values())


def assert_identical(found, wanted):
    assert len(found) == len(wanted)
    for mine, other in zip(found, wanted, strict=True):
        assert torch.equal(mine, other), float((mine - other).abs().max())


@pytest.mark.parametrize("name", families.BACKBONES)
def test_every_backbone_has_the_same_gradients(name):
    turn = list(families.BACKBONES).index(name)
    method = VPT(3, ("deep", "deep", "shallow")[turn % 3], dropout=0.5)
    model = families.attached(name, method, execution=("prefix", "published")[turn // 3 % 2]).train()
    images = families.some_images(name, 2)
    wanted, much = gradients(model, images, False)
    found, less = gradients(model, images, True)
    assert_identical(found, wanted)
    assert less < much


METHODS = [E2VPT(2, num_kv_prompts=2, dropout=0.5), CVPT(3), Adapter(), Full(), Bias(), Partial(2), Side(8)]


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("method", [VPT(4, dropout=0.5), *METHODS], ids=lambda method: method.name)
def test_every_method_has_the_same_gradients(method, bf16):
    torch.manual_seed(0)
    model = vprompt.attach(small_vit(), method, head_init="paper", num_classes=3).train()
    images = torch.randn(3, 3, 32, 32)
    assert_identical(gradients(model, images, True, bf16=bf16)[0], gradients(model, images, False, bf16=bf16)[0])


def times_run(model):
    """How often each block has run, by block; a list that changes."""
    counts = [0] * len(model.backbone.blocks)
    for number, block in enumerate(model.backbone.blocks):

        def count(_, __, number=number):
            counts[number] += 1

        block.mlp.register_forward_pre_hook(count)
    return counts


def test_only_blocks_that_learn_run_again_and_only_for_gradients():
    torch.manual_seed(0)
    model = vprompt.attach(small_vit(depth=4), VPT(4), head_init="paper", num_classes=3)
    model = model.keep([torch.arange(count) for count in (0, 0, 2, 2)]).train()
    images, counts = torch.randn(3, 3, 32, 32), times_run(model)
    gradients(model, images, True, first=2)
    assert counts == [1, 1, 2, 2]
    with model.exchanged(checkpointed_parts(model)), torch.no_grad():
        model(images)
    assert counts == [2, 2, 3, 3]


def data(images=16):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(images, 3, 32, 32, generator=generator), torch.arange(images) % 3)


def trained(counts, *, data, **options):
    """What a training gives, and how often each block ran in it."""
    torch.manual_seed(0)
    model = vprompt.attach(small_vit(), VPT(4, dropout=0.5), head_init="paper", num_classes=3)
    model = model.keep([torch.arange(count) for count in counts])
    ran = times_run(model)
    recipe = vprompt.Recipe(epochs=2, batch_size=8, lr=0.01, **options)
    rows = fit(model, data, recipe=recipe).rows
    return [p.detach().clone() for p in model.learned.values()], rows, ran


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_training_is_the_same_bit_for_bit(cache_gb, precision):
    options = {"data": data(), "cache_gb": cache_gb, "precision": precision}
    wanted, rows, ran = trained((0, 2, 2), **options)
    found, found_rows, ran_again = trained((0, 2, 2), **options, grad_checkpointing=True)
    assert_identical(found, wanted)
    assert found_rows == rows
    # Four steps more of the blocks that learn; one blank image, on which nothing is computed again, finds them.
    assert [again - once for again, once in zip(ran_again, ran, strict=True)] == [1, 1 + 4, 4]


def test_a_model_whose_training_fails_runs_as_before():
    torch.manual_seed(0)
    model = vprompt.attach(small_vit(), VPT(4), head_init="paper", num_classes=3)
    view = model.view
    with pytest.raises(vprompt.VPromptError):
        fit(model, TensorDataset(torch.full((4, 3, 32, 32), torch.nan), torch.zeros(4).long()),
            recipe=vprompt.Recipe(epochs=1, grad_checkpointing=True))  # fmt: skip
    assert model.view is view


def test_parts_that_are_not_there_are_refused():
    model = vprompt.attach(small_vit(), VPT(4), head_init="paper", num_classes=3)
    view = model.view
    with pytest.raises(KeyError, match="nowhere"), model.exchanged({"nowhere": torch.nn.Identity()}):
        pass
    assert model.view is view
