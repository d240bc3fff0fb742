"""Rank of attention: the maths against numpy, the matrices against the slow reference, models whose rank is known."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

import families
import reference
import vprompt
from reference import close
from vprompt.analysis.attention import watched
from vprompt.analysis.page import analysis_sections, write_analysis
from vprompt.analysis.rank import Rank
from vprompt.analysis.rank import measure as measuring
from vprompt.analysis.rank.law import fit_law
from vprompt.analysis.rank.measure import singular_values, study
from vprompt.analysis.rank.report import VIEW
from vprompt.backbones.attention.base import PrefixAttention
from vprompt.report.document import Table
from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import silent


def rank(model, images, *, counts=None, epsilon=(0.1, 0.03, 0.01), max_images=32, report=silent):
    """The measurement by its options, one relative error or several."""
    several = (epsilon,) if isinstance(epsilon, float) else tuple(epsilon)
    return measuring.rank(model, images, Rank(prompts=counts, epsilon=several, images=max_images), report=report)


# ── the maths ────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_values(values, rows, columns, seed=0):
    """A matrix that has exactly these singular values."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))[0]
    middle = torch.zeros(rows, columns, dtype=torch.float64)
    middle.diagonal()[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return left @ middle @ right.T


def spectrum_of(matrix):
    return measuring.spectrum(singular_values(matrix))


def rank_of(matrix, epsilon):
    return measuring.numerical_rank(singular_values(matrix), epsilon)


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (8, 5), (5, 8), (1, 1), (1, 6), (40, 40)])
def test_spectrum_and_rank_of_matrices_with_known_singular_values(rows, columns):
    values = [10.0 * 0.5**k for k in range(min(rows, columns))]
    matrix = with_values(values, rows, columns)
    close(singular_values(matrix), torch.tensor(values), 1e-9)
    close(spectrum_of(matrix), torch.tensor(values).double().cumsum(0) / sum(values), 1e-9)
    for epsilon in (0.7, 0.3, 0.1, 0.01):
        assert int(rank_of(matrix, epsilon)) == sum(value > epsilon * values[0] for value in values)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10_000), st.floats(0, 0.95))
def test_the_rank_is_the_least_that_approximates_well_enough(rows, columns, seed, epsilon):
    """By its definition, with numpy's truncated decomposition, in the spectral norm."""
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)) ** 3
    found = int(rank_of(torch.from_numpy(matrix), epsilon))
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    norm = np.linalg.norm(matrix, 2)
    errors = [np.linalg.norm(matrix - (left[:, :k] * values[:k]) @ right[:k], 2) for k in range(len(values) + 1)]
    slack = 1e-9 * norm
    assert errors[found] <= epsilon * norm + slack
    assert found == 0 or errors[found - 1] > epsilon * norm - slack


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_batches_and_types(kind):
    batch = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0)).to(kind)
    values = np.linalg.svd(batch.double().numpy(), compute_uv=False)
    close(spectrum_of(batch), torch.from_numpy(values.cumsum(-1) / values.sum(-1, keepdims=True)), 1e-10)
    found = rank_of(batch, 0.2)
    assert found.shape == (2, 3)
    assert found.tolist() == (values > 0.2 * values[..., :1]).sum(-1).tolist()
    assert bool((spectrum_of(batch)[..., -1] - 1).abs().max() < 1e-12)


def test_a_matrix_of_zeros_has_rank_zero():
    assert int(rank_of(torch.zeros(4, 4), 0.0)) == 0
    assert spectrum_of(torch.zeros(4, 4)).tolist() == [1.0] * 4


def test_the_rank_does_not_depend_on_the_scale_and_falls_with_epsilon():
    matrix = torch.randn(12, 12, generator=torch.Generator().manual_seed(3)).softmax(-1)
    ranks = [int(rank_of(matrix, epsilon)) for epsilon in (0.0, 1e-3, 0.01, 0.1, 0.5, 0.99)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == 12
    assert ranks[-1] == 1
    assert [int(rank_of(1e6 * matrix, e)) for e in (0.0, 1e-3, 0.01, 0.1, 0.5, 0.99)] == ranks


@pytest.mark.parametrize("epsilon", [1.0, -0.1, 2, math.nan, math.inf])
def test_an_epsilon_that_means_nothing_is_refused(epsilon):
    with pytest.raises(VPromptError, match="epsilon must be at least 0 and below 1"):
        rank_of(torch.eye(2), epsilon)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_entries_that_are_not_finite_are_refused(value):
    with pytest.raises(VPromptError, match="not finite"):
        spectrum_of(torch.full((2, 2), value))


# ── the law ──────────────────────────────────────────────────────────────────────────────────────────────────────────

COUNTS = [0, 10, 25, 50, 100, 200]


@pytest.mark.parametrize("constant", [1e-4, 1.0, 37.5])
def test_a_growth_that_follows_a_law_exactly_is_told(constant):
    bent = fit_law(COUNTS, [6 + constant * math.log((197 + m) / 197) for m in COUNTS], 197)
    assert (bent.verdict, bent.log_slope, bent.log_r2) == ("logarithmic", pytest.approx(constant), pytest.approx(1))
    assert bent.linear_r2 < 1
    straight = fit_law(COUNTS, [6 + constant * m for m in COUNTS], 197)
    assert (straight.verdict, straight.linear_slope) == ("linear", pytest.approx(constant))
    assert straight.linear_r2 == pytest.approx(1)
    assert straight.log_r2 < 1
    assert straight.likeness == pytest.approx(bent.linear_r2)


def test_slopes_and_r2_are_those_of_numpy():
    chance = np.random.default_rng(0)
    ranks = 5 + 0.1 * np.array(COUNTS) ** 0.7 + chance.normal(size=len(COUNTS))
    found = fit_law(COUNTS, ranks.tolist(), 50)
    growth, straight = (ranks - ranks[0])[1:], np.array(COUNTS[1:], float)
    for x, slope, r2 in (
        (np.log(50 + straight) - np.log(50), found.log_slope, found.log_r2),
        (straight, found.linear_slope, found.linear_r2),
    ):
        (wanted,), (left,), *_ = np.linalg.lstsq(x[:, None], growth, rcond=None)
        assert slope == pytest.approx(wanted)
        assert r2 == pytest.approx(1 - left / ((growth - growth.mean()) ** 2).sum())


@pytest.mark.parametrize(
    ("counts", "ranks", "verdict"),
    [
        (COUNTS, [9.0] * 6, "none"),
        (COUNTS, [9.0, 8, 7, 8, 8.9, 1], "none"),
        (COUNTS, [9.0, 12, 12, 12, 12, 12], "neither"),  # grows at once, and no more
        (COUNTS, [9.0, 15, 9, 15, 9, 15], "neither"),
        (COUNTS, [9.0, 9, 9, 9.1, 10, 60], "neither"),
        ([0, 10, 20], [1.0, 2, 3], "open"),
        ([0, 10, 10, 10], [1.0, 2, 2, 2], "open"),
        ([0], [1.0], "open"),
    ],
)
def test_growth_without_a_law(counts, ranks, verdict):
    found = fit_law(counts, ranks, 17)
    assert found.verdict == verdict
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1, 2], [1.0, 2.0], 5), "0 is not among"),
        (([0, 2], [1.0], 5), "2 numbers of prompts for 1 ranks"),
        (([], [], 5), "0 is not among"),
        (([0, 2], [1.0, math.nan], 5), "must be finite"),
        (([0, -2], [1.0, 2.0], 5), "must be finite"),
        (([0, 2], [1.0, 2.0], 0), "must be finite"),
        (([0, math.inf], [1.0, 2.0], 5), "must be finite"),
    ],
)
def test_numbers_that_no_law_can_be_fitted_to(arguments, words):
    with pytest.raises(VPromptError, match=words):
        fit_law(*arguments)


# ── the matrices ─────────────────────────────────────────────────────────────────────────────────────────────────────

SEQUENCES = (
    "eva-rope",
    "dinov3",
    "gqa-per-block",
    "beit-both",
    "relpos-bias-shared-token",
    "diff-registers",
    "parallel",
    "diff-parallel",
    "naflex-gqa",
    "cait",
    "qwen3",
)
WINDOWED = ("swin", "swin-padded", "swin-three-stages", "swin2-padded", "swin-cr-non-square", "sam", "sam-rope")
METHODS = {"deep": vprompt.VPT(4, "deep"), "shallow": vprompt.VPT(4, "shallow")}


def matrices(model, images, prompts=None):
    """What `watched` shows, by block."""
    seen = {}
    watched(model, lambda block, square, live: seen.setdefault(block, (square, live)), prompts=prompts)(images)
    assert list(seen) == list(range(len(model.info.blocks)))
    for (square, live), count in zip(seen.values(), model.prompt_counts, strict=True):
        dead = min(count, prompts if prompts is not None else count) if model.method.riding != "tokens" else 0
        at = 0 if model.info.stages is not None else model.info.num_prefix_tokens
        assert torch.equal(live, torch.cat([square[:, :at], square[:, at + dead :]], dim=1))
    return [square for square, _ in seen.values()]


def first(prompts, count):
    return [p.detach()[:count] for p in prompts]


@pytest.mark.parametrize("depth", METHODS)
@pytest.mark.parametrize(
    "name", ["class-token", "registers", "qk-norm", "post-norm", "no-class-token-avg", "one-block"]
)
def test_they_are_those_of_the_reference(name, depth):
    torch.manual_seed(0)
    backbone = reference.BACKBONES[name]().double()
    model = vprompt.attach(backbone, METHODS[depth], head_init="paper", num_classes=3).eval()
    images = reference.some_images(name, 2, dtype=torch.float64)
    for count in (None, 0, 1, 3, 4):
        prompts = first(model.prompts, 4 if count is None else count)
        with torch.no_grad():
            _, maps = reference.prompted(backbone, prompts, images, shallow=depth == "shallow")
        for mine, theirs in zip(matrices(model, images, count), maps, strict=True):
            close(mine, theirs.flatten(0, 1), 1e-9)


@pytest.mark.parametrize("depth", METHODS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_they_are_those_of_the_reference_in_other_families(name, depth):
    counts = None if depth == "shallow" else [3, 1]
    model = families.attached(name, METHODS[depth], counts=counts, dtype=torch.float64)
    images = families.some_images(name, 2, dtype=torch.float64)
    for count in (0, 2, 4):
        with torch.no_grad():
            _, maps = families.run(model.backbone, first(model.prompts, count), images, shallow=depth == "shallow")
        if name == "cait":  # talking heads: what the values are mixed with
            heads = [
                families.linear(m.permute(0, 2, 3, 1), b.attn.proj_w)
                for m, b in zip(maps, model.backbone.blocks, strict=True)
            ]
            maps = [m.permute(0, 3, 1, 2) for m in heads]
        for mine, theirs in zip(matrices(model, images, count), maps, strict=True):
            close(mine, theirs.flatten(0, 1), 1e-9)


@pytest.mark.parametrize("depth", METHODS)
@pytest.mark.parametrize("name", WINDOWED)
def test_every_window_has_one(monkeypatch, name, depth):
    model = families.attached(name, METHODS[depth], dtype=torch.float64)
    images = families.some_images(name, 2, dtype=torch.float64)
    by_block, plain, plain_swin, plain_sam = [], families.softmax_rows, families.swin_block, families.sam_block

    def softmax(logits):
        by_block[-1].append(plain(logits))
        return by_block[-1][-1]

    def opened(block):
        def run(*arguments, **options):
            by_block.append([])
            return block(*arguments, **options)

        return run

    monkeypatch.setattr(families, "softmax_rows", softmax)
    monkeypatch.setattr(families, "swin_block", opened(plain_swin))
    monkeypatch.setattr(families, "sam_block", opened(plain_sam))
    for count in (0, 4):
        by_block.clear()
        with torch.no_grad():
            families.run(model.backbone, first(model.prompts, count), images, shallow=depth == "shallow")
        found = matrices(model, images, count)
        assert len(found) == len(by_block)
        for mine, windows in zip(found, by_block, strict=True):
            theirs = torch.stack(windows).flatten(0, 2)
            assert mine.shape == theirs.shape
            # Windows and images come in another order.
            order = lambda m: m[m.flatten(1).double().cos().sum(1).argsort()]  # noqa: E731
            close(order(mine), order(theirs), 1e-8)


def test_key_value_prompts_are_columns_and_not_part_of_the_bare_backbone():
    torch.manual_seed(0)
    model = vprompt.attach(reference.small_vit(), vprompt.E2VPT(3, 2), head_init="paper", num_classes=3).eval()
    images = reference.some_images("class-token", 2)
    assert {tuple(m.shape) for m in matrices(model, images)} == {(4, 20, 22)}
    assert {tuple(m.shape) for m in matrices(model, images, 0)} == {(4, 17, 17)}
    found = rank(model, TensorDataset(images, torch.tensor([0, 1])), counts=[3])
    assert [(p.tokens, len(p.cumulative)) for p in found.points] == [(17.0, 17), (17.0, 20)]


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def some_data(count=5, size=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    return TensorDataset(images, torch.arange(count) % 3)


def small(method=None, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return (
        vprompt.attach(reference.small_vit(**options), method or vprompt.VPT(6), head_init="paper", num_classes=3)
        .to(dtype)
        .eval()
    )


@pytest.mark.parametrize("depth", METHODS)
def test_all_numbers_are_means_over_numpys_decompositions(depth):
    model, data = small(vprompt.VPT(5, depth)), some_data(6, dtype=torch.float64)
    found = rank(model, data, counts=[2, 5], epsilon=(0.2, 0.05))
    assert found.images == 6
    assert [point.prompts for point in found.points] == [0.0, 2.0, 5.0]
    for point in found.points:
        prompts = first(model.prompts, int(point.prompts))
        with torch.no_grad():
            _, maps = reference.prompted(model.backbone, prompts, data.tensors[0], shallow=depth == "shallow")
        values = [np.linalg.svd(m.flatten(0, 1).numpy(), compute_uv=False) for m in maps]
        size = values[0].shape[1]
        assert size == 17 + point.prompts
        assert point.tokens == 17
        for name in ("0.2", "0.05"):
            ranks = [(v > float(name) * v[:, :1]).sum(1).mean() for v in values]
            assert point.block_ranks[name] == pytest.approx(tuple(ranks))
            assert point.ranks[name] == pytest.approx(np.mean(ranks))
        for power, shares in ((1, point.sums), (2, point.energies)):
            curve = np.mean([((v**power).cumsum(1) / (v**power).sum(1, keepdims=True)).mean(0) for v in values], axis=0)
            if power == 1:
                assert point.cumulative == pytest.approx(tuple(curve))
            assert shares == {str(p): pytest.approx(curve[math.ceil(p * size / 100) - 1]) for p in (10, 25, 50)}
        position = model.info.num_prefix_tokens
        gone = range(position, position + int(point.prompts) * (depth == "deep"))
        rows = [row for row in range(size) if row not in gone]
        values = [np.linalg.svd(m.flatten(0, 1).numpy()[:, rows], compute_uv=False) for m in maps]
        for name in ("0.2", "0.05"):
            ranks = [(v > float(name) * v[:, :1]).sum(1).mean() for v in values]
            assert point.block_ranks[f"{name} live"] == pytest.approx(tuple(ranks))
    assert list(found.laws) == ["0.2", "0.05", "0.2 live", "0.05 live"]
    for name, law in found.laws.items():
        assert law == fit_law([0, 2, 5], [point.ranks[name] for point in found.points], 17)


def test_live_rows_bound_the_rank_whatever_the_number_of_prompts():
    """Of n rows at most n: with 200 deep prompts as with none, where that of all rows is far above. See the docs."""
    model = small(vprompt.VPT(200))
    with torch.no_grad():
        for prompts in model.prompts:
            prompts.normal_()
    found = rank(model, some_data(1, dtype=torch.float64), counts=[1, 8, 200], epsilon=0.0)
    live = [max(point.block_ranks["0 live"]) for point in found.points]
    assert max(live) <= 17
    assert found.points[-1].ranks["0"] > 100
    weights = next(iter(matrices(model, some_data(1, dtype=torch.float64).tensors[0], 200)))  # block 0: the same input
    bare = next(iter(matrices(model, some_data(1, dtype=torch.float64).tensors[0], 0)))
    at = model.info.num_prefix_tokens
    own = torch.cat([weights[..., :at], weights[..., at + 200 :]], -1)
    own = torch.cat([own[:, :at], own[:, at + 200 :]], 1)
    close(own, own.sum(-1, keepdim=True) * bare, 1e-9)  # rows of the bare matrix, each scaled


def test_uniform_attention_has_rank_one_whatever_the_prompts():
    model = small()
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.attn.qkv.weight[:64] = 0  # queries and keys
            block.attn.qkv.bias[:64] = 0
    found = rank(model, some_data(dtype=torch.float64), epsilon=[1e-9, 0.5])
    for point in found.points:
        assert point.ranks == dict.fromkeys(found.laws, 1.0)
        assert point.cumulative == pytest.approx([1.0] * len(point.cumulative))
        assert point.sums["10"] == pytest.approx(1)
    assert {law.verdict for law in found.laws.values()} == {"none"}


def test_attention_of_every_token_to_itself_has_full_rank():
    model = small(num_heads=1)
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.norm1.weight.fill_(1)
            block.norm1.bias.zero_()
            block.attn.qkv.weight[:64] = 100 * torch.eye(32).repeat(2, 1)
            block.attn.qkv.bias[:64] = 0
    found = rank(model, some_data(dtype=torch.float64), epsilon=0.9)
    assert [point.prompts for point in found.points] == list(range(7))
    for point in found.points:
        assert point.ranks["0.9"] == 17 + point.prompts
        size = len(point.cumulative)
        assert point.cumulative == pytest.approx([(k + 1) / size for k in range(size)])
    law = found.laws["0.9"]
    assert (law.verdict, law.linear_slope, law.linear_r2) == ("linear", pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_models_of_any_type_give_about_the_same(dtype):
    wanted = rank(small(), some_data(dtype=torch.float64), counts=[6])
    found = rank(small(dtype=dtype), some_data(), counts=[6])
    tolerance = 1e-4 if dtype != torch.bfloat16 else 0.05
    for mine, theirs in zip(found.points, wanted.points, strict=True):
        assert mine.cumulative == pytest.approx(theirs.cumulative, abs=tolerance)


def test_the_images_are_spread_over_the_data_and_batches_do_not_matter():
    model, data = small(), some_data(11, dtype=torch.float64)
    found = rank(model, data, counts=[6], max_images=5)
    chosen = torch.tensor([0, 2, 4, 6, 8])
    assert found.images == 5
    assert found == rank(model, TensorDataset(data.tensors[0][chosen], data.tensors[1][chosen]), counts=[6])
    one_by_one = [rank(model, TensorDataset(*(t[i : i + 1] for t in data.tensors)), counts=[6]) for i in chosen]
    mean = np.mean([each.points[1].ranks["0.1"] for each in one_by_one])
    assert found.points[1].ranks["0.1"] == pytest.approx(mean)


def test_dropout_of_prompts_is_off_and_the_model_stays_as_it_was():
    model = small(vprompt.VPT(4, dropout=0.9)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = some_data(dtype=torch.float64)
    assert rank(model, data) == rank(model, data)
    assert model.training
    assert model.execution == "prefix"
    assert all(module.observer is None for module in model.view.modules() if isinstance(module, PrefixAttention))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {p.requires_grad for p in model.prompts} == {True}


def test_a_condensed_model_keeps_what_each_block_has():
    model = small().keep([torch.arange(count) for count in (6, 0, 3)])
    found = rank(model, some_data(dtype=torch.float64), counts=[0, 2, 6])
    assert [point.prompts for point in found.points] == [0.0, pytest.approx(4 / 3), 3.0]
    assert [len(point.cumulative) for point in found.points] == [17, 19, 23]
    assert found.points[1].block_ranks["0.1"][1] != found.points[1].block_ranks["0.1"][0]
    assert {point.tokens for point in found.points} == {17.0}


def test_progress_ends_at_the_end():
    told = []
    rank(small(), some_data(dtype=torch.float64), counts=[1], report=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"counts": [7]}, "has up to 6 prompts in a block; it cannot be run with 7"),
        ({"counts": [-1]}, "cannot be run with -1"),
        ({"epsilon": 1.5}, "epsilon must be"),
        ({"epsilon": []}, "at least one"),
        ({"epsilon": [0.1, math.nan]}, "epsilon must be"),
        ({"max_images": 0}, "At least one image"),
    ],
)
def test_arguments_out_of_range_are_one_sentence(options, words):
    with pytest.raises(VPromptError, match=words):
        rank(small(), some_data(dtype=torch.float64), **options)


def test_what_cannot_be_looked_at_is_one_sentence():
    with pytest.raises(VPromptError, match="has no prompts"):
        rank(small(vprompt.Linear()), some_data(dtype=torch.float64))
    with pytest.raises(VPromptError, match=r"Images must be \(3, 32, 32\)"):
        rank(small(), some_data(size=16, dtype=torch.float64))
    broken = small()
    with torch.no_grad():
        broken.backbone.blocks[1].attn.qkv.weight.fill_(math.nan)
    with pytest.raises(VPromptError, match="not finite"):
        rank(broken, some_data(dtype=torch.float64))


# ── several adapters ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_means_and_spread_over_adapters():
    data = some_data(3, dtype=torch.float64)
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        model = vprompt.attach(reference.small_vit(), vprompt.VPT(6), head_init="paper", num_classes=3).double().eval()
        with torch.no_grad():
            for prompts in model.prompts:
                prompts.normal_()
        found.append((f"seed {seed}", rank(model, data, counts=[2, 4, 6])))
    whole = study(found)
    assert whole.varied == "kept"
    assert [point.adapters for point in whole.points] == [3] * 4
    for index, point in enumerate(whole.points):
        ranks = [each.points[index].ranks["0.03"] for _, each in found]
        assert point.ranks["0.03"] == pytest.approx(np.mean(ranks))
        assert point.stds["0.03"] == pytest.approx(np.std(ranks, ddof=1))
        bare = [each.points[0].ranks["0.03"] for _, each in found]
        assert point.growths["0.03"] == pytest.approx(np.mean(np.subtract(ranks, bare)))
        curves = np.mean([each.points[index].cumulative for _, each in found], axis=0)
        assert point.cumulative == pytest.approx(tuple(curves))
    growth = [point.growths["0.1"] for point in whole.points]
    assert whole.laws["0.1"] == fit_law([0, 2, 4, 6], growth, 17)


def test_adapters_trained_with_different_numbers_are_points_of_their_own():
    data = some_data(2, dtype=torch.float64)
    found = [(str(count), rank(small(vprompt.VPT(count)), data)) for count in (2, 6, 4, 8, 4)]
    whole = study(found)
    assert whole.varied == "trained"
    assert [(point.prompts, point.adapters) for point in whole.points] == [(0, 5), (2, 1), (4, 2), (6, 1), (8, 1)]
    assert whole.points[1].ranks == found[0][1].points[-1].ranks
    assert whole.points[1].stds == dict.fromkeys(whole.laws)
    assert whole.laws["0.1"].verdict != "open"


def test_adapters_that_cannot_be_compared_are_refused():
    data = some_data(1, dtype=torch.float64)
    one = rank(small(), data, counts=[1])
    with pytest.raises(VPromptError, match="look at them one by one"):
        study([("a", one), ("b", rank(small(depth=2), data, counts=[1]))])
    with pytest.raises(VPromptError, match="look at them one by one"):
        study([("a", one), ("b", rank(small(), data, counts=[1], epsilon=0.5))])
    with pytest.raises(VPromptError, match="no adapter"):
        study([])


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────────────────

HOSTILE = "<script>alert(1)</script> | $\\frac{a}$ `x`\n\u202e" + "y" * 200


def plain(found):
    return json.loads(json.dumps(asdict(found), allow_nan=False))


def shown(tmp_path, document):
    """The pages and the tables of a document."""
    files = write_analysis(tmp_path, "rank", document, command="vprompt analyze rank")
    assert all(file.stat().st_size > 1000 for file in files)
    tables = [block for block in VIEW.tables(VIEW.read(document)) if isinstance(block, Table)]
    for table in tables:
        assert all(len(row) == len(table.head) for body in table.bodies for row in body.rows)
        width = sum(
            max(len(str(cell)) for cell in column) + 2 for column in zip(table.head, *table.bodies[0].rows, strict=True)
        )
        assert width <= 80
    return (tmp_path / "analyses.html").read_text(), (tmp_path / "analyses.md").read_text(), tables


@pytest.mark.parametrize(("counts", "epsilon"), [([6], 0.1), ([0], (0.1, 0.01)), (None, (0.3, 0.1, 0.03, 0.01))])
def test_one_adapter_is_shown(tmp_path, counts, epsilon):
    found = rank(small(), some_data(1, dtype=torch.float64), counts=counts, epsilon=epsilon)
    page, _, tables = shown(tmp_path, plain(study([(HOSTILE, found)])))
    assert "<script>alert" not in page
    assert tables[0].bodies[0].rows[0][:2] == ["0", "17"]
    assert [row[0] for row in tables[4].bodies[0].rows] == ["0", "1", "2"]


def test_several_adapters_with_names_that_hurt_are_shown(tmp_path):
    data = some_data(1, dtype=torch.float64)
    found = [(HOSTILE, rank(small(vprompt.VPT(count)), data)) for count in (1, 3, 8)]
    page, text, tables = shown(tmp_path, plain(study(found)))
    assert "<script>" not in page
    assert "<script>" not in text
    assert "\u202e" not in page + text
    assert len(tables[-1].bodies[0].rows) == 3


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("logarithmic", "the logarithmic law holds (R² 0.990, straight line 0.950)"),
        ("linear", "a straight line fits better than the logarithmic law (R² 0.990, straight line 0.950)"),
        ("neither", "neither the logarithmic law nor a straight line holds"),
        ("none", "the rank does not grow."),
        ("open", "too few numbers of prompts to tell."),
    ],
)
def test_the_answer_says_what_holds(verdict, words):
    document = plain(study([("a", rank(small(), some_data(1, dtype=torch.float64), epsilon=0.1))]))
    document["laws"]["0.1"] |= {"verdict": verdict, "log_r2": 0.99, "linear_r2": 0.95, "likeness": 0.999}
    said = VIEW.answer(VIEW.read(document))
    assert words in said
    assert ("hardly be told apart" in said) == (verdict in ("logarithmic", "linear"))
    bare, full = document["points"][0], document["points"][-1]
    full["sums"]["25"] = bare["sums"]["25"] - 0.06
    assert "does change, unlike in the paper" in VIEW.answer(VIEW.read(document))
    full["sums"]["25"] = bare["sums"]["25"] - 0.04
    assert "hardly changes, as in the paper" in VIEW.answer(VIEW.read(document))


def test_a_document_that_lacks_something_is_one_sentence():
    with pytest.raises(VPromptError, match="run `vprompt analyze rank` again"):
        analysis_sections([{"analysis": "rank", "result": {"points": []}}])


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command(tmp_path, trained, vprompt_command):
    done = vprompt_command(
        "analyze",
        "rank",
        trained.folder,
        "--images",
        1,
        "--prompts",
        "1,3",
        "--epsilon",
        "0.1",
        "--out",
        tmp_path,
        "--json",
    )
    assert done.status == 0, done.err
    assert [point["prompts"] for point in done.document["points"]] == [0, 1, 3]
    assert done.document["adapters"][0]["images"] == 1
    assert {file.name for file in tmp_path.iterdir()} == {"rank.json", "rank.png", "analyses.html", "analyses.md"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompts", "1,x"], "--prompts takes whole numbers separated by commas"),
        (["--epsilon", "wide"], "--epsilon takes numbers separated by commas"),
        (["--prompts", "99"], "cannot be run with 99"),
        (["--epsilon", "3"], "epsilon must be at least 0 and below 1"),
        (["--images", "0"], "At least one image"),
        (["--data", "/nowhere"], "/nowhere"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, trained, vprompt_command, arguments, words):
    done = vprompt_command("analyze", "rank", trained.folder, "--out", tmp_path / "o", *arguments)
    assert done.status in (1, 2)
    assert words in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "o").exists()


def test_the_command_wants_an_adapter(tmp_path, vprompt_command):
    assert vprompt_command("analyze", "rank").status == 2
    empty = vprompt_command("analyze", "rank", tmp_path)
    assert empty.status == 1
    assert "no adapter with prompts" in empty.err
