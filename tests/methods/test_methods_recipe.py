"""Methods as plain data and back; recipes that refuse nonsense; the shape of the learning rate."""

import dataclasses
import itertools
import json
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import vprompt
from vprompt.methods.registry import METHODS as KINDS
from vprompt.methods.registry import from_config, register, to_config, to_flat
from vprompt.model.records import DEFAULT_LR, Recipe, learning_rate
from vprompt.utils.errors import VPromptError

METHODS = st.one_of(
    st.sampled_from([vprompt.Linear(), vprompt.Full(), vprompt.Bias()]),
    st.builds(vprompt.Partial, st.integers(1, 500)),
    st.builds(vprompt.MLP, st.integers(2, 100)),
    st.builds(vprompt.Adapter, st.integers(1, 500)),
    st.builds(vprompt.LoRA, st.integers(1, 4096), st.floats(0, 1e6, exclude_min=True)),
    st.builds(vprompt.Side, st.integers(1, 1024)),
    st.builds(
        vprompt.VPT,
        st.integers(1, 500),
        st.sampled_from(["deep", "shallow"]),
        dropout=st.none() | st.floats(0, 1, exclude_max=True),
    ),
)


@given(METHODS)
def test_a_method_survives_json(method):
    config = json.loads(json.dumps(to_config(method)))
    found = from_config(config)
    assert found == method
    assert type(found) is type(method)
    assert found.name == method.name == config["name"]
    flat = json.loads(json.dumps(to_flat(method)))
    assert KINDS.get(flat["method"]).make(flat) == method


@given(METHODS, st.dictionaries(st.text(min_size=1, max_size=8).map("x_".__add__), st.integers(), max_size=3))
def test_unknown_keys_do_no_harm(method, extra):
    """That they are reported is the reader's of the whole configuration; see test_adapter_config.py."""
    assert from_config({**to_config(method), **extra}) == method


def test_two_methods_of_one_name_are_refused():
    before = KINDS.get("linear").method
    with pytest.raises(VPromptError, match=r"There are two methods called 'linear': Linear of .*, .*Other of .*\.py"):

        @register
        @dataclasses.dataclass(frozen=True)
        class Other(vprompt.Linear):
            """A method of another file under a name that is taken."""

    assert KINDS.get("linear").method is before
    assert register(vprompt.Linear) is vprompt.Linear


@pytest.mark.parametrize("taken", ["start", "size", "make_prompts", "lr_factor"])
def test_an_option_is_not_called_as_what_every_method_has(taken):
    made = dataclasses.make_dataclass("Taken", [(taken, int, 3)], bases=(vprompt.Linear,), frozen=True)
    with pytest.raises(VPromptError, match=f"Every method has a '{taken}' of its own.*Taken"):
        register(made)


def test_missing_keys_take_their_defaults():
    assert from_config({"name": "vpt-deep"}) == vprompt.VPT()
    assert from_config({"name": "vpt-shallow", "depth": "shallow"}).name == "vpt-shallow"


def test_a_configs_name_and_depth_agree():
    """A file that says vpt-shallow never yields a deep model."""
    try:
        found = from_config({"name": "vpt-shallow", "num_prompts": 3})
    except VPromptError:
        return
    assert found.name == "vpt-shallow"


@pytest.mark.parametrize("name", ["vpt", "", None, "Linear", 3])
def test_an_unknown_method_is_named(name):
    with pytest.raises(VPromptError) as error:
        from_config({"name": name})
    assert repr(name) in str(error.value)
    with pytest.raises(VPromptError):
        from_config({})


@pytest.mark.parametrize("config", [{"num_prompts": 0}, {"dropout": 1.0}, {"depth": "deeper"}])
def test_a_config_with_bad_values_is_refused(config):
    with pytest.raises(VPromptError):
        from_config({**to_config(vprompt.VPT(3)), **config})


@pytest.mark.parametrize("name", KINDS.names())
def test_methods_by_name(name):
    method = KINDS.get(name).make({"prompts": 30})
    assert method.name == name
    assert sum(method.initial_counts(4)) == {"vpt-shallow": 30}.get(name, 120 if method.riding == "prefix" else 0)
    assert len(method.initial_counts(4)) == 4


def test_an_unknown_name_lists_the_known():
    with pytest.raises(VPromptError) as error:
        KINDS.get("vpt-deeper")
    assert "vpt-deeper" in str(error.value)
    assert "did you mean vpt-deep?" in str(error.value)
    with pytest.raises(VPromptError) as error:
        KINDS.get("magic")
    assert all(name in str(error.value) for name in KINDS.names())


def test_methods_are_frozen_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        vprompt.VPT(3).num_prompts = 4
    assert vprompt.VPT(3) == vprompt.VPT(num_prompts=3, depth="deep")
    assert len({vprompt.VPT(3), vprompt.VPT(3), vprompt.VPT(4), vprompt.Linear(), vprompt.Linear()}) == 3


def test_the_papers_prompt_dropout():
    assert vprompt.VPT(3).prompt_dropout == 0.1
    assert vprompt.VPT(3, "shallow").prompt_dropout == 0
    assert vprompt.VPT(3, dropout=0).prompt_dropout == 0
    assert vprompt.VPT(3, "shallow", dropout=0.3).prompt_dropout == 0.3


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", -1),
        ("batch_size", 0),
        ("batch_size", -4),
        ("optimizer", "adam"),
        ("optimizer", "AdamW"),
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.inf),
        ("lr", math.nan),
        ("weight_decay", -1e-9),
        ("weight_decay", math.nan),
        ("warmup", -0.01),
        ("warmup", 1.01),
        ("warmup", math.nan),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("precision", "fp16"),
        ("workers", -1),
    ],
)
def test_nonsense_in_a_recipe_is_named(field, value):
    with pytest.raises(VPromptError) as error:
        Recipe(**{field: value})
    assert str(value) in str(error.value)
    assert str(error.value).endswith(".")
    with pytest.raises(VPromptError):
        dataclasses.replace(Recipe(), **{field: value})


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"optimizer": "sgd", "lr": 1e30},
        {"weight_decay": 0},
        {"warmup": 0},
        {"warmup": 1},
        {"momentum": 0},
        {"precision": "bf16"},
        {"seed": 12345},
        {"workers": 3},
    ],
)
def test_the_edges_of_a_recipe_are_allowed(values):
    recipe = Recipe(**values)
    assert all(getattr(recipe, name) == value for name, value in values.items())
    assert Recipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_recipes_are_keyword_only_and_frozen():
    with pytest.raises(TypeError):
        Recipe(10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 3


@given(st.floats(1e-6, 100), st.integers(1, 1024))
def test_peak_rate(lr, batch):
    assert Recipe(optimizer="sgd", lr=lr, batch_size=batch).peak_lr == pytest.approx(lr * batch / 256)
    assert Recipe(optimizer="adamw", lr=lr, batch_size=batch).peak_lr == lr


def test_default_rates():
    assert Recipe(batch_size=64).peak_lr == DEFAULT_LR["adamw"] == 5e-3
    assert Recipe(optimizer="sgd", batch_size=64).peak_lr == pytest.approx(5.0 / 4)


@given(st.sampled_from(["adamw", "sgd"]), st.none() | st.floats(1e-6, 100), st.integers(1, 300))
def test_fine_tuning_is_a_tenth_of_the_rate_for_twenty_epochs(optimizer, lr, batch):
    recipe = Recipe(optimizer=optimizer, lr=lr, batch_size=batch, seed=9, weight_decay=0.5, precision="bf16")
    tuned = recipe.for_fine_tuning()
    assert tuned.epochs == 20
    assert tuned.peak_lr == pytest.approx(0.1 * recipe.peak_lr)
    assert dataclasses.replace(tuned, epochs=recipe.epochs, lr=lr) == recipe
    assert recipe.for_fine_tuning(epochs=3, lr_factor=1.0).peak_lr == pytest.approx(recipe.peak_lr)


# ── learning rate ────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.floats(1e-8, 1e3))
def test_the_rate_rises_to_its_peak_and_falls_like_a_cosine(total, warmup, peak):
    rates = [learning_rate(step, total, peak=peak, warmup=warmup) for step in range(total)]
    rising = round(total * warmup)
    assert rates[0] > 0
    assert all(0 <= rate <= peak * (1 + 1e-12) for rate in rates)
    assert max(rates) == pytest.approx(peak)
    assert all(a < b for a, b in itertools.pairwise(rates[:rising]))
    falling = rates[rising:]
    assert all(a >= b for a, b in itertools.pairwise(falling))
    for n, rate in enumerate(falling):
        assert rate == pytest.approx(peak * math.cos(math.pi * n / (2 * len(falling))) ** 2, abs=1e-9 * peak)
    for n, rate in enumerate(rates[:rising]):
        assert rate == pytest.approx(peak * (n + 1) / rising)


@given(st.floats(0, 1), st.floats(1e-6, 10))
def test_a_single_step_runs_at_the_peak(warmup, peak):
    assert learning_rate(0, 1, peak=peak, warmup=warmup) == pytest.approx(peak)


@given(st.integers(2, 200), st.floats(0, 1))
def test_the_rate_is_proportional_to_the_peak(total, warmup):
    assume(round(total * warmup) < total)
    for step in range(total):
        small = learning_rate(step, total, peak=1.0, warmup=warmup)
        assert learning_rate(step, total, peak=4.0, warmup=warmup) == pytest.approx(4 * small)
    assert learning_rate(total - 1, total, peak=1.0, warmup=warmup) > 0
