"""The demo on a tiny plan: rows against the runs' own results, pictures, a model that cannot be had, a second start."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import vprompt
from plans import HEAD
from vprompt.cli.demo import show_demo
from vprompt.data.tasks import open_task
from vprompt.experiments.bench.plan import load_plan, parse_plan
from vprompt.experiments.bench.scheduler import BenchError
from vprompt.experiments.demo import DOCUMENT, SHOWN, demo_plan, run_demo
from vprompt.report.plots import COLOURS, plot_answers

PLAN = f"""{HEAD.replace("epochs = 4", "epochs = 2")}
[[methods]]
label = "probe"
method = "linear"
[[methods]]
label = "diverges"
method = "vpt-deep"
lr = 1e30
[[methods]]
label = "prompts"
method = "vpt-deep"
[[methods]]
label = "half"
method = "vpt-deep"
condense = 0.5
fine_tune = false
"""


@pytest.fixture(scope="module")
def plan(split_colours, tiny_weights):
    return parse_plan(PLAN.replace("DATA", str(split_colours)).replace("WEIGHTS", tiny_weights), name="tiny")


@pytest.fixture(scope="module")
def demo(plan, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, plan=plan)


def test_rows_say_what_the_adapters_are(demo, split_colours):
    out, document = demo
    assert json.loads((out / DOCUMENT).read_text("utf-8")) == json.loads(json.dumps(document))
    assert [row["name"] for row in document["rows"]] == ["probe", "prompts", "half"]
    for row in document["rows"]:
        model = vprompt.load(row["adapter"])
        task = open_task(str(split_colours), model.preprocessing)
        found = vprompt.evaluate(model, task.test)
        assert row["test_accuracy"] == found.accuracy
        low, high = row["test_interval"]
        assert 0 <= low <= found.accuracy <= high <= 1
        assert row["prompts"] == sum(model.prompt_counts)
    assert [row["condensed"] for row in document["rows"]] == [False, False, True]
    assert document["rows"][2]["prompts"] * 2 == document["rows"][1]["prompts"]


def test_a_model_that_fails_is_named_and_takes_nothing_with_it(demo, plan, tmp_path, capsys):
    _, document = demo
    assert list(document["failed"]) == ["diverges"]
    show_demo(document)
    said = capsys.readouterr()
    assert "There is no diverges: " in said.err
    assert "half" in said.out
    assert "diverges" not in said.out
    with pytest.raises(BenchError, match="diverges"):
        run_demo(tmp_path, plan=replace(plan, methods=plan.methods[1:2]))


def test_the_second_start_does_nothing_again(demo, plan):
    out, document = demo
    before = {file: file.stat().st_mtime_ns for file in (out / "adapters").rglob("*") if file.is_file()}
    again = run_demo(out, plan=plan)
    assert {file: file.stat().st_mtime_ns for file in (out / "adapters").rglob("*") if file.is_file()} == before
    timed = ("milliseconds", "time_ratio")
    assert [{k: v for k, v in row.items() if k not in timed} for row in again["rows"]] == [
        {k: v for k, v in row.items() if k not in timed} for row in document["rows"]
    ]


def test_pictures_are_there(demo):
    out, document = demo
    assert [str(out / name) for name in ("accuracy.png", "kept.png", "answers.png")] == document["pictures"]
    for picture in document["pictures"]:
        with Image.open(picture) as image:
            assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 10


def test_answers_are_coloured_by_whether_they_are_right(tmp_path):
    images = np.full((5, 8, 8, 3), 128, np.uint8)

    def counts(given):
        plot_answers(tmp_path / "a.png", images, ["cat"] * 5, {"model": given})
        with Image.open(tmp_path / "a.png") as image:
            picture = np.asarray(image.convert("RGB")).astype(int)
        wanted = [[int(COLOURS[style][i : i + 2], 16) for i in (1, 3, 5)] for style in (2, 1)]
        return [int((abs(picture - colour).max(axis=2) <= 8).sum()) for colour in wanted]

    (right, none), (some, wrong) = counts(["cat"] * 5), counts(["cat"] * 4 + ["dog"])
    assert right > some > 0 == none < wrong


def test_the_plan_that_comes_along_shows_what_the_page_promises():
    plan = demo_plan(seed=3)
    assert plan.seeds == (3,)
    assert SHOWN >= 4
    kinds = [(method.settings["method"], "condense" in method.settings) for method in load_plan("demo").methods]
    assert kinds == [("linear", False), ("lora", False), ("vpt-deep", False), ("vpt-deep", True), ("vpt-deep", True)]
