"""Answers in bulk, whatever is killed, and a service of two replicas: on a real Ray cluster of this machine."""

import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
from test_bulk import adapter, assert_as, folder, plain, read

import vprompt
from processes import Script, descendants
from vprompt.experiments.bench import ray as subject
from vprompt.experiments.bulk import Job, predictions, run_bulk
from vprompt.serving.ray import application
from vprompt.utils.errors import VPromptError

os.environ |= subject.VARIABLES  # Ray reads them when it is imported
os.environ |= {"RAY_worker_niceness": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")
__all__ = ["adapter", "folder", "plain"]  # fixtures


@pytest.fixture(scope="module")
def cluster():
    options = {"include_dashboard": False, "logging_level": "error", "log_to_driver": False}
    ray.init(address="local", num_cpus=3, object_store_memory=subject.OBJECT_STORE_BYTES, **options)
    yield
    ray.shutdown()


def slowly(answers, seconds):
    """A function that goes to the workers whole, for they cannot import this file."""

    def slow(model, images):
        import time

        time.sleep(seconds)
        return answers(model, images)

    return slow


def actors(ours, name=b"ray::MapWorker"):
    """Actors that a process has started: of Ray Data, if not said otherwise."""
    return [pid for pid, (_, line) in descendants(ours).items() if line.startswith(name)]


def until(condition, seconds=600):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_a_worker_that_is_killed_costs_nothing(cluster, adapter, folder, plain, tmp_path):
    job = Job(load=partial(vprompt.load, adapter), answers=slowly(partial(predictions, 2), 0.3), out=tmp_path)
    killed = []

    def kill():
        until(lambda: list(tmp_path.glob("part-*")))
        killed.extend(actors(os.getpid()))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    done = run_bulk(job, [folder], {}, workers=2, shard_size=5)
    thread.join()
    assert killed
    assert done == {"images": 70, "shards": 14, "bad": 1}
    assert_as(read(tmp_path), plain)
    assert not list(tmp_path.glob("*.lock"))


def test_what_a_worker_says_is_a_sentence(cluster, adapter, folder, tmp_path):
    driver = os.getpid()

    def fail(model, images):
        if os.getpid() != driver:
            raise VPromptError("The lamp is out; change it.")
        return predictions(2, model, images)

    job = Job(load=partial(vprompt.load, adapter), answers=fail, out=tmp_path)
    with pytest.raises(VPromptError) as told:
        run_bulk(job, [folder], {}, workers=1, shard_size=50)
    assert "The lamp is out; change it. The same command goes on." in str(told.value)
    assert "\n" not in str(told.value)


DRIVER = """
import os, sys
from functools import partial
from pathlib import Path
import vprompt
from vprompt.experiments.bulk import Job, predictions, run_bulk

def slowly(model, images):
    import time
    time.sleep(0.5)
    return predictions(2, model, images)

slowly.__module__ = "__main__"
adapter, folder, out = sys.argv[1:]
job = Job(load=partial(vprompt.load, adapter), answers=slowly, out=Path(out))
run_bulk(job, [Path(folder)], {}, workers=2, shard_size=5)
"""


def test_a_command_that_is_killed_is_gone_on_with(adapter, folder, plain, tmp_path):
    out = tmp_path / "out"
    driver = Script(DRIVER, str(adapter), str(folder), str(out), folder=tmp_path, environment=subject.VARIABLES)
    status, _, _ = driver.when(lambda: len(list(out.glob("part-*"))) >= 3, signal.SIGKILL)
    assert status == -signal.SIGKILL
    until(lambda: not actors(driver.pid))
    time.sleep(0.6)  # a worker may end its shard
    before = {file: file.stat().st_mtime_ns for file in out.glob("part-*")}
    assert 3 <= len(before) < 14
    job = Job(load=partial(vprompt.load, adapter), answers=partial(predictions, 2), out=out)
    assert run_bulk(job, [folder], {}, workers=0, shard_size=5)["shards"] == 14
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert_as(read(out), plain)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def replicas():
    return actors(os.getpid(), b"ray::ServeReplica")


def test_two_replicas_answer_as_the_command_does_and_one_that_dies_is_replaced(
    cluster, adapter, folder, plain, tmp_path, monkeypatch
):
    serve = pytest.importorskip("ray.serve")
    (tmp_path / "token").write_text("open-sesame")
    arguments = {"adapters": str(adapter.parent), "replicas": "2", "cpus": "0.5", "max_adapters": "4"}
    serve.start(http_options={"port": (port := free_port())})
    try:
        serve.run(application({**arguments, "token_file": str(tmp_path / "token"), "rate": "pets=1"}))
        headers = {"Authorization": "Bearer open-sesame"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120, trust_env=False) as client:
            first = replicas()
            assert len(first) == 2

            def ask(row):
                return client.post("/v1/predict/birds?top=2", content=Path(row["image"]).read_bytes())

            def check(rows):
                with ThreadPoolExecutor(4) as pool:
                    for row, response in zip(rows, pool.map(ask, rows), strict=True):
                        assert response.status_code == (400 if "error" in row else 200), response.text
                        if "error" not in row:
                            said = response.json()
                            assert said["class_name"] == row["class_name"]
                            assert said["probability"] == pytest.approx(row["probability"], abs=1e-5)

            check([row for row in plain if "error" not in row][:20])
            assert client.get("/health").json()["status"] == "ok"
            assert client.get("/v1/adapters", headers={"Authorization": "Bearer wrong"}).status_code == 401
            assert client.post("/v1/predict/nobody", content=b"").json()["error"]["code"] == "unknown_adapter"
            os.kill(first[0], signal.SIGKILL)
            until(lambda: len(now := replicas()) == 2 and first[0] not in now)
            until(lambda: ask(plain[0]).status_code == 200)
            check(plain[:5])
    finally:
        serve.shutdown()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"adaptors": "runs"}, "did you mean adapters"),
        ({"adapters": "runs", "max_adapters": 0}, "max_adapters must be at least 1"),
        ({"adapters": 3}, "adapters"),
        ({"rate": "birds=fast"}, "rate takes NUMBER"),
        ({"max_queue": "many"}, "max_queue takes a whole number"),
        ({"max_queue": "0"}, "max_queue must be at least 1"),
    ],
)
def test_a_wrong_argument_of_a_deployment_is_a_sentence(arguments, words):
    with pytest.raises(VPromptError, match=words):
        application(arguments)
