"""Real plans with real worker processes, on tiny images: what was killed goes on, and nothing is done twice."""

import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import run_command
from plans import TORCHRUN, figures, results, workers
from processes import Command
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.experiments.bench.bench import run_here
from vprompt.experiments.bench.collect import study_of
from vprompt.experiments.bench.engine import Assignment, Event
from vprompt.experiments.bench.grid import cells_of, tasks_of
from vprompt.experiments.bench.jobs import Job, to_plain_data
from vprompt.experiments.bench.local import LocalEngine
from vprompt.experiments.bench.plan import parse_plan
from vprompt.experiments.bench.scheduler import STOP_SECONDS, Schedule, follow, preview
from vprompt.experiments.bench.store import StoreError, open_store
from vprompt.experiments.bench.worker import Worker
from vprompt.experiments.folder import BusyError
from vprompt.experiments.run import run
from vprompt.experiments.settings import settings_from


def test_a_plan_runs_to_its_end(undisturbed):
    out, document = undisturbed
    assert [cell["method"] for cell in document["cells"]] == ["Linear", "VPT", "PC 25 %", "PC 50 %", "E2VPT"]
    assert all(0.2 < cell["test_accuracy"] <= 1 for cell in document["cells"])
    found = results(out)
    runs = [one for one in found.values() if one["until"] is None]
    # Five cells, and the training that E2VPT's pruning starts from; the other two start from VPT.
    assert len(runs) == 6
    assert sum(one["test_accuracy"] is not None for one in runs) == 6
    vpt = next(one for one in runs if one["name"] == document["cells"][1]["result"])
    for cell in document["cells"][2:4]:
        result = found[cell["result"]]
        assert result["before"]["test_accuracy"] == vpt["test_accuracy"]
        assert sum(result["prompt_counts"]) == round(sum(vpt["prompt_counts"]) * result["settings"]["condense"])
    assert {path.name for path in (out / "work").iterdir()} == set()
    assert {path.name for path in (out / "adapters").iterdir()} == {one["name"] for one in runs}


def test_trials_validate_and_runs_test(undisturbed):
    found = results(undisturbed[0])
    trials = [one for one in found.values() if one["until"] is not None]
    assert len(trials) == 3 * 2  # three methods, two rates; with one of them left, nothing is trained on
    assert all("test_accuracy" not in one and one["val_accuracy"] is not None for one in trials)
    assert {one["run"]["train_on"] for one in trials} == {"train"}
    assert {one["run"]["test"] for one in trials} == {False}


def test_its_numbers_are_those_of_fit(undisturbed, text, tmp_path):
    """A run that shares its first stage ends as one that does all of it by itself."""
    out, _ = undisturbed
    plan = parse_plan(text, name="tiny")
    cells = cells_of(plan, tasks_of(plan)[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in (0, 2, 4):
            outcome, result = follow(cells[number], open_store(str(out)))
            alone = run(outcome.run.settings, tmp_path / str(number))
            assert figures({"": alone}) == figures({"": result})
            assert alone.get("before", {}).get("test_accuracy") == result.get("before", {}).get("test_accuracy")
    finally:
        torch.set_num_threads(threads)


def test_a_finished_plan_does_nothing(undisturbed):
    out, document = undisturbed
    before = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    again = run_command("bench", out.parent / "tiny.toml", "--out", out, "--json")
    assert again.document == document
    assert {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()} == before


def test_a_changed_plan_reuses_what_it_can(undisturbed, text):
    plan = parse_plan(text.replace("[0.25, 0.5]", "[0.5, 0.75]").replace("seeds = 1", "seeds = [0, 5]"), name="tiny")
    jobs, done = preview(cells_of(plan, tasks_of(plan)[0]), open_store(str(undisturbed[0])))
    todo = {job.name for job in jobs if not done[job.name]}
    assert {job.settings.recipe.seed for job in jobs if job.name in todo} == {0, 5}
    assert [job.settings.condense.ratio for job in jobs if job.name in todo and job.settings.recipe.seed == 0] == [0.75]
    assert not any(job.until for job in jobs if job.name in todo)  # what was chosen stays chosen


def test_shares_are_chosen_with_whole_runs(text, tmp_path):
    plan = (
        text[: text.index("[[methods]]")]
        + """
[[methods]]
label = "PC"
method = "vpt-deep"
fine_tune_epochs = 1
[search.space]
condense = [0.25, 0.75]
"""
    )
    (tmp_path / "p.toml").write_text(plan)
    found = run_command("bench", tmp_path / "p.toml", "--out", tmp_path / "runs", "--json")
    assert found.status == 0
    done = results(tmp_path / "runs")
    chosen = found.document["cells"][0]["chosen"]["condense"]
    tried = {one["settings"].get("condense"): one for one in done.values() if not one["run"]["test"]}
    assert set(tried) == {None, 0.25, 0.75}
    assert all(one["test_accuracy"] is None for one in tried.values())
    best = max((0.25, 0.75), key=lambda ratio: (tried[ratio]["val_accuracy"], -tried[ratio]["val_loss"]))
    assert chosen == best


def test_images_that_change_between_runs_are_noticed(text, tmp_path):
    plan = parse_plan(text, name="p")
    folder = tmp_path / "colours"
    shutil.copytree(plan.tasks[0], folder)
    short = text[: text.index("[[methods]]")].replace(plan.tasks[0], str(folder)) + "[[methods]]\nmethod = 'linear'\n"
    (tmp_path / "p.toml").write_text(short)
    assert run_command("bench", tmp_path / "p.toml", "--out", tmp_path / "runs").status == 0
    Image.new("RGB", (16, 16), "white").save(folder / "images/test/0.png")
    (tmp_path / "p.toml").write_text(short.replace("seeds = 1", "seeds = 2"))
    found = run_command("bench", tmp_path / "p.toml", "--out", tmp_path / "runs")
    assert found.status == 1
    assert "changed between runs" in found.err


def test_a_damaged_result_is_done_again(undisturbed, tmp_path):
    out, _ = undisturbed
    copy = tmp_path / "runs"
    shutil.copytree(out, copy)
    kept = results(out)
    for name in kept:
        path = copy / "results" / f"{name}.json"
        if "keep0.5" in name:
            path.write_text(path.read_text()[:100])
            shutil.rmtree(copy / "adapters" / name)
    assert run_command("bench", out.parent / "tiny.toml", "--out", copy).status == 0
    assert figures(results(copy)) == figures(kept)


def test_kills_at_random_moments_change_nothing(undisturbed, plan_file, tmp_path):
    out, chance = tmp_path / "runs", random.Random(0)
    store, seen = open_store(str(out)), {}
    for deed in ("kill the worker and interrupt", "kill the driver", "nothing"):
        driver = Command("bench", plan_file, "--out", out, "--json", folder=tmp_path)
        enough = len(seen) + chance.randint(1, 3)
        while deed != "nothing" and driver.status is None and len(store.finished()) < enough:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        left = workers(driver.pid)
        if deed.startswith("kill the worker"):
            for child in left:
                os.kill(child, signal.SIGKILL)
            time.sleep(chance.uniform(0, 5))  # another one takes its place meanwhile
            left += workers(driver.pid)
        if deed != "nothing" and driver.status is None:
            os.kill(driver.pid, signal.SIGINT if deed.endswith("interrupt") else signal.SIGKILL)
        status, text, errors = driver.end()
        assert "Traceback" not in errors
        if status == 130:
            assert "vprompt: Stopped" in errors
        end = time.monotonic() + 60
        while any(Path(f"/proc/{child}").exists() for child in left) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(Path(f"/proc/{child}").exists() for child in left)
        found = results(out)
        finished = {name: document["finished"] for name, document in found.items()}
        assert {name: finished[name] for name in seen} == seen  # nothing that was finished was done again
        seen = finished
    assert status == 0
    assert json.loads(text)["cells"] == undisturbed[1]["cells"]
    assert figures(found) == figures(results(undisturbed[0]))
    assert list((out / "work").iterdir()) == []


def test_ctrl_c_in_this_process_is_not_waited_for(text, tmp_path, monkeypatch):
    monkeypatch.setattr(Worker, "do", lambda *_: signal.raise_signal(signal.SIGINT))
    plan, store = parse_plan(text, name="tiny"), open_store(str(tmp_path))
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_here(plan, store)
    assert time.monotonic() - begun < STOP_SECONDS / 2


def test_a_worker_that_dies_again_and_again_is_given_up(text, tmp_path):
    plan = parse_plan(text, name="tiny")
    cells = cells_of(plan, tasks_of(plan)[0])[:1]
    engine = Deadly()
    store = open_store(str(tmp_path))
    Schedule(cells, store, engine, retries=2).run()
    outcome, _ = follow(cells[0], store)
    assert "Its settings cannot be chosen" in outcome.failure
    assert engine.submitted == 2 * 3
    assert "Given up after 3 attempts: it fell over." in store.failure(next(iter(store.failures())))["failure"]


class Deadly:
    """An engine all of whose workers die."""

    def __init__(self):
        self.submitted, self.tasks = 0, []

    def free(self):
        return 1 - len(self.tasks)

    def submit(self, task):
        self.submitted += 1
        self.tasks.append(task)

    def poll(self, seconds):
        events = [Event(name=task.name, kind="lost", why="it fell over") for task in self.tasks]
        self.tasks = []
        return events

    def stop(self):
        pass

    def close(self):
        pass


def fill_the_disk():
    """Writes longer than a limit fail, as they do when a disk is full, also those of processes that are started."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


def test_a_full_disk_stops_everything_and_loses_nothing(plan_file, tmp_path):
    out = tmp_path / "runs"
    before, _, after = plan_file.read_text().partition('[[methods]]\nlabel = "PC')
    plan_file.write_text(f"{before}[search]{after.partition('[search]')[2]}")  # two methods will do
    status, _, errors = Command("bench", plan_file, "--out", out, folder=tmp_path, prepare=fill_the_disk).end()
    assert status == 1
    assert "The benchmark stops; start it again once that is mended." in errors
    assert "Traceback" not in errors
    assert results(out).keys() >= set()
    assert not any(path.suffix == ".part" for path in out.rglob("*"))
    assert run_command("bench", plan_file, "--out", out).status == 0
    assert len(results(out)) == 6


def test_what_fails_for_good_is_said_and_not_tried_again(text, tmp_path):
    plan = text.replace("[search.space]\nlr = [0.02, 0.005]", "").replace(
        "epochs = 4", 'epochs = 4\nlr = 1e9\noptimizer = "sgd"'
    )
    (tmp_path / "p.toml").write_text(plan)
    failed = []
    for more in ([], [], ["--retry-failed"]):
        found = run_command("bench", tmp_path / "p.toml", "--out", tmp_path / "runs", "--json", *more)
        assert found.status == 1
        assert "5 of 5 cells have no result, the first Linear" in found.err
        assert all("The loss became" in cell["failure"] for cell in found.document["cells"])
        failed.append(found.err.count("failed  "))
    assert failed == [3, 0, 3]  # a training that others start from fails once for all of them


def test_the_engine_names_the_signal_that_killed_a_worker(tmp_path):
    engine = LocalEngine(str(tmp_path), workers=1)
    job = Job(settings=settings_from({"backbone": BUNDLED_BACKBONE, "data": "bundled:fashion-mnist"}).resolved())
    engine.submit(Assignment(name=job.name, document=to_plain_data(job)))
    os.kill(engine.workers[0].process.pid, signal.SIGKILL)
    end, events = time.monotonic() + 60, []
    while not any(event.kind == "lost" for event in events) and time.monotonic() < end:
        events += engine.poll(0.5)
    engine.close()
    assert events[-1].kind == "lost"
    assert "SIGKILL; the machine may have run out of memory" in events[-1].why


def test_a_study_says_what_is_missing(undisturbed, tmp_path):
    study = study_of(str(undisturbed[0]))
    assert not any("root" in cell["result"]["settings"] for cell in study["cells"])
    assert {cell["state"] for cell in study["cells"]} == {"finished"}
    assert study["cells"][1]["search"]["chosen"]["lr"] in (0.02, 0.005)
    assert study["tasks"][0]["classes"] == ["0", "1", "2"]
    with pytest.raises(Exception, match="There are no results"):
        study_of(str(tmp_path))


def test_a_folder_has_one_name_however_it_is_written_and_wherever_it_lies(colours, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(colours, "d")
    shutil.copytree(colours, "elsewhere/copy")
    shutil.copytree(colours, "other")
    Path("link").symlink_to("d")
    shutil.copy("other/blue/00.png", "other/red/00.png")
    shutil.copy(tiny_weights, "w.safetensors")
    settings = 'backbone = "test_vit"\nimg_size = 32\nepochs = 1'
    plan = 'tasks = ["{}"]\nseeds = 1\n[settings]\n{}\nweights = "{}"\n[[methods]]\nmethod = "linear"\n'

    def bench(task, weights, *more):
        Path("p.toml").write_text(plan.format(task, settings, weights))
        outcome = run_command("bench", "p.toml", "--out", "S", "--json", *more)
        assert outcome.status == 0, outcome.err
        return outcome.document

    (name,) = [cell["result"] for cell in bench("d", tiny_weights)["cells"]]
    same = ["d", "d/", "./d", str(tmp_path / "d"), "link", "elsewhere/copy", "elsewhere/../d"]
    for task in same:
        assert [(run["name"], run["done"]) for run in bench(task, "./w.safetensors", "--dry-run")["runs"]] == [
            (name, True)
        ]
    assert [run["done"] for run in bench("other", tiny_weights, "--dry-run")["runs"]] == [False]
    assert bench("elsewhere/copy", "w.safetensors")["cells"][0]["result"] == name
    (cell,) = study_of("S")["cells"]
    assert (cell["task"], cell["state"]) == ("elsewhere/copy", "finished")
    monkeypatch.chdir("elsewhere")
    shutil.copytree("../other", "d")  # is called as the first one was, and is another
    Path("../p.toml").write_text(plan.format("d", settings, tiny_weights))
    outcome = run_command("bench", "../p.toml", "--out", "../S", "--json", "--dry-run")
    assert [run["done"] for run in outcome.document["runs"]] == [False]


def test_another_plan_of_the_same_name_is_kept_out_while_one_is_at_work(tmp_path):
    store = open_store(str(tmp_path))
    with store.planned("p", "seeds = 1"):
        with open_store(str(tmp_path)).planned("p", "seeds = 1"):
            pass
        with pytest.raises(BusyError, match=f"process {os.getpid()} on"), store.planned("p", "seeds = 2"):
            pass
        assert store.plans() == {"p": "seeds = 1"}


def test_a_plan_of_the_user_is_not_replaced(tmp_path):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "p.toml").write_text("mine")
    with pytest.raises(StoreError, match="choose another --out"), open_store(str(tmp_path)).planned("p", "other"):
        pass
    assert (tmp_path / "plans" / "p.toml").read_text() == "mine"


def test_a_dry_run_leaves_nothing_behind(plan_file, tmp_path):
    found = run_command("bench", plan_file, "--out", tmp_path / "runs", "--dry-run", "--json")
    assert found.status == 0
    assert found.document["cells"] == 5
    assert len(found.document["runs"]) == 12
    assert found.document["seconds"] > 0
    assert not (tmp_path / "runs").exists()


def test_a_rehearsal_schedules_everything_and_leaves_nothing(plan_file, tmp_path):
    found = run_command("bench", plan_file, "--out", tmp_path / "runs", "--rehearse", "--json")
    assert found.status == 0
    assert found.document["runs"] == 12
    assert list((tmp_path / "runs").iterdir()) == []


def test_bad_command_lines(plan_file, tmp_path, monkeypatch):
    assert run_command("bench", tmp_path / "no.toml").status == 1
    assert run_command("bench", plan_file, "--workers", "0").status == 2
    assert run_command("bench", plan_file, "--engine", "magic").status == 2
    listed = run_command("bench")
    assert listed.status == 0
    assert "pc-vit" in listed.out
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert "without torchrun" in run_command("bench", plan_file).err
