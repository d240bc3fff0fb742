"""Push and load through the Hub, tested against a small server on this machine that speaks the Hub's language."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from test_adapter import FILES, backbone, model_with, refused, some_images

import vprompt
from vprompt.model.hub import is_hub_id
from vprompt.model.save import push_adapter, save_adapter
from vprompt.utils.errors import AdapterError

__all__ = ["backbone"]  # a fixture
TOKEN = "hf_for_tests"


class StandIn(ThreadingHTTPServer):
    """Repositories in memory: id -> branch -> path -> bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories = {}
        self.calls = []
        self.created = []
        self.status = {}  # first part of a path -> what to answer instead
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, document, status=200, headers=None, body=None):
        body = json.dumps(document).encode() if body is None else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append((self.path, self.headers.get("Authorization")))
        for start, status in self.server.status.items():
            if self.path.startswith(start):
                return self.answer({"error": "no"}, status)
        if self.path == "/api/repos/create":
            return self.create(json.loads(data))
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        _, _, _, user, name, action, branch = self.path.split("/")
        repository = self.server.repositories[f"{user}/{name}"]
        if action == "branch":
            repository.setdefault(branch, dict(repository["main"]))
            return self.answer({})
        if branch not in repository:
            return self.answer({"error": "no"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if action == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(data)["files"]
            ]
            return self.answer({"files": files})
        assert action == "commit"
        for line in map(json.loads, data.splitlines()):
            if line["key"] == "file":
                assert line["value"]["encoding"] == "base64"
                repository[branch][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer({"commitUrl": f"{self.server.url}/{user}/{name}/commit/{'a' * 40}", "commitOid": "a" * 40})

    def create(self, wanted):
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        self.server.created.append(wanted)
        exists = repo_id in self.server.repositories
        self.server.repositories.setdefault(repo_id, {"main": {}})
        self.answer({"url": f"{self.server.url}/{repo_id}"}, 409 if exists else 200)

    def do_HEAD(self):
        self.server.calls.append((self.path, self.headers.get("Authorization")))
        for start, status in self.server.status.items():
            if self.path.startswith(start):
                return self.answer({"error": "no"}, status)
        if self.path.startswith("/api/"):
            return self.answer({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
        _, user, name, _, revision, file = self.path.split("/")
        repository = self.server.repositories.get(f"{user}/{name}")
        if repository is None:
            return self.answer({"error": "no"}, 404, {"X-Error-Code": "RepoNotFound"})
        data = repository.get(revision, repository["main"]).get(file)
        if data is None:
            return self.answer({"error": "no"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "a" * 40})
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "a" * 40}
        return self.answer(None, headers=headers, body=data)

    do_GET = do_HEAD  # noqa: N815


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = StandIn()
    monkeypatch.setenv("HF_ENDPOINT", server.url + "/")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    yield server
    server.shutdown()
    server.server_close()


def test_the_three_files_arrive_byte_for_byte_and_load_again(hub, backbone, tmp_path):
    model = model_with(backbone, counts=[4, 0, 3, 1, 0, 2], classes=["ant", "bée", "cat"])
    url = push_adapter(model, "me/birds", token=TOKEN)
    assert url == f"{hub.url}/me/birds"
    save_adapter(model, tmp_path / "here")
    sent = hub.repositories["me/birds"]["main"]
    assert sorted(sent) == FILES
    for file in FILES:
        assert sent[file] == (tmp_path / "here" / file).read_bytes()
    assert {token for _, token in hub.calls} == {f"Bearer {TOKEN}"}
    assert sum("/commit/" in path for path, _ in hub.calls) == 1
    hub.calls.clear()
    loaded = vprompt.load("me/birds", backbone)
    fetched = {path for path, _ in hub.calls if "safetensors" in path}
    assert fetched == {f"/me/birds/resolve/{'a' * 40}/adapter_model.safetensors"}  # of the configuration's commit
    assert torch.equal(loaded(some_images()), model(some_images()))
    assert loaded.classes == model.classes


def test_a_folder_goes_before_the_hub(hub, backbone, tmp_path):
    push_adapter(model_with(backbone), "me/birds", token=TOKEN)
    calls = len(hub.calls)
    save_adapter(model_with(backbone, vprompt.Linear()), tmp_path / "me" / "birds")
    assert vprompt.load("me/birds", backbone).method == vprompt.Linear()
    assert len(hub.calls) == calls


def test_push_again_private_and_to_a_branch(hub, backbone):
    assert model_with(backbone).push_to_hub("me/birds", token=TOKEN, private=True) == f"{hub.url}/me/birds"
    assert hub.created[0]["visibility" if "visibility" in hub.created[0] else "private"] in ("private", True)
    url = push_adapter(model_with(backbone, vprompt.Linear()), "me/birds", token=TOKEN, revision="smaller")
    assert url == f"{hub.url}/me/birds/tree/smaller"
    main, branch = hub.repositories["me/birds"]["main"], hub.repositories["me/birds"]["smaller"]
    assert json.loads(main["adapter_config.json"])["method"]["name"] == "vpt-deep"
    assert json.loads(branch["adapter_config.json"])["method"]["name"] == "linear"
    assert "private" not in str(hub.created[1])


def test_what_was_fetched_once_loads_without_the_hub(hub, backbone):
    model = model_with(backbone)
    push_adapter(model, "me/birds", token=TOKEN)
    vprompt.load("me/birds", backbone)
    hub.shutdown()
    hub.server_close()
    assert torch.equal(vprompt.load("me/birds", backbone)(some_images()), model(some_images()))


@pytest.mark.parametrize(
    ("status", "match"),
    [(401, "log in with `hf auth login`"), (403, "token may not write there"), (418, "answered with status 418")],
)
@pytest.mark.parametrize("place", ["/api/", "/api/models/me/birds/commit"])
def test_a_push_that_the_hub_refuses(hub, backbone, place, status, match):
    hub.status[place] = status
    with pytest.raises(AdapterError, match=f"could not be uploaded to 'me/birds'.*{match}") as caught:
        push_adapter(model_with(backbone), "me/birds", token=TOKEN)
    assert TOKEN not in str(caught.value)
    assert not hub.repositories.get("me/birds", {}).get("main")


def test_a_push_without_a_network(hub, backbone):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(AdapterError, match=f"the Hub at {hub.url} could not be reached"):
        push_adapter(model_with(backbone), "me/birds", token=TOKEN)


def test_a_push_without_a_message(hub, backbone):
    with pytest.raises(AdapterError, match=r"could not be uploaded to 'me/birds': ValueError: .*commit_message"):
        push_adapter(model_with(backbone), "me/birds", token=TOKEN, commit_message="")


def test_a_cache_that_cannot_be_written(hub, backbone, tmp_path):
    push_adapter(model_with(backbone), "me/birds", token=TOKEN)
    (tmp_path / "cache").write_text("no folder")
    refused("could not be fetched from the Hub .*cache", "me/birds", backbone)


@pytest.mark.parametrize("name", ["not/an/id", "spa ce/x", "a..b/c", ""])
def test_a_push_to_no_id(hub, backbone, name):
    with pytest.raises(AdapterError, match="no id for a repository"):
        push_adapter(model_with(backbone), name, token=TOKEN)
    assert not hub.calls


def test_a_push_of_a_broken_model_sends_nothing(hub, backbone):
    model = model_with(backbone)
    torch.nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(AdapterError, match="NaN"):
        push_adapter(model, "me/birds", token=TOKEN)
    assert not hub.calls


def test_loads_that_find_nothing(hub, backbone):
    refused("There is no folder 'me/bugs', and no such repository", "me/bugs", backbone)
    hub.repositories["me/other"] = {"main": {"README.md": b"# Other"}}
    refused("'me/other' on the Hub has no adapter_config.json", "me/other", backbone)
    hub.repositories["me/half"] = {"main": {"adapter_config.json": b"{}"}}
    refused("'me/half' on the Hub has no adapter_model.safetensors", "me/half", backbone)
    for status in (401, 403):
        hub.status["/me/secret"] = status
        refused("no such repository on the Hub is open to you", "me/secret", backbone)
    hub.status["/me/secret"] = 418
    refused("could not be fetched from the Hub", "me/secret", backbone)


def test_a_damaged_download_is_noticed(hub, backbone):
    push_adapter(model_with(backbone), "me/birds", token=TOKEN)
    files = hub.repositories["me/birds"]["main"]
    files["adapter_model.safetensors"] = files["adapter_model.safetensors"][:-8]
    refused("is damaged", "me/birds", backbone)


def test_a_load_without_a_network(hub, backbone):
    hub.shutdown()
    hub.server_close()
    refused("There is no folder 'me/birds', and the Hub could not be reached", "me/birds", backbone)


def test_what_could_be_an_id():
    assert is_hub_id("me/birds-2.x")
    assert not any(map(is_hub_id, ["birds", "/birds", "me/", "./birds", "a/b/c", "me/bi rds", "me/é", "me/x.git"]))
