"""Regularised and cross-attended prompts: their formulas, and that both go everywhere."""

import copy
import itertools
import json
import math

import pytest
import timm
import torch
import torch.nn.functional as F

import families
import vprompt
from conftest import run_command
from vprompt.compression.merge import merge
from vprompt.methods.bpt import BPT
from vprompt.methods.cvpt import CVPT
from vprompt.methods.layers.prompts import Prompts
from vprompt.methods.pae import PAE
from vprompt.methods.vfpt import VFPT
from vprompt.model.cost import adapter_bytes, model_cost
from vprompt.training.trainer import fit
from vprompt.utils.errors import BackboneError, VPromptError

METHODS = {"pae": PAE(4, dropout=0.0), "cvpt": CVPT(4)}
BACKBONES = {
    "plain": families.vit,
    "layer-scale": lambda: families.vit(global_pool="avg", reg_tokens=2, init_values=0.3),
    "norms": lambda: families.vit(qk_norm=True, qkv_bias=False),
    "diff": families.diff,
}

every = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32)


def attached(backbone, method, *, shaken=0.1, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = vprompt.attach(backbone, method, num_classes=3, head_init="zero").to(dtype)
    with torch.no_grad():
        for value in model.learned.values():
            value.add_(torch.randn_like(value), alpha=shaken)
    return model.eval()


def images(count=3, dtype=torch.float32):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


def data(count=6):
    return torch.utils.data.TensorDataset(images(count), torch.arange(count) % 3)


def recipe(**changes):
    return vprompt.Recipe(**{"epochs": 2, "batch_size": 3, "lr": 0.01, "precision": "fp32", **changes})


# ── CVPT ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def crossed(block, x, prompts):
    """W_O softmax((W_Q x)(W_K P)ᵀ/√d)(W_V P), head by head and query by query."""
    attn = block.attn
    heads, width = attn.num_heads, attn.head_dim
    weight, bias = attn.qkv.weight, attn.qkv.bias
    bias = torch.zeros(len(weight)).double() if bias is None else bias
    (wq, wk, wv), (bq, bk, bv) = weight.chunk(3), bias.chunk(3)
    q, k, v = x @ wq.T + bq, prompts @ wk.T + bk, prompts @ wv.T + bv
    out = torch.zeros_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        keys = attn.k_norm(k[:, part])
        for image in range(len(x)):
            for token in range(x.shape[1]):
                logits = torch.stack([attn.q_norm(q[image, token, part]) @ key for key in keys]) / math.sqrt(width)
                weights = logits.exp() / logits.exp().sum()
                out[image, token, part] = sum(w * row for w, row in zip(weights, v[:, part], strict=True))
    return out @ attn.proj.weight.T + attn.proj.bias


def by_hand(model, x):
    """Logits of timm's parts, put together one by one."""
    net = model.backbone
    values = dict(model.tuned.named_parameters())
    x = net.norm_pre(net._pos_embed(net.patch_embed(x)))
    for number, block in enumerate(net.blocks):
        x = x + block.ls1(block.attn(block.norm1(x)))
        x = x + crossed(block, x, values[f"blocks.{number}.prompts"])
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return model.head(net.forward_head(net.norm(x), pre_logits=True))


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "diff"])
def test_cross_attention_is_that_of_its_formula(name):
    model = attached(BACKBONES[name]().double(), CVPT(3), dtype=torch.float64, shaken=0.7)
    with torch.no_grad():
        x = images(2, torch.float64)
        wanted, bare = (
            by_hand(model, x),
            model.head(model.backbone.forward_head(model.backbone.forward_features(x), pre_logits=True)),
        )
        assert float((wanted - bare).abs().max()) > 0.01
        for same in (model, model.copy(execution="published").eval(), model.fold()):
            torch.testing.assert_close(same(x), wanted, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("name", BACKBONES)
def test_folded_cross_attention_is_the_same_of_its_own(name):
    model = attached(BACKBONES[name]().double(), CVPT(3), dtype=torch.float64)
    folded, x = model.fold(), images(3, torch.float64)
    wanted = folded(x)
    torch.testing.assert_close(wanted, model(x).detach(), atol=1e-10, rtol=1e-9)
    shapes = {tuple(p.shape) for p in folded.tuned.parameters()}
    assert (shapes == {(3, 32)}) == (name == "diff")  # whose keys and values have two shapes
    with torch.no_grad():
        for p in model.learned.values():
            p.add_(1)
    assert torch.equal(folded(x), wanted)
    assert not any(p.requires_grad for p in folded.parameters())


def test_cross_attention_costs_what_its_products_cost(backbone):
    """Queries and output of every token, the logits and the values; and, until it is folded, keys and values."""
    bare, wide = (model_cost(vprompt.attach(backbone, m, num_classes=3)) for m in (vprompt.Linear(), CVPT(7)))
    tokens, width, blocks = 5, 64, 6
    of_tokens = blocks * tokens * (2 * width * width + 2 * 7 * width)
    added = (wide.published_gmacs - bare.published_gmacs) * 1e9
    assert added == pytest.approx(of_tokens + blocks * 7 * 2 * width * width, rel=1e-6)
    dead = (tokens - 1) * (2 * width * width + 2 * 7 * width)  # the last block folded computes the class token alone
    assert (wide.folded_gmacs - bare.folded_gmacs) * 1e9 == pytest.approx(of_tokens - dead, rel=1e-6)


@pytest.mark.parametrize("name", ["eva", "beit", "swin", "swin2", "cait", "sam", "diff-post-norm"])
def test_blocks_of_another_form_are_refused_and_left_alone(name):
    backbone = families.BACKBONES[name]()
    before = {path: p.requires_grad for path, p in backbone.named_parameters()}
    with pytest.raises(BackboneError, match=r"CVPT stands between .* not of a \w+; use another method or backbone\.$"):
        vprompt.attach(backbone, CVPT(2), num_classes=2)
    assert {path: p.requires_grad for path, p in backbone.named_parameters()} == before


def test_cross_attention_starts_xavier_uniform_in_every_block(backbone):
    torch.manual_seed(0)
    drawn = torch.stack([*vprompt.attach(backbone, CVPT(100), num_classes=2).tuned.parameters()]).detach()
    bound = (6 / 164) ** 0.5
    assert drawn.shape == (6, 100, 64)
    assert bound * 0.99 < float(drawn.abs().max()) <= bound
    assert float(drawn.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


# ── PAE ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def penalty_by_hand(prompts, koopman, stability):
    """The regulariser as NumPy would have it, pair by pair."""
    z = []
    for values in prompts:
        rows = [row @ prompts.into[str(values.shape[1])] for row in values]
        z.append(sum(rows) / len(rows))
    energies = [float(((prompts.energy @ one) ** 2).sum().detach()) for one in z]
    strayed = [
        float(((after - prompts.onward.T @ before) ** 2).sum().detach()) for before, after in itertools.pairwise(z)
    ]
    risen = [math.log1p(math.exp(after - before)) for before, after in itertools.pairwise(energies)]
    return koopman * sum(strayed) / len(strayed) + stability * sum(risen) / len(risen)


@pytest.mark.parametrize(("koopman", "stability"), [(0.5, 0.2), (1.0, 0.0), (0.0, 3.0)])
def test_the_penalty_is_that_of_its_formula(backbone, koopman, stability):
    model = attached(backbone, PAE(3, koopman=koopman, stability=stability), dtype=torch.float64)
    found = float(model.prompts.penalty().detach())
    assert found == pytest.approx(penalty_by_hand(model.prompts, koopman, stability), rel=1e-9)


def test_the_penalty_of_stages_has_a_map_for_each_width():
    model = attached(families.BACKBONES["swin"]().double(), PAE(3), dtype=torch.float64)
    assert sorted(map(int, model.prompts.into)) == sorted(set(model.info.widths))
    assert len(model.prompts.into) > 1
    wanted = penalty_by_hand(model.prompts, 0.5, 0.2)
    assert float(model.prompts.penalty().detach()) == pytest.approx(wanted, rel=1e-9)


def moved(model, **changes):
    """What one epoch of plain gradient steps adds to the learned values, over its rate of 1e-3; and its history."""
    before = {n: p.detach().clone() for n, p in model.learned.items()}
    how = recipe(optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1e-3, warmup=0.0, epochs=1, clip=0.0, **changes)
    history = fit(model, data(), recipe=how)
    scale = how.with_rate(model.method.lr_factor).peak_lr
    return {n: (p.detach() - before[n]) / scale for n, p in model.learned.items()}, history


@pytest.mark.parametrize(
    "batches", [{"batch_size": 6}, {"batch_size": 2, "accumulate": 3}, {"batch_size": 4, "accumulate": 2}]
)
def test_a_step_follows_the_gradients_of_loss_and_penalty_once(backbone, batches):
    model = attached(copy.deepcopy(backbone).double(), PAE(4, dropout=0.0), shaken=0.3, dtype=torch.float64)
    x, labels = data().tensors
    loss = F.cross_entropy(model(x.double()), labels)
    total = loss + model.prompts.penalty()
    wanted = torch.autograd.grad(total, [*model.learned.values()])
    found, history = moved(model, **batches)
    for (name, step), gradient in zip(found.items(), wanted, strict=True):
        torch.testing.assert_close(-step, gradient, atol=1e-6, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert history.rows[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)


def test_without_weights_it_is_vpt_to_the_bit(backbone):
    free, plain = attached(backbone, PAE(4, koopman=0.0, stability=0.0)), attached(backbone, vprompt.VPT(4))
    values = {**{n: v for n, v in free.state().items() if n in plain.state()}}
    plain.restore(values)
    rows = [fit(model, data(), recipe=recipe(weight_decay=0.0)).rows for model in (free, plain)]
    assert rows[0] == rows[1]
    assert all(torch.equal(free.state()[name], value) for name, value in plain.state().items())


def test_the_penalty_falls_in_training(backbone):
    model = attached(backbone, PAE(4, koopman=10.0, stability=0.0, dropout=0.0), shaken=0.3)
    before = float(model.prompts.penalty().detach())
    fit(model, data(), recipe=recipe(epochs=10))
    assert float(model.prompts.penalty().detach()) < before / 2


def test_one_block_has_no_way_to_the_next():
    (cls,) = {type(PAE(2).make_prompts(vprompt.attach(families.vit(), PAE(2), num_classes=2).info))}
    assert cls([torch.zeros(2, 8)], weights=(1.0, 1.0)).penalty() is None


@pytest.mark.parametrize("option", [{"koopman": -1.0}, {"stability": 1001.0}, {"koopman": float("nan")}])
def test_weights_beyond_their_bounds_are_refused(option):
    with pytest.raises(VPromptError, match=r"of PAE must be at least 0 and at most 1000"):
        PAE(4, **option)


# ── everything that a model can do ───────────────────────────────────────────────────────────────────────────────────


@every
def test_gradients_are_those_of_finite_differences(backbone, name):
    model = attached(copy.deepcopy(backbone).double(), METHODS[name], dtype=torch.float64, shaken=0.3)
    x, labels = images(2, torch.float64), torch.tensor([0, 1])

    def loss_of(model):
        penalty = model.prompts.penalty()
        return F.cross_entropy(model(x), labels) + (0 if penalty is None else penalty)

    learned = model.learned
    gradients = torch.autograd.grad(loss_of(model), [*learned.values()])
    assert all(bool(gradient.any()) for gradient in gradients)
    for (path, p), gradient in zip(learned.items(), gradients, strict=True):
        direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(7)).double()
        ends = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                p.add_(step * direction)
                ends.append(float(loss_of(model)))
        with torch.no_grad():
            p.add_(1e-5 * direction)
        slope = float((gradient * direction).sum())
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-8), path


@every
def test_a_resumed_training_ends_with_the_same_bits(backbone, name, tmp_path):
    whole, parts = (attached(backbone, METHODS[name]) for _ in range(2))
    how, file = recipe(epochs=3, ema=0.9), tmp_path / "state.safetensors"
    rows = fit(whole, data(), recipe=how).rows
    for until in (1, 2, 3):
        found = fit(parts, data(), recipe=how, checkpoint=file, resume=True, until=until)
    assert found.rows == rows
    start = attached(backbone, METHODS[name]).state()
    for path, value in whole.state().items():
        assert torch.equal(parts.state()[path], value), path
        assert not torch.equal(start[path], value), path


@every
def test_a_state_is_restored(backbone, name):
    model = attached(backbone, METHODS[name])
    state, wanted = model.state(), model(images()).detach()
    fit(model, data(), recipe=recipe(epochs=1))
    assert not torch.equal(model.eval()(images()), wanted)
    model.restore(state)
    assert torch.equal(model(images()), wanted)
    assert ("prompts.onward" in state) == (name == "pae")


@pytest.mark.parametrize("name", [*METHODS, "bpt", "vfpt"])
def test_saved_it_loads_with_the_same_values(backbone, name, tmp_path):
    model = attached(backbone, {**METHODS, "bpt": BPT(4, rank=2), "vfpt": VFPT(4)}[name])
    model.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, backbone)
    assert torch.equal(again(images()), model(images()))
    assert again.method == model.method
    config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    assert config["plain_prompts"] is True
    assert type(again.prompts) is Prompts
    plain = 6 * 4 * 64 + 3 * 64 + 3
    assert again.num_learned == plain
    file = tmp_path / "adapter_model.safetensors"
    assert file.stat().st_size == adapter_bytes(model) == adapter_bytes(again)
    learned = {"bpt": 6 * 2 * (4 + 64) + 195, "vfpt": plain, "cvpt": plain, "pae": plain + 64 * 256 + 2 * 256**2}[name]
    assert model.num_learned == learned
    assert f"{learned:,} numbers" in repr(model)
    assert f"{learned:,}" in (tmp_path / "README.md").read_text("utf-8")
    fit(again, data(), recipe=recipe(epochs=1))  # goes on as what it is now


def test_regularised_prompts_are_scored_condensed_pruned_and_merged_like_others(backbone, tmp_path):
    model = attached(backbone, METHODS["pae"])
    values = [model.prompts.dense(block).detach() for block in range(6)]
    plain = model.copy(prompts=Prompts(values)).eval()
    torch.testing.assert_close(plain(images()), model(images()), atol=1e-6, rtol=1e-5)
    scores = vprompt.score(model, data())
    for mine, theirs in zip(scores, vprompt.score(plain, data()), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-3)
    small = vprompt.condense(model, data(), ratio=0.5, scores=scores, recipe=recipe(epochs=1))
    assert (sum(small.prompt_counts), type(small.prompts)) == (12, Prompts)
    small.save_pretrained(tmp_path)
    assert torch.equal(vprompt.load(tmp_path, backbone)(images()), small(images()))
    kept = [torch.arange(4)] * 6
    torch.testing.assert_close(merge(model, kept)(images()), model(images()), atol=1e-5, rtol=1e-4)
    early = model.state()
    fit(model, data(), recipe=recipe(epochs=1))
    settings = vprompt.PruneSettings(tokens=0.5, segments=0.25, num_segments=4)
    pruned = vprompt.prune(model, data(), early=early, settings=settings, recipe=recipe(epochs=1)).model
    assert (sum(pruned.prompt_counts), pruned.prompts.num_segments) == (12, 4)


def test_all_executions_of_regularised_prompts_agree(backbone):
    model = attached(backbone, METHODS["pae"])
    wanted = model.copy(execution="published").eval()(images())
    torch.testing.assert_close(model(images()), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.fold()(images()), wanted, atol=1e-5, rtol=1e-4)
    mine, deep = (model_cost(vprompt.attach(backbone, m, num_classes=3)) for m in (METHODS["pae"], vprompt.VPT(4)))
    assert mine.folded_gmacs == deep.folded_gmacs
    assert mine.prompt_params == model.num_learned - 195


@every
def test_a_bank_mixes_it_with_others(backbone, name):
    model, other = attached(backbone, METHODS[name]), vprompt.attach(backbone, vprompt.VPT(2), num_classes=2).eval()
    bank = vprompt.Bank(backbone)
    bank.add("new", model)
    bank.add("deep", other)
    logits = bank(images(), ["new", "deep", "new"])
    torch.testing.assert_close(logits[0], model(images())[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1], other(images())[1], atol=1e-5, rtol=1e-4)


def test_exported_cross_attention_gives_the_same(backbone, tmp_path):
    model = attached(backbone, METHODS["cvpt"])
    vprompt.export(model, tmp_path / "model.pt2")
    for count in (1, 5):
        exported = vprompt.load_exported(tmp_path / "model.pt2")(images(count))
        torch.testing.assert_close(torch.as_tensor(exported), model(images(count)).detach(), atol=1e-4, rtol=1e-3)


OPTIONS = {"pae": ["--koopman", "--stability"], "cvpt": []}


@every
def test_help_shows_its_options_and_no_others(name):
    text = run_command("fit", "--method", name, "--help").out
    shown = {option for option in ("--rank", "--fourier-share", "--koopman", "--stability") if option in text}
    assert shown == set(OPTIONS[name])
    assert "--prompts" in text
    assert ("--init" in text) == (name != "cvpt")


@every
def test_fit_trains_it(name, colours, tmp_path):
    small = ["--epochs", 1, "--batch-size", 9, "--img-size", 16, "--prompts", 4]
    done = run_command("fit", colours, "--method", name, *small, "--out", tmp_path / "run", "--json")
    assert done.status == 0, done.err
    assert done.document["method"] == name
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text("utf-8"))
    assert config["method"]["num_prompts"] == 4
