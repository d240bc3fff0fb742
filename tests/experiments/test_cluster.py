"""The engine for Ray on a real cluster of two nodes: workers, nodes and drivers are killed, the disk fills up."""

import os
import platform
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from plans import environment, figures, results
from processes import Command, descendants
from vprompt.experiments.bench import ray as subject
from vprompt.experiments.bench.bench import InlineEngine, engine_of, overview, run_plan
from vprompt.experiments.bench.engine import Watch
from vprompt.experiments.bench.local import LocalEngine
from vprompt.experiments.bench.plan import Workers, parse_plan
from vprompt.experiments.bench.scheduler import BenchError
from vprompt.experiments.bench.store import open_store

os.environ |= subject.VARIABLES  # Ray reads them when it is imported
os.environ |= {"RAY_worker_niceness": "0"}  # or its workers wait for all other tests of a suite that runs in parallel
cluster_utils = pytest.importorskip("ray.cluster_utils")

LIMITS = """
import os, resource, sys
if "--multiprocessing-fork" in sys.orig_argv and os.path.exists({switch!r}):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""
"""Imported by every Python process of the cluster; the disk of worker processes is full while the switch is there."""


class Place:
    """A cluster, and the plan."""

    def __init__(self, folder, text):
        self.folder = folder
        kept = text.partition('[[methods]]\nlabel = "E2VPT"')[0].replace("seeds = 1", "seeds = 2")
        self.text = kept + "[workers]\nretries = 20\n"
        self.file = folder / "tiny.toml"
        self.file.write_text(self.text)
        self.plan = parse_plan(self.text, name="tiny")
        alone = str(folder / "local")
        self.run(alone, engine := LocalEngine(alone, workers=2, threads=1))
        engine.close()
        self.expected = results(alone)
        self.switch = folder / "disk-is-full"
        (folder / "sitecustomize.py").write_text(LIMITS.format(switch=str(self.switch)))
        path = os.pathsep.join([str(folder), str(Path(subject.__file__).parents[3])])
        self.environment = environment(PYTHONPATH=path, XDG_CACHE_HOME=str(folder / "cache"))

    def join(self, address):
        return engine_of(self.plan, address, kind="ray", cluster=self.cluster.address)

    def run(self, address, engine, watch=None):
        store = open_store(address)
        return run_plan(overview(self.plan, store, estimate=False), store, engine, watch=watch)

    def run_here(self, address):
        """In this process, with one thread."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self.run(address, InlineEngine(address))
        finally:
            torch.set_num_threads(before)

    def start(self, out, *more):
        """`vprompt bench` in a process of its own."""
        arguments = ["bench", self.file, "--out", out, "--engine", "ray", *more]
        return Command(*arguments, folder=self.folder, environment=self.environment | subject.VARIABLES)

    def check(self, address):
        """All results are there, whole, those of the local engine, and nothing else is."""
        found = results(address)
        assert figures(found) == figures(self.expected)
        root = Path(address.removeprefix("file://"))
        assert [path for path in root.rglob("*") if path.name.endswith((".part", ".lock"))] == []
        scratch = open_store(address).scratch("any").parent
        # A worker may outlive its killed actor by a little.
        until(lambda: not list(scratch.glob("*")), seconds=60, then=lambda: list(scratch.rglob("*")))
        for name, document in found.items():
            assert (root / "adapters" / name).is_dir() == (document["until"] is None)


def processes(*, ours):
    """The actors of clusters that a process has started, and their worker processes: pid -> whether it is an actor."""
    found = descendants(ours)
    actors = {pid for pid, (_, line) in found.items() if line.startswith(b"ray::Overseer")}
    spawned = {pid for pid, (parent, line) in found.items() if b"--multiprocessing-fork" in line and parent in actors}
    return dict.fromkeys(actors, True) | dict.fromkeys(spawned, False)


def until(condition, *, seconds=300, then=lambda: "it never came"):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, then()
        time.sleep(0.05)
    return found


class Killer(Watch):
    """A `Watch` that does one deed after the other at random moments, with every worker process at work."""

    def __init__(self, *deeds):
        self.deeds = list(deeds)
        self.chance = random.Random(0)
        self.wait = 0
        self.lost = []

    def event(self, event):
        self.lost += [event.why] if event.kind == "lost" else []

    def settled(self, job, result):
        assert "failed" not in result, result

    def tick(self):
        found = processes(ours=os.getpid())
        workers = [pid for pid, is_actor in found.items() if not is_actor]
        if self.wait > 0:
            self.wait -= 1
        elif self.deeds and len(workers) == 2:
            self.deeds.pop(0)(found)
            self.wait = self.chance.randint(5, 15)


def kill(found, *, actor):
    os.kill(min(pid for pid, is_actor in found.items() if is_actor == actor), signal.SIGKILL)


@pytest.fixture(scope="module", autouse=True)
def level_of_users():
    """Ray says aloud where it was told to be silent, as other tests do in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_BACKEND_LOG_LEVEL", raising=False)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, text):
    place = Place(tmp_path_factory.mktemp("ray"), text)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (place.environment | subject.VARIABLES).items():
            patch.setenv(name, value)
        head = {"num_cpus": 1, "include_dashboard": False}
        place.cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        place.node = place.cluster.add_node(num_cpus=1)
        yield place
        place.cluster.shutdown()


def test_killed_workers_actors_and_nodes_cost_nothing_but_time(place, capfd):
    address = str(place.folder / "killed")

    def lose_a_node(found):
        place.cluster.remove_node(place.node, allow_graceful=False)
        place.node = place.cluster.add_node(num_cpus=1)

    watch = Killer(lambda found: kill(found, actor=False), lambda found: kill(found, actor=True), lose_a_node)
    with place.join(address) as engine:
        place.run(address, engine, watch)
        until(lambda: engine.poll(0.1) == [] and sum(seat.ready for seat in engine.seats) == 2)
    assert watch.deeds == []
    assert watch.lost[0] == "its process was ended by SIGKILL; the machine may have run out of memory"
    host = platform.node()
    assert 1 < len(watch.lost) <= 3
    assert set(watch.lost[1:]) == {f"its Ray worker on {host} was ended or cannot be reached"}
    place.check(address)
    until(lambda: not processes(ours=os.getpid()))
    assert capfd.readouterr() == ("", "")


def test_a_killed_driver_takes_its_workers_along_and_the_next_one_goes_on(place):
    address = f"file://{place.folder}/driver"
    store = open_store(address)
    driver = place.start(address, "--address", place.cluster.address)
    assert driver.when(lambda: len(store.finished()) >= 3, signal.SIGKILL)[0] == -signal.SIGKILL
    until(lambda: not processes(ours=os.getpid()))
    there = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (place.folder / "driver/results").iterdir()}
    assert 3 <= len(there) < len(place.expected)
    assert all(store.result(path.stem) for path in there)
    place.run_here(address)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in there} == there
    place.check(address)


def test_a_full_disk_ends_it_with_a_sentence_and_no_half_file(place):
    address = str(place.folder / "full")
    place.switch.touch()
    with (
        place.join(address) as engine,
        pytest.raises(BenchError, match=r"cannot be written: .*no file of that size.*start it again"),
    ):
        place.run(address, engine)
    place.switch.unlink()
    results(address)  # are whole
    assert list(Path(address).rglob("*.part")) == []
    place.run_here(address)
    place.check(address)


def test_ctrl_c_saves_every_training_of_a_cluster_of_its_own(place):
    out = place.folder / "stopped"
    place.file.write_text(place.text.replace("epochs = 4\n", "epochs = 9000\n"))
    driver = place.start(out, "--workers", "2", "--json")
    until(lambda: len(list(out.glob("work/.*.lock"))) == 2)
    time.sleep(2)  # well into the trainings, which are saved every ten seconds and at the end
    found = processes(ours=driver.pid)
    assert sorted(found.values()) == [False, False, True, True]
    assert list(out.glob("work/*/.run/training.safetensors")) == []
    status, printed, errors = driver.when(lambda: True, signal.SIGINT)
    assert (status, printed) == (130, "")
    assert errors.splitlines()[-1].startswith("vprompt: Stopped with 0 of ")
    assert "Traceback" not in errors
    assert len(list(out.glob("work/*/.run/training.safetensors"))) == 2
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))


def test_what_cannot_be_done_is_said(place, monkeypatch):
    monkeypatch.setattr(subject, "UNFIT_SECONDS", 0.0)
    needs = Workers(cpus=1.0, gpus=64.0)
    engine = subject.RayEngine("nowhere", needs, cluster=place.cluster.address)
    with pytest.raises(subject.ClusterError, match=r"No machine .*\(1 cpus, 64 gpus\); they have 1 cpus"):
        until(lambda: engine.poll(0.1))
    engine.close()
    with pytest.raises(subject.ClusterError, match=r"No Ray cluster at 127\.0\.0\.1:1 "):
        subject.RayEngine("nowhere", needs, cluster="127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(subject.ClusterError, match=r"pip install 'vprompt\[ray\]'"):
        subject.RayEngine("nowhere", needs)
