"""Stochastic depth: as timm draws it, in training alone, repeatable, and the method's own where nothing is said."""

from dataclasses import replace

import pytest
import timm
import torch
from torch.utils.data import TensorDataset

import vprompt
from conftest import run_command
from reference import close, small_vit
from vprompt.experiments.settings import settings_from
from vprompt.methods.registry import METHODS
from vprompt.training.evaluate import evaluate
from vprompt.training.stochastic_depth import branches, left_out
from vprompt.training.trainer import fit
from vprompt.utils.errors import VPromptError

SMALL = {
    "test_vit": {"img_size": 32},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16},
    "swinv2_tiny_window8_256": {"img_size": 64, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 3},
    "beit_base_patch16_224": {"img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 3},
    "cait_xxs24_224": {"img_size": 32, "depth": 3},
    "deit3_small_patch16_224": {"img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 3},
}
DEPTHS = {"test_vit": 6, "swin_tiny_patch4_window7_224": 4, "swinv2_tiny_window8_256": 4}


def data(images=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 3
    pixels = torch.randn(images, 3, 32, 32, generator=generator)
    pixels[torch.arange(images), labels] += 1
    return TensorDataset(pixels, labels)


def recipe(**changes):
    return vprompt.Recipe(**{"epochs": 3, "batch_size": 8, "lr": 0.01, "seed": 5, "stochastic_depth": 0.5, **changes})


def fresh(method=None, **options):
    torch.manual_seed(0)
    return vprompt.attach(small_vit(depth=3), method or vprompt.VPT(2, dropout=0), num_classes=3, **options)


def trained(method=None, how=None, **options):
    model = fresh(method, **options)
    history = fit(model, data(), recipe=how or recipe())
    return {name: value.detach().clone() for name, value in model.learned.items()}, history.rows, model


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("share", [0.2, 0.7])
@torch.no_grad()
def test_what_is_left_out_is_what_timm_leaves_out(name, share):
    """The same draws, in the same blocks: against timm's own module in training mode."""
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0, **SMALL[name])
    for parameter in backbone.parameters():  # some branches are nothing at the start
        parameter.data += 0.1 * torch.randn_like(parameter)
    own = timm.create_model(name, num_classes=0, drop_path_rate=share, **SMALL[name])
    own.load_state_dict(backbone.state_dict())
    # Full tuning learns in every block; the tokens are not pooled before all blocks have run.
    model = vprompt.attach(backbone, vprompt.Full(), num_classes=2)
    with torch.enable_grad():
        places = branches(model, share)
    depth = DEPTHS.get(name, 3)
    images = torch.randn(16, 3, *model.preprocessing.size)
    if name == "cait_xxs24_224":  # timm has the same share in all of its blocks, which use one module twice
        for number, block in enumerate(own.blocks):
            block.drop_path.drop_prob = share * number / (depth - 1)
    else:
        assert [rate for _, rate in places] == [share * block / (depth - 1) for block in range(depth) for _ in "am"]
    torch.manual_seed(3)
    wanted = own.train().forward_head(own.forward_features(images), pre_logits=True)
    torch.manual_seed(3)
    with left_out(places):
        found = model.features(images)
    close(found, wanted, 1e-5)
    plain = model.features(images)
    assert float((found - plain).abs().max()) > 1e-3  # it did something, and nothing after it
    close(plain, own.eval().forward_head(own.forward_features(images), pre_logits=True), 1e-5)


def test_it_acts_in_training_alone_and_leaves_no_hook():
    learned, rows, model = trained()
    without, plain_rows, _ = trained(how=recipe(stochastic_depth=0.0))
    assert not same(learned, without)
    assert rows != plain_rows
    assert not any(module._forward_hooks for module in model.backbone.modules())
    found = evaluate(model, data())
    assert found == evaluate(model, data())
    again, more = fresh(), []
    with pytest.raises(RuntimeError, match="enough"):
        fit(again, data(), recipe=recipe(), log=lambda rows: more.append(len(rows)) or _stop(len(rows)))
    assert not any(module._forward_hooks for module in again.backbone.modules())


def _stop(epoch):
    if epoch == 2:
        raise RuntimeError("enough")


@pytest.mark.parametrize("changes", [{}, {"grad_checkpointing": True}, {"accumulate": 2, "batch_size": 4}])
def test_the_same_seed_gives_the_same_bytes_also_after_a_stop(changes, tmp_path):
    how = recipe(**changes)
    whole, rows, _ = trained(how=how)
    model, file = fresh(), tmp_path / "state.safetensors"
    fit(model, data(), recipe=how, checkpoint=file, until=1)
    model = fresh()
    history = fit(model, data(), recipe=how, checkpoint=file, resume=True)
    assert same(whole, {name: value.detach() for name, value in model.learned.items()})
    assert history.rows == rows
    assert not same(whole, trained(how=replace(how, seed=6))[0])


def test_memory_saved_and_prompts_inserted_are_the_same_training():
    whole = trained()[0]
    for other in (trained(how=recipe(grad_checkpointing=True))[0], trained(execution="published")[0]):
        for name, value in whole.items():
            close(other[name], value, 2e-4)


def test_blocks_before_the_first_that_learns_stay_whole():
    """So that it makes no difference whether their output is computed once, or at every step."""
    assert [rate for _, rate in branches(fresh(vprompt.Partial(1)), 0.5)] == [0.5, 0.5]
    anew, once = (trained(vprompt.Partial(1), recipe(cache_gb=cache_gb))[0] for cache_gb in (0.0, 1.0))
    for name, value in once.items():
        close(value, anew[name], 1e-5)
    assert not same(once, trained(vprompt.Partial(1), recipe(stochastic_depth=0.0))[0])


def test_a_method_has_its_own_and_what_is_said_goes_first():
    shares = {name: METHODS.get(name).method.stochastic_depth for name in METHODS.names()}
    assert 0 < shares["lora"] < 1
    assert shares["vpt-deep"] == shares["full"] == 0
    for given, wanted in ((None, shares["lora"]), (0.0, 0.0), (0.3, 0.3)):
        model = trained(vprompt.LoRA(rank=2), recipe(stochastic_depth=given, epochs=1))[2]
        assert model.recipe.stochastic_depth == wanted
        run = settings_from({"backbone": "test_vit", "method": "lora", "stochastic_depth": given}).resolved()
        assert run.resolved().recipe.stochastic_depth == wanted  # said once, it stays
    assert trained(how=recipe(stochastic_depth=None, epochs=1))[2].recipe.stochastic_depth is None


def test_a_head_alone_is_trained_as_without():
    assert branches(fresh(vprompt.Linear()), 0.5) == []
    assert same(trained(vprompt.Linear())[0], trained(vprompt.Linear(), recipe(stochastic_depth=0.0))[0])


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan"), "much", True])
def test_no_such_share(share):
    with pytest.raises(VPromptError):
        recipe(stochastic_depth=share)


def test_the_command_takes_it(tmp_path):
    command = ("fit", "--backbone", "bundled", "--img-size", 16, "--epochs", 1, "--method", "lora", "--json")
    plain = run_command(*command, "--stochastic-depth", 0, "--out", tmp_path / "plain").document
    usual = run_command(*command, "--out", tmp_path / "usual").document
    assert plain["settings"]["stochastic_depth"] == 0
    assert plain["test_loss"] != usual["test_loss"]
    assert run_command(*command, "--stochastic-depth", 1).status == 1
