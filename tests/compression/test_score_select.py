"""Scores against a slow loop, image by image; selection against a plain sort; condensation as their composition."""

import itertools
import math
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, TensorDataset

import families
import reference
import vprompt
from reference import attached, close, some_images
from vprompt.compression.criteria import SCOPES
from vprompt.model.records import Condensation, Recipe
from vprompt.utils.errors import VPromptError

LABELS = torch.tensor([0, 4, 2, 1, 3, 3, 0])
BACKBONES = [
    "class-token",
    "no-class-token-avg",
    "registers-avg",
    "qk-norm",
    "layer-scale",
    "distilled",
    "post-norm",
    "gated-qk-scale-norm",
    "attention-pooling",
    "rms-norm",
]
KINDS = {
    "deep": (vprompt.VPT(5), None),
    "per-block": (vprompt.VPT(5), [3, 0, 5]),
    "shallow": (vprompt.VPT(5, "shallow"), None),
}
FLOAT32 = 2e-7  # scores are returned in float32: half a unit in the last place


def a_model(name, kind, *, dtype=torch.float64, execution="prefix", scale=1.0):
    how, counts = KINDS[kind]
    model = attached(name, how, counts=counts, dtype=dtype, execution=execution)
    with torch.no_grad():
        for p in model.prompts:
            p.mul_(scale)
    return model


def some_data(name, dtype=torch.float64):
    return TensorDataset(some_images(name, len(LABELS), dtype=dtype), LABELS)


class Items(Dataset):
    """A data set of the user's own."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image, label = self.data[index]
        return image, int(label)


def wanted_taylor(model, data):
    return reference.taylor(
        model.backbone,
        list(model.prompts),
        model.head.weight,
        model.head.bias,
        *data.tensors,
        shallow=model.method.name == "vpt-shallow",
    )


def assert_scores(found, wanted, tolerance):
    """Every single score within a relative tolerance, in the promised form."""
    assert len(found) == len(wanted)
    for scores, true in zip(found, wanted, strict=True):
        assert isinstance(scores, torch.Tensor)
        assert scores.dtype == torch.float32
        assert scores.device.type == "cpu"
        assert scores.shape == true.shape
        assert not scores.requires_grad
        error = (scores.double() - true).abs()
        assert bool((error <= tolerance * true).all()), f"relative error {float((error / true).max()):.3g}"


# ── Taylor ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BACKBONES)
def test_taylor_is_the_slow_loop(name, kind, execution):
    model = a_model(name, kind, execution=execution)
    data = some_data(name)
    assert_scores(vprompt.score(model, data), wanted_taylor(model, data), 1e-4)


@pytest.mark.parametrize("scale", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("kind", ["deep", "shallow"])
@pytest.mark.parametrize("name", ["class-token", "qk-norm", "post-norm"])
def test_taylor_in_float32_is_the_slow_loop_in_float64(name, kind, scale):
    """Before a norm <dL/dp, p> is a small difference of large numbers: a careless sum loses it (see DESIGN, Exact)."""
    model = a_model(name, kind, dtype=torch.float32, scale=scale)
    data = some_data(name, torch.float32)
    assert_scores(vprompt.score(model, data), wanted_taylor(model, data), 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_taylor_does_not_depend_on_the_batches(kind):
    model, data = a_model("post-norm", kind), some_data("post-norm")
    wanted = wanted_taylor(model, data)
    for batch_size in (1, 2, 3, 7, 64):
        assert_scores(vprompt.score(model, data, batch_size=batch_size), wanted, 1e-4)


def test_taylor_takes_the_absolute_value_per_image():
    """The mean of absolute values is no absolute value of the mean: two images that pull apart must not cancel."""
    model, data = a_model("post-norm", "deep"), some_data("post-norm")
    whole = vprompt.score(model, data)
    single = [vprompt.score(model, TensorDataset(*data[i : i + 1])) for i in range(len(data))]
    for block, scores in enumerate(whole):
        close(scores, torch.stack([one[block] for one in single]).mean(0), 1e-5)
    leaves = [p.detach().clone().requires_grad_() for p in model.prompts]
    logits = reference.logits(model.backbone, leaves, model.head.weight, model.head.bias, data.tensors[0])
    gradients = torch.autograd.grad(reference.cross_entropy(logits, LABELS).mean(), leaves)
    signed = torch.cat([(g * p).sum(1).abs() for g, p in zip(gradients, leaves, strict=True)])
    assert bool((torch.cat(whole) >= signed.float() * (1 - 1e-5)).all())
    assert bool((torch.cat(whole) > 1.1 * signed).any())


def test_taylor_predicts_ablation_where_the_loss_is_nearly_linear():
    """Small shallow prompts after a norm-free door: the score is the loss change of zeroing the prompt."""
    model, data = a_model("post-norm", "deep", scale=1e-4), some_data("post-norm")
    scores = vprompt.score(model, data)
    for block, prompt in itertools.product(range(3), range(5)):
        exact = reference.ablation(
            model.backbone, list(model.prompts), model.head.weight, model.head.bias, *data.tensors, block, prompt
        )
        assert float(scores[block][prompt]) == pytest.approx(float(exact.abs().mean()), rel=0.01)


def test_taylor_ignores_prompt_dropout():
    model, data = attached("post-norm", vprompt.VPT(5, dropout=0.5), dtype=torch.float64), some_data("post-norm")
    wanted = wanted_taylor(model, data)
    assert_scores(vprompt.score(model.train(), data), wanted, 1e-4)
    assert_scores(vprompt.score(model.eval(), data), wanted, 1e-4)


def test_taylor_under_gradient_checkpointing():
    model = a_model("post-norm", "deep")
    model.backbone.set_grad_checkpointing(True)
    model = model.copy()
    data = some_data("post-norm")
    assert_scores(vprompt.score(model, data), wanted_taylor(model, data), 1e-4)


# ── the other criteria ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("execution", ["prefix", "published"])
def test_magnitude_is_the_norm(kind, execution):
    model = a_model("class-token", kind, execution=execution)
    wanted = [torch.tensor([math.sqrt(sum(v * v for v in row)) for row in p.tolist()]).double() for p in model.prompts]
    assert_scores(vprompt.score(model, some_data("class-token"), criterion="magnitude"), wanted, FLOAT32)


def test_random_depends_on_the_seed_only():
    model, data = a_model("class-token", "per-block"), some_data("class-token")

    def draw(subject, images, **options):
        return vprompt.score(subject, images, criterion="random", **options)

    first = draw(model, data, seed=3)
    assert [scores.shape for scores in first] == [(3,), (0,), (5,)]
    torch.manual_seed(99)
    other = a_model("class-token", "per-block", scale=3.0)
    for again in (draw(model, data, seed=3), draw(other, TensorDataset(*data[:2]), seed=3, batch_size=1)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(torch.cat(first), torch.cat(draw(model, data, seed=4)))
    assert len(set(torch.cat(first).tolist())) == 8
    assert all(torch.equal(a, b) for a, b in zip(draw(model, data), draw(model, data, seed=0), strict=True))


@pytest.mark.parametrize("execution", ["prefix", "published"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["class-token", "class-token-avg", "registers", "qk-norm", "distilled", "post-norm"])
def test_cls_similarity_is_the_class_tokens_attention(name, kind, execution):
    model, data = a_model(name, kind, execution=execution), some_data(name)
    wanted = reference.class_similarity(
        model.backbone, list(model.prompts), data.tensors[0], shallow=model.method.name == "vpt-shallow"
    )
    for batch_size in (2, 64):
        found = vprompt.score(model, data, criterion="cls-similarity", batch_size=batch_size)
        assert_scores(found, wanted, 1e-6)
        assert all(float(scores.sum()) < 1 for scores in found)


@pytest.mark.parametrize("name", ["no-class-token-avg", "attention-pooling"])
def test_cls_similarity_needs_a_class_token(name):
    with pytest.raises(VPromptError) as error:
        vprompt.score(a_model(name, "deep"), some_data(name), criterion="cls-similarity")
    assert "class token" in str(error.value)


def test_an_unknown_criterion_is_named():
    with pytest.raises(VPromptError) as error:
        vprompt.score(a_model("class-token", "deep"), some_data("class-token"), criterion="taylr")
    assert "taylr" in str(error.value)


# ── scoring leaves no trace ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("criterion", ["taylor", "cls-similarity", "magnitude", "random"])
@pytest.mark.parametrize("kind", ["per-block", "shallow"])
def test_scoring_leaves_no_trace(kind, criterion, training):
    model, data = a_model("class-token", kind), some_data("class-token")
    model.head.weight.grad = torch.full_like(model.head.weight, 2.0)
    model.train(training)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: m.training for name, m in model.named_modules()}
    with torch.no_grad():
        model.eval()
        answer = model(data.tensors[0])
        model.train(training)
    torch.manual_seed(17)
    generator = torch.get_rng_state()
    for subject in (data, Items(data)):
        vprompt.score(model, subject, criterion=criterion, batch_size=3)
        assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert {name: m.training for name, m in model.named_modules()} == modes
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads == {"head.weight"}
    assert torch.equal(model.head.weight.grad, torch.full_like(model.head.weight, 2.0))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with torch.no_grad():
        assert torch.equal(model.eval()(data.tensors[0]), answer)


@pytest.mark.parametrize("criterion", ["taylor", "cls-similarity"])
def test_a_failure_while_scoring_leaves_no_trace(criterion):
    class Broken(Items):
        def __getitem__(self, index):
            if index == 5:
                raise OSError("disk on fire")
            return super().__getitem__(index)

    model, data = a_model("class-token", "deep").train(), some_data("class-token")
    before = model.copy().eval()(data.tensors[0])
    with pytest.raises((OSError, VPromptError), match="disk on fire"):
        vprompt.score(model, Broken(data), criterion=criterion, batch_size=2)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    logits = model.eval()(data.tensors[0])
    assert torch.equal(logits, before)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.prompts)


def test_all_data_sets_give_the_same_scores():
    model, data = a_model("post-norm", "deep"), some_data("post-norm")
    for one, other in zip(vprompt.score(model, data), vprompt.score(model, Items(data)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_out_of_range_are_named(label):
    data = some_data("class-token")
    labels = LABELS.clone()
    labels[3] = label
    with pytest.raises(VPromptError) as error:
        vprompt.score(a_model("class-token", "deep"), TensorDataset(data.tensors[0], labels))
    assert str(label) in str(error.value)


def test_empty_data_cannot_be_scored():
    empty = TensorDataset(torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(VPromptError):
        vprompt.score(a_model("class-token", "deep"), empty)


@pytest.mark.parametrize("criterion", ["taylor", "magnitude", "random", "cls-similarity"])
@pytest.mark.parametrize("method", [vprompt.Linear(), vprompt.LoRA(), vprompt.CVPT(2), vprompt.E2VPT(0)])
def test_a_model_without_prompts_has_no_scores(method, criterion):
    model = vprompt.attach(timm.create_model("test_vit", img_size=32), method, num_classes=2)
    data = TensorDataset(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    with pytest.raises(VPromptError, match="nothing to score: the model has no prompts"):
        vprompt.score(model, data, criterion=criterion)


# ── selection ────────────────────────────────────────────────────────────────────────────────────────────────────────

VALUES = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.5, 1e-8, 1e8, -1.0])
SCORES = st.lists(st.lists(VALUES, max_size=9), min_size=1, max_size=5)
RATIOS = st.one_of(st.decimals("0.001", 1, places=3).map(float), st.sampled_from([0.1, 0.3, 0.5, 1.0, 1e-9]))


def rounded(ratio, number):
    """Halves upwards, by decimal digits."""
    return max(1, int((Decimal(repr(ratio)) * number).quantize(Decimal(1), ROUND_HALF_UP)))


def dealt(total, sizes):
    """One after the other to the block that is furthest behind, the earlier of equals."""
    counts = [0] * len(sizes)
    for _ in range(total):
        behind = [Fraction(size, 2 * count + 1) for size, count in zip(sizes, counts, strict=True)]
        counts[behind.index(max(behind))] += 1
    return counts


def as_tensors(scores):
    return [torch.tensor(values, dtype=torch.float32) for values in scores]


def assert_well_formed(kept, scores):
    assert len(kept) == len(scores)
    for index, values in zip(kept, scores, strict=True):
        assert index.dtype == torch.int64
        assert index.tolist() == sorted(set(index.tolist()))
        assert all(0 <= i < len(values) for i in index.tolist())


@settings(max_examples=200, deadline=None)
@given(SCORES, RATIOS)
def test_global_selection_is_a_plain_sort(scores, ratio):
    kept = vprompt.select(as_tensors(scores), ratio=ratio)
    assert_well_formed(kept, scores)
    order = sorted(
        ((block, prompt) for block, values in enumerate(scores) for prompt in range(len(values))),
        key=lambda at: (-torch.tensor(scores[at[0]][at[1]]).item(), *at),
    )
    count = rounded(ratio, len(order)) if order else 0
    assert {(block, p) for block, index in enumerate(kept) for p in index.tolist()} == set(order[:count])


@settings(max_examples=200, deadline=None)
@given(SCORES, RATIOS)
def test_local_selection_is_a_plain_sort_in_every_block(scores, ratio):
    kept = vprompt.select(as_tensors(scores), ratio=ratio, scope="local")
    assert_well_formed(kept, scores)
    sizes = list(map(len, scores))
    counts = dealt(rounded(ratio, sum(sizes)) if any(sizes) else 0, sizes)
    assert sum(counts) == sum(map(len, vprompt.select(as_tensors(scores), ratio=ratio)))
    for index, values, count in zip(kept, scores, counts, strict=True):
        order = sorted(range(len(values)), key=lambda p: (-torch.tensor(values[p]).item(), p))
        assert set(index.tolist()) == set(order[:count])


def test_local_and_global_choices_are_of_one_budget():
    scores = [torch.rand(5) for _ in range(6)]
    counts = {ratio: [len(k) for k in vprompt.select(scores, ratio=ratio, scope="local")] for ratio in (0.1, 0.3, 0.5)}
    assert counts == {0.1: [1, 1, 1, 0, 0, 0], 0.3: [2, 2, 2, 1, 1, 1], 0.5: [3, 3, 3, 2, 2, 2]}
    uneven = [torch.rand(count) for count in (8, 0, 4, 1)]
    assert [len(k) for k in vprompt.select(uneven, ratio=0.5, scope="local")] == [4, 0, 2, 1]


@given(SCORES, st.sampled_from(["global", "local"]))
def test_all_are_kept_at_ratio_one(scores, scope):
    kept = vprompt.select(as_tensors(scores), ratio=1.0, scope=scope)
    assert [index.tolist() for index in kept] == [list(range(len(values))) for values in scores]


@settings(max_examples=50, deadline=None)
@given(SCORES, st.floats(0.01, 1), st.floats(0.01, 1), st.sampled_from(["global", "local"]))
def test_a_smaller_ratio_keeps_a_subset(scores, one, other, scope):
    few, many = (vprompt.select(as_tensors(scores), ratio=r, scope=scope) for r in sorted((one, other)))
    assert all(set(a.tolist()) <= set(b.tolist()) for a, b in zip(few, many, strict=True))


def test_many_ties_are_broken_in_order():
    kept = vprompt.select([torch.ones(500) for _ in range(12)], ratio=0.3)
    assert [len(index) for index in kept] == [500, 500, 500, 300] + [0] * 8
    assert kept[3].tolist() == list(range(300))


def test_scores_are_not_changed():
    scores = [torch.tensor([1.0, 3.0, 2.0])]
    vprompt.select(scores, ratio=0.5)
    assert scores[0].tolist() == [1.0, 3.0, 2.0]


@pytest.mark.parametrize("ratio", [0, -0.1, 1.0001, 30, math.nan, math.inf])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_ratio_out_of_range_is_named(ratio, scope):
    with pytest.raises(VPromptError) as error:
        vprompt.select([torch.ones(3)], ratio=ratio, scope=scope)
    assert str(ratio) in str(error.value)


@pytest.mark.parametrize("scope", ["Global", "", "block", None])
def test_an_unknown_scope_is_named(scope):
    with pytest.raises(VPromptError) as error:
        vprompt.select([torch.ones(3)], scope=scope)
    assert repr(scope) in str(error.value)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_scores_that_are_no_numbers_name_the_block(scope):
    with pytest.raises(VPromptError) as error:
        vprompt.select([torch.ones(3), torch.tensor([1.0, math.nan])], scope=scope)
    assert "1" in str(error.value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=4), RATIOS, st.sampled_from(SCOPES))
def test_how_peaked_scores_are(scores, ratio, scope):
    kept = [index.tolist() for index in vprompt.select(as_tensors(scores), ratio=ratio, scope=scope)]
    whole = {"criterion": "taylor", "scope": scope, "ratio": ratio}
    peak = Condensation(scores=tuple(map(tuple, scores)), kept=tuple(map(tuple, kept)), **whole).peak
    rows = [[sum(column) for column in zip(*scores, strict=True)]] * len(scores) if scope == "shared" else scores
    sizes = np.abs(np.array(rows, dtype=np.float64))
    shares = sizes / sizes.sum() if sizes.sum() else np.full(sizes.shape, 1 / sizes.size)
    logs = [-share * math.log(share) for share in shares.flatten() if share > 0]
    assert peak["prompts"] == sizes.size
    assert peak["effective"] == pytest.approx(math.exp(sum(logs)))
    assert peak["kept_share"] == pytest.approx(sum(shares[b, p] for b, index in enumerate(kept) for p in index))
    tied = 0
    for block, index in enumerate(kept):
        for p in index:
            others = range(len(scores)) if scope == "global" else [block]
            tied += any(rows[b][q] >= rows[block][p] for b in others for q in range(3) if q not in kept[b])
    assert peak["tied"] == tied


# ── condensation ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("criterion", ["taylor", "magnitude", "random", "cls-similarity"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("kind", KINDS)
def test_condensing_without_fine_tuning_is_score_select_keep(kind, scope, criterion):
    model, data = a_model("class-token", kind), some_data("class-token")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    small = vprompt.condense(model, data, ratio=0.4, criterion=criterion, scope=scope, fine_tune=False)
    scores = vprompt.score(model, data, criterion=criterion)
    kept = vprompt.select(scores, ratio=0.4, scope=scope)
    images = some_images("class-token", 4, seed=5, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(small(images), model.keep(kept).eval()(images))
        shallow = model.method.name == "vpt-shallow"
        chosen = [p[index] for p, index in zip(model.prompts, kept, strict=True)]
        wanted = reference.logits(model.backbone, chosen, model.head.weight, model.head.bias, images, shallow=shallow)
        close(small(images), wanted, 1e-10)
        close(small.fold()(images), wanted, 1e-10)
    assert small.prompt_counts == [len(index) for index in kept]
    assert not small.training
    assert small is not model
    assert small.backbone is model.backbone
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.condensation is None
    saved = small.condensation
    assert (saved.criterion, saved.scope, saved.ratio) == (criterion, scope, 0.4)
    assert [list(index) for index in saved.kept] == [index.tolist() for index in kept]
    assert [list(values) for values in saved.scores] == [values.tolist() for values in scores]


def float_model(**recipe):
    model = attached("class-token", vprompt.VPT(5, dropout=0.3)).train()
    model.recipe = Recipe(**recipe) if recipe else None
    return model


def test_condensing_fine_tunes_what_is_left_with_dropout_off():
    how = Recipe(epochs=2, batch_size=4, lr=0.01, seed=3)
    model, data = float_model(), some_data("class-token", torch.float32)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    small = vprompt.condense(model, data, ratio=0.4, recipe=how)
    kept = vprompt.select(vprompt.score(model, data), ratio=0.4)
    by_hand = model.keep(kept)
    assert by_hand.prompts.dropout == 0.3
    by_hand.prompts.dropout = 0.0
    vprompt.fit(by_hand, data, recipe=how)
    assert [len(p) for p in small.prompts] == [len(index) for index in kept]
    assert small.prompts.dropout == 0.0
    assert small.method.prompt_dropout == 0.0
    for name, p in by_hand.learned.items():
        assert torch.equal(small.learned[name], p), name
        assert not torch.equal(p, dict(model.keep(kept).named_parameters())[name])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.method == vprompt.VPT(5, dropout=0.3)
    assert model.prompts.dropout == 0.3
    assert model.training
    assert small.recipe == how


@pytest.mark.parametrize("own", [{}, {"epochs": 7, "optimizer": "sgd", "lr": 2.0, "batch_size": 3, "seed": 11}])
def test_the_default_recipe_is_the_models_own_for_fine_tuning(own):
    model, data = float_model(**own), some_data("class-token", torch.float32)
    small = vprompt.condense(model, data, ratio=0.2)
    assert small.recipe == (Recipe(**own)).for_fine_tuning()
    assert small.recipe.epochs == 20
    assert model.recipe == (Recipe(**own) if own else None)


@pytest.mark.parametrize("arguments", [{"ratio": 0}, {"ratio": 1.5}, {"scope": "x"}, {"criterion": "x"}])
def test_bad_arguments_of_condense(arguments):
    with pytest.raises(VPromptError):
        vprompt.condense(a_model("class-token", "deep"), some_data("class-token"), fine_tune=False, **arguments)


def test_a_linear_probe_cannot_be_condensed():
    with pytest.raises(VPromptError):
        vprompt.condense(attached("class-token", vprompt.Linear()), some_data("class-token", torch.float32))


def test_condensing_twice_counts_from_the_condensed():
    model, data = a_model("class-token", "deep"), some_data("class-token")
    once = vprompt.condense(model, data, ratio=0.6, fine_tune=False)
    twice = vprompt.condense(once, data, ratio=0.5, fine_tune=False)
    assert sum(once.prompt_counts) == 9
    assert sum(twice.prompt_counts) == 5  # a half is rounded upwards
    assert [len(values) for values in twice.condensation.scores] == once.prompt_counts


def test_what_was_not_fine_tuned_is_fine_tuned_later_at_the_lower_rate():
    model, data = float_model(epochs=3, lr=0.01), some_data("class-token", torch.float32)
    small = vprompt.condense(model, data, ratio=0.6, fine_tune=False)
    assert not small.condensation.tuned
    smaller = vprompt.condense(small, data, ratio=0.5)
    assert smaller.recipe == model.recipe.for_fine_tuning()
    assert smaller.condensation.tuned
    # That of a fine-tuned one is taken as it is.
    assert vprompt.condense(smaller, data, ratio=0.5).recipe == smaller.recipe


def test_numbers_have_no_pseudo_labels():
    model = vprompt.attach(families.vit(), vprompt.VPT(2), target="regression", num_classes=2)
    data = TensorDataset(some_images("vit", 3), torch.randn(3, 2))
    with pytest.raises(VPromptError, match=r"'pseudo-label' is for classes and tags.*'feature-change'"):
        vprompt.score(model, data, criterion="pseudo-label")
    assert vprompt.score(model, data, criterion="feature-change")[0].abs().min() > 0


class TunedPrompts(vprompt.VPT):
    """Deep prompts over queries, keys and values that change as well."""

    tunes_backbone = True

    def make_tuning(self, backbone, info, tensors=None):
        return vprompt.LoRA(rank=2).make_tuning(backbone, info, tensors)


def test_scores_are_of_the_projections_that_run():
    """Where a method changes these as well, against differences of the loss."""
    torch.manual_seed(0)
    model = vprompt.attach(families.vit().double(), TunedPrompts(3), num_classes=3).eval()
    with torch.no_grad():
        for value in model.learned.values():
            value.add_(torch.randn_like(value), alpha=0.3)
    data = TensorDataset(some_images("vit", 4).double(), torch.arange(4) % 3)
    scores = vprompt.score(model, data, criterion="taylor-signed")

    def loss(block, number, scale):
        twin = model.copy().eval()
        with torch.no_grad():
            twin.prompts[block][number] *= scale
            return float(twin.target.loss(twin(data.tensors[0]), data.tensors[1]).mean())

    step = 1e-4
    for block in (0, 1):
        for number in range(3):
            slope = (loss(block, number, 1 + step) - loss(block, number, 1 - step)) / (2 * step)
            assert float(scores[block][number]) == pytest.approx(-slope, rel=1e-4, abs=1e-9)
