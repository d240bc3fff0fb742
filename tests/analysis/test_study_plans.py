"""Plans of the analyses that train: what they run, and that their text says the same."""

from dataclasses import replace

import pytest

from study_runs import e2vpt_of, plan_of, schedule_of, sweep_of
from vprompt import E2VPT, VPT
from vprompt.analysis.options import Training
from vprompt.data.sources.bundled import SOURCE
from vprompt.experiments.bench.grid import cells_of, tasks_of
from vprompt.experiments.bench.jobs import Job
from vprompt.experiments.bench.plan import PlanError, parse_plan
from vprompt.utils.errors import VPromptError

KINDS = {"sweep": sweep_of, "schedule": schedule_of, "e2vpt": e2vpt_of}


def settings_of(options):
    """Label -> settings of the first cell of an analysis's plan."""
    found = {}
    plan = plan_of(options)
    for cell in cells_of(plan, tasks_of(plan)[0]):
        found.setdefault(cell.method, cell.settings())
    return found


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "study",
    [
        Training(),
        Training(tasks=("vtab:svhn", 'a "b"\n\\c\x7f\x00/ü'), lrs=(0.5,), img_size=32, weights="w.npz", seeds=1),
        Training(tasks=("vtab",), lrs=(1e-05, 2.0), optimizer="sgd", precision="bf16", workers=3, epochs=7),
    ],
)
def test_a_plan_is_what_its_text_says(name, study):
    plan = plan_of(KINDS[name](study))
    assert plan.name == name
    assert parse_plan(plan.text, name="x") == plan
    assert plan.tasks == (study.tasks or (SOURCE,))
    assert plan.seeds == tuple(range(study.seeds))
    assert plan.workers.number == study.workers
    assert (plan.search is None) == (len(study.lrs) < 2)


@pytest.mark.parametrize("name", KINDS)
def test_study_settings_reach_every_run(name):
    study = Training(epochs=130, batch_size=3, lrs=(0.25,), img_size=40, precision="bf16", optimizer="sgd")
    for settings in settings_of(KINDS[name](study)).values():
        recipe = settings.recipe
        assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.optimizer) == (130, 3, 0.25, "sgd")
        assert (settings.img_size, recipe.precision, settings.data, settings.test) == (40, "bf16", SOURCE, True)


@pytest.mark.parametrize("name", KINDS)
def test_of_several_rates_each_method_chooses_its_own(name):
    plan = plan_of(KINDS[name](Training(lrs=(0.1, 0.01))))
    cells = cells_of(plan, tasks_of(plan)[0])
    assert {cell.search.space["lr"] for cell in cells} == {(0.1, 0.01)}
    assert {tuple(cell.search.space) for cell in cells} == {("lr",)}


def test_a_sweep_trains_and_condenses_to_the_same_counts():
    found = settings_of(sweep_of(Training(epochs=9), prompts=30, shares=(0.5, 0.1, 1.0, 0.5), fine_tune_epochs=4))
    assert list(found) == [
        *("Linear", "VPT-Deep", "From scratch 10 %", "From scratch 50 %"),
        *("PC 10 %, not fine-tuned", "PC 50 %, not fine-tuned", "PC 10 %", "PC 50 %"),
    ]
    assert (found["Linear"].method.name, found["Linear"].recipe.epochs) == ("linear", 100)
    assert (found["VPT-Deep"].method.num_prompts, found["VPT-Deep"].condense, found["VPT-Deep"].recipe.epochs) == (
        30,
        None,
        9,
    )
    assert (found["From scratch 10 %"].method.num_prompts, found["From scratch 50 %"].method.num_prompts) == (3, 15)
    tuned, as_trained = found["PC 10 %"], found["PC 10 %, not fine-tuned"]
    assert (tuned.method.num_prompts, tuned.condense.ratio, tuned.condense.fine_tune) == (30, 0.1, True)
    assert tuned.condense.fine_tune_epochs == 4
    assert (as_trained.condense.ratio, as_trained.condense.fine_tune) == (0.1, False)
    full = Job(settings=found["VPT-Deep"].resolved()).name
    assert {Job(settings=one).first.name for label, one in found.items() if label.startswith("PC")} == {full}


def test_a_sweep_of_both_depths_and_of_the_papers_counts():
    options = sweep_of(Training(tasks=("vtab:svhn", "fgvc:cars")), method="both", prompts="paper", shares=(0.1,))
    plan, found = plan_of(options), settings_of(options)
    assert found["Deep: From scratch 10 %"].method.num_prompts == 5
    assert (found["VPT-Shallow"].method.name, found["VPT-Shallow"].method.num_prompts) == ("vpt-shallow", 50)
    assert found["Shallow: PC 10 %"].method.name == "vpt-shallow"
    counts = [cell.settings().method.num_prompts for cell in cells_of(plan, ["fgvc:cars"]) if cell.method == "VPT-Deep"]
    assert set(counts) == {200}


def test_a_schedule_keeps_validation_images_out_of_all_training():
    found = settings_of(schedule_of(Training(), fine_tune_epochs=(20, 0, 1, 20), ratio=0.2, method="vpt-shallow"))
    assert list(found) == ["VPT-Shallow", "PC, not fine-tuned", "PC, 1 epoch", "PC, 20 epochs"]
    assert {one.train_on for one in found.values()} == {"train"}
    assert [one.condense and one.condense.ratio for one in found.values()] == [None, 0.2, 0.2, 0.2]
    assert not found["PC, not fine-tuned"].condense.fine_tune
    assert found["PC, 20 epochs"].condense.fine_tune_epochs == 20


def test_ablations_differ_from_the_default_in_one_thing():
    lengths = {"prompts": 6, "kv_prompts": 2, "visual": (3, 6), "key_value": (1, 2)}
    options = e2vpt_of(Training(epochs=30), **lengths, pruned=(0.05, 0.5), rewound=(0.24, 0.23))
    found = settings_of(options)
    default = found["E2VPT"]
    assert default.method == E2VPT(6, 2, "key-value")
    rival = found["VPT-Deep, 8 prompts"]
    assert rival.method == VPT(8)
    differ = {
        label: {
            key
            for key, value in {**vars(default.method), "prune": default.prune}.items()
            if {**vars(one.method), "prune": one.prune}[key] != value
        }
        for label, one in found.items()
        if isinstance(one.method, E2VPT) and one != default
    }
    assert differ == {
        "Visual only": {"num_kv_prompts"},
        "Key-value only": {"num_prompts"},
        "Heads share": {"share"},
        "Nothing shared": {"share"},
        "3 visual": {"num_prompts"},
        "1 key-value": {"num_kv_prompts"},
        **{f"{what} -{share} %": {"prune"} for what in ("Prompts", "Segments") for share in (5, 50)},
        **{f"{what} -50 %, {control}": {"prune"} for what in ("Prompts", "Segments") for control in CONTROLS},
    }
    for what, tokens, segments in (("Prompts", 0.5, 0.0), ("Segments", 0.0, 0.5)):
        usual = found[f"{what} -50 %"].prune
        assert (usual.tokens, usual.segments) == (tokens, segments)
        assert (found[f"{what} -5 %"].prune.tokens, found[f"{what} -5 %"].prune.segments) == (
            tokens / 10,
            segments / 10,
        )
        for control, changed in CONTROLS.items():
            assert found[f"{what} -50 %, {control}"].prune == replace(usual, **changed)
    # Only the values in the middle of the training are not those of a run that others share.
    first = Job(settings=default.resolved())
    for label, one in found.items():
        job = Job(settings=one.resolved())
        if one.prune:
            assert job.first == (None if "epoch 7" in label else first)
    same = [Job(settings=found[f"Prompts -50 %{control}"].resolved()).name for control in ("", ", taylor")]
    assert same[0] == same[1] == Job(settings=found["Prompts -50 %, rewound to the start"].resolved()).name
    assert len({Job(settings=one.resolved()).name for one in found.values()}) == len(found) - 4


CONTROLS = {
    "taylor": {},
    "magnitude": {"criterion": "magnitude"},
    "random": {"criterion": "random"},
    "rewound to the start": {},
    "rewound to epoch 7": {"rewind_epoch": 7},
    "not rewound": {"rewind_epoch": 30},
    "fresh start": {"fresh_start": True},
}
"""Of pruning: what else is changed."""


def test_values_that_a_training_ends_with_are_not_those_of_an_average_or_of_the_best_epoch():
    found = settings_of(e2vpt_of(Training(epochs=30), parts=("rewinding",)))["Prompts -50 %, not rewound"]
    assert Job(settings=found.resolved()).first is not None
    for other in ({"ema": 0.9}, {"best_epoch": True}):
        changed = replace(found, recipe=replace(found.recipe, **other), train_on="train")
        assert Job(settings=changed.resolved()).first is None
    with pytest.raises(VPromptError, match="no epoch to rewind to"):
        replace(found, recipe=replace(found.recipe, early_stopping=2), train_on="train")


def test_shares_that_rewind_to_an_end_are_no_row_of_their_own():
    found = settings_of(e2vpt_of(Training(epochs=4), parts=("rewinding",), rewound=(0.01, 0.99, 0.5)))
    assert [label for label in found if "rewound" in label and "Prompts" in label] == [
        *("Prompts -50 %, rewound to the start", "Prompts -50 %, rewound to epoch 2", "Prompts -50 %, not rewound"),
    ]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: sweep_of(Training(), shares=(0.0,)), "shares"),
        (lambda: sweep_of(Training(), shares=(float("nan"),)), "shares"),
        (lambda: sweep_of(Training(), shares=(0.1, 0.10000001)), "labelled"),
        (lambda: sweep_of(Training(), method="linear"), "linear"),
        (lambda: sweep_of(Training(tasks=("a\udcff",))), "text"),
        (lambda: sweep_of(Training(lrs=(float("inf"),))), "TOML|inf|rate"),
        (lambda: sweep_of(Training(optimizer="x")), "optimizer"),
        (lambda: sweep_of(Training(), criterion="x"), "criterion"),
        (lambda: sweep_of(Training(), prompts="many"), "prompts"),
        (lambda: schedule_of(Training(), fine_tune_epochs=()), "at least one"),
        (lambda: schedule_of(Training(), fine_tune_epochs=(-1,)), "at least 0"),
        (lambda: schedule_of(Training(), ratio=1.5), "share of prompts"),
        (lambda: schedule_of(Training(), method="e2vpt"), "e2vpt"),
        (lambda: e2vpt_of(Training(), parts=()), "none"),
        (lambda: e2vpt_of(Training(), parts=("parts", "x")), "x"),
        (lambda: e2vpt_of(Training(), prompts=0), "at least 1"),
        (lambda: e2vpt_of(Training(), visual=(0,)), "at least 1"),
        (lambda: e2vpt_of(Training(), pruned=(1.0,)), "below 1"),
        (lambda: e2vpt_of(Training(), controlled=(0.0,)), "below 1"),
        (lambda: e2vpt_of(Training(), rewound=(float("nan"),)), "below 1"),
        (lambda: e2vpt_of(Training(), criteria=("x",)), "criterion"),
        (lambda: e2vpt_of(Training(), criteria=("removal",)), "segments"),
    ],
)
def test_what_cannot_be_meant_is_said(make, word):
    with pytest.raises(PlanError, match=word):
        settings_of(make())
