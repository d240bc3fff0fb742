"""Prompts that are computed from what is learned: of low rank (BPT), and as frequencies (VFPT)."""

import cmath

import pytest
import timm
import torch
import torch.nn.functional as F

import vprompt
from vprompt.compression.merge import merge
from vprompt.methods.bpt import BPT
from vprompt.methods.layers.prompts import Prompts
from vprompt.methods.vfpt import VFPT
from vprompt.utils.errors import VPromptError

METHODS = {
    "bpt": BPT(6, rank=2, dropout=0.0),
    "vfpt": VFPT(6, fourier_share=0.5, dropout=0.0),
    "vfpt-all": VFPT(5, fourier_share=1.0, dropout=0.0),
}
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32).eval()


def attached(backbone, method, seed=0):
    torch.manual_seed(seed)
    model = vprompt.attach(backbone, METHODS[method], num_classes=3)
    with torch.no_grad():
        for value in model.learned.values():
            value.add_(torch.randn_like(value), alpha=0.3)
    return model.eval()


def images(count=3):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def data(count=6):
    return torch.utils.data.TensorDataset(images(count), torch.arange(count) % 3)


def by_hand(prompts, block, method):
    """Sums and products of single numbers."""
    values = prompts[block].detach().double()
    if method == "bpt":
        basis = prompts.bases[block].detach().double()
        rows = [[sum(float(a * b) for a, b in zip(left, right, strict=True)) for right in basis] for left in values]
        return torch.tensor(rows, dtype=torch.float64)
    first = 3 if method == "vfpt" else 5
    rows, width = values.tolist(), values.shape[1]
    # Row by row, then column by column; the published transform has no factor.
    turned = [
        [sum(row[n] * cmath.exp(-2j * cmath.pi * k * n / width) for n in range(width)) for k in range(width)]
        for row in rows[:first]
    ]
    waves = [
        [sum(turned[m][k] * cmath.exp(-2j * cmath.pi * j * m / first) for m in range(first)).real for k in range(width)]
        for j in range(first)
    ]
    return torch.tensor(waves + rows[first:], dtype=torch.float64)


@pytest.mark.parametrize(
    ("count", "share", "wanted"), [(7, 0.5, 3), (3, 0.5, 1), (10, 0.3, 3), (5, 1.0, 5), (4, 0.1, 0)]
)
def test_a_share_of_frequencies_is_rounded_down(count, share, wanted):
    assert VFPT(count, fourier_share=share).fourier_prompts == wanted


@every_method
def test_the_formula(backbone, method):
    prompts = attached(backbone, method).prompts
    for block in (0, 4):
        wanted = by_hand(prompts, block, method)
        torch.testing.assert_close(prompts.dense(block).double(), wanted, atol=1e-4, rtol=1e-4)
    if method == "bpt":
        assert int(torch.linalg.matrix_rank(prompts.dense(1))) == 2


@every_method
def test_all_executions_agree(backbone, method):
    model = attached(backbone, method)
    wanted = model.copy(execution="published")(images())
    torch.testing.assert_close(model(images()), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.fold()(images()), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merge(model, [torch.arange(len(p)) for p in model.prompts])(images()), wanted)


@every_method
def test_gradients_are_those_of_finite_differences(method):
    torch.manual_seed(0)
    model = attached(timm.create_model("test_vit", img_size=32).double(), method)

    def loss(model):
        return F.cross_entropy(model(images().double()), torch.tensor([0, 1, 2]))

    for name, value in model.learned.items():
        if not name.startswith("prompts.") or "3" not in name:
            continue
        (gradient,) = torch.autograd.grad(loss(model), [value])
        direction, ends = torch.randn_like(gradient), []
        for step in (1e-5, -1e-5):
            moved = model.copy()
            with torch.no_grad():
                moved.learned[name].add_(step * direction)
                ends.append(float(loss(moved)))
        assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


@every_method
def test_training_changes_all_and_goes_on_bit_for_bit(backbone, method, tmp_path):
    recipe = vprompt.Recipe(epochs=2, batch_size=3)
    whole, halves = attached(backbone, method), attached(backbone, method)
    before = whole.state()
    vprompt.fit(whole, data(), recipe=recipe)
    assert all(not torch.equal(before[name], value) for name, value in whole.state().items())
    file = tmp_path / "state.safetensors"
    vprompt.fit(halves, data(), recipe=recipe, checkpoint=file, until=1)
    again = attached(backbone, method, seed=5)
    vprompt.fit(again, data(), recipe=recipe, checkpoint=file, resume=True)
    assert all(torch.equal(value, whole.state()[name]) for name, value in again.state().items())


@every_method
def test_on_disk_they_are_ordinary_prompts(backbone, method, tmp_path):
    model = attached(backbone, method)
    model.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, backbone)
    assert type(again.prompts) is Prompts
    assert again.prompts.plain
    assert again.method == model.method
    torch.testing.assert_close(again(images()), model(images()), atol=1e-5, rtol=1e-5)
    assert {name for name in again.learned if name.startswith("prompts")} == {f"prompts.{n}" for n in range(6)}
    again.save_pretrained(tmp_path)
    assert torch.equal(vprompt.load(tmp_path, backbone)(images()), again(images()))


@every_method
def test_scored_condensed_pruned(backbone, method):
    model = attached(backbone, method)
    count = len(model.prompts[0])
    plain = model.copy(prompts=Prompts([model.prompts.dense(block).detach() for block in range(6)])).eval()
    scores = vprompt.score(model, data())
    for mine, theirs in zip(scores, vprompt.score(plain, data()), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-3)
    small = vprompt.condense(model, data(), ratio=0.5, scores=scores, fine_tune=False)
    assert sum(small.prompt_counts) == 3 * count
    early, recipe = model.state(), vprompt.Recipe(epochs=1, batch_size=3)
    vprompt.fit(model, data(), recipe=recipe)
    settings = vprompt.PruneSettings(tokens=0.2, segments=0.25, num_segments=4)
    pruned = vprompt.prune(model, data(), early=early, settings=settings, recipe=recipe).model
    assert pruned.prompts.num_segments == 4


@every_method
def test_from_the_command_line(method, colours, tmp_path, vprompt_command):
    name, _, _ = method.partition("-")
    size = ["--img-size", "16", "--prompts", "4", *(["--rank", "2"] if name == "bpt" else [])]
    out = tmp_path / "run"
    run = vprompt_command("fit", colours, "--method", name, *size, "--epochs", "1", "--batch-size", "9", "--out", out)
    assert run.status == 0, run.err
    assert vprompt_command("eval", out, colours).status == 0


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_a_start_of_low_rank_is_the_nearest(rank):
    torch.manual_seed(0)
    wanted = torch.randn(12, 9)
    prompts = Prompts([torch.zeros(12, rank)], bases=[torch.zeros(9, rank)])
    prompts.assign(0, wanted)
    rest = torch.linalg.svdvals(wanted)[rank:].square().sum()
    torch.testing.assert_close((prompts.dense(0) - wanted).square().sum(), rest, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BPT(4, rank=5), "at most its 4 prompts"),
        (lambda: BPT(4, rank=0), "at least 1"),
        (lambda: VFPT(4, init="tokens"), "start from random numbers"),
        (lambda: BPT(0), "at least one prompt"),
        (
            lambda: vprompt.attach(timm.create_model("test_vit"), BPT(99, rank=70), num_classes=2),
            "width of a block, 64",
        ),
        (lambda: VFPT(4, fourier_share=1.1), "between 0 and 1"),
        (lambda: vprompt.E2VPT(0, num_kv_prompts=2, init="tokens"), "start from random numbers"),
        (lambda: VFPT(4, fourier_share=float("nan")), "share"),
    ],
)
def test_settings_that_cannot_be(make, words):
    with pytest.raises(VPromptError, match=words):
        make()
