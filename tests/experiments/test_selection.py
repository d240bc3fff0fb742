"""Data sets that need their prompts: the paper's rule on made-up results, and what is no pair of methods."""

import json
import statistics

import pytest
import scipy.stats

from studies import make_study
from study_runs import fill, made, sweep_of
from vprompt.analysis.options import Training
from vprompt.analysis.sweep.measure import plan_of
from vprompt.cli.main import main
from vprompt.experiments import report as benchmark
from vprompt.experiments.bench.store import open_store

FULL = {"cifar": [0.80, 0.84], "svhn": [0.60, 0.62], "dmlab": [0.40, 0.44], "dtd": [0.7, 0.7]}
LOST = {"cifar": [0.01, 0.01], "svhn": [0.05, 0.03], "dmlab": [0.0, 0.03], "dtd": [-0.02, 0.0]}


def study(full=50, few=5, tasks=FULL, **settings):
    """Two seeds with all prompts and with a tenth of them."""
    document = make_study(tasks, methods=("VPT-Deep", "Adapter"), seeds=(0, 1), epochs=1, searched=False)
    for cell in document["cells"]:
        name, all_of_them = cell["task"].removeprefix("vtab:"), cell["method"] == "VPT-Deep"
        result = cell["result"]
        lost = 0 if all_of_them else LOST[name][cell["seed"]]
        result |= {
            "test_accuracy": FULL[name][cell["seed"]] - lost,
            "prompt_counts": [full if all_of_them else few] * 12,
        }
        result["settings"] |= {"method": "vpt-deep", **({} if all_of_them else settings)}
    return document


def test_a_point_or_less_is_trivial_and_means_are_over_tasks():
    [found] = benchmark.selections(benchmark.read(study()))
    assert (found.method, found.low) == ("VPT-Deep", "Adapter")
    by_task = {drop.task.removeprefix("vtab:"): drop for drop in found.tasks}
    assert {name: drop.trivial for name, drop in by_task.items()} == {
        "cifar": True,  # a point to the last bit
        "svhn": False,
        "dmlab": False,
        "dtd": True,
    }
    for name, drop in by_task.items():
        assert drop.full.values == tuple(FULL[name])
        assert drop.drop.mean == pytest.approx(statistics.fmean(LOST[name]))
        if name != "cifar":
            test = scipy.stats.ttest_1samp(LOST[name], 0).confidence_interval(0.95)
            assert drop.drop.interval == pytest.approx(tuple(test))
    for group, names in ((found.nontrivial, ("svhn", "dmlab")), (found.trivial, ("cifar", "dtd"))):
        means = [statistics.fmean(FULL[name]) for name in names]
        assert sorted(group.values) == pytest.approx(sorted(means))
        assert (group.mean, group.std) == pytest.approx((statistics.fmean(means), statistics.stdev(means)))


def test_the_report_says_all_of_it():
    markdown = benchmark.markdown(study())
    part = markdown.split("## Data sets that need their prompts")[1].split("\n## ")[0]
    rows = {line.split("|")[1].strip(): line for line in part.splitlines() if line.startswith("|")}
    assert "| 61.0 ± 1.4 | 57.0 ± 2.8 | 4.0 | \\-8.7 to 16.7 | yes |" in rows["Svhn"]
    assert "| no |" in rows["Cifar"]
    assert "51.5 ± 13.4 on 2 tasks that need them, 76.0 ± 8.5 on 2 tasks that do not need them." in part
    assert "## Data sets that need" not in benchmark.markdown(study(few=10))


@pytest.mark.parametrize(
    "other",
    [
        {"few": 10},
        {"full": 5, "few": 1},  # a fifth
        {"full": 50, "few": 50},
        {"full": 50, "few": 0},
        {"full": 50, "few": 5, "method": "vpt-shallow"},
    ],
)
def test_what_is_no_tenth_of_the_same_method_is_no_pair(other):
    assert benchmark.selections(benchmark.read(study(**other))) == []


def test_a_tenth_is_what_plans_make_of_it():
    """2.5 prompts are 3, as `share = 0.1` of a plan and `--condense 0.1` round."""
    [found] = benchmark.selections(benchmark.read(study(full=25, few=3)))
    assert len(found.tasks) == len(FULL)
    assert benchmark.selections(benchmark.read(study(full=25, few=2))) == []


def test_what_was_condensed_is_not_trained_with_a_tenth():
    document = study()
    for cell in document["cells"]:
        if cell["method"] == "Adapter":
            cell["result"]["before"] = {**cell["result"], "prompt_counts": [50] * 12}
    assert benchmark.selections(benchmark.read(document)) == []


def test_only_seeds_and_tasks_that_have_both_count():
    document = study()
    for cell in document["cells"]:
        if (cell["task"], cell["method"], cell["seed"]) == ("vtab:svhn", "Adapter", 1):
            cell |= {"state": "missing", "result": None}
        if cell["task"] == "vtab:dtd" and cell["method"] == "VPT-Deep":
            cell |= {"state": "failed", "failure": "No.", "result": None}
    [found] = benchmark.selections(benchmark.read(document))
    by_task = {drop.task.removeprefix("vtab:"): drop for drop in found.tasks}
    assert set(by_task) == {"cifar", "svhn", "dmlab"}
    assert by_task["svhn"].full.values == (0.60,)
    assert (by_task["svhn"].drop.mean, by_task["svhn"].drop.interval) == (pytest.approx(0.05), None)
    assert "| – |" in benchmark.markdown(document).split("## Data sets that need")[1]


def test_the_command_finds_the_pairs_of_a_sweep(tmp_path, capsys):
    """Of both depths, each with its own tenth; condensed ones are no part of it."""
    options = sweep_of(Training(tasks=("vtab:svhn",), seeds=1, epochs=2), method="both", shares=(0.1,))
    plan, store = plan_of(options), open_store(str(tmp_path / "runs"))
    fill(plan, store, made)
    with store.planned(plan.name, plan.text):
        pass
    assert main(["report", str(tmp_path / "runs"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["selection"]
    assert [(each["method"], each["low"]) for each in found] == [
        ("VPT-Deep", "Deep: From scratch 10 %"),
        ("VPT-Shallow", "Shallow: From scratch 10 %"),
    ]
    assert [len(each["tasks"]) for each in found] == [1, 1]
