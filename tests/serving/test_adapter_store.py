"""Adapters that are loaded when they are asked for, within a bound; and limits of each adapter."""

import math
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from test_serving import IMAGES, PATIENCE, Running, assert_problem, eventually, serve_here

import vprompt
from conftest import run_command
from vprompt.serving.bank.banks import Banks
from vprompt.serving.errors import RequestError
from vprompt.serving.limits import Limits
from vprompt.serving.metrics import Metrics
from vprompt.serving.predict import predict_each
from vprompt.serving.quotas import Quotas
from vprompt.serving.service import Service
from vprompt.serving.store import Store
from vprompt.utils.errors import VPromptError

sys.path.append(str(Path(__file__).parents[1] / "model"))
from test_adapter_hub import hub

__all__ = ["hub"]  # a fixture
NAMES = [f"task{number}" for number in range(6)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tiny_weights):
    """A folder of six adapters on one tiny backbone, each with classes of its own; read it, never write to it."""
    root = tmp_path_factory.mktemp("shelf")
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        classes = [f"{name} {number}" for number in range(2 + seed)]
        model = vprompt.attach("test_vit", vprompt.VPT(2), classes=classes, weights=tiny_weights, img_size=32)
        torch.nn.init.normal_(model.head.weight)
        model.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def alone(shelf, tmp_path_factory):
    """What each adapter, loaded by itself, says of the image."""
    file = tmp_path_factory.mktemp("image") / "image.png"
    file.write_bytes(IMAGES["png"])
    answers = {}
    for name in NAMES:
        [[prediction]] = predict_each(vprompt.load(shelf / name).fold(), [file])
        answers[name] = prediction.answer
    return answers


class Counting(Banks):
    """Banks that know what was loaded, and hold the first load of `slow` until they are let go."""

    def __init__(self, slow=None):
        super().__init__()
        self.loads, self.slow, self.go = [], slow, threading.Event()

    def add(self, name, source, **options):
        self.loads.append(name)
        if name == self.slow:
            assert self.go.wait(PATIENCE)
        return super().add(name, source, **options)


class Shelf(Running):
    """A server that loads adapters when they are asked for."""

    def __init__(self, place, banks=None, **limits):
        self.banks = banks or Counting()
        self.limits = Limits(**{"timeout": PATIENCE, **limits})
        metrics = Metrics()
        self.store = Store(self.banks, str(place), self.limits, metrics)
        super().__init__(self.banks, service=Service(self.banks, self.limits, metrics=metrics, store=self.store))

    def event(self, name):
        return self.metric(f'vprompt_pulled_adapters_total{{event="{name}"}}')


def assert_says(response, name, alone):
    assert response.status_code == 200, response.text
    said = response.json()
    assert said["adapter"] == name
    assert said["class_name"] == alone[name]["class_name"]
    assert math.isclose(said["probability"], alone[name]["probability"], rel_tol=1e-4)


def test_an_adapter_is_loaded_when_it_is_asked_for_and_the_least_recently_used_go(shelf, alone):
    running = Shelf(shelf, max_adapters=3)
    try:
        assert [entry.name for entry in running.banks.entries] == ["task0"]  # whose backbone all share
        kept, hits, evicted = ["task0"], 0, 0
        chance = random.Random(0)
        for _ in range(40):
            name = chance.choice(NAMES)
            assert_says(running.ask(name), name, alone)
            hits += name in kept
            evicted += name not in kept and len(kept) == 3
            kept = [*[other for other in kept if other != name], name][-3:]  # the reference
            assert {entry.name for entry in running.banks.entries} == {*kept}
        assert (running.event("hit"), running.event("miss")) == (hits, 40 - hits)
        assert running.event("eviction") == evicted > 5
        assert len(running.banks.loads) == 1 + 40 - hits
        assert len(running.banks.banks) == 1
        # Several of one request are held together; more than there is room for cannot be.
        answers = running.client.post("/v1/predict", params={"adapter": NAMES[:3]}, content=IMAGES["png"]).json()
        assert [answer["class_name"] for answer in answers["answers"]] == [alone[n]["class_name"] for n in NAMES[:3]]
    finally:
        running.close()


def test_a_bound_in_bytes_is_kept_too(shelf):
    size = Shelf(shelf)
    size.ask("task5")
    nbytes = {entry.name: entry.nbytes for entry in size.banks.entries}["task5"]
    size.close()
    file = max(path.stat().st_size for path in shelf.glob("*/*.safetensors"))
    running = Shelf(shelf, max_adapter_bytes=max(2 * nbytes, file))
    try:
        for name in [*NAMES, *NAMES]:
            assert running.ask(name).status_code == 200
            assert sum(entry.nbytes for entry in running.banks.entries) <= running.limits.max_adapter_bytes
            assert name in running.banks
    finally:
        running.close()
    with pytest.raises(VPromptError, match="larger than 1000 bytes"):
        Store(Banks(), str(shelf), Limits(max_adapter_bytes=1000), Metrics())


def test_concurrent_first_requests_load_once_and_others_do_not_wait(shelf, alone):
    running = Shelf(shelf, Counting(slow="task3"))
    try:
        with ThreadPoolExecutor(20) as pool:
            asked = [pool.submit(running.ask, "task3") for _ in range(20)]
            eventually(lambda: "task3" in running.banks.loads)
            assert_says(running.ask("task0"), "task0", alone)  # while that one loads
            running.banks.go.set()
            for response in asked:
                assert_says(response.result(), "task3", alone)
        assert running.banks.loads.count("task3") == 1
    finally:
        running.banks.go.set()
        running.close()


def test_one_that_is_in_use_is_not_given_up(shelf, alone):
    """The only place is taken by an adapter whose image is decoded: another waits, and both are answered."""
    running = Shelf(shelf, max_adapters=1)
    gate, entered = threading.Event(), threading.Event()
    compute = running.banks.__class__.__call__

    class Slow(Counting):
        def __call__(self, images, adapters):
            entered.set()
            assert gate.wait(PATIENCE)
            return compute(self, images, adapters)

    running.banks.__class__ = Slow
    try:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(running.ask, "task0")
            assert entered.wait(PATIENCE)
            second = pool.submit(running.ask, "task1")
            time.sleep(0.3)
            assert [entry.name for entry in running.banks.entries] == ["task0"]
            assert not second.done()
            gate.set()
            assert_says(first.result(), "task0", alone)
            assert_says(second.result(), "task1", alone)
        assert [entry.name for entry in running.banks.entries] == ["task1"]
    finally:
        gate.set()
        running.close()


def test_requests_that_hold_what_others_wait_for_do_not_hold_for_long(shelf):
    """Two requests that each hold a half of the places and want one more."""
    running = Shelf(shelf, max_adapters=2)
    try:
        several = {"adapter": NAMES[:3]}
        refused = running.client.post("/v1/predict", params=several, content=IMAGES["png"])
        assert_problem(refused, 422, "invalid", "at most 2 adapters")
        with running.store.held("task0"), running.store.held("task1"):
            assert running.ask("task1").status_code == 200
            began = time.monotonic()
            assert_problem(running.ask("task2"), 503, "busy", "in use")
            assert time.monotonic() - began < 10
            assert {entry.name for entry in running.banks.entries} == {"task0", "task1"}
        assert running.ask("task2").status_code == 200  # not refused for ten seconds
    finally:
        running.close()


def test_many_clients_and_little_room(shelf, alone):
    """Under steady eviction every answer is right, and no more are loaded than may be."""
    running = Shelf(shelf, max_adapters=2)

    def ask(seed):
        chance = random.Random(seed)
        for _ in range(12):
            name = chance.choice(NAMES)
            assert_says(running.ask(name), name, alone)
            assert len(running.banks) <= 2

    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(ask, range(6)))
        assert not running.store._uses
        assert not running.store._leaving
        assert running.event("failure") == 0
    finally:
        running.close()


def test_bad_names_and_bad_adapters(shelf, tmp_path, tiny_weights):
    place = tmp_path / "inner" / "place"
    shutil.copytree(shelf / "task1", place / "good")
    shutil.copytree(shelf / "task1", tmp_path / "inner" / "outside")
    shutil.copytree(shelf / "task1", place / ".hidden")
    shutil.copytree(shelf / "task1", place / "torn")
    (place / "torn" / "adapter_model.safetensors").write_bytes(b"nothing")
    other = vprompt.attach("test_vit2", vprompt.VPT(1), num_classes=2, pretrained=False, img_size=32)
    other.save_pretrained(place / "other")
    running = Shelf(place)
    try:
        for name in ("..%2Foutside", "%2E%2E", ".hidden", "good%2F..%2Fgood", "a" * 101, "語" * 100, "inner", "nobody"):
            response = running.ask(name)
            assert response.status_code in (404, 422), (name, response.text)
            assert str(tmp_path) not in response.text
        for params in ({"adapter": "../outside"}, {"adapter": str(place / "good")}, {"adapter": "../place/good"}):
            [answer] = running.client.post("/v1/predict", params=params, content=IMAGES["png"]).json()["answers"]
            assert answer["error"]["code"] == "invalid"
        for name in ("torn", "other"):
            response = running.ask(name)
            assert_problem(response, 409, "refused", "cannot be loaded")
            assert str(tmp_path) not in response.text
        assert len(running.banks.banks) == 1  # no backbone was made for a client
        loads = len(running.banks.loads)
        for _ in range(5):
            assert running.ask("torn").status_code == 409
        assert len(running.banks.loads) == loads  # not looked at again at once
        assert running.ask("good").status_code == 200
        assert [entry.name for entry in running.banks.entries] == ["good"]
    finally:
        running.close()


def test_what_changes_in_the_folder_is_loaded_again_and_what_is_gone_goes(shelf, alone, tmp_path):
    place = tmp_path / "place"
    for name in ("task0", "task1", "task2"):
        shutil.copytree(shelf / name, place / name)
    running = Shelf(place, max_adapters=2)
    watch = running.store
    try:
        assert_says(running.ask("task1"), "task1", alone)
        for _ in range(3):
            watch.look()
        assert running.banks.loads == ["task0", "task1"]  # nothing changed
        shutil.copytree(shelf / "task4", place / ".new")
        shutil.rmtree(place / "task1")
        (place / ".new").rename(place / "task1")
        shutil.rmtree(place / "task0")
        watch.look()
        watch.look()
        said = running.ask("task1").json()
        assert said["class_name"] == alone["task4"]["class_name"]
        assert running.ask("task0").status_code == 404
        assert_says(running.ask("task2"), "task2", alone)
        assert {entry.name for entry in running.banks.entries} == {"task1", "task2"}
        # One that was given up is not brought back by a change of its files.
        shutil.copytree(shelf / "task0", place / "task0")
        running.ask("task0")
        assert "task1" not in running.banks
        os.utime(place / "task1" / "adapter_config.json")
        for _ in range(3):
            watch.look()
        assert {entry.name for entry in running.banks.entries} == {"task0", "task2"}
    finally:
        running.close()


def test_adapters_from_the_hub(shelf, alone, hub, tmp_path, tiny_weights):
    for name in NAMES[:3]:
        files = {path.name: path.read_bytes() for path in (shelf / name).iterdir()}
        hub.repositories[f"me/{name}"] = {"main": files}
    hub.repositories["me/empty"] = {"main": {}}
    hub.repositories["me/huge"] = {"main": {**files, "adapter_model.safetensors": bytes(3 * 2**20)}}
    with pytest.raises(VPromptError, match="does not tell which backbone"):
        Store(Banks(), "hf:me", Limits(), Metrics())
    with pytest.raises(VPromptError, match="nobody on the Hub"):
        Store(Banks(), "hf:me/you", Limits(), Metrics())
    banks = Counting()
    banks.add("home", shelf / "task0")
    (tmp_path / "me").mkdir()
    shutil.copytree(shelf / "task5", tmp_path / "me" / "task1")  # a folder of that name is not what is meant
    running = Shelf("hf:me", banks, max_adapters=1, max_adapter_bytes=2**21)
    try:
        for name in ("task1", "task2", "task1"):
            assert_says(running.ask(name), name, alone)
            assert {entry.name for entry in banks.entries} == {"home", name}  # that which was named stays
        loads = len(banks.loads)
        for _ in range(4):
            running.store.look()
        assert_says(running.ask("task1"), "task1", alone)
        assert len(banks.loads) == loads  # what was loaded stays
        for name in ("nobody", "empty", "語", "a..b", "x.git"):
            assert_problem(running.ask(name), 404, "unknown_adapter", name)
        hub.calls.clear()
        assert running.ask("nobody").status_code == 404
        assert hub.calls == []  # the Hub is not asked again at once
        assert running.ask("huge").status_code == 409
        assert not any("huge" in str(path) and "safetensors" in path.name for path in (tmp_path / "cache").rglob("*"))
        assert banks["task1"].source == f"hf:me/task1@{'a' * 40}"
    finally:
        running.close()


def test_what_was_loaded_again_stays_while_it_is_held(shelf):
    """A look that began between both takes nothing away."""
    running = Shelf(shelf, max_adapters=1)
    store = running.store
    try:
        for name in ("task1", "task2"):  # the second takes the place of the first
            assert running.ask(name).status_code == 200
        store.look()
        store.look()
        with store.held("task1"):
            store.ask("task1", "me").result(PATIENCE)
            for _ in range(3):
                store._remove("task1")  # as a look that found it gone would
                store.look()
            assert "task1" in running.banks
    finally:
        running.close()


def test_what_clients_have_removed_takes_no_room(shelf):
    running = Shelf(shelf, max_adapters=1)
    try:
        assert running.ask("task1").status_code == 200
        running.banks.remove("task1")  # as DELETE does
        assert running.ask("task1").status_code == 200
    finally:
        running.close()


def test_a_problem_that_is_remembered_does_not_grow(shelf, tmp_path):
    place = shutil.copytree(shelf, tmp_path / "place")
    (place / "unread").mkdir()
    (place / "unread" / "adapter_config.json").write_text("{}")
    running = Shelf(place)
    try:
        assert_problem(running.ask("unread"), 409, "refused", "unread")
        problem = running.store._refused["unread"][1]
        before = len(traceback.extract_tb(problem.__traceback__))
        for _ in range(5):
            assert_problem(running.ask("unread"), 409, "refused", "unread")
        assert running.store._refused["unread"][1] is problem
        assert len(traceback.extract_tb(problem.__traceback__)) == before
    finally:
        running.close()


# ── limits of each adapter ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rate", [0.5, 1.0, 4.0, 8.0])
def test_no_adapter_is_asked_more_often_than_its_rate(rate):
    """Against a slow reference: a bucket of a second's worth of requests that fills evenly. All numbers are exact."""
    now, chance = [0.0], random.Random(int(10 * rate))
    quotas = Quotas(Limits(rate=("2", f"birds={rate}")), clock=lambda: now[0])
    bucket, taken, before = max(1.0, rate), 0, 0.0
    for _ in range(3000):
        now[0] += chance.choice([0.0, 1 / 64, 1 / 32, 1 / 8, 1 / rate, 1.0])
        bucket, before = min(max(1.0, rate), bucket + (now[0] - before) * rate), now[0]
        problem = None
        try:
            with quotas.taken("birds"):
                bucket -= 1
                taken += 1
        except RequestError as error:
            problem = error
        assert bucket >= 0
        if problem is not None:
            assert bucket < 1
            assert (problem.status, problem.code) == (429, "too_many")
            assert problem.retry_after == (1 - bucket) / rate
    assert 100 < taken < 2900
    assert len(quotas._even) <= 1


def test_limits_are_each_adapters_own(shelf):
    running = Shelf(shelf, rate=("1000", "task1=0.01"), in_flight=("task2=1",))
    try:
        assert running.ask("task1").status_code == 200
        refused = running.ask("task1")
        assert_problem(refused, 429, "too_many", "task1", "0.01 requests a second")
        assert 90 <= int(refused.headers["Retry-After"]) <= 100
        assert running.ask("task0").status_code == running.ask("task2").status_code == 200
        params = {"adapter": ["task0", "task1"]}
        answers = running.client.post("/v1/predict", params=params, content=IMAGES["png"]).json()["answers"]
        assert answers[0]["adapter"] == "task0"
        assert answers[1]["error"]["code"] == "too_many"
        assert running.metric('vprompt_requests_total{adapter="task1",status="429"}') == 2
        with running.service.quotas.taken("task2"):
            refused = running.ask("task2")
            assert_problem(refused, 429, "too_many", "1 request is under way")
            assert refused.headers["Retry-After"] == "1"
        assert running.ask("task2").status_code == 200
        assert not running.service.quotas._under_way
    finally:
        running.close()


@pytest.mark.parametrize("text", ["", "fast", "birds=", "birds=-1", "0", "inf", "nan", "birds=nan"])
@pytest.mark.parametrize("option", ["rate", "in_flight"])
def test_a_limit_that_is_none_is_a_sentence(option, text):
    with pytest.raises(VPromptError, match=option):
        Limits(**{option: (text,)})


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_loads_by_name_and_follows_the_folder(shelf, alone, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(shelf / "task0", tmp_path / "birds")
    shutil.copytree(shelf / "task1", place / "task1")

    def during(url):
        with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
            try:
                assert_says(client.post("/v1/predict/task1", content=IMAGES["png"]), "task1", alone)
                names = [entry["name"] for entry in client.get("/v1/adapters").json()["adapters"]]
                assert sorted(names) == ["birds", "task1"]
                shutil.rmtree(place / "task1")
                eventually(lambda: client.post("/v1/predict/task1", content=IMAGES["png"]).status_code == 404)
                return True
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

    arguments = ["--adapters", str(place), "--max-adapters", "1", "--in-flight", "task1=5"]
    assert serve_here(tmp_path, *arguments, during=during)[::2] == (0, [True])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--adapters", "nowhere"], "nowhere is no folder"),
        (["--adapters", "empty"], "does not tell which backbone"),
        (["--adapters", "hf:"], "nobody on the Hub"),
        (["--adapters", "hf:me"], "does not tell which backbone"),
        (["--adapters", "empty", "--max-adapters", "0"], "max_adapters must be at least 1"),
        (["--adapters", "empty", "--rate", "birds"], "rate takes NUMBER or NAME=NUMBER"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    outcome = run_command("serve", "--port", "0", *arguments)
    assert outcome.status == 1
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_service_without_a_store_is_as_before(shelf):
    service = Service(vprompt.Bank.load({"a": shelf / "task0"}), Limits())
    assert service.store is None
    with pytest.raises(VPromptError, match="no adapter called 'b'"):
        service.check_adapter("b")
    assert service.close(1)
