"""Prompts that move from block to block while they are trained (PRO-VPT)."""

import itertools

import pytest
import timm
import torch
import torch.nn.functional as F

import families
import vprompt
from vprompt.methods.pro_vpt import PROVPT
from vprompt.training.relocation import IMAGES, effects, relocate
from vprompt.utils.errors import VPromptError

pytestmark = pytest.mark.filterwarnings("ignore:The head starts from the VPT paper")

RECIPE = vprompt.Recipe(epochs=6, batch_size=4, lr=0.05, warmup=0.1)


def backbone():
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32)


def attached(seed=0, method=None, net=None, **options):
    torch.manual_seed(seed)
    method = method or PROVPT(3, **{"dropout": 0.0, **options})
    return vprompt.attach(net or backbone(), method, num_classes=3, head_init="paper")


def data(count=10, size=32):
    generator = torch.Generator().manual_seed(1)
    return torch.utils.data.TensorDataset(
        torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 3
    )


# ── the choice ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("signed", "moved", "seed"), itertools.product((True, False), (1, 3, 50), range(3)))
def test_the_choice_against_loops(signed, moved, seed):
    torch.manual_seed(seed)
    of = [torch.randn(5, count) for count in (3, 1, 4, 2)]
    fresh = {(2, 3), (0, 0)}
    worth = {}
    for block, effect in enumerate(of):
        for row in range(effect.shape[1]):
            column = [float(x) for x in effect[:, row]]
            worth[block, row] = -sum(column) / 5 if signed else sum(map(abs, column)) / 5
    left = {block: effect.shape[1] for block, effect in enumerate(of)}
    gone = []
    while len(gone) < moved:
        able = [p for p in worth if p not in gone and p not in fresh and left[p[0]] > 1]
        if not able:
            break
        gone.append(min(able, key=worth.get))
        left[gone[-1][0]] -= 1
    means = [sum(worth[b, r] for r in range(e.shape[1])) / e.shape[1] for b, e in enumerate(of)]
    best = means.index(max(means))
    method = PROVPT(4, moved=moved, scores="signed" if signed else "absolute")
    assert method.relocated(of, fresh) == (gone, [best] * len(gone))


def test_effects_are_those_of_zeroing_to_first_order():
    """Against finite differences of the loss of each image, in float64."""
    model = attached(net=backbone().double()).double().eval()
    images = data(4)
    images = torch.utils.data.TensorDataset(images.tensors[0].double(), images.tensors[1])
    found = effects(model, images, RECIPE)
    index = torch.randperm(4, generator=torch.Generator().manual_seed(RECIPE.seed))[:IMAGES]
    step = 1e-5
    for block, row in ((0, 1), (3, 2)):
        ends = []
        for sign in (1, -1):
            moved = model.copy().eval()
            with torch.no_grad():
                moved.prompts[block][row] *= 1 + sign * step
                logits = moved(images.tensors[0][index])
                ends.append(F.cross_entropy(logits, images.tensors[1][index], reduction="none"))
        wanted = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(found[block][:, row].double(), wanted, atol=1e-6, rtol=1e-4)


# ── a move ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("name", ["vit", "swin", "eva"])
def test_a_move_takes_everything_along(name, execution):
    net = families.vit() if name == "vit" else families.BACKBONES[name]()
    size = families.IMAGE_SIZES.get(name)
    images = families.some_images(net, 6, size=size)
    model = attached(net=net.eval(), method=PROVPT(3, moved=2, dropout=0.0)).copy(execution=execution)
    known = torch.utils.data.TensorDataset(images, torch.arange(6) % 3)
    optimizer = torch.optim.AdamW(model.learned.values(), lr=0.01)
    F.cross_entropy(model(images), known.tensors[1]).backward()
    optimizer.step()
    before = [p.detach().clone() for p in model.prompts]
    slots = [optimizer.state[p]["exp_avg"].clone() for p in model.prompts]
    average = {block: torch.nn.Parameter(p.detach() + 1) for block, p in enumerate(model.prompts)}
    gone, planted = model.method.relocated(effects(model, known, RECIPE))
    places = relocate(model, known, RECIPE, 1, optimizer, average, ())
    assert len(gone) == len(planted) == len(places) == 2
    assert sum(model.prompt_counts) == sum(map(len, before))
    for block, p in enumerate(model.prompts):
        kept = [row for row in range(3) if (block, row) not in gone]
        count = len(kept)
        assert model.prompt_counts[block] == count + planted.count(block) == len(p) == len(average[block])
        assert torch.equal(p[:count], before[block][kept])
        assert torch.equal(average[block][:count], before[block][kept] + 1)
        assert torch.equal(average[block][count:], p[count:])
        assert torch.equal(optimizer.state[p]["exp_avg"][:count], slots[block][kept])
        assert not optimizer.state[p]["exp_avg"][count:].any()
        assert [(block, row) for row in range(count, len(p))] == [place for place in places if place[0] == block]
        assert p.shape[1] == model.info.widths[block]
        for row in p[count:]:
            assert not any(torch.equal(row, other) for other in before[block])
    wanted = model.copy(execution="published").eval()(images)
    torch.testing.assert_close(model.eval()(images), wanted, atol=1e-4, rtol=1e-4)
    model.train()
    F.cross_entropy(model(images), known.tensors[1]).backward()
    optimizer.step()  # with shapes that fit


# ── trainings ────────────────────────────────────────────────────────────────────────────────────────────────────────

VARIANTS = {
    "plain": {},
    "ema": {"ema": 0.9},
    "best": {"best_epoch": True},
    "sgd": {"optimizer": "sgd", "lr": 1.0},
    "bf16": {"precision": "bf16"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("until", [1, 3])
def test_a_training_goes_on_bit_for_bit_after_moves(variant, until, tmp_path):
    recipe = vprompt.Recipe(**{**vars(RECIPE), **VARIANTS[variant]})
    whole = attached()
    vprompt.fit(whole, data(), data(6), recipe=recipe)
    assert sum(whole.prompt_counts) == 18
    assert whole.prompt_counts != [3] * 6
    assert min(whole.prompt_counts) >= 1
    file = tmp_path / "state.safetensors"
    vprompt.fit(attached(), data(), data(6), recipe=recipe, checkpoint=file, until=until)
    again = attached(seed=7)
    vprompt.fit(again, data(), data(6), recipe=recipe, checkpoint=file, resume=True)
    assert again.prompt_counts == whole.prompt_counts
    assert all(torch.equal(value, whole.state()[name]) for name, value in again.state().items())
    third = attached(seed=8)
    vprompt.fit(third, data(), data(6), recipe=recipe, checkpoint=file, resume=True)  # of a finished one
    assert all(torch.equal(value, whole.state()[name]) for name, value in third.state().items())


def test_a_published_training_gives_the_same_counts_and_nearly_the_same_numbers():
    one = attached()
    two = attached().copy(execution="published")
    for model in (one, two):
        vprompt.fit(model, data(), recipe=vprompt.Recipe(epochs=3, batch_size=4, lr=0.01, grad_checkpointing=True))
    assert one.prompt_counts == two.prompt_counts
    images = data().tensors[0]
    torch.testing.assert_close(one(images), two(images), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(two(images), two.copy(execution="prefix").eval()(images), atol=1e-4, rtol=1e-4)


def test_what_comes_out_is_saved_folded_and_condensed(tmp_path):
    model = attached(moved=2)
    vprompt.fit(model, data(), recipe=RECIPE)
    counts, images = list(model.prompt_counts), data().tensors[0]
    assert max(counts) > 3
    model.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, model.backbone)
    assert again.prompt_counts == counts
    assert torch.equal(again(images), model(images))
    torch.testing.assert_close(model.fold()(images), model(images), atol=1e-5, rtol=1e-4)
    small = vprompt.condense(model, data(), ratio=0.5, recipe=vprompt.Recipe(epochs=3, batch_size=4))
    assert sum(small.prompt_counts) == 9
    chosen = [len(kept) for kept in small.condensation.kept]
    assert small.prompt_counts == chosen  # fine-tuning moves none
    small.save_pretrained(tmp_path / "small")
    assert vprompt.load(tmp_path / "small", model.backbone).prompt_counts == chosen


def test_nothing_moves_in_warm_up_or_after_the_last_epoch():
    for epochs, warmup in ((1, 0.0), (4, 1.0)):
        model = attached()
        vprompt.fit(model, data(), recipe=vprompt.Recipe(epochs=epochs, batch_size=4, warmup=warmup))
        assert model.prompt_counts == [3] * 6


def test_from_the_command_line(colours, tmp_path, vprompt_command):
    options = ["--method", "pro-vpt", "--prompts", "2", "--img-size", "16", "--epochs", "4", "--batch-size", "9"]
    run = vprompt_command("fit", colours, *options, "--out", tmp_path / "run", "--json")
    assert run.status == 0, run.err
    assert sum(run.document["prompt_counts"]) == 2 * len(run.document["prompt_counts"])
    assert len(set(run.document["prompt_counts"])) > 1
    refused = vprompt_command("fit", colours, *options, "--prune", "--out", tmp_path / "pruned")
    assert refused.status == 1
    assert "cannot be rewound" in refused.err


def test_what_cannot_be():
    for make, words in (
        (lambda: PROVPT(3, moved=0), "at least 1"),
        (lambda: PROVPT(3, scores="both"), "scores"),
        (lambda: vprompt.prune(attached(), data(), early=attached().state()), "cannot be rewound"),
    ):
        with pytest.raises(VPromptError, match=words):
            make()
