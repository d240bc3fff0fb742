"""Plans of the analyses that train: what they run, and that their text says the same."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprompt.analysis.e2vpt import measure as e2vpt
from vprompt.analysis.schedule import measure as schedule
from vprompt.analysis.study import Study, toml
from vprompt.analysis.sweep import measure as sweep
from vprompt.data.sources.bundled import SOURCE
from vprompt.experiments.bench.grid import cells_of, tasks_of
from vprompt.experiments.bench.jobs import Job, starts_from
from vprompt.experiments.bench.plan import PlanError, parse_plan

KINDS = {"sweep": sweep.plan_of, "schedule": schedule.plan_of, "e2vpt": e2vpt.plan_of}


def settings_of(plan):
    """Label -> settings of its first cell."""
    found = {}
    for cell in cells_of(plan, tasks_of(plan)[0]):
        found.setdefault(cell.method, cell.settings())
    return found


PLAIN = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
KEYS = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)


@given(st.dictionaries(KEYS, PLAIN | st.dictionaries(KEYS, PLAIN, max_size=3), max_size=4))
def test_what_is_written_as_toml_is_read_as_it_was(document):
    assert tomllib.loads(toml(document)) == document


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "study",
    [
        Study(),
        Study(tasks=("vtab:svhn", 'a "b"\n\\c\x7f\x00/ü'), lrs=(0.5,), img_size=32, weights="w.npz", seeds=1),
        Study(tasks=("vtab",), lrs=(1e-05, 2.0), optimizer="sgd", precision="bf16", workers=3, epochs=7),
    ],
)
def test_a_plan_is_what_its_text_says(name, study):
    plan = KINDS[name](study)
    assert plan.name == name
    assert parse_plan(plan.text, name="x") == plan
    assert plan.tasks == tuple(study.tasks)
    assert plan.seeds == tuple(range(study.seeds))
    assert plan.workers.number == study.workers
    assert (plan.search is None) == (len(study.lrs) < 2)


@pytest.mark.parametrize("name", KINDS)
def test_study_settings_reach_every_run(name):
    study = Study(epochs=130, batch_size=3, lrs=(0.25,), img_size=40, precision="bf16", optimizer="sgd")
    for settings in settings_of(KINDS[name](study)).values():
        recipe = settings.recipe
        assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.optimizer) == (130, 3, 0.25, "sgd")
        assert (settings.img_size, recipe.precision, settings.data, settings.test) == (40, "bf16", SOURCE, True)


@pytest.mark.parametrize("name", KINDS)
def test_of_several_rates_each_method_chooses_its_own(name):
    plan = KINDS[name](Study(lrs=(0.1, 0.01)))
    cells = cells_of(plan, tasks_of(plan)[0])
    assert {cell.search.space["lr"] for cell in cells} == {(0.1, 0.01)}
    assert {tuple(cell.search.space) for cell in cells} == {("lr",)}


def test_a_sweep_trains_and_condenses_to_the_same_counts():
    found = settings_of(sweep.plan_of(Study(epochs=9), prompts=30, shares=(0.5, 0.1, 1.0, 0.5), fine_tune_epochs=4))
    assert list(found) == [
        *("Linear", "VPT-Deep", "From scratch 10 %", "From scratch 50 %"),
        *("PC 10 %, not fine-tuned", "PC 50 %, not fine-tuned", "PC 10 %", "PC 50 %"),
    ]
    assert (found["Linear"].method, found["Linear"].recipe.epochs) == ("linear", 100)
    assert (found["VPT-Deep"].prompts, found["VPT-Deep"].condense, found["VPT-Deep"].recipe.epochs) == (30, None, 9)
    assert (found["From scratch 10 %"].prompts, found["From scratch 50 %"].prompts) == (3, 15)
    tuned, as_trained = found["PC 10 %"], found["PC 10 %, not fine-tuned"]
    assert (tuned.method.num_prompts, tuned.condense.ratio, tuned.condense.fine_tune) == (30, 0.1, True)
    assert tuned.condense.fine_tune_epochs == 4
    assert (as_trained.condense.ratio, as_trained.condense.fine_tune) == (0.1, False)
    full = Job(settings=found["VPT-Deep"].resolved()).name
    assert {starts_from(one).name for label, one in found.items() if label.startswith("PC")} == {full}


def test_a_sweep_of_both_depths_and_of_the_papers_counts():
    plan = sweep.plan_of(
        Study(tasks=("vtab:svhn", "fgvc:cars")), methods=("vpt-deep", "vpt-shallow"), prompts="paper", shares=(0.1,)
    )
    found = settings_of(plan)
    assert found["Deep: From scratch 10 %"].prompts == 5
    assert (found["VPT-Shallow"].method, found["VPT-Shallow"].prompts) == ("vpt-shallow", 50)
    assert found["Shallow: PC 10 %"].method == "vpt-shallow"
    counts = [cell.settings().prompts for cell in cells_of(plan, ["fgvc:cars"]) if cell.method == "VPT-Deep"]
    assert set(counts) == {200}


def test_a_schedule_keeps_validation_images_out_of_all_training():
    found = settings_of(schedule.plan_of(Study(), fine_tune_epochs=(20, 0, 1, 20), ratio=0.2, method="vpt-shallow"))
    assert list(found) == ["VPT-Shallow", "PC, not fine-tuned", "PC, 1 epoch", "PC, 20 epochs"]
    assert {one.train_on for one in found.values()} == {"train"}
    assert [one.condense for one in found.values()] == [None, 0.2, 0.2, 0.2]
    assert not found["PC, not fine-tuned"].fine_tune
    assert found["PC, 20 epochs"].fine_tune_epochs == 20


def test_ablations_differ_from_the_default_in_one_thing():
    plan = e2vpt.plan_of(Study(), prompts=6, kv_prompts=2, visual=(3, 6), key_value=(1, 2), pruned=(0.05, 0.5))
    found = settings_of(plan)
    default = found["E2VPT"]
    assert (default.method, default.prompts, default.kv_prompts, default.share) == ("e2vpt", 6, 2, "key-value")
    rival = found["VPT-Deep, 8 prompts"]
    assert (rival.method, rival.prompts) == ("vpt-deep", 8)
    differ = {
        label: {
            key for key in ("prompts", "kv_prompts", "share", "prune") if getattr(one, key) != getattr(default, key)
        }
        for label, one in found.items()
        if one.method == "e2vpt" and one != default
    }
    assert differ == {
        "Visual only": {"kv_prompts"},
        "Key-value only": {"prompts"},
        "Heads share": {"share"},
        "Nothing shared": {"share"},
        "3 visual": {"prompts"},
        "1 key-value": {"kv_prompts"},
        **{f"{what} -{share} %": {"prune"} for what in ("Prompts", "Segments") for share in (5, 50)},
    }
    pruned = {label: (one.prune.tokens, one.prune.segments) for label, one in found.items() if one.prune}
    assert pruned == {
        "Prompts -5 %": (0.05, 0.0),
        "Prompts -50 %": (0.5, 0.0),
        "Segments -5 %": (0.0, 0.05),
        "Segments -50 %": (0.0, 0.5),
    }
    first = Job(settings=default.resolved()).name
    assert {starts_from(one).name for one in found.values() if one.prune} == {first}


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: sweep.plan_of(Study(), shares=(0.0,)), "shares"),
        (lambda: sweep.plan_of(Study(), shares=(float("nan"),)), "shares"),
        (lambda: sweep.plan_of(Study(), shares=(0.1, 0.10000001)), "labelled"),
        (lambda: sweep.plan_of(Study(), methods=("linear",)), "linear"),
        (lambda: sweep.plan_of(Study(tasks=())), "task"),
        (lambda: sweep.plan_of(Study(tasks=("a\udcff",))), "text"),
        (lambda: sweep.plan_of(Study(lrs=(float("inf"),))), "TOML|inf|rate"),
        (lambda: sweep.plan_of(Study(optimizer="x")), "optimizer"),
        (lambda: sweep.plan_of(Study(), criterion="x"), "criterion"),
        (lambda: sweep.plan_of(Study(), prompts="many"), "prompts"),
        (lambda: schedule.plan_of(Study(), fine_tune_epochs=()), "at least one"),
        (lambda: schedule.plan_of(Study(), fine_tune_epochs=(-1,)), "at least 0"),
        (lambda: schedule.plan_of(Study(), ratio=1.5), "share of prompts"),
        (lambda: schedule.plan_of(Study(), method="e2vpt"), "e2vpt"),
        (lambda: e2vpt.plan_of(Study(), parts=()), "none"),
        (lambda: e2vpt.plan_of(Study(), parts=("parts", "x")), "x"),
        (lambda: e2vpt.plan_of(Study(), prompts=0), "at least 1"),
        (lambda: e2vpt.plan_of(Study(), visual=(0,)), "at least 1"),
        (lambda: e2vpt.plan_of(Study(), pruned=(1.0,)), "below 1"),
    ],
)
def test_what_cannot_be_meant_is_said(make, word):
    with pytest.raises(PlanError, match=word):
        settings_of(make())
