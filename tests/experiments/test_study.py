"""What cells ask for, followed with made-up results: the search against a slow reference, and who shares what."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprompt.experiments.bench.grid import Cell
from vprompt.experiments.bench.halving import steps
from vprompt.experiments.bench.jobs import Job, from_plain_data, to_plain_data
from vprompt.experiments.bench.plan import Search
from vprompt.experiments.settings import settings_from

VALUES = {"backbone": "test_vit", "data": "t", "epochs": 20, "train_on": "train+val", "prompts": 5}


def follow(cell, answer):
    """Takes a cell to its end with what `answer(job)` says; returns everything it asked for, and its outcome."""
    asked, rounds = [], []
    going = steps(cell)
    jobs = next(going)
    while True:
        asked += jobs
        rounds.append(jobs)
        try:
            jobs = going.send({job.name: answer(job) for job in jobs})
        except StopIteration as end:
            return asked, rounds, end.value


def cell(search=None, **values):
    return Cell(task="t", method="m", seed=values.get("seed", 0), values={**VALUES, **values}, search=search)


def seen(accuracy, loss=1.0):
    return {"val_accuracy": accuracy, "val_loss": loss}


def ratio(job):
    return None if job.settings.condense is None else job.settings.condense.ratio


def merges(job):
    return job.settings.condense is not None and job.settings.condense.merge


def test_without_a_search_there_is_one_run():
    asked, _, outcome = follow(cell(), lambda job: seen(None))
    assert [job.settings for job in asked] == [cell().settings().resolved()]
    assert outcome.run == asked[0]
    assert outcome.failure is None


def test_test_images_are_kept_from_every_choice():
    search = Search(space={"lr": (0.1, 0.01, 0.001), "condense": (0.1, 0.5)})
    asked, _, outcome = follow(cell(search), lambda job: seen(job.settings.recipe.lr))
    assert {job.settings.test for job in asked if job.settings.train_on == "train"} == {False}
    assert [job.settings.test for job in asked if job.settings.train_on == "train+val"] == [True] * 2
    assert outcome.run.settings.test
    assert outcome.search["chosen"] == {"lr": 0.1, "condense": 0.1}


@given(
    table=st.lists(
        st.lists(st.tuples(st.sampled_from([None, 0.1, 0.5, 0.9]), st.floats(0, 5)), min_size=3, max_size=3),
        min_size=1,
        max_size=7,
    ),
    keep=st.sampled_from([0.34, 0.5, 0.75]),
    by=st.sampled_from(["accuracy", "loss"]),
)
def test_halving_is_what_a_slow_reference_does(table, keep, by):
    """`table[choice][rung]` is what a choice has after each of three rungs; None diverges, and stays so."""
    for row in table:
        for rung in (1, 2):
            if row[rung - 1][0] is None:
                row[rung] = (None, math.nan)
    rungs, rates = (5, 10, 20), [0.001 * (n + 1) for n in range(len(table))]

    def answer(job):
        if job.until is None:
            return {}
        accuracy, loss = table[rates.index(job.settings.recipe.lr)][rungs.index(job.until)]
        return {"val_accuracy": accuracy, "val_loss": None if accuracy is None else loss}

    # By hand: who goes on after each rung.
    going, trained = list(range(len(table))), dict.fromkeys(range(len(table)), 0)
    for rung, until in enumerate(rungs):
        if len(table) > 1 and len(going) == 1:
            break
        alive = []
        for n in going:
            trained[n] = until
            accuracy, loss = table[n][rung]
            if accuracy is not None:
                alive.append(((-accuracy, loss, n) if by == "accuracy" else (loss, -accuracy, n), n))
        best = [n for _, n in sorted(alive)]
        going = best[: 1 if until == 20 else max(1, math.ceil(len(best) * keep))]
        if not going:
            break

    search = Search(space={"lr": tuple(rates)}, by=by, rungs=(0.25, 0.5), keep=keep)
    _, _, outcome = follow(cell(search), answer)
    assert [trial["epochs"] for trial in outcome.search["trials"]] == [trained[n] for n in range(len(table))]
    if going:
        assert outcome.search["chosen"] == {"lr": rates[going[0]]}
        assert outcome.run.settings.recipe.lr == rates[going[0]]
        stopped = [n for n, trial in enumerate(outcome.search["trials"]) if trial["stopped"]]
        assert stopped == [n for n in range(len(table)) if trained[n] < 20 and n != going[0]]
    else:
        assert outcome.run is None
        assert "No choice" in outcome.failure


def test_what_follows_the_training_is_chosen_with_whole_runs_that_share_their_first_stage():
    search = Search(space={"lr": (0.1, 0.01), "condense": (0.1, 0.3, 0.5)})
    asked, rounds, outcome = follow(cell(search, condense=0.2), lambda job: seen(ratio(job) or job.settings.recipe.lr))
    choosing = [job for job in asked if not job.settings.test and job.until is None]
    firsts = [job for job in choosing if job.settings.condense is None]
    assert len(firsts) == 1
    assert {job.first.name for job in choosing if ratio(job)} == {firsts[0].name}
    assert {ratio(job) for job in choosing} == {None, 0.1, 0.3, 0.5}
    assert outcome.search["chosen"] == {"lr": 0.1, "condense": 0.5}
    assert len(outcome.search["trials"]) == 5
    assert rounds[-1] == [outcome.run]


def test_equal_first_stages_have_equal_names():
    names = set()
    for ratio in (0.1, 0.2, 0.3):
        asked, _, _ = follow(cell(condense=ratio), lambda job: {})
        assert len(asked) == 2
        names.add(asked[0].name)
        assert asked[1].first == asked[0]
    alone, _, _ = follow(cell(), lambda job: {})
    assert names == {alone[0].name}


def test_pruning_shares_its_first_stage_only_where_it_rewinds_to_the_start():
    pruned = {"prune_tokens": 0.5, "prune_segments": 0.0, "method": "e2vpt"}
    asked, _, _ = follow(cell(**pruned), lambda job: {})
    assert [job.settings.prune is None for job in asked] == [True, False]
    asked, _, _ = follow(cell(**pruned, rewind_epoch=2), lambda job: {})
    assert [job.settings.prune is None for job in asked] == [False]
    assert asked[0].first is None


def test_failures_are_handed_on():
    _, _, outcome = follow(cell(), lambda job: {"failed": "It broke."})
    assert outcome.failure == "It broke."
    _, rounds, outcome = follow(cell(condense=0.5), lambda job: {"failed": "It broke."})
    assert outcome.failure == "Its first stage failed: It broke."
    assert len(rounds) == 1


def test_what_diverges_is_not_chosen_and_what_fails_otherwise_must_be_tried_again_first():
    def bad(**result):
        return lambda job: result if job.settings.recipe.lr == 0.1 else seen(0.2)

    search = Search(space={"lr": (0.1, 0.01)})
    _, _, outcome = follow(cell(search), bad(val_accuracy=None, val_loss=None, diverged="No."))
    assert outcome.search["chosen"] == {"lr": 0.01}
    assert outcome.search["trials"][0]["failed"] == "No."
    _, rounds, outcome = follow(cell(search), bad(failed="There is not enough memory.", again=True))
    assert len(rounds) == 1
    assert outcome.run is None
    assert outcome.failure.endswith("(lr 0.1): There is not enough memory.")


SAME = [
    ({"method": "linear"}, {"method": "linear", "prompts": 9}),
    ({}, {"kv_prompts": 9}),
    ({}, {"criterion": "random", "scope": "local", "fine_tune_epochs": 3}),
    ({}, {"lr": 0.005}),
    ({"method": "full"}, {"method": "full", "lr": 0.0002}),
    ({}, {"root": "/elsewhere"}),
    ({}, {"workers": 4}),
    ({}, {"rewind_epoch": 3}),
    ({}, {"momentum": 0.5}),
    ({"lr": 1}, {"lr": 1.0}),
]
OTHER = [
    {"prompts": 6},
    {"epochs": 21},
    {"lr": 0.006},
    {"weight_decay": 0.0},
    {"batch_size": 32},
    {"precision": "bf16"},
    {"optimizer": "sgd"},
    {"condense": 0.5},
    {"prune_tokens": 0.5, "prune_segments": 0.5},
    {"train_on": "train"},
    {"test": False},
    {"resize": "crop"},
    {"augment": "crop-flip"},
    {"img_size": 64},
    {"weights": "w.npz"},
    {"backbone": "test_vit2"},
    {"data": "u"},
    {"seed": 1},
    {"split_seed": 1},
    {"skip_bad": True},
    {"head_init": "paper"},
    {"warmup": 0.2},
    {"method": "vpt-shallow"},
]


def job(**values):
    return Job(settings=settings_from({**VALUES, **values}).resolved())


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_does_the_same_has_the_same_name(one, other):
    assert job(**one).name == job(**other).name


def test_what_does_something_else_has_another_name():
    names = [job().name, *(job(**values).name for values in OTHER)]
    assert len(set(names)) == len(names)
    keys = [job().key, *(job(**values).key for values in OTHER)]
    assert len(set(keys)) == len(keys)


def test_names_are_file_names():
    hostile = job(data="/tmp/../ü \n<b>'\"" + "x" * 300).name
    assert len(hostile) < 120
    assert set(hostile) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")
    assert not hostile.startswith(".")


@pytest.mark.parametrize("values", [{}, *OTHER])
def test_jobs_travel(values):
    import json

    sent = Job(settings=settings_from({**VALUES, **values}).resolved(), until=3)
    received = from_plain_data(json.loads(json.dumps(to_plain_data(sent))))
    assert received == sent
    assert received.identity == sent.identity


def test_whether_to_merge_is_chosen_after_the_training():
    search = Search(space={"merge": (False, True)})
    asked, _, outcome = follow(cell(search, condense=0.2), lambda job: seen(float(merges(job))))
    assert {(ratio(job), merges(job)) for job in asked} == {(None, False), (0.2, False), (0.2, True)}
    assert outcome.search["chosen"] == {"merge": True}
