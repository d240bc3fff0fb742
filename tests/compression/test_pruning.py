"""Pruning: scores against masks in a slow loop, pruned models against masked ones, the search, rewinding, resuming."""

import functools
import itertools
import json
import math
import random
import shutil
import signal
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset, TensorDataset

import families
import reference
import vprompt
from conftest import run_command, write_classes
from reference import attached, close, some_images
from test_experiment import adapter_hash, checkpoint_step, end, numbers, on_cpu
from vprompt.compression.choices import (
    FEWEST,
    SHARES,
    Budget,
    Choice,
    PruneSettings,
    Trial,
    best_of_each_size,
    grid,
    ranked,
    spread,
)
from vprompt.compression.importance import cut, importance, pruned
from vprompt.compression.prune import prune
from vprompt.compression.search import delete_search, same_search
from vprompt.compression.select import select_segments
from vprompt.experiments.run import run
from vprompt.experiments.settings import settings_from
from vprompt.methods.layers.prompts import Prompts
from vprompt.model.records import Pruning, Recipe
from vprompt.model.tensors import TENSORS_FILE
from vprompt.utils.errors import AdapterError, TrainingError, VPromptError

pytestmark = pytest.mark.filterwarnings("ignore:The head starts from the VPT paper")
"""Heads that say something from the start, trained for a moment."""

LABELS = torch.tensor([0, 4, 2, 1, 3, 3, 0])
SMALL = Recipe(epochs=2, batch_size=4, lr=1e-2)
KINDS = {"deep": vprompt.VPT(3), "shallow": vprompt.VPT(3, "shallow"), "e2vpt": vprompt.E2VPT(3, 0)}
NAMES = ["class-token", "qk-norm", "no-class-token-avg", "post-norm"]


def some_data(name="class-token", dtype=torch.float64, count=7):
    return TensorDataset(some_images(name, count, dtype=dtype), LABELS[:count])


def learned_data(count=16, seed=0):
    """Images whose label is in their colour; float32, for the smallest of the backbones."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.3 * torch.randn(count, 3, *SIZE, generator=generator)
    images[torch.arange(count), labels] += 1.0
    return TensorDataset(images, labels)


def a_backbone():
    torch.manual_seed(0)
    return reference.BACKBONES["class-token"]()


SIZE = tuple(some_images("class-token", 1).shape[2:])


def a_model(method=None, seed=0):
    backbone = a_backbone()
    torch.manual_seed(seed)
    return vprompt.attach(backbone, method or vprompt.E2VPT(4, 2), num_classes=3, head_init="zero")


# ── Scores of segments ───────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def wanted_gradients(name, kind, parts):
    model = attached(name, KINDS[kind], dtype=torch.float64)
    return masks_gradients(model, some_data(name), parts)


def masks_gradients(model, data, parts):
    """For each image, the gradient of its loss to a mask (P, R) of every block, by autograd through the reference."""
    found = []
    shallow = model.method.name == "vpt-shallow"
    for image, label in zip(*data.tensors, strict=True):
        masks = [torch.ones(len(p), parts, dtype=torch.float64, requires_grad=True) for p in model.prompts]
        held = [
            (p.detach().double().unflatten(1, (parts, -1)) * m[..., None]).flatten(1) if len(p) else p.detach().double()
            for p, m in zip(model.prompts, masks, strict=True)
        ]
        logits = reference.logits(
            model.backbone, held, model.head.weight, model.head.bias, image[None], shallow=shallow
        )
        loss = reference.cross_entropy(logits, label[None]).sum()
        used = [m for m in masks if len(m)]
        gradients = iter(torch.autograd.grad(loss, used))
        found.append([next(gradients) if len(m) else m.detach() for m in masks])
    return found


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("criterion", ["taylor", "taylor-signed"])
@pytest.mark.parametrize("parts", [1, 2, 8])
@pytest.mark.parametrize(("name", "kind"), itertools.product(NAMES, KINDS))
def test_segments_are_scored_by_the_gradient_of_their_mask(name, kind, parts, criterion, execution):
    model, data = attached(name, KINDS[kind], dtype=torch.float64, execution=execution), some_data(name)
    each = wanted_gradients(name, kind, parts)
    found = vprompt.score(model, data, criterion=criterion, segments=parts, batch_size=3)
    for block, scores in enumerate(found):
        gradients = torch.stack([one[block] for one in each])
        wanted = -gradients.mean(0) if criterion == "taylor-signed" else gradients.abs().mean(0)
        assert scores.shape == wanted.shape
        close(scores, wanted, 1e-4)


@pytest.mark.parametrize("parts", [None, 4])
@pytest.mark.parametrize("name", NAMES)
def test_a_shared_mask_adds_up_its_blocks_before_the_absolute_value(name, parts):
    model, data = attached(name, KINDS["deep"], dtype=torch.float64), some_data(name)
    each = masks_gradients(model, data, parts or 1)
    wanted = torch.stack([sum(one) for one in each]).abs().mean(0)
    found = vprompt.score(model, data, segments=parts, shared=True)
    for scores in found:
        close(scores, wanted if parts else wanted[:, 0], 1e-4)
    apart = sum(vprompt.score(model, data, segments=parts))
    assert bool((apart > found[0] * 1.05).any())


def test_the_signed_score_predicts_what_removal_does():
    """Small prompts behind a norm with a large epsilon: the loss is nearly linear in their masks."""
    model, data = attached("post-norm", KINDS["deep"], dtype=torch.float64), some_data("post-norm")
    with torch.no_grad():
        for p in model.prompts:
            p.mul_(1e-4)
    scores = vprompt.score(model, data, criterion="taylor-signed", segments=2)
    before = mean_loss(model, data)
    for block, prompt, part in itertools.product(range(3), range(3), range(2)):
        twin = model.copy()
        with torch.no_grad():
            twin.prompts[block][prompt].unflatten(0, (2, -1))[part] = 0.0
        assert float(scores[block][prompt, part]) == pytest.approx(mean_loss(twin, data) - before, rel=0.05)


def mean_loss(model, data):
    return float(torch.nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).detach())


def test_magnitudes_and_random_scores_of_segments():
    model, data = attached("class-token", KINDS["deep"]), some_data(dtype=torch.float32)
    found = vprompt.score(model, data, criterion="magnitude", segments=4)
    for scores, prompts in zip(found, model.prompts, strict=True):
        close(scores**2, prompts.detach().unflatten(1, (4, -1)).pow(2).sum(-1), 1e-5)
    drawn = [vprompt.score(model, data, criterion="random", segments=4, seed=seed) for seed in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[2][0])
    shared = vprompt.score(model, data, criterion="magnitude", segments=4, shared=True)
    assert all(torch.equal(scores, sum(found)) for scores in shared)


def test_what_cannot_be_scored_is_refused():
    model, data = attached("class-token", KINDS["deep"]), some_data(dtype=torch.float32)
    with pytest.raises(VPromptError, match="cannot be cut into 5 equal segments"):
        vprompt.score(model, data, segments=5)
    with pytest.raises(VPromptError, match="cannot be cut into 0"):
        vprompt.score(model, data, segments=0)
    with pytest.raises(VPromptError, match="whole prompts"):
        vprompt.score(model, data, criterion="cls-similarity", segments=2)
    uneven = attached("class-token", KINDS["deep"], counts=[1, 2, 3])
    with pytest.raises(VPromptError, match="different numbers"):
        vprompt.score(uneven, data, shared=True)


# ── Selection of segments ────────────────────────────────────────────────────────────────────────────────────────────


def plain_selection(scores, ratio, scope):
    """Every prompt's best segment, then the best of the rest by a sort of Python's."""
    if scope == "shared":
        total = sum(scores)
        return [plain_selection([total], ratio, "global")[0]] * len(scores)
    masks = [torch.zeros(s.shape, dtype=torch.bool) for s in scores]
    wanted = max(sum(map(len, scores)), math.floor(ratio * sum(s.numel() for s in scores) + 0.5))
    if scope == "local":  # from the best segment of each prompt on, always to the block that is furthest behind
        counts = list(map(len, scores))
        while sum(counts) < wanted:
            behind = [Fraction(s.numel(), 2 * count + 1) for s, count in zip(scores, counts, strict=True)]
            counts[behind.index(max(behind))] += 1
        groups = [([block], count) for block, count in enumerate(counts)]
    else:
        groups = [(range(len(scores)), wanted)]
    for group, number in groups:
        places = [(b, p, r) for b in group for p in range(scores[b].shape[0]) for r in range(scores[b].shape[1])]
        chosen = {(b, p, int(scores[b][p].argmax())) for b in group for p in range(scores[b].shape[0])}
        rest = sorted((place for place in places if place not in chosen), key=lambda at: -float(scores[at[0]][at[1:]]))
        chosen |= set(rest[: number - len(chosen)])
        for b, p, r in chosen:
            masks[b][p, r] = True
    return masks


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    parts=st.integers(1, 5),
    ratio=st.floats(0.01, 1.0),
    scope=st.sampled_from(["global", "local"]),
    seed=st.integers(0, 99),
)
def test_segments_are_chosen_as_by_a_plain_sort(counts, parts, ratio, scope, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(count, parts, generator=generator) for count in counts]
    found = select_segments(scores, ratio=ratio, scope=scope)
    wanted = plain_selection(scores, ratio, scope)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 1.0])
def test_a_shared_choice_is_the_same_in_every_block_and_goes_by_the_sum(ratio):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(5, 4, generator=generator) for _ in range(3)]
    found = select_segments(scores, ratio=ratio, scope="shared")
    wanted = plain_selection(scores, ratio, "shared")
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    tokens = [s.sum(1) for s in scores]
    kept = vprompt.select(tokens, ratio=ratio, scope="shared")
    best = sum(tokens).sort(descending=True).indices[: max(1, math.floor(5 * ratio + 0.5))].sort().values
    assert all(torch.equal(index, best) for index in kept)
    assert [len(k) for k in vprompt.select([tokens[0], torch.zeros(0)], ratio=0.5, scope="shared")] == [3, 0]
    with pytest.raises(VPromptError, match="different numbers"):
        vprompt.select([torch.rand(3), torch.rand(4)], ratio=0.5, scope="shared")


def test_bad_selections_of_segments():
    for ratio in (0.0, -1.0, 1.1, math.nan):
        with pytest.raises(VPromptError, match="ratio of segments"):
            select_segments([torch.rand(2, 2)], ratio=ratio)
    with pytest.raises(VPromptError, match="not all numbers"):
        select_segments([torch.tensor([[1.0, math.nan]])], ratio=0.5)
    with pytest.raises(VPromptError, match="scope"):
        select_segments([torch.rand(2, 2)], ratio=0.5, scope="all")


# ── Pruned is masked ─────────────────────────────────────────────────────────────────────────────────────────────────


def random_choice(model, parts, seed=0, share=0.5):
    """Some prompts of each block (of one block none), and some segments of each."""
    generator = torch.Generator().manual_seed(seed)
    kept, masks = [], []
    for block, count in enumerate(model.prompt_counts):
        number = 0 if block == 1 else max(min(1, count), round(count * share))
        kept.append(torch.randperm(count, generator=generator)[:number].sort().values)
        mask = torch.rand(number, parts, generator=generator) < share
        mask[torch.arange(number), torch.randint(parts, (number,), generator=generator)] = True
        masks.append(mask)
    return kept, masks


def by_hand(model, kept, masks):
    """The prompts that stay, as plain tensors with zeros in the places of pruned segments."""
    held = []
    for p, index, mask in zip(model.prompts, kept, masks, strict=True):
        rows = p.detach().clone()[index]
        width = p.shape[1] // mask.shape[1]
        for row, part in itertools.product(range(len(rows)), range(mask.shape[1])):
            if not mask[row, part]:
                rows[row, part * width : (part + 1) * width] = 0.0
        held.append(rows)
    return held


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("parts", [1, 2, 8])
@pytest.mark.parametrize(("name", "kind"), itertools.product([*NAMES, "registers-avg", "attention-pooling"], KINDS))
def test_a_pruned_model_is_the_reference_with_rows_gone_and_channels_zero(name, kind, parts, execution, tmp_path):
    model = attached(name, KINDS[kind], dtype=torch.float64, execution=execution)
    images = some_images(name, 3, dtype=torch.float64)
    kept, masks = random_choice(model, parts)
    if kind == "shallow":
        kept, masks = [kept[0], *(k[:0] for k in kept[1:])], [masks[0], *(m[:0] for m in masks[1:])]
    small = model.keep(kept, masks).eval()
    held = by_hand(model, kept, masks)
    wanted = reference.logits(
        model.backbone, held, model.head.weight, model.head.bias, images, shallow=kind == "shallow"
    )
    close(small(images), wanted, 1e-10)
    close(small.fold()(images), wanted, 1e-10)
    for other in ("prefix", "published"):
        close(small.copy(execution=other).eval()(images), wanted, 1e-10)
    small.pruning = Pruning(tokens=0.5, segments=0.5, rewind_epoch=0)
    small.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, backbone=model.backbone, execution=execution)
    assert torch.equal(again(images), small(images))
    assert again.pruning == small.pruning
    assert [p.shape for p in again.prompts] == [p.shape for p in small.prompts]


@pytest.mark.parametrize("name", ["swin", "swin-three-stages", "swin2", "swin-cr", "dinov3", "beit-both", "sam"])
def test_pruned_is_masked_on_other_backbones(name):
    backbone = families.BACKBONES[name]().double()
    model = vprompt.attach(backbone, vprompt.E2VPT(4, 2), head_init="paper", num_classes=3).eval()
    images = families.some_images(name, 2, dtype=torch.float64)
    kept, masks = random_choice(model, 4)
    small, masked = model.keep(kept, masks).eval(), model.keep(kept).eval()
    with torch.no_grad():
        for p, held in zip(masked.prompts, by_hand(model, kept, masks), strict=True):
            p.copy_(held)
    for execution in ("prefix", "published"):
        close(small.copy(execution=execution).eval()(images), masked(images), 1e-10)
    close(small.fold()(images), masked(images), 1e-10)
    assert not torch.allclose(small(images), model.keep(kept).eval()(images))


@pytest.mark.parametrize("execution", ["prefix", "published"])
def test_only_kept_segments_are_learned_counted_and_saved(execution, tmp_path):
    backbone = a_backbone()
    model = vprompt.attach(backbone, vprompt.E2VPT(4, 2), head_init="paper", num_classes=3, execution=execution)
    kept, masks = random_choice(model, 4)
    small = model.keep(kept, masks)
    width = model.info.widths[0] // 4
    numbers = sum(int(mask.sum()) for mask in masks) * width
    head = model.info.num_features * 3 + 3
    assert small.num_learned == numbers + sum(p.numel() for p in model.kv_prompts) + head
    before = [small.prompts.dense(block).detach().clone() for block in range(3)]
    vprompt.fit(small, learned_data(), recipe=SMALL)
    for block, mask in enumerate(masks):
        now = small.prompts.dense(block).detach().unflatten(1, (4, width))
        was = before[block].unflatten(1, (4, width))
        assert bool((now[~mask] == 0).all())
        assert bool((now[mask] != was[mask]).all())
    small.save_pretrained(tmp_path)
    saved = load_file(tmp_path / TENSORS_FILE)
    assert sum(t.numel() for name, t in saved.items() if name.startswith("prompts.")) == numbers
    assert all(torch.equal(saved[f"segments.{b}"], masks[b]) for b in (0, 2))
    assert "segments.1" not in saved


def test_gradients_of_kept_segments_are_those_of_the_masked_prompts():
    model = attached("class-token", vprompt.VPT(4, dropout=0.0), dtype=torch.float64)
    images = some_images("class-token", 3, dtype=torch.float64)
    kept, masks = random_choice(model, 8)
    small = model.keep(kept, masks).train()
    small(images).square().sum().backward()
    leaves = [held.requires_grad_() for held in by_hand(model, kept, masks)]
    logits = reference.logits(model.backbone, leaves, model.head.weight, model.head.bias, images)
    used = [leaf for leaf in leaves if len(leaf)]
    gradients = torch.autograd.grad(logits.square().sum(), used)
    found = [p.grad for p in small.prompts if len(p)]
    for grad, wanted, mask in zip(found, gradients, [m for m in masks if len(m)], strict=True):
        close(grad, wanted.unflatten(1, (8, -1))[mask], 1e-10)


def test_pruning_again_keeps_what_was_pruned_pruned():
    model = attached("class-token", vprompt.VPT(4))
    first = model.keep([torch.arange(4)] * 3, [torch.tensor([[True, False, True, False]] * 4)] * 3)
    again = first.keep([torch.tensor([1, 3])] * 3, [torch.tensor([[True, True, False, False]] * 2)] * 3)
    assert all(again.prompts.segments(b).tolist() == [[True, False, False, False]] * 2 for b in range(3))
    fewer = first.keep([torch.tensor([2])] * 3)
    assert all(torch.equal(fewer.prompts.dense(b), first.prompts.dense(b)[2:3]) for b in range(3))
    with pytest.raises(VPromptError, match="pruned before"):
        first.keep([torch.arange(4)] * 3, [torch.ones(4, 2, dtype=torch.bool)] * 3)
    data = some_data(dtype=torch.float32)
    condensed = vprompt.condense(first, data, ratio=0.5, fine_tune=False)
    assert sum(condensed.prompt_counts) == 6
    assert condensed.prompts.num_segments == 4
    for scores, block in zip(vprompt.score(first, data, segments=4), range(3), strict=True):
        assert bool((scores[~first.prompts.segments(block)] == 0).all())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([torch.ones(4, 4)] * 3, "mask of booleans"),
        ([torch.ones(3, 4, dtype=torch.bool)] * 3, "mask of booleans"),
        ([torch.ones(4, dtype=torch.bool)] * 3, "mask of booleans"),
        ([torch.ones(4, 5, dtype=torch.bool)] * 3, "cannot be cut into 5"),
        ([torch.ones(4, 4, dtype=torch.bool)] * 2, "2 masks"),
        ([torch.tensor([[True], [False], [True], [True]])] * 3, "no segment"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    model = attached("class-token", vprompt.VPT(4))
    with pytest.raises(VPromptError, match=message):
        model.keep([torch.arange(4)] * 3, masks)


def test_prompts_can_be_moved_and_copied():
    mask = [torch.tensor([[True, False], [True, True]]), torch.zeros(0, 2, dtype=torch.bool)]
    prompts = Prompts([torch.randn(3, 4), torch.zeros(0, 4)], segments=mask)
    assert prompts.counts == [2, 0]
    assert torch.equal(prompts.segments(0), mask[0])
    doubled = prompts.double()
    assert doubled.dense(0).dtype == torch.float64
    assert doubled.dense(0).shape == (2, 8)
    assert doubled.to("meta").dense(0).shape == (2, 8)


# ── Files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = a_model()
    worth = importance(model, learned_data(), num_segments=4)
    small = pruned(model, worth, Choice(tokens=0.5, segments=0.5))
    folder = tmp_path_factory.mktemp("pruned")
    small.save_pretrained(folder)
    return folder, model.backbone


def tampered(saved, tmp_path, change, config_change=None):
    import hashlib

    folder = tmp_path / "adapter"
    shutil.copytree(saved[0], folder)
    tensors = load_file(folder / TENSORS_FILE)
    change(tensors)
    save_file(tensors, folder / TENSORS_FILE, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["checksum"]
    config["tensors_sha256"] = hashlib.sha256((folder / TENSORS_FILE).read_bytes()).hexdigest()
    if config_change:
        config_change(config)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def first_mask(tensors):
    return next(name for name in sorted(tensors) if name.startswith("segments."))


@pytest.mark.parametrize(
    ("change", "config_change"),
    [
        (lambda t: t.update({first_mask(t): ~t[first_mask(t)]}), None),
        (lambda t: t.update({first_mask(t): t[first_mask(t)].float()}), None),
        (lambda t: t.pop(first_mask(t)), None),
        (lambda t: t.update({first_mask(t): t[first_mask(t)][:, :2].contiguous()}), None),
        (lambda t: None, lambda c: c.update(num_segments=7)),
        (lambda t: None, lambda c: c["pruning"].update(tokens=1.5)),
        (lambda t: None, lambda c: c["pruning"].update(rewind_epoch=-1)),
        (lambda t: None, lambda c: c["pruning"].pop("segments")),
        (lambda t: None, lambda c: c.update(num_segments=1)),
        (lambda t: None, lambda c: c.update(pruning=[1])),
    ],
)
def test_a_tampered_pruned_adapter_is_refused(saved, tmp_path, change, config_change):
    folder = tampered(saved, tmp_path, change, config_change)
    with pytest.raises(AdapterError):
        vprompt.load(folder, backbone=saved[1])


def test_an_adapter_without_the_key_pruning_loads(tmp_path):
    model = a_model()
    model.save_pretrained(tmp_path / "a")
    folder = tampered((tmp_path / "a", None), tmp_path, lambda t: None, lambda c: c.pop("pruning"))
    assert vprompt.load(folder, backbone=model.backbone).pruning is None


def test_the_card_says_what_was_pruned(saved):
    text = (saved[0] / "README.md").read_text()
    assert "50 % of the prompts, then 50 % of the segments" in text


# ── Choices and their search ─────────────────────────────────────────────────────────────────────────────────────────


def test_all_percentages_from_10_to_90_and_none_are_among_the_choices():
    assert [round(100 * share) for share in SHARES] == list(range(0, 100, 10))
    assert len(set(grid())) == 100
    assert Choice() in grid()
    assert {c.tokens for c in grid(tokens=0.25)} == {0.25}
    assert {c.segments for c in grid(segments=0.25)} == {0.25}


@settings(max_examples=300, deadline=None)
@given(epochs=st.integers(1, 300), train=st.integers(4, 5000), share=st.floats(0.01, 1.0), fixed=st.booleans())
def test_a_search_costs_at_most_six_trainings(epochs, train, share, fixed):
    """The training before it, scoring, the looks as trained, the trainings; a forward pass is a third of a step."""
    val = max(1, round(train * share))
    budget = Budget.of(10 if fixed else 100, epochs=epochs, train=train, val=val)
    look = val / (3 * train * epochs)
    total = 1 + 2 / epochs + (budget.evaluations + budget.trainings) * look + budget.trainings
    assert budget.trainings >= 1
    assert budget.evaluations >= min(FEWEST, 10 if fixed else 100)
    # With one epoch and many validation images, sixteen looks and one training are more already.
    assert total <= 6 or (epochs == 1 and budget.trainings == 1 and budget.evaluations <= FEWEST)


@pytest.mark.parametrize("epochs", [4, 12, 100])
def test_of_the_usual_splits_all_choices_are_looked_at_and_three_trained(epochs):
    budget = Budget.of(100, epochs=epochs, train=800, val=200)
    assert budget.trainings == 3
    assert budget.evaluations == 100 if epochs >= 20 else budget.evaluations >= 24


def trial(tokens, segments, accuracy, loss=1.0, epochs=1):
    choice = Choice(tokens=tokens, segments=segments)
    kept = ((1 - tokens) + (1 - tokens) * (1 - segments)) / 2
    return Trial(choice=choice, kept=kept, epochs=epochs, accuracy=accuracy, loss=loss)


def test_ranking_weighs_the_loss_against_what_is_saved():
    none, half, most = trial(0, 0, 0.80, 1.0), trial(0.5, 0, 0.79, 1.02), trial(0.9, 0.5, 0.75, 1.3)
    assert ranked([most, none, half], saving=0.08) == [half, none, most]
    assert ranked([most, none, half], saving=0.0) == [none, half, most]
    assert ranked([most, none, half], saving=1.0)[0] is most
    close_call = [trial(0.5, 0, 0.8, 0.7), trial(0.0, 0.5, 0.81, 0.7), trial(0.0, 0.6, 0.0, None)]
    assert ranked(close_call, saving=0.0) == [close_call[1], close_call[0], close_call[2]]
    assert ranked(close_call, saving=0.02)[0] is close_call[0], "prompts cost time, segments do not"
    # relative: ten times the loss, the same order; and next to nothing is nothing
    tenfold = [replace(t, loss=10 * t.loss) for t in (none, half, most)]
    assert [t.kept for t in ranked(tenfold, saving=0.08)] == [half.kept, none.kept, most.kept]
    assert ranked([trial(0, 0, 1.0, 1e-6), trial(0.5, 0, 1.0, 9e-3)], saving=0.01)[0].kept == 0.5


def test_the_best_of_each_size_spreads_over_the_sizes():
    generator = random.Random(0)
    trials = [trial(c.tokens, c.segments, 0.5, generator.random() + 0.1) for c in grid()]
    chosen = best_of_each_size(trials, 7, saving=0.0)
    assert len(chosen) == len(set(chosen)) == 7
    found = {t.choice: t for t in trials}
    sizes = [found[choice].kept for choice in chosen]
    assert sizes == sorted(sizes, reverse=True)
    ordered = sorted(trials, key=lambda t: (-t.kept, t.choice.tokens))
    assert chosen[0] == max(ordered[: round(len(ordered) / 7)], key=lambda t: -t.loss).choice
    assert len(best_of_each_size(trials[:3], 7, saving=0.0)) == 3
    assert best_of_each_size([], 7, saving=0.0) == []


def test_spreading_keeps_the_ends():
    assert spread(grid(), 2) == [grid()[0], grid()[-1]]
    assert spread(grid(), 100) == grid()
    assert len(set(spread(grid(), 37))) == 37


@pytest.mark.parametrize("scope", ["global", "local", "shared"])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_shares_are_those_that_came_about_and_not_those_wished_for(parts, scope):
    model, data = a_model(vprompt.E2VPT(3, 0)), learned_data()
    worth = importance(model, data, num_segments=parts, scope=scope)
    for choice in [Choice(), Choice(tokens=0.9, segments=0.9), Choice(tokens=0.4, segments=0.6)]:
        found, small = cut(worth, choice), pruned(model, worth, choice)
        prompts, numbers = sum(small.prompt_counts), sum(p.numel() for p in small.prompts)
        assert found.pruned_tokens == pytest.approx(1 - prompts / 9)
        assert found.pruned_segments == pytest.approx(1 - numbers / (prompts * model.info.widths[0]))
        assert found.share == pytest.approx((prompts / 9 + numbers / (9 * model.info.widths[0])) / 2)
        assert (small.pruning.tokens, small.pruning.segments) == (found.pruned_tokens, found.pruned_segments)


@pytest.mark.parametrize(
    "values",
    [{"tokens": 1.0}, {"tokens": -0.1}, {"segments": 1.0}, {"num_segments": 0}, {"saving": -1.0}, {"saving": math.nan}],
)
def test_settings_out_of_range(values):
    with pytest.raises(VPromptError):
        PruneSettings(**values)


# ── The whole procedure ──────────────────────────────────────────────────────────────────────────────────────────────


def trained_model(method=None):
    model = a_model(method)
    early = model.state()
    vprompt.fit(model, learned_data(), recipe=SMALL)
    return model, early


def same(first, second):
    a, b = first.state(), second.state()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_given_shares_are_pruned_rewound_and_trained():
    model, early = trained_model()
    before = model.state()
    data = learned_data()
    found = prune(model, data, early=early, settings=PruneSettings(tokens=0.5, segments=0.25, num_segments=4))
    worth = importance(model, data, num_segments=4)
    kept = vprompt.select(worth.tokens, ratio=0.5)
    masks = select_segments([s[k] for s, k in zip(worth.segments, kept, strict=True)], ratio=0.75)
    hand = a_model().keep(kept, masks)  # fresh, with the values of the start
    vprompt.fit(hand, data, recipe=SMALL)
    assert same(found.model, hand)
    assert sum(found.model.prompt_counts) == 6
    assert found.model.prompts.num_segments == 4
    assert found.model.pruning == Pruning(tokens=0.5, segments=0.25, rewind_epoch=0)
    assert not found.model.training
    assert found.trials == []
    assert same(model, a_copy_of(model, before)), "the trained model was changed"


def a_copy_of(model, state):
    twin = model.copy()
    twin.restore(state)
    return twin


def test_without_an_early_state_training_goes_on_from_where_it_was():
    model, _ = trained_model()
    data = learned_data()
    settings_ = PruneSettings(tokens=0.5, segments=0.0, num_segments=4)
    found = prune(model, data, settings=settings_)
    hand = pruned(model, importance(model, data, num_segments=4), Choice(tokens=0.5))
    vprompt.fit(hand, data, recipe=SMALL)
    assert same(found.model, hand)
    assert found.model.pruning.rewind_epoch is None
    assert found.model.prompts.num_segments == 1


@pytest.mark.parametrize("method", [vprompt.VPT(4), vprompt.VPT(8, "shallow"), vprompt.E2VPT(4, 0)])
@pytest.mark.parametrize("scope", ["global", "local", "shared"])
def test_every_method_with_prompts_can_be_pruned_in_every_scope(method, scope):
    model, early = trained_model(method)
    chosen = PruneSettings(tokens=0.5, segments=0.5, num_segments=4, scope=scope)
    found = prune(model, learned_data(), early=early, settings=chosen)
    assert sum(found.model.prompt_counts) == sum(model.prompt_counts) // 2
    assert sum(p.numel() for p in found.model.prompts) == sum(p.numel() for p in model.prompts) // 4
    if scope == "shared":
        masks = [found.model.prompts.segments(b) for b, n in enumerate(found.model.prompt_counts) if n]
        assert all(torch.equal(mask, masks[0]) for mask in masks)
        assert len({kept for kept in found.model.condensation.kept if kept}) == 1


def test_a_search_bisects_the_size_and_ends_with_the_best():
    data, val = learned_data(48), learned_data(3, seed=1)
    recipe = Recipe(epochs=8, batch_size=16, lr=1e-2)
    model = a_model()
    early = model.state()
    vprompt.fit(model, data, recipe=recipe)
    found = prune(model, data, val, early=early, settings=PruneSettings(num_segments=4))
    looks = [t for t in found.trials if t.epochs == 0]
    trained = [t for t in found.trials if t.epochs == 8]
    assert len({t.kept for t in looks}) <= len(looks) < 100  # choices that come to the same are tried once
    assert len({(t.choice.tokens, t.choice.segments) for t in looks}) == len(looks)
    saving = PruneSettings().saving
    sizes = best_of_each_size([t for t in looks if t.kept < 1], 7, saving=saving)
    best = next(t for t in looks if t.kept == 1)
    low, high = 0, 7
    for t in trained:  # by hand: smaller after a success, else larger
        middle = (low + high) // 2
        assert t.choice == sizes[middle]
        if ranked([best, t], saving=saving)[0] is t:
            best, low = t, middle + 1
        else:
            high = middle
    assert len(trained) == 3
    assert found.choice == best.choice
    assert vprompt.evaluate(found.model, val).accuracy == best.accuracy
    assert found.trainings == pytest.approx((2 + 24 + len(found.trials) * 3 / (3 * 48)) / 8)
    if best.kept == 1:
        assert same(found.model, model)
        assert found.history is None


def test_where_pruning_hurts_nothing_is_pruned():
    """Every choice but none is worth less: `saving=0` and a model that has learned what the data shows."""
    model = a_model(vprompt.E2VPT(2, 0))
    vprompt.fit(model, learned_data(), recipe=Recipe(epochs=1, lr=1e-6))
    with torch.no_grad():  # a state to rewind to that cannot be trained from in a step
        early = {name: torch.zeros_like(value) for name, value in model.state().items()}
    good = a_model(vprompt.E2VPT(2, 0))
    vprompt.fit(good, learned_data(), recipe=Recipe(epochs=40, batch_size=8, lr=1e-2))
    found = prune(
        good,
        learned_data(),
        learned_data(12, seed=1),
        early=early,
        settings=PruneSettings(num_segments=4, saving=0.0),
        recipe=Recipe(epochs=1, lr=1e-9),
    )
    assert found.choice == Choice()
    assert same(found.model, good)
    assert found.model.pruning is None


class Stopping(Dataset):
    """Validation data that is interrupted when it is read for the n-th time."""

    def __init__(self, data, reads):
        self.data, self.left = data, reads * len(data)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        image, label = self.data[index]
        return image, int(label)


@pytest.fixture(scope="module")
def search():
    """A search of 100 choices by two-epoch trainings, and what it comes to when nothing disturbs it."""
    model, early = trained_model()
    big = TensorDataset(*(torch.cat([t] * 10) for t in learned_data().tensors))  # enough to try all 100 choices
    recipe, chosen = Recipe(epochs=2, batch_size=32, lr=1e-2), PruneSettings(num_segments=4)

    def run(val, **options):
        return prune(model, big, val, early=early, settings=chosen, recipe=recipe, **options)

    return run, run(learned_data(4, seed=1))


def test_a_search_interrupted_again_and_again_goes_on_and_ends_the_same(search, tmp_path):
    run, whole = search
    val, folder, done = learned_data(4, seed=1), tmp_path / "search", 0
    last = len(whole.trials)
    for reads in (0, 1, 37, last - 3, last - 2, last - 1):  # the last three are trainings
        with pytest.raises(KeyboardInterrupt):
            run(Stopping(val, reads - done), folder=folder, resume=reads > 0)
        done = reads
        assert trials_in(folder) == done
    resumed = run(val, folder=folder, resume=True)
    assert resumed.choice == whole.choice
    assert resumed.trials == whole.trials
    assert same(resumed.model, whole.model)


def test_a_finished_search_is_read_and_not_run(tmp_path):
    model, early = trained_model()
    chosen = PruneSettings(num_segments=4)

    def search(val, **options):
        return prune(model, learned_data(), val, early=early, settings=chosen, folder=tmp_path / "s", **options)

    first = search(learned_data(4, seed=1))
    again = search(learned_data(4, seed=1), resume=True)
    assert again.trials == first.trials
    assert again.choice == first.choice
    assert same(again.model, first.model)


@pytest.mark.parametrize("fixed", [{}, {"tokens": 0.5, "segments": 0.5}])
def test_the_state_of_another_search_is_refused(tmp_path, fixed):
    model, early = trained_model()
    other = a_model(seed=1)
    data, val = learned_data(), learned_data(4, seed=1)

    def search(model=model, early=early, data=data, recipe=SMALL, resume=True, **options):
        chosen = PruneSettings(**{"num_segments": 4, **fixed, **options})
        return prune(
            model, data, val, early=early, settings=chosen, recipe=recipe, folder=tmp_path / "s", resume=resume
        )

    first = search(resume=False)
    assert same(search().model, first.model)
    # How the work is done may change.
    assert same(search(recipe=replace(SMALL, workers=1, grad_checkpointing=True)).model, first.model)
    for change in (
        {"model": other, "early": other.state()},
        {"early": other.state()},
        {"data": learned_data(seed=5)},
        {"saving": 0.5},
        {"criterion": "magnitude"},
        {"num_segments": 8},
        {"recipe": Recipe(epochs=3, batch_size=4)},
    ):
        with pytest.raises(TrainingError, match="another search"):
            search(**change)
    assert same(search(model=other, early=other.state(), resume=False).model, search(other, other.state()).model)
    if not fixed:
        (tmp_path / "s" / "trials.json").write_text("{")
        with pytest.raises(TrainingError, match="damaged"):
            search(other, other.state())
    (tmp_path / "s" / "importance.safetensors").write_bytes(b"no")
    with pytest.raises(TrainingError, match="damaged"):
        search(other, other.state())


def test_a_training_that_diverges_loses_and_stops_nothing():
    model, early = trained_model()
    huge = {name: value * 1e30 for name, value in early.items()}  # from where no training comes back
    val = learned_data(4, seed=1)
    found = prune(model, learned_data(), val, early=huge, settings=PruneSettings(num_segments=4), recipe=SMALL)
    assert [t.accuracy for t in found.trials if t.epochs] == [0.0] * 3
    assert all(t.loss is None for t in found.trials if t.epochs)
    assert same(found.model, model)


def test_what_cannot_be_pruned_is_refused():
    model, early = trained_model()
    with pytest.raises(VPromptError, match="validation data"):
        prune(model, learned_data(), early=early, settings=PruneSettings(tokens=0.5, num_segments=4))
    with pytest.raises(VPromptError, match="equal segments"):
        prune(model, learned_data(), settings=PruneSettings(tokens=0.5, segments=0.5, num_segments=5))
    with pytest.raises(VPromptError, match="nothing to prune"):
        prune(a_model(vprompt.Linear()), learned_data(), settings=PruneSettings(tokens=0.5, segments=0.5))
    with pytest.raises(VPromptError, match="nothing to prune"):
        prune(a_model(vprompt.E2VPT(0, 3)), learned_data(), settings=PruneSettings(tokens=0.5, segments=0.5))
    wrong = {name: value for name, value in early.items() if name != "head.bias"}
    chosen = PruneSettings(tokens=0.5, segments=0.5, num_segments=4)
    with pytest.raises(VPromptError, match="not those of this model"):
        prune(model, learned_data(), early=wrong, settings=chosen)
    with pytest.raises(VPromptError, match="at least one epoch"):
        prune(model, learned_data(), settings=chosen, recipe=Recipe(epochs=0))


def test_at_epoch_sees_every_state_on_the_way():
    model, states = a_model(), {}
    vprompt.fit(model, learned_data(), recipe=SMALL, at_epoch=lambda epoch: states.update({epoch: model.state()}))
    assert sorted(states) == [0, 1, 2]
    assert same(a_copy_of(model, states[0]), a_model())
    assert same(a_copy_of(model, states[2]), model)
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────

SHORT = ["--epochs", "2", "--batch-size", "8", "--img-size", "16"]
ARGUMENTS = ["--method", "e2vpt", "--prompts", "4", "--kv-prompts", "2", *SHORT]


def test_fit_prunes_and_says_what_it_did(colours, two_blocks, tmp_path):
    out = tmp_path / "run"
    outcome = run_command("fit", colours, *ARGUMENTS, "--backbone", two_blocks, "--prune", "--out", out)
    assert outcome.status == 0, outcome.err
    assert "e2vpt pruned" in outcome.out
    assert "trainings" in outcome.err
    result = json.loads((out / "result.json").read_text())
    assert result["before"]["prompt_counts"] == [4] * 2
    assert 1 < result["pruning"]["trainings"] <= 6
    model = vprompt.load(out)
    assert model.prompt_counts == result["prompt_counts"]
    assert model.num_learned == result["learned_params"]
    if result["pruning"]["tokens"] or result["pruning"]["segments"]:
        assert model.pruning.rewind_epoch == 0
    assert not (out / ".run").exists()


@pytest.mark.parametrize("epoch", [0, 1])
def test_fit_rewinds_to_the_epoch_it_is_told(colours, two_blocks, tmp_path, epoch):
    arguments = [*ARGUMENTS, "--backbone", two_blocks, "--prune-tokens", "0.5", "--prune-segments", "0.5"]
    outcome = run_command("fit", colours, *arguments, "--rewind-epoch", epoch, "--out", tmp_path / "a", "--json")
    assert outcome.status == 0, outcome.err
    small = vprompt.load(tmp_path / "a")
    assert sum(small.prompt_counts) == 4
    assert sum(p.numel() for p in small.prompts) == 4 * 64 // 2
    assert small.pruning == Pruning(tokens=0.5, segments=0.5, rewind_epoch=epoch)


def test_controls_of_rewinding_train_what_is_left_from_what_they_say(colours, two_blocks, tmp_path):
    arguments = [*ARGUMENTS, "--backbone", two_blocks, "--prune-tokens", "0.5", "--prune-segments", "0", "--no-report"]
    controls = {"end": ["--rewind-epoch", "2"], "fresh": ["--fresh-start"]}
    for name, control in controls.items():
        outcome = run_command("fit", colours, *arguments, *control, "--out", tmp_path / name)
        assert outcome.status == 0, outcome.err
    trained = vprompt.load(tmp_path / "end" / "full")
    task = vprompt.open_data(str(colours), trained.backbone)

    def drawn(seed):
        torch.manual_seed(seed)
        return vprompt.attach(trained.backbone, vprompt.E2VPT(4, 2), data=task).state()

    settings = PruneSettings(tokens=0.5, segments=0)
    for name, early in {"end": trained.state(), "fresh": drawn(2**32 - 1)}.items():
        assert same(vprompt.load(tmp_path / name / "full"), trained)
        by_hand = prune(trained, task.train, task.val, early=early, settings=settings).model
        assert same(vprompt.load(tmp_path / name), by_hand)
    assert not torch.equal(drawn(0)["prompts.0"], drawn(2**32 - 1)["prompts.0"])
    for name in controls:  # also where the training was done before, by a run of a benchmark
        settings = settings_from(json.loads((tmp_path / name / "result.json").read_text())["settings"])
        run(settings, tmp_path / f"{name}-shared", trained=tmp_path / name / "full")
        assert same(vprompt.load(tmp_path / f"{name}-shared"), vprompt.load(tmp_path / name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prune", "--fresh-start", "--rewind-epoch", "1"], "leave out --fresh-start"),
        (["--prune", "--condense", "0.5"], "not both"),
        (["--prune", "--method", "linear"], "nothing to prune"),
        (["--prune", "--prompts", "0"], "nothing to prune"),
        (["--prune-tokens", "1.5"], "below 1"),
        (["--prune", "--rewind-epoch", "3"], "epoch to rewind to"),
        (["--prune", "--criterion", "cls-similarity"], "whole prompts"),
        (["--prune", "--num-segments", "7"], "equal segments"),
    ],
)
def test_what_fit_cannot_prune_is_refused_before_anything_is_trained(colours, tmp_path, arguments, message):
    common = SHORT if "linear" in arguments else ARGUMENTS  # linear has no options of prompts
    outcome = run_command("fit", colours, *common, *arguments, "--out", tmp_path / "run")
    assert outcome.status == 1
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


def trials_in(search):
    try:
        return len(json.loads((search / "trials.json").read_text())["trials"])
    except OSError:
        return 0


@on_cpu
def test_killed_in_every_stage_a_pruning_ends_with_the_same_bytes(colours, tmp_path):
    command = ["fit", colours, *ARGUMENTS, "--prune", "--rewind-epoch", "1"]
    whole = run_command(*command, "--out", tmp_path / "whole", "--json")
    assert whole.status == 0, whole.err
    out = tmp_path / "run"
    state, search = out / ".run", out / ".run" / "pruning" / "search"
    stages = [  # before the first of them a pruned run is as any other
        lambda: checkpoint_step(state / "training.safetensors") >= 4,  # the epoch to rewind to lies behind
        (search / "importance.safetensors").exists,
        lambda: trials_in(search) >= 4,
        lambda: any(checkpoint_step(path) >= 1 for path in search.glob("0*.safetensors")),
        lambda: len(list(search.glob("0*.safetensors"))) == 2,
    ]
    for number, ready in enumerate(stages):
        resume = ["--resume"] if number else []
        signal_ = signal.SIGINT if number in (3, 4) else signal.SIGKILL
        status, err = end([*command, "--out", out, *resume], ready, signal_, tmp_path)
        assert status == (130 if signal_ == signal.SIGINT else -signal.SIGKILL)
        assert "Traceback" not in err
        assert not (out / "result.json").exists()
    again = run_command(*command, "--out", out, "--resume", "--json")
    assert again.status == 0, again.err
    assert numbers(again.document) == numbers(whole.document)
    assert again.document["pruning"] == whole.document["pruning"]
    assert adapter_hash(out) == adapter_hash(tmp_path / "whole")
    assert not state.exists()


def two_of_a_kind():
    """Two prunings of one model, as large as each other, in different places."""
    model = a_model()
    kept, (one, other) = [torch.arange(4)] * 3, (torch.eye(4, dtype=torch.bool), torch.eye(4, dtype=torch.bool).flip(1))
    return model, model.keep(kept, [one] * 3).eval(), model.keep(kept, [other] * 3).eval()


def test_a_state_says_where_its_segments_belong():
    _, first, second = two_of_a_kind()
    assert not torch.equal(second.prompts.dense(0), first.prompts.dense(0))
    with pytest.raises(VPromptError, match="not those of this model"):
        second.restore(first.state())
    first.restore(first.state())
    second.load_state_dict(first.state_dict())
    for block in range(3):
        assert torch.equal(second.prompts.dense(block), first.prompts.dense(block))


def test_what_is_kept_by_hand_is_saved_and_loaded(tmp_path):
    model, first, _ = two_of_a_kind()
    first.save_pretrained(tmp_path)
    again = vprompt.load(tmp_path, backbone=model.backbone)
    assert again.pruning is None
    assert again.condensation is None
    assert all(torch.equal(again.prompts.dense(b), first.prompts.dense(b)) for b in range(3))


def test_pruning_what_was_pruned_in_other_parts_is_refused_before_it_is_scored():
    _, first, _ = two_of_a_kind()
    with pytest.raises(VPromptError, match="pruned before"):
        prune(first, Stopping(learned_data(), 0), settings=PruneSettings(tokens=0.5, segments=0.5, num_segments=8))


def test_without_validation_images_the_search_is_refused_before_training(tmp_path):
    data = write_classes(tmp_path / "tiny", 2)  # too few to put any aside
    outcome = run_command("fit", data, *ARGUMENTS, "--img-size", "16", "--prune", "--out", tmp_path / "run")
    assert outcome.status == 1
    assert "--prune-tokens" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_search_that_starts_anew_deletes_its_own_files_only(tmp_path):
    own = ("trials.json", "importance.safetensors", "0.5-0.25.safetensors", "0-0.safetensors")
    for name in (*own, "notes.txt", "weights.safetensors", "my-model.safetensors"):
        (tmp_path / name).write_text("")
    delete_search(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "weights.safetensors", "my-model.safetensors"}


def test_a_search_of_earlier_versions_is_gone_on_with():
    identity = {"data": [None, None], "recipe": {"lr": 0.1}, "images": {"train": 3}}
    assert same_search({**identity, "recipe": {"lr": 0.1, "workers": 4, "cache_gb": 4.0}}, identity)
    assert not same_search({**identity, "recipe": {"lr": 0.2, "workers": 4}}, identity)
    assert not same_search({**identity, "recipe": None}, identity)


@pytest.mark.parametrize("watching", [{"best_epoch": True}, {"early_stopping": 1}])
def test_validation_images_decide_the_epoch_after_pruning_too(watching):
    model, early = trained_model()
    data, val = learned_data(), learned_data(4, seed=1)
    chosen, how = PruneSettings(num_segments=4, tokens=0.5, segments=0.5), replace(SMALL, **watching)
    found = prune(model, data, val, early=early, settings=chosen, recipe=how)
    assert "val_loss" in found.history.rows[-1]
    assert found.model.recipe == how
    # What the model was trained with is no reason to refuse it without them; what is asked for is, at once.
    model.recipe = how
    plain = prune(model, data, early=early, settings=chosen)
    assert plain.model.recipe == replace(how, best_epoch=False, early_stopping=0)
    for call in (prune, vprompt.condense):
        with pytest.raises(TrainingError, match="no validation images"):
            call(model, None, recipe=how)
    assert vprompt.condense(model, data, ratio=0.5).recipe == plain.model.recipe.for_fine_tuning()
