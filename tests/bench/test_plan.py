import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import run_command
from vprompt.experiments.bench.collect import study_of
from vprompt.experiments.bench.grid import cells_of, tasks_of
from vprompt.experiments.bench.plan import Plan, PlanError, combinations, load_plan, parse_plan, shipped_plans
from vprompt.experiments.report.study import read
from vprompt.experiments.report.summary import sentences
from vprompt.methods.registry import METHODS
from vprompt.methods.vpt import VPT

HOURS = Path(__file__).parents[2] / "docs" / "plan_hours.csv"
BASE = """
tasks = ["synthetic:counting"]
[settings]
backbone = "test_vit"
epochs = 3
[[methods]]
label = "VPT"
method = "vpt-deep"
"""


def cells(text, **options):
    plan = parse_plan(text, name="p")
    return cells_of(plan, [*tasks_of(plan)[0]], **options)


def test_cells_are_tasks_times_methods_times_seeds():
    text = BASE.replace('["synthetic:counting"]', '["a", "b"]') + "[[methods]]\nmethod = 'linear'\n"
    found = cells("seeds = [7, 3]\n" + text)
    assert [(cell.task, cell.method, cell.seed) for cell in found] == [
        (task, method, seed) for task in "ab" for method in ("VPT", "linear") for seed in (7, 3)
    ]
    assert all(cell.settings().recipe.epochs == 3 for cell in found)
    assert {cell.settings().train_on for cell in found} == {"train+val"}
    assert {cell.settings().test for cell in found} == {True}


def test_the_more_special_place_wins():
    text = """
    tasks = ["a", "b"]
    seeds = 1
    settings = {backbone = "test_vit", prompts = 1, epochs = 1}
    task.a = {prompts = 2, epochs = 2}
    [[methods]]
    label = "plain"
    method = "vpt-deep"
    [[methods]]
    label = "own"
    method = "vpt-deep"
    prompts = 3
    task.b = {prompts = 4}
    """
    found = {(cell.task, cell.method): cell.settings() for cell in cells(text)}
    assert {key: settings.method.num_prompts for key, settings in found.items()} == {
        ("a", "plain"): 2,
        ("a", "own"): 3,
        ("b", "plain"): 1,
        ("b", "own"): 4,
    }
    assert found["a", "own"].recipe.epochs == 2


def test_lists_make_a_method_for_each_combination():
    text = BASE + '[[methods]]\nlabel = "PC {condense%} {criterion}"\nmethod = "vpt-deep"\n'
    plan = parse_plan(text + "condense = [0.1, 1]\ncriterion = ['taylor', 'random']\n", name="p")
    assert [method.label for method in plan.methods[1:]] == [
        f"PC {share} % {criterion}" for share in (10, 100) for criterion in ("taylor", "random")
    ]


def test_a_label_without_a_place_for_what_differs_gets_one():
    text = BASE + "[[methods]]\nlabel = 'PC'\nmethod = 'vpt-deep'\ncondense = [0.1, 0.2]\n"
    assert [method.label for method in parse_plan(text, name="p").methods[1:]] == [
        "PC (condense 0.1)",
        "PC (condense 0.2)",
    ]


def test_a_share_of_the_tasks_prompts():
    text = (
        BASE
        + "[[methods]]\nlabel='few {share%}'\nmethod='vpt-deep'\nshare=[0.1, 0.3]\n"
        + "[task.'synthetic:counting']\nprompts=50\n"
    )
    found = {cell.method: cell.settings().method.num_prompts for cell in cells(text)}
    assert found == {"VPT": 50, "few 10 %": 5, "few 30 %": 15}
    assert {cell.settings().method.num_prompts for cell in cells(text.replace("prompts=50", "prompts=2"))} == {2, 1}


def test_the_papers_prompts():
    text = BASE.replace("synthetic:counting", "vtab:svhn") + 'prompts = "paper"\n'
    assert {cell.settings().method.num_prompts for cell in cells(text)} == {50}
    with pytest.raises(PlanError, match="The papers say nothing of synthetic:counting"):
        cells(BASE + 'prompts = "paper"\n')


def test_suites_and_groups_stand_for_their_tasks():
    def tasks(*names):
        return tasks_of(parse_plan(BASE.replace('"synthetic:counting"', str(list(names))[1:-1]), name="p"))[0]

    assert len(tasks("vtab")) == 19
    assert len(tasks("vtab:natural")) == 7
    assert len(tasks("vtab:specialized")) == 4
    assert len(tasks("vtab:structured")) == 8
    assert len(tasks("fgvc")) == 5
    assert tasks("vtab:svhn", "vtab:natural").count("vtab:svhn") == 1


def test_a_plan_that_lists_a_task_twice_runs_it_once():
    plan = parse_plan('optional_tasks = ["synthetic:counting", "x"]' + BASE, name="p")
    assert tasks_of(plan) == (["synthetic:counting"], ["x"])


@pytest.mark.parametrize("name", shipped_plans())
def test_the_plans_that_come_with_it_can_be_meant(name):
    plan = load_plan(name)
    tasks, optional = tasks_of(plan)
    found = cells_of(plan, [*tasks, *optional])
    assert plan.name == name
    assert plan.title
    assert plan.description
    assert plan.hours is not None
    assert plan.hours > 0
    assert len(found) == len([*tasks, *optional]) * len(plan.methods) * len(plan.seeds)
    assert load_plan(f"plans/{name}.toml") == plan
    paper = name not in ("demo", "methods", "small")
    assert bool(plan.departures) is paper  # all depart from the papers, if only by stopping the worse half
    assert "only departure" not in plan.text
    reckoned = {row["plan"]: row for row in csv.DictReader(HOURS.read_text().splitlines())}[name]
    assert not paper or plan.hours == round(float(reckoned["hours"]))
    copy = parse_plan(replace(plan, text="").to_toml(), name=name)
    assert replace(copy, text=plan.text) == plan


def test_departures_are_shown_before_a_run_and_in_its_report(tmp_path):
    text = 'departures = ["Half of <it>.", "All of it."]\nsource = "A paper"\n' + BASE
    plan = tmp_path / "p.toml"
    plan.write_text(text)
    shown = run_command("bench", plan, "--out", tmp_path / "runs", "--dry-run").err
    assert "other than the paper: Half of <it>." in shown
    (tmp_path / "runs" / "plans").mkdir(parents=True)
    (tmp_path / "runs" / "plans" / "p.toml").write_text(text)
    document = study_of(str(tmp_path / "runs"))
    said = sentences(read(document))
    assert said[said.index("The plan follows A paper. But:") + 1 :] == ["Half of <it>.", "All of it."]
    with pytest.raises(PlanError, match="departures takes a list, each text in quotes"):
        parse_plan("departures = 3\n" + BASE, name="p")


def test_a_file_is_preferred_to_a_plan_that_comes_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(BASE)
    assert load_plan("small.toml").tasks == ("synthetic:counting",)
    assert load_plan("small").tasks != ("synthetic:counting",)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("tasks = [", "tasks = [["), "is not TOML"),
        (('tasks = ["synthetic:counting"]', ""), "names no tasks"),
        (('["synthetic:counting"]', "[3]"), "The setting tasks takes a list, each text in quotes, not [3]"),
        (('["synthetic:counting"]', '"vtab"'), "The setting tasks takes a list, each text in quotes, not 'vtab'"),
        (("epochs = 3", "epoch = 3"), "no setting called 'epoch'; did you mean epochs"),
        (("epochs = 3", "epochs = 3.5"), "The setting epochs takes a whole number or 'auto', not 3.5"),
        (("epochs = 3", "epochs = true"), "The setting epochs takes a whole number or 'auto', not True"),
        (("epochs = 3", "epochs = -1"), "epochs must be at least 0"),
        (("epochs = 3", "data = 'x'"), "data is no setting"),
        (("epochs = 3", "seed = 1"), "that is what seeds says"),
        (("epochs = 3", "prompts = 'many'"), "The setting prompts takes a whole number, not 'many'"),
        (("epochs = 3", "lr = inf"), "the learning rate must be above 0"),
        (('method = "vpt-deep"', 'method = "vpt"'), "no method called 'vpt'"),
        (('method = "vpt-deep"', "condense = 0.0"), "share of prompts to keep"),
        (('method = "vpt-deep"', 'method = "linear"\ncondense = 0.5'), "has no prompts to condense"),
        (('method = "vpt-deep"', "prune = true"), "searched on validation images"),
        (('method = "vpt-deep"', "share = 2"), "share of a method's prompts"),
        (('method = "vpt-deep"', "condense = []"), "The list of condense of VPT is empty"),
        (('label = "VPT"\nmethod = "vpt-deep"', "prompts = 3"), "neither a label nor a method"),
        (("[[methods]]", "[methods]"), "The setting methods takes"),
        (("[[methods]]", "[[method]]"), "no key of the plan called 'method'; did you mean methods"),
        (("tasks =", "seeds = 0\ntasks ="), "seeds is how many"),
        (("tasks =", "seeds = [1, 1]\ntasks ="), "seeds is how many"),
        (("tasks =", "seeds = [true]\ntasks ="), "The setting seeds takes a whole number or a list"),
        (("tasks =", "name = '../x'\ntasks ="), "cannot be called '../x'"),
        (("tasks =", "hours = 'long'\ntasks ="), "The setting hours takes a number"),
        (("tasks =", "hours = inf\ntasks ="), "hours is a number from 0, not inf"),
        (('["synthetic:counting"]', '[""]'), "or one by no name"),
        (("tasks =", "workers.nummer = 1\ntasks ="), "no key of workers called 'nummer'; did you mean number"),
        (("tasks =", "workers = 1\ntasks ="), "The setting workers takes"),
        (("tasks =", "search = 1\ntasks ="), "The setting search takes"),
        (("tasks =", "search.space.lr = []\ntasks ="), "search space of lr is empty"),
        (("tasks =", "search.space.lr = [0]\ntasks ="), "the learning rate must be above 0"),
        (("tasks =", "search.space.seed = [0]\ntasks ="), "seed is nothing that a search may choose"),
        (("tasks =", "search.rungs = [1.0]\ntasks ="), "rungs of a search"),
        (("tasks =", "search.keep = 1\ntasks ="), "share of a search that goes on"),
        (("tasks =", "search.by = 'luck'\ntasks ="), "The setting by takes 'accuracy' or 'loss', not 'luck'"),
        (("tasks =", "search.what = 1\ntasks ="), "no key of search called 'what'; there are by, keep"),
        (("tasks =", "workers.number = 0\ntasks ="), "at least one worker"),
        (("tasks =", "workers.gpus = -1\ntasks ="), "at least 0"),
        (('label = "VPT"', "label = 3"), "The setting label takes text in quotes, not 3"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(change, sentence):
    text = BASE.replace(*change)
    assert text != BASE
    with pytest.raises(PlanError, match=re.escape(sentence)) as caught:
        cells(text)
    assert str(caught.value).startswith("In the plan p") or "plan p" in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_two_methods_of_one_label_are_refused():
    with pytest.raises(PlanError, match="Two methods are labelled 'VPT'"):
        parse_plan(BASE + "[[methods]]\nlabel='VPT'\nmethod='linear'\n", name="p")


def test_a_plan_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(PlanError, match=r"There is no plan .*nothing\.toml.*small"):
        load_plan(str(tmp_path / "nothing.toml"))


def test_combinations_of_nothing_are_one():
    assert combinations({}) == [{}]


def test_a_plan_keeps_its_text():
    assert isinstance(parse_plan(BASE, name="p"), Plan)
    assert parse_plan(BASE, name="p").text == BASE


def test_a_plan_made_in_python_is_that_of_its_text():
    text = (
        BASE
        + "[[methods]]\nlabel='few'\nmethod='vpt-deep'\nshare=0.5\ntask.x={epochs=1}\n"
        + "[[methods]]\nlabel='segments'\nmethod='e2vpt'\nshare='heads'\n"
        + "[search]\nkeep=0.25\n[search.space]\nlr=[0.1, 0.2]\n"
    )
    plan = parse_plan(text, name="p")
    written = replace(plan, text="").to_toml()
    assert replace(parse_plan(written, name="q"), text=plan.text) == plan


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_search_with_equal_effort_is_twelve_choices_around_the_methods_own(name, optimizer):
    text = BASE.replace("vpt-deep", name).replace("epochs = 3", f"epochs = 8\noptimizer = '{optimizer}'")
    (cell,) = cells("seeds = 1\nsearch.same = true\n" + text)
    own = cell.settings().resolved()
    choices = combinations(cell.search.space)
    tried = [cell.settings(**choice) for choice in choices]
    assert len(choices) == 12
    assert len({(s.method, s.recipe.lr, s.recipe.weight_decay) for s in tried}) == 12
    assert any(settings.recipe.lr == pytest.approx(own.recipe.lr) for settings in tried)
    assert {settings.recipe.weight_decay for settings in tried} == {1e-4, 1e-2}
    rates = sorted({settings.recipe.lr / own.recipe.lr for settings in tried})
    sizes = len({settings.method for settings in tried})
    assert rates == pytest.approx({1: [0.03, 0.1, 0.3, 1, 3, 10], 2: [0.3, 1, 3], 3: [0.3, 1]}[sizes])


def test_equal_effort_goes_around_rates_that_are_given_and_leaves_room_for_others():
    text = "seeds = 1\nsearch.same = true\nsearch.rungs = [0.5]\n" + BASE
    text += "lr = 0.02\n[[methods]]\nlabel = 'mine'\nspace.lr = [0.1]\n[[methods]]\nlabel = 'none'\nsearch = false\n"
    text += "[[methods]]\nlabel = 'auto'\nmethod = 'lora'\nlr = 'auto'\n"
    given, mine, none, auto = cells(text)
    assert given.search.space == {"lr": (0.006, 0.02, 0.06), "weight_decay": (1e-4, 1e-2), "prompts": (10, 50)}
    assert given.search.rungs == (0.5,)
    assert mine.search.space == {"lr": (0.1,)}
    assert none.search is None
    assert auto.search.space == {"lr": (0.0006, 0.002, 0.006), "weight_decay": (1e-4, 1e-2), "rank": (4, 16)}
    (more,) = cells("seeds = 1\nsearch.same = true\nsearch.space = {weight_decay = [0.5], ema = [0, 0.9]}\n" + BASE)
    assert more.search.space == {
        "lr": (0.0015, 0.005, 0.015),
        "weight_decay": (0.5,),
        "prompts": (10, 50),
        "ema": (0, 0.9),
    }
    plan = parse_plan(text, name="p")
    again = parse_plan(replace(plan, text="").to_toml(), name="p")
    assert replace(again, text="") == replace(plan, text="")


def test_sizes_that_make_equal_effort_impossible_are_refused(monkeypatch):
    monkeypatch.setattr(VPT, "sizes", {"prompts": (1, 2, 3, 4)})
    with pytest.raises(
        PlanError,
        match="VPT on synthetic:counting: A search of equal effort tries one to three sizes of a method, not 4",
    ):
        cells("search.same = true\n" + BASE)


def test_what_starts_from_images_is_reckoned_without_any():
    from vprompt.experiments.bench.bench import gmacs_of
    from vprompt.experiments.bench.jobs import Job

    random, tokens = cells("seeds = 1\n" + BASE + "init = ['random', 'tokens']\n")
    assert gmacs_of(Job(settings=random.settings().resolved())) == gmacs_of(Job(settings=tokens.settings().resolved()))
