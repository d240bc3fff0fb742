"""What plans, kills and hands in the results folder once got past the benchmark."""

import errno
import multiprocessing
import shutil
from dataclasses import replace

import pytest
import torch

from conftest import run_with_one_thread
from plans import results
from vprompt.experiments.bench.engine import Assignment
from vprompt.experiments.bench.grid import Cell, cells_of, tasks_of
from vprompt.experiments.bench.halving import steps
from vprompt.experiments.bench.jobs import Job
from vprompt.experiments.bench.local import LocalEngine, WorkerProcess
from vprompt.experiments.bench.plan import PlanError, Search, parse_plan
from vprompt.experiments.bench.store import open_store
from vprompt.experiments.bench.worker import Worker
from vprompt.experiments.run import try_settings
from vprompt.tasks.single_label import SingleLabel
from vprompt.training.evaluate import Evaluation
from vprompt.utils.errors import DataError, StorageError, VPromptError

HEAD = 'tasks = ["vtab:svhn"]\nsettings = {backbone = "test_vit"}\n[[methods]]\nmethod = "linear"\n'


def the_jobs(text, number):
    plan = parse_plan(text, name="tiny")
    cell = cells_of(plan, tasks_of(plan)[0])[number]
    return cell.settings().resolved()


def test_what_a_worker_sent_before_it_died_is_not_lost():
    ours, theirs = multiprocessing.Pipe()
    worker = object.__new__(WorkerProcess)
    worker.name, worker.connection, worker.assignment = "worker 0", ours, Assignment(name="a", document={})
    worker.process = multiprocessing.get_context("spawn").Process(target=int)
    worker.process.start()
    theirs.send(("done", {"state": "finished"}))
    theirs.close()
    assert [event.kind for event in worker.read()] == ["done"]
    assert worker.assignment is None
    assert worker.ended
    assert worker.read() == []
    assert LocalEngine("", workers=1).free() == 1


def test_settings_for_no_task_of_the_plan_are_refused():
    for extra in ('[task."vtab:structured"]\nprompts = 9\n', '[methods.task."vtab:shvn"]\nprompts = 9\n'):
        plan = parse_plan(HEAD + extra, name="p")
        with pytest.raises(PlanError, match="which is none of its tasks"):
            tasks_of(plan)
    assert tasks_of(parse_plan(HEAD + '[task."vtab:svhn"]\nprompts = 9\n', name="p"))[0] == ["vtab:svhn"]


def test_an_empty_list_does_not_leave_a_method_out():
    with pytest.raises(PlanError, match="The list of condense of vpt-deep is empty"):
        parse_plan(HEAD + '[[methods]]\nmethod = "vpt-deep"\ncondense = []\n', name="p")


def test_a_task_has_one_name_however_it_is_written():
    plan = parse_plan(HEAD.replace('"vtab:svhn"', '"VTAB:SVHN", "vtab:svhn"'), name="p")
    assert tasks_of(plan)[0] == ["vtab:svhn"]


def searched(space, answer, **values):
    """All jobs of a cell with a search, and its outcome."""
    values = {"backbone": "test_vit", "data": "t", "epochs": 20, "train_on": "train+val", **values}
    going = steps(Cell(task="t", method="m", seed=0, values=values, search=Search(space=space)))
    asked, jobs = [], next(going)
    while True:
        asked += jobs
        try:
            jobs = going.send({job.name: answer(job) for job in jobs})
        except StopIteration as end:
            return asked, end.value


def test_a_search_without_a_choice_says_why():
    for space, more in (({"lr": (0.1, 0.2)}, {}), ({"condense": (0.1, 0.2)}, {"condense": 0.1})):
        _, outcome = searched(space, lambda job: {"failed": "There are no images."}, **more)
        assert outcome.failure.endswith("The first: There are no images.")


def test_a_search_over_epochs_takes_each_to_its_end():
    asked, outcome = searched({"epochs": (4, 20)}, lambda job: {"val_accuracy": job.until or 0, "val_loss": 1.0})
    assert {(job.settings.recipe.epochs, job.until) for job in asked if job.until} == {(4, 1), (20, 5)}
    assert outcome.search["chosen"] == {"epochs": 20}
    asked, outcome = searched({"epochs": (4, 20)}, lambda job: {"val_accuracy": -(job.until or 0), "val_loss": 1.0})
    assert [trial["epochs"] for trial in outcome.search["trials"]] == [1, 5]
    assert outcome.search["chosen"] == {"epochs": 4}


def test_one_failed_first_stage_leaves_choices_that_need_none():
    """Values to rewind to are recorded while training, so that such a run shares no first stage."""

    def answer(job):
        return {"failed": "No."} if job.settings.prune is None else {"val_accuracy": 0.5, "val_loss": 1.0}

    values = {"prune_tokens": 0.5, "prune_segments": 0.5, "method": "vpt-deep"}
    _, outcome = searched({"rewind_epoch": (0, 3)}, answer, **values)
    assert outcome.search["chosen"] == {"rewind_epoch": 3}


SPREAD = ("prompts", "epochs", "batch_size")

HUGE = {
    "seeds": ("seeds = 1", "seeds = 1_000_000_000_000"),
    "combinations": ('label = "VPT"', "".join(f"{name} = {list(range(1, 99))}\n" for name in SPREAD)),
    "nesting": ('title = "tiny"', f"title = {'[' * 50_000}"),
    "digits": ('title = "tiny"', f"hours = {'9' * 5_000}"),
}


@pytest.mark.parametrize("what", HUGE)
def test_a_plan_of_more_than_can_be_done_is_refused_at_once(text, what):
    old, new = HUGE[what]
    with pytest.raises(VPromptError) as error:
        parse_plan(text.replace(old, new), name="p")
    assert len(str(error.value)) < 300


def test_a_plan_of_many_seeds_and_methods_is_refused_before_its_runs_are_listed(text):
    plan = parse_plan(text.replace("seeds = 1", "seeds = 99_999"), name="p")
    with pytest.raises(VPromptError, match="runs in the plan p"):
        cells_of(plan, tasks_of(plan)[0])


WRONG = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "text": {"val_loss": "x"},
    "list": {"val_accuracy": [0.5]},
    "huge": {"val_accuracy": 10**400},
    "rows": {"epochs": [{"loss": {}}]},
    "flag": {"test_accuracy": True},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_result_of_other_types_is_none_also_with_its_checksum(tmp_path, what):
    store = open_store(str(tmp_path))
    wrong = WRONG[what]
    store.publish("a", {"name": "a", "val_accuracy": 0.5, "val_loss": 1, **(wrong if isinstance(wrong, dict) else {})})
    if isinstance(wrong, str):
        (tmp_path / "results" / "a.json").write_text(wrong)
    assert store.result("a") is None
    store.fail("a", {"name": "a", "failure": 3, "again": "x"})
    assert store.failure("a") is None


def test_a_result_under_another_name_is_none(tmp_path):
    for store in (open_store(str(tmp_path)), open_store(f"file://{tmp_path}")):
        store.publish("a", {"name": "a"})
        shutil.copy(tmp_path / "results" / "a.json", tmp_path / "results" / "b.json")
        assert store.result("a") is not None
        assert store.result("b") is None


def test_what_cannot_be_read_of_a_task_is_not_the_fault_of_the_folder(tmp_path, text):
    worker = Worker(str(tmp_path / "runs"), "w")
    job = Job(settings=the_jobs(text, 1))
    unread = DataError("It cannot be read.")
    unread.__cause__ = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "images" / "1.png"))
    unwritten = StorageError("runs/work/a cannot be written: no space is left on the disk; make room.")
    for error, for_all in ((unread, False), (unwritten, True)):
        failed = worker._failed(job, error)
        assert (failed["for_all"], failed["failure"]) == (for_all, str(error))


def test_memory_that_torch_does_not_get_is_said_to_be_memory(tmp_path, text):
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        failed = Worker(str(tmp_path), "w")._failed(Job(settings=the_jobs(text, 1)), error)
    assert failed["failure"] == "There is not enough memory."


def test_a_validation_loss_that_is_no_number_is_a_divergence(tmp_path, text, monkeypatch):
    target, labels = SingleLabel(names=("a", "b")), torch.zeros(3).long()
    without_a_loss = Evaluation(target=target, loss=float("nan"), logits=torch.eye(3)[:, :2], labels=labels)
    monkeypatch.setattr("vprompt.experiments.run.evaluate", lambda *a, **k: without_a_loss)
    settings = replace(the_jobs(text, 0), train_on="train", test=False)
    found = try_settings(settings, tmp_path / "training.safetensors", until=1)
    assert found["val_loss"] is None
    assert "validation images became nan" in found["diverged"]


def test_a_run_goes_on_with_other_loading_processes(tmp_path, text):
    """They are no part of its name, so they must not be in its way either."""
    settings = replace(the_jobs(text, 1), train_on="train", test=False)
    more = replace(settings, recipe=replace(settings.recipe, workers=2))
    assert Job(settings=settings, until=1).name == Job(settings=more, until=1).name
    place = tmp_path / "training.safetensors"
    try_settings(settings, place, until=1)
    assert try_settings(more, place, until=2)["epochs"] == 2


def test_a_removed_adapter_is_done_without(undisturbed, text, tmp_path):
    copy = tmp_path / "runs"
    shutil.copytree(undisturbed[0], copy)
    kept = results(copy)
    name, result = next((name, one) for name, one in kept.items() if "keep0.5" in name)
    shutil.rmtree(copy / "adapters")
    (copy / "results" / f"{name}.json").unlink()
    done = run_with_one_thread("bench", undisturbed[0].parent / "tiny.toml", "--out", copy, "--json")
    assert done.status == 0, done.err
    assert done.document["cells"] == undisturbed[1]["cells"]
    assert results(copy)[name]["epochs"] == result["epochs"]
    assert results(copy)[name]["before"]["test_accuracy"] == result["before"]["test_accuracy"]
