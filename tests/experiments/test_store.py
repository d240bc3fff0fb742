import json
import os
import platform
import re
import signal
import time

import pytest

from processes import Script
from vprompt.experiments.bench.store import StoreError, open_store
from vprompt.experiments.folder import BusyError, locked
from vprompt.utils.io import verified, with_checksum

DOCUMENT = {"name": "a", "test_accuracy": 0.5, "classes": ["ü", "<b>"]}


@pytest.fixture(params=["folder", "url"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return open_store(str(tmp_path / "runs") if request.param == "folder" else f"file://{tmp_path}/runs")


def cache():
    return {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}


def an_adapter(store, name):
    folder = store.scratch(name)
    (folder / ".run").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "result.json").write_text("{}")
    return folder


def test_what_was_published_is_there(store):
    assert store.finished() == set()
    assert store.result("a") is None
    store.fail("a", {"failure": "It broke.", "again": True})
    assert store.failures() == {"a"}
    assert store.failure("a")["failure"] == "It broke."
    store.publish("a", DOCUMENT, an_adapter(store, "a"))
    assert store.finished() == {"a"}
    assert {key: store.result("a")[key] for key in DOCUMENT} == DOCUMENT
    assert store.failure("a") is None
    assert (store.adapter("a") / "adapter_model.safetensors").read_bytes() == b"weights"
    store.publish("a", {**DOCUMENT, "test_accuracy": 0.6}, None)
    assert store.result("a")["test_accuracy"] == 0.6
    with store.planned("p", "seeds = 3"):
        pass
    assert store.plans() == {"p": "seeds = 3"}


def place(store, name):
    return os.path.join(store.address.removeprefix("file://"), "results", f"{name}.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace("0.5", "0.9"),
        lambda text: "[]",
        lambda text: "null",
        lambda text: text + "x",
        lambda text: json.dumps({key: value for key, value in json.loads(text).items() if key != "checksum"}),
    ],
)
def test_a_damaged_result_is_none(store, damage):
    store.publish("a", DOCUMENT)
    with open(place(store, "a"), encoding="utf-8") as file:
        text = file.read()
    with open(place(store, "a"), "w", encoding="utf-8") as file:
        file.write(damage(text))
    assert store.result("a") is None


def test_bytes_that_are_no_text_are_none(store):
    store.publish("a", DOCUMENT)
    with open(place(store, "a"), "wb") as file:
        file.write(b"\xff\xfe\x00")
    assert store.result("a") is None


def test_the_checksum_covers_everything():
    assert verified(with_checksum(DOCUMENT))
    for key in DOCUMENT:
        assert not verified(with_checksum(DOCUMENT) | {key: 1})


def test_half_written_files_are_no_results(store):
    store.publish("a", DOCUMENT)
    folder = os.path.dirname(place(store, "a"))
    with open(os.path.join(folder, ".b.json.xyz.part"), "w") as file:
        file.write("{")
    with open(os.path.join(folder, ".c.json"), "w") as file:
        file.write("{")
    assert store.finished() == {"a"}


def test_an_adapter_without_its_result_goes_back_to_work(tmp_path):
    """A kill between the two steps of `publish` costs nothing."""
    store = open_store(str(tmp_path))
    an_adapter(store, "a")
    (tmp_path / "adapters").mkdir()
    os.replace(store.scratch("a"), store.adapter("a"))
    with store.locked("a") as folder:
        assert folder == store.scratch("a")
        assert (folder / "result.json").exists()
        assert not store.adapter("a").exists()
    with store.locked("a") as folder:
        store.publish("a", DOCUMENT, folder)
    assert (store.adapter("a") / "result.json").exists()
    with store.locked("a") as folder:  # it is finished
        assert not folder.exists()


HOLDER = """
import sys, time
from pathlib import Path
from vprompt.experiments.folder import locked
with locked(Path(sys.argv[1]), "a"):
    print("ready", flush=True)
    time.sleep(600)
"""


def test_one_process_at_a_time(tmp_path):
    lock = tmp_path / "work" / ".a.lock"
    other = Script(HOLDER, lock, folder=tmp_path)
    while "ready" not in other.printed()[0]:
        assert other.status is None, other.printed()
        time.sleep(0.01)
    named = rf"^Another process \(process {other.pid} on {re.escape(platform.node())}\) is at work on a; wait"
    with pytest.raises(BusyError, match=named), locked(lock, "a"):
        pass
    with locked(tmp_path / "work" / ".b.lock", "b"):
        pass
    os.kill(other.pid, signal.SIGKILL)
    assert other.end()[0] == -signal.SIGKILL
    with locked(lock, "a"):
        pass
    assert list((tmp_path / "work").iterdir()) == []


KILLED = """
import os, signal, sys
from vprompt.experiments.bench.store import open_store
store = open_store(sys.argv[1])
with store.locked("a"):
    store.publish("a", {"name": "a"})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_after_the_result_leaves_no_lock_for_ever(store, tmp_path):
    status, *_ = Script(KILLED, store.address, folder=tmp_path, environment=cache()).end()
    assert status == -signal.SIGKILL
    assert store.finished() == {"a"}
    work = store.scratch("a").parent
    assert [path.name for path in work.iterdir()] == [".a.lock"]
    with store.locked("b"):  # is at work
        with store.planned("p", "seeds = 1"):
            pass
        assert [path.name for path in work.iterdir()] == [".b.lock"]
        with pytest.raises(BusyError), open_store(store.address).locked("b"):
            pass
    assert list(work.iterdir()) == []


def test_a_lock_is_let_go_on_errors(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "a", "a"):
            raise ZeroDivisionError


WRITER = """
import resource, sys
from vprompt.experiments.bench.store import open_store
store = open_store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
import signal
import time
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    store.publish("a", {"long": "x" * 1000})
except Exception as error:
    print(type(error).__name__)
"""


def test_a_write_that_the_disk_refuses_leaves_no_result(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("printed")
    _, printed, errors = Script(WRITER, store.address, folder=folder, environment=cache()).end()
    assert printed.strip() in ("StorageError", "StoreError"), errors
    assert store.finished() == set()
    assert os.listdir(os.path.dirname(place(store, "a"))) == []


def test_an_address_that_means_nothing_is_refused():
    with pytest.raises(StoreError, match="Results cannot be kept at nonsense://x"):
        open_store("nonsense://x")
    with pytest.raises(StoreError, match=r"cannot be used|cannot be kept"):
        open_store("s3://no-such-bucket-here/runs").finished()


def test_results_of_the_first_version_are_read():
    """Written under the name that the library had then, found under the name that the run has today."""
    store = open_store(os.path.join(os.path.dirname(__file__), "..", "old", "runs"))
    (name,) = store.finished()
    assert name.startswith("synthetic-counting-linear-seed0-")
    assert store.result(name)["test_accuracy"] == 0.208
    assert store.result(name)["provenance"]["versions"]["laconic"] == "0.1.0"


def test_a_kill_before_the_result_leaves_the_adapter_to_be_taken_back(store, monkeypatch):
    """Whatever moment it comes at: with the result there, nothing is left in the folder for unfinished runs."""
    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_document", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.publish("a", DOCUMENT, an_adapter(store, "a"))
    assert store.result("a") is None
    with store.locked("a") as folder:
        assert (folder / "adapter_model.safetensors").read_bytes() == b"weights"
        with monkeypatch.context() as patch:
            patch.setattr(store, "_path", lambda name: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                store.publish("a", DOCUMENT, folder)
        assert not folder.exists()
