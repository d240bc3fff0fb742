"""Two ways of computing the same attention faster: in two parts, and without keys and values of the tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

import reference
import vprompt
from vprompt.backbones.attention import plain
from vprompt.backbones.attention.functional import KeyValue, attend, attend_absorbed, attend_apart, can_be_apart


def softmax_over_all(q, k, v, keys, values, bias, mask, scale):
    """One softmax over prefix and tokens, written out."""
    batch = len(q)
    joined = torch.cat([keys.expand(batch, -1, -1, -1), k], dim=2)
    logits = torch.einsum("bhnd,bhmd->bhnm", q, joined) * (q.shape[-1] ** -0.5 if scale is None else scale)
    added = keys.shape[2]
    if bias is not None:
        logits = logits + torch.cat([bias, bias.new_zeros(len(bias), k.shape[2])], dim=1)[:, None, None]
    if mask is not None:
        logits[..., added:] += mask
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("bhnm,bhmd->bhnd", weights, torch.cat([values.expand(batch, -1, -1, -1), v], dim=2))


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.sampled_from([1, 2, 33, 70]),
    tokens=st.sampled_from([1, 5, 70]),
    added=st.sampled_from([1, 2, 65]),
    d=st.sampled_from([1, 3, 16]),
    per_sample=st.booleans(),
    biased=st.sampled_from([None, "shared", "per sample"]),
    masked=st.sampled_from([None, "111M", "1HNM", "BHNM"]),
    layout=st.sampled_from(["tokens", "heads"]),
    asks=st.sampled_from([(True, True, True), (False, True, True), (True, False, False), (False, False, True)]),
    scale=st.sampled_from([None, 0.3]),
    seed=st.integers(0, 10_000),
)
def test_two_parts_are_one_softmax_and_so_are_their_gradients(
    batch, heads, queries, tokens, added, d, per_sample, biased, masked, layout, asks, scale, seed
):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def heads_of(rows, length):
        if layout == "heads":
            return draw(rows, heads, length, d)
        return draw(rows, length, heads, d).transpose(1, 2)

    rows = batch if per_sample else 1
    q, k, v = (heads_of(batch, length) for length in (queries, tokens, tokens))
    keys, values = heads_of(rows, added), heads_of(rows, added)
    bias = None if biased is None else draw(batch if biased == "per sample" else 1, added)
    shape = {"111M": (1, 1, 1, tokens), "1HNM": (1, heads, queries, tokens), "BHNM": (batch, heads, queries, tokens)}
    mask = None if masked is None else 3 * draw(*shape[masked])
    inputs = [q, k, v, keys, values]
    for tensor, learns in zip(inputs, (asks[0], asks[1], asks[1], asks[2], asks[2]), strict=True):
        tensor.requires_grad_(learns)
    found = attend_apart(*inputs, bias, attn_mask=mask, scale=scale)
    wanted = softmax_over_all(*inputs, bias, mask, scale)
    reference.close(found, wanted, 1e-10)
    weights, learned = draw(*found.shape), [tensor for tensor in inputs if tensor.requires_grad]
    for mine, other in zip(
        torch.autograd.grad(found, learned, weights), torch.autograd.grad(wanted, learned, weights), strict=True
    ):
        reference.close(mine, other, 1e-9)
    with torch.no_grad():
        reference.close(attend_apart(*inputs, bias, attn_mask=mask, scale=scale), wanted, 1e-10)


def test_very_unequal_parts_do_not_overflow():
    for near in (-300.0, 300.0):
        q, k, v = torch.full((1, 1, 1, 1), 30.0), torch.full((1, 1, 2, 1), near), torch.tensor([[[[1.0], [3.0]]]])
        keys, values = torch.full((1, 1, 1, 1), -near), torch.full((1, 1, 1, 1), 7.0)
        with torch.no_grad():
            assert attend_apart(q, k, v, keys, values).item() == (7.0 if near < 0 else 2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_near(dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, n, 3, 16, generator=generator).transpose(1, 2) for n in (50, 50, 50)]
    tensors += [torch.randn(1, 20, 3, 16, generator=generator).transpose(1, 2) for _ in range(2)]
    wanted = softmax_over_all(*(tensor.to(dtype).double() for tensor in tensors), None, None, None)
    found = attend_apart(*(tensor.to(dtype) for tensor in tensors))
    assert found.dtype == dtype
    reference.close(found.double(), wanted, 1e-5 if dtype == torch.float32 else 0.03)


def test_when_attention_is_not_computed_in_two_parts():
    x = torch.zeros(2, 1, 3, 4, requires_grad=True)
    bias = torch.zeros(1, 2)
    assert can_be_apart(x, x, x, bias)
    assert not can_be_apart(x, x, x, bias.requires_grad_())
    assert not can_be_apart(x, x, x, attn_mask=torch.zeros(3, 3, requires_grad=True))
    assert not can_be_apart(x, x, x, attn_mask=torch.ones(3, 3, dtype=torch.bool))
    assert not can_be_apart(x, x, torch.zeros(2, 1, 3, 8))
    assert not can_be_apart(x, x.double(), x)
    assert not can_be_apart(*[x.to("meta")] * 3)
    with sdpa_kernel(SDPBackend.MATH):
        assert not can_be_apart(x, x, x)
    with torch.no_grad():
        assert can_be_apart(x, x, x, bias)
        assert not can_be_apart(x[:1], x[:1], x[:1])


def test_a_bias_that_learns_gets_its_gradient():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    keys, values = (torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    bias = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(attend(q, k, v, KeyValue(keys, values, bias)).sin().sum(), bias)
    (wanted,) = torch.autograd.grad(softmax_over_all(q, k, v, keys, values, bias, None, None).sin().sum(), bias)
    reference.close(found, wanted, 1e-12)


@pytest.mark.parametrize("finite", [False, True])
def test_attend_with_a_mask_that_hides_no_query_everything(finite):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    keys, values = (torch.randn(1, 2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    mask[:, 0, 1:] = -math.inf
    found = attend(q, k, v, (keys, values), attn_mask=mask, finite=finite)
    reference.close(found, softmax_over_all(q, k, v, keys, values, None, mask, None), 1e-12)


@pytest.mark.parametrize("prefix_rows", [None, 1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("queries", [1, 4])
def test_queries_that_absorb_the_projections(prefix_rows, bias, queries):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    batch, heads, d, width, tokens, added = 3, 2, 4, 10, 7, 5
    q, x = draw(batch, heads, queries, d), draw(batch, tokens, width)
    weights, biases = [draw(heads * d, width) for _ in range(2)], [draw(heads * d) if bias else None for _ in range(2)]
    prefix = None
    if prefix_rows:
        counts = draw(prefix_rows, added) if bias else None
        prefix = KeyValue(draw(prefix_rows, heads, added, d), draw(prefix_rows, heads, added, d), counts)
    k, v = (
        torch.nn.functional.linear(x, weight, offset).unflatten(-1, (heads, d)).transpose(1, 2)
        for weight, offset in zip(weights, biases, strict=True)
    )
    pairs = list(zip(weights, biases, strict=True))
    found = attend_absorbed(q, x, *pairs, prefix, scale=0.4)
    empty = draw(1, heads, 0, d)
    keys, values, counts = prefix or (empty, empty, None)
    reference.close(found, softmax_over_all(q, k, v, keys, values, counts, None, 0.4), 1e-12)


@pytest.mark.parametrize(
    "name", ["class-token", "registers", "distilled", "no-qkv-bias", "qk-norm", "avg-over-all-tokens"]
)
def test_the_last_block_absorbs_only_where_it_may(name, monkeypatch):
    calls = []
    monkeypatch.setattr(plain, "attend_absorbed", lambda *a, **o: calls.append(1) or attend_absorbed(*a, **o))
    model = reference.attached(name, vprompt.VPT(3), dtype=torch.float64).eval()
    images = reference.some_images(name, 2, dtype=torch.float64)
    kept = model(images)
    assert not calls  # with gradients, never
    with torch.no_grad():
        reference.close(model(images), kept, 1e-10)
        reference.close(model.fold()(images), kept, 1e-10)
    assert len(calls) == (2 if model.info.leading_tokens and name != "qk-norm" else 0)
    calls.clear()
    with torch.no_grad():
        reference.close(model.float()(images.float()).double(), kept, 1e-4)
        model.bfloat16()(images.bfloat16())
    assert len(calls) == (1 if model.info.leading_tokens and name != "qk-norm" else 0)
