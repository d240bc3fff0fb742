"""`vprompt serve`: a real server and real clients, good and bad; the batcher by itself."""

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
import torch
from PIL import Image

import vprompt
from conftest import run_command
from processes import Command, Script
from vprompt.backbones.info import fingerprint
from vprompt.data.preprocessing import Preprocessing
from vprompt.serving.bank.bank import Bank
from vprompt.serving.batcher import Batcher
from vprompt.serving.decoding import MAX_SCANS
from vprompt.serving.errors import RequestError
from vprompt.serving.metrics import Metrics
from vprompt.serving.predict import predict_each
from vprompt.serving.server import Server, bind, serve
from vprompt.serving.service import Limits, Service
from vprompt.utils.errors import VPromptError

TOKEN = "open-sesame"
PATIENCE = 120
"""Seconds after which something that must happen has not."""


# ── adapters, images, servers ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, tiny_weights):
    """Folders of adapters on one tiny backbone: two that see images alike, one that crops; one has no class names."""
    root = tmp_path_factory.mktemp("adapters")
    squash = Preprocessing(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))
    kinds = {
        "birds": (vprompt.VPT(num_prompts=3), 4, ["wren", "robin", "caf\udce9 \x07", "owl"], squash),
        "pets": (vprompt.VPT(num_prompts=5), 2, ["cat", "dog"], replace(squash, resize="crop")),
        "numbers": (vprompt.Linear(), 10, None, squash),
    }
    for seed, (name, (method, classes, names, looks)) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        options = {"num_classes": classes, "classes": names, "weights": tiny_weights, "img_size": 32}
        model = vprompt.attach("test_vit", method, **options)
        model.preprocessing = looks
        torch.nn.init.normal_(model.head.weight)
        model.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def alone(adapters):
    """Each adapter loaded by itself."""
    return {name: vprompt.load(adapters / name).fold() for name in ("birds", "pets", "numbers")}


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(size=(50, 34), mode="RGB", seed=0):
    data = random.Random(seed).randbytes(size[0] * size[1] * len(Image.new(mode, (1, 1)).getbands()))
    return Image.frombytes(mode, size, data)


def rotated():
    exif = Image.Exif()
    exif[0x112] = 6
    return encoded(noise((90, 30)), "JPEG", exif=exif)


IMAGES = {
    "png": encoded(noise()),
    "jpeg": encoded(noise((300, 200)).resize((900, 600)), "JPEG"),
    "exif-rotated jpeg": rotated(),
    "cmyk jpeg": encoded(noise(mode="RGB").convert("CMYK"), "JPEG"),
    "palette": encoded(noise().convert("P", palette=Image.Palette.ADAPTIVE)),
    "transparent": encoded(noise(mode="RGBA")),
    "16-bit": encoded(Image.frombytes("I;16", (40, 30), random.Random(1).randbytes(2400))),
    "animated gif": encoded(noise(mode="L"), "GIF", save_all=True, append_images=[noise(mode="L", seed=7)]),
    "animated webp": encoded(noise(), "WEBP", save_all=True, append_images=[noise(seed=7)]),
}


class Held(Bank):
    """A bank whose answers wait until they are let go; it says what it was asked, and can be told to fail."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.asked, self.images = [], []
        self.culprit = None

    def __call__(self, images_BCHW, adapters, **options):
        self.asked.append(list(adapters))
        self.images.append(len(images_BCHW))
        self.entered.release()
        assert self.go.wait(PATIENCE)
        if self.culprit in adapters:
            raise RuntimeError("the culprit is among them")
        return super().__call__(images_BCHW, adapters, **options)


class Running:
    """A server in a thread, and the service behind it."""

    def __init__(self, bank, limits=None, *, service=None, **options):
        self.bank = bank
        self.service = service or Service(bank, limits or Limits(timeout=PATIENCE))
        self.listener = bind("127.0.0.1", 0, guarded=False)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        listening = threading.Event()
        self.server = Server(self.service, listening=listening.set, **options)
        self.thread = threading.Thread(target=serve, args=(self.server, self.listener))
        self.thread.start()
        assert listening.wait(PATIENCE)
        token = options.get("token")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE, trust_env=False)

    def ask(self, adapter, image=IMAGES["png"], **options):
        return self.client.post(f"/v1/predict/{adapter}", content=image, **options)

    def metric(self, sample):
        """The value of a sample, 0 where there is none."""
        lines = dict(line.rsplit(" ", 1) for line in self.client.get("/metrics").text.splitlines() if line[0] != "#")
        return float(lines.get(sample, 0))

    def raw(self, data):
        """A connection over which these bytes went."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(data)
        return connection

    def close(self):
        self.client.close()
        self.server.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        assert self.service.close(PATIENCE)


@contextlib.contextmanager
def running(bank, limits=None, **options):
    found = Running(bank, limits, **options)
    try:
        yield found
    finally:
        if isinstance(bank, Held):
            bank.go.set()
        found.close()


@pytest.fixture(scope="module")
def server(adapters):
    with running(Bank.load({name: adapters / name for name in ("birds", "pets", "numbers")})) as found:
        yield found


@pytest.fixture
def held(alone, adapters):
    """A `Held` bank with all adapters."""
    bank = Held(alone["birds"].backbone)
    for name in alone:
        bank.add(name, adapters / name)
    return bank


def eventually(condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def head(path="/v1/predict/birds", **headers):
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        *(f"{key.replace('_', '-')}: {value}" for key, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def everything(connection):
    """What comes until the server closes the connection."""
    received = b""
    with connection:
        while chunk := connection.recv(65536):
            received += chunk
    return received


def answer_of(received):
    top, _, body = received.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body)


def assert_problem(response, status, code, *words):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == code
    assert set(response.json()) == {"error"}
    assert set(error) == {"code", "message"}
    assert error["message"].endswith(".")
    for word in words:
        assert word in error["message"]


def assert_same(found, wanted):
    """An answer against `vprompt.serving.predict.Prediction`."""
    assert found["class_name"] == vprompt.utils.text.printable(wanted.class_name)
    assert found["probability"] == pytest.approx(wanted.probability, abs=1e-5)
    assert [name for name, _ in found["top"]] == [vprompt.utils.text.printable(name) for name, _ in wanted.top]
    assert [value for _, value in found["top"]] == pytest.approx([value for _, value in wanted.top], abs=1e-5)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", IMAGES)
def test_answers_are_those_of_vprompt_predict(server, alone, tmp_path, kind):
    path = tmp_path / "image.png"  # what a file is called says nothing
    path.write_bytes(IMAGES[kind])
    for name, model in alone.items():
        response = server.ask(name, IMAGES[kind], params={"top": 3})
        assert response.status_code == 200, response.text
        [[wanted]] = predict_each(model, [path], top=3)
        found = response.json()
        assert set(found) == {"adapter", "class_index", "class_name", "probability", "top"}
        assert found["adapter"] == name
        assert_same(found, wanted)
        names = model.classes or [str(number) for number in range(10)]
        assert names[found["class_index"]] == wanted.class_name


def test_top_says_how_many_classes_are_named(server):
    for top, named in (("1", 1), ("2", 2), ("99999999999", 4)):
        assert len(server.ask("birds", params={"top": top}).json()["top"]) == named
    for top in ("0", "-1", "x", "1.5", "9" * 5000):
        assert_problem(server.ask("birds", params={"top": top}), 422, "invalid", "top")


def test_several_adapters_each_answer_or_fail_alone(server):
    names = ["pets", "nobody", "birds", "pets", "numbers"]
    response = server.client.post("/v1/predict", params={"adapter": names, "top": 2}, content=IMAGES["jpeg"])
    assert response.status_code == 200
    answers = response.json()["answers"]
    assert [one["adapter"] for one in answers] == ["pets", "nobody", "birds", "numbers"]
    assert set(answers[1]) == {"adapter", "error"}
    assert answers[1]["error"]["code"] == "unknown_adapter"
    for found in (answers[0], *answers[2:]):
        one = server.ask(found["adapter"], IMAGES["jpeg"], params={"top": 2}).json()
        assert found["class_index"] == one["class_index"]
        assert found["probability"] == pytest.approx(one["probability"], abs=1e-5)


def test_an_image_for_several_adapters_is_one_row_for_each_way_to_see_it(held):
    with running(held) as server:
        params = {"adapter": ["birds", "pets", "numbers"]}
        assert server.client.post("/v1/predict", params=params, content=IMAGES["png"]).status_code == 200
    assert held.asked == [["birds", "pets", "numbers"]]
    assert held.images == [2]


def test_no_adapter_and_too_many_adapters(server):
    assert_problem(server.client.post("/v1/predict", content=IMAGES["png"]), 422, "invalid", "adapter")
    many = {"adapter": [f"a{number}" for number in range(129)]}
    assert_problem(server.client.post("/v1/predict", params=many, content=IMAGES["png"]), 422, "invalid", "129")


def test_adapters_are_listed_and_told(server, alone):
    listed = server.client.get("/v1/adapters").json()["adapters"]
    assert [one["name"] for one in listed] == ["birds", "pets", "numbers"]
    for one in listed:
        model = alone[one["name"]]
        told = server.client.get(f"/v1/adapters/{one['name']}").json()
        assert one.items() <= told.items()
        assert one["num_classes"] == model.head.out_features
        assert one["nbytes"] > 0
        assert told["prompt_counts"] == model.prompt_counts
        assert (told["classes"] is None) == (model.classes is None)
        assert told["preprocessing"]["resize"] == model.preprocessing.resize
        assert "source" not in told
    assert_problem(server.client.get("/v1/adapters/nobody"), 404, "unknown_adapter", "nobody", "birds")


# ── bad images ───────────────────────────────────────────────────────────────────────────────────────────────────────


def png(width, height):
    """A PNG whose header promises pixels that it does not have."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def scans(count):
    """A progressive JPEG with a scan repeated: few bytes, much work."""
    data = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


BAD = {
    "empty": (b"", {}, 400, "broken_image", "0 bytes"),
    "truncated png": (IMAGES["png"][:-60], {}, 400, "broken_image", "decoded"),
    "half a jpeg": (IMAGES["jpeg"][: len(IMAGES["jpeg"]) // 2], {}, 400, "broken_image", "decoded"),
    "text": (b"I am no picture.", {}, 415, "not_an_image", "not an image"),
    "json without an image": (b"{}", {"Content-Type": "application/json"}, 422, "invalid", "base64"),
    "a form": (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "not_an_image", "image/jpeg"),
    "a script for Ghostscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {}, 415, "not_an_image", ""),
    "compressed": (zlib.compress(IMAGES["png"]), {"Content-Encoding": "deflate"}, 415, "not_an_image", "Encoding"),
    "a bomb": (png(60_000, 60_000), {}, 422, "too_many_pixels", "million"),
    "above the limit": (png(7072, 7072), {}, 422, "too_many_pixels", "7072 x 7072"),
    "many scans": (scans(MAX_SCANS + 1), {}, 400, "broken_image", "scans"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_a_sentence(server, kind):
    data, headers, status, code, word = BAD[kind]
    assert_problem(server.ask("birds", data, headers=headers), status, code, word)
    several = server.client.post("/v1/predict?adapter=birds&adapter=pets", content=data, headers=headers)
    assert_problem(several, status, code, word)
    assert server.ask("birds").status_code == 200


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/JPEG; charset=x", "application/octet-stream", None])
def test_any_image_type_will_do(server, kind):
    assert server.ask("birds", headers={} if kind is None else {"Content-Type": kind}).status_code == 200


def test_as_many_scans_as_allowed_are_an_image(server):
    assert server.ask("birds", scans(MAX_SCANS)).status_code == 200


# ── bodies that are too large ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def strict(adapters):
    """A server with small limits, a token, and no patience."""
    bank = Bank.load({"birds": adapters / "birds"})
    limits = Limits(max_bytes=len(IMAGES["png"]), max_pixels=50 * 34, timeout=2)
    with running(bank, limits, token=TOKEN) as found:
        yield found


BEARER = f"Bearer {TOKEN}"


def test_limits_include_what_they_name(strict):
    assert strict.ask("birds").status_code == 200
    assert_problem(strict.ask("birds", IMAGES["png"] + b"x"), 413, "too_many_bytes", str(len(IMAGES["png"])))
    assert_problem(strict.ask("birds", encoded(Image.new("L", (51, 34)))), 422, "too_many_pixels", "51 x 34")


def test_a_declared_length_is_refused_before_anything_is_sent(strict):
    for length in (len(IMAGES["png"]) + 1, 10**12, 10**17):
        status, body = answer_of(everything(strict.raw(head(Authorization=BEARER, Content_Length=length))))
        assert (status, body["error"]["code"]) == (413, "too_many_bytes")


def test_chunks_without_a_length_are_counted(strict):
    sent = 0

    def endless():
        nonlocal sent
        while sent < 2**36:  # more than goes through in the second that a refused client may go on
            sent += 2**16
            yield bytes(2**16)

    with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it may still be sending when the connection ends
        assert_problem(strict.ask("birds", endless()), 413, "too_many_bytes")
    assert sent < 2**36
    data = IMAGES["png"]
    assert strict.ask("birds", iter([data[:9], data[9:]])).status_code == 200


def test_a_client_that_goes_on_sending_gets_its_answer(strict):
    """The server reads on for a moment: closing at once would reset the connection under the answer."""
    data = bytes(4 * 2**20)
    for token, status in ((TOKEN, 413), ("wrong", 401)):
        connection = strict.raw(head(Authorization=f"Bearer {token}", Content_Length=len(data)) + data)
        assert answer_of(everything(connection))[0] == status


def test_a_body_longer_than_it_says_is_cut_there(strict):
    data = IMAGES["png"]
    received = everything(strict.raw(head(Authorization=BEARER, Content_Length=len(data)) + data + b"and more\r\n\r\n"))
    first, _, rest = received.partition(b"HTTP/1.1 400")
    assert first.startswith(b"HTTP/1.1 200")
    assert rest


def test_lengths_that_are_none_are_no_crash(strict):
    for length in ("-1", "1e3", "0x10", "1, 2", "9" * 30):
        received = everything(strict.raw(head(Authorization=BEARER, Content_Length=length)))
        assert received.startswith(b"HTTP/1.1 400")
    assert strict.ask("birds").status_code == 200


# ── clients that hang, or leave ──────────────────────────────────────────────────────────────────────────────────────


def test_clients_that_hang_are_sent_away_and_hold_up_nobody(strict):
    whole = head(Authorization=BEARER, Content_Length=len(IMAGES["png"]))
    silent = strict.raw(b"")
    half_a_head = strict.raw(whole[:40])
    half_a_body = strict.raw(whole + IMAGES["png"][:100])
    after_an_answer = strict.raw(whole + IMAGES["png"])
    assert after_an_answer.recv(12) == b"HTTP/1.1 200"
    after_an_answer.sendall(whole[:40])
    assert strict.ask("birds").status_code == 200
    status, body = answer_of(everything(half_a_body))
    assert (status, body["error"]["code"]) == (408, "too_slow")
    for connection in (silent, half_a_head, after_an_answer):
        with contextlib.suppress(ConnectionResetError):
            everything(connection)
    assert strict.ask("birds").status_code == 200


def test_a_body_that_trickles_has_the_same_time_as_any(strict):
    connection = strict.raw(head(Authorization=BEARER, Content_Length=len(IMAGES["png"])))
    received, started = b"", time.monotonic()
    connection.settimeout(0.05)
    with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while b"too_slow" not in received:
            assert time.monotonic() - started < PATIENCE
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                received += connection.recv(65536)
    assert answer_of(received)[0] == 408


def test_nothing_is_computed_for_a_client_that_left(held):
    with running(held) as server:
        held.go.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(server.ask, "birds")
            assert held.entered.acquire(timeout=PATIENCE)
            leaving = server.raw(head("/v1/predict/pets", Content_Length=len(IMAGES["png"])) + IMAGES["png"])
            eventually(lambda: server.metric("vprompt_queue_length") == 1)
            leaving.close()
            eventually(lambda: server.metric('vprompt_requests_total{adapter="pets",status="499"}') == 1)
            held.go.set()
            assert first.result().status_code == 200
        assert server.ask("numbers").status_code == 200
    assert held.asked == [["birds"], ["numbers"]]


def test_no_answer_in_time_is_said_and_what_waited_is_not_computed(held):
    with running(held, Limits(timeout=1)) as server:
        held.go.clear()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(server.ask, "birds")
            assert held.entered.acquire(timeout=PATIENCE)
            second = pool.submit(server.ask, "pets")
            for late in (first.result(), second.result()):
                assert_problem(late, 503, "timeout", "1 seconds")
                assert late.headers["Retry-After"].isdigit()
        held.go.set()
        assert server.ask("numbers").status_code == 200
    assert held.asked == [["birds"], ["numbers"]]


def test_a_full_service_says_so_at_once(held):
    with running(held, Limits(max_queue=2, timeout=PATIENCE)) as server:
        held.go.clear()
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(server.ask, "birds") for _ in range(2)]
            eventually(lambda: server.metric("vprompt_under_way") == 2)
            refused = server.ask("birds")
            assert_problem(refused, 503, "busy", "2 requests")
            assert refused.headers["Retry-After"].isdigit()
            # Also before it has sent its image.
            received = everything(server.raw(head(Content_Length=1000)))
            assert answer_of(received)[0] == 503
            assert server.client.get("/health").status_code == 200
            held.go.set()
            assert [one.result().status_code for one in waiting] == [200, 200]
        assert server.ask("birds").status_code == 200
        assert server.metric("vprompt_under_way") == 0


# ── failures inside ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_the_culprit_of_a_batch_fails(held, caplog):
    held.culprit = "pets"
    with running(held) as server:
        held.go.clear()
        with ThreadPoolExecutor(9) as pool:
            first = pool.submit(server.ask, "birds")
            assert held.entered.acquire(timeout=PATIENCE)
            names = ["birds", "numbers", "pets", "birds", "numbers", "birds", "birds", "numbers"]
            asked = [pool.submit(server.ask, name) for name in names]
            eventually(lambda: server.metric("vprompt_queue_length") == len(names))
            held.go.set()
            assert first.result().status_code == 200
            for name, response in zip(names, [one.result() for one in asked], strict=True):
                if name == "pets":
                    assert_problem(response, 500, "failed", "log")
                else:
                    assert response.status_code == 200
                    assert response.json()["adapter"] == name
        several = server.client.post("/v1/predict?adapter=pets&adapter=birds", content=IMAGES["png"]).json()["answers"]
        assert several[0]["error"]["code"] == "failed"
        assert several[1]["adapter"] == "birds"
        assert "class_name" in several[1]
    assert sorted(held.asked[1]) == sorted(names)
    assert "the culprit is among them" in caplog.text


def test_numbers_that_are_none_are_a_failure_of_that_adapter_alone(alone, adapters):
    bank = Bank(alone["birds"].backbone)
    bank.add("birds", adapters / "birds")
    broken = vprompt.load(adapters / "pets", alone["birds"].backbone)
    torch.nn.init.constant_(broken.head.bias, float("nan"))
    bank.add("broken", broken)
    with running(bank) as server:
        assert_problem(server.ask("broken"), 500, "failed", "'broken'")
        assert server.ask("birds").status_code == 200


def test_an_adapter_that_goes_while_it_is_asked(held, adapters):
    with running(held) as server:
        held.go.clear()
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(server.ask, "birds")
            assert held.entered.acquire(timeout=PATIENCE)
            gone, exchanged = pool.submit(server.ask, "numbers"), pool.submit(server.ask, "pets")
            eventually(lambda: server.metric("vprompt_queue_length") == 2)
            held.remove("numbers")
            held.remove("pets")
            held.add("pets", adapters / "birds")  # other classes
            held.go.set()
            assert first.result().status_code == 200
            assert_problem(gone.result(), 404, "unknown_adapter", "'numbers'", "birds")
            assert_problem(exchanged.result(), 503, "busy", "'pets'", "again")
        assert server.ask("pets").json()["adapter"] == "pets"


# ── load ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_many_clients_over_several_adapters_that_come_and_go(held, alone, adapters, tmp_path):
    wanted = {}
    for kind, data in IMAGES.items():
        path = tmp_path / kind.replace(" ", "-")
        path.with_suffix(".png").write_bytes(data)
        for name, model in alone.items():
            [[wanted[name, kind]]] = predict_each(model, [path.with_suffix(".png")])
    over = threading.Event()

    def manage():
        changes = 0
        while not over.is_set() or changes < 2:
            held.add("guest", adapters / "pets")
            held.remove("guest")
            changes += 1

    def ask(seed):
        chance = random.Random(seed)
        answered = 0
        with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client:
            for _ in range(6):
                kind = chance.choice(list(IMAGES))
                names = chance.sample(["birds", "pets", "numbers", "guest", "nobody"], chance.randint(1, 5))
                answers = client.post("/v1/predict", params={"adapter": names}, content=IMAGES[kind]).json()["answers"]
                assert [one["adapter"] for one in answers] == names
                for one in answers:
                    if one["adapter"] in alone:
                        assert_same(one, wanted[one["adapter"], kind])
                        answered += 1
                    elif "error" not in one:
                        assert one["adapter"] == "guest"
                        assert_same(one, wanted["pets", kind])
                    else:
                        assert one["error"]["code"] in ("unknown_adapter", "busy")
        return answered

    with running(held, Limits(max_batch=7, max_queue=500, timeout=PATIENCE)) as server:
        with ThreadPoolExecutor(17) as pool:
            manager = pool.submit(manage)
            try:
                answered = sum(pool.map(ask, range(16)))
            finally:
                over.set()
            manager.result()
        assert answered > 100
        total = sum(server.metric(f'vprompt_requests_total{{adapter="{name}",status="200"}}') for name in alone)
        assert total == answered
    assert max(map(len, held.asked)) <= 7
    assert len(held.asked) < sum(map(len, held.asked))  # some were computed together


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────

WRONG = [
    None,
    "",
    TOKEN,
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN[:-1]}",
    "Bearer",
    f"Basic {TOKEN}",
    "Bearer ünï",
]


@pytest.mark.parametrize("given", WRONG)
def test_a_wrong_token_opens_nothing(strict, given):
    headers = {} if given is None else {"Authorization": given.encode()}
    with httpx.Client(base_url=strict.url, trust_env=False, timeout=PATIENCE) as client:
        for method, path in (
            ("POST", "/v1/predict/birds"),
            ("GET", "/v1/adapters"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("GET", "/nowhere"),
        ):
            response = client.request(method, path, headers=headers, content=b"x")
            assert_problem(response, 401, "bad_token", "Bearer")
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert TOKEN not in response.text
        health = client.get("/health", headers=headers).json()
        assert (health["status"], health["adapters"], health["version"]) == ("ok", 1, vprompt.__version__)
        [backbone] = health["backbones"]
        assert (backbone["name"], backbone["img_size"]) == ("test_vit.r160_in1k", [32, 32])
        assert backbone["fingerprint"] == fingerprint(strict.bank.backbone)


def test_the_scheme_of_a_token_has_no_case(strict):
    headers = {"Authorization": f"bearer  {TOKEN}"}
    assert httpx.get(f"{strict.url}/v1/adapters", headers=headers, trust_env=False).status_code == 200


def test_without_a_token_only_this_machine_is_answered_for(server, strict):
    """A page on a host whose name comes to mean 127.0.0.1 is of that origin for a browser: it could read answers."""
    for host in (
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "10.0.0.1",
        "[::2]",
        "[",
        "127.0.0.1.x",
    ):
        assert_problem(server.client.get("/v1/adapters", headers={"Host": host}), 403, "wrong_host", host)
        assert strict.client.get("/v1/adapters", headers={"Host": host}).status_code == 200
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]", "[::1]:8000"):
        assert server.client.get("/v1/adapters", headers={"Host": host}).status_code == 200


# ── adapters that are added and removed by clients ───────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def managed(adapters):
    with running(Bank.load({"birds": adapters / "birds"}), token=TOKEN, manage=True) as found:
        yield found


def test_an_adapter_is_added_asked_and_removed(managed, adapters):
    added = managed.client.put("/v1/adapters/guest", json={"path": str(adapters / "pets")})
    assert added.status_code == 201, added.text
    assert added.json() == managed.client.get("/v1/adapters/guest").json()
    assert managed.ask("guest").json()["class_name"] in ("cat", "dog")
    assert 'adapter="guest",status="200"' in managed.client.get("/metrics").text
    again = managed.client.put("/v1/adapters/guest", json={"path": str(adapters / "pets")})
    assert_problem(again, 409, "refused", "guest")
    removed = managed.client.delete("/v1/adapters/guest")
    assert (removed.status_code, removed.content) == (204, b"")
    assert_problem(managed.client.delete("/v1/adapters/guest"), 404, "unknown_adapter", "guest")
    assert_problem(managed.ask("guest"), 404, "unknown_adapter", "guest")
    assert "guest" not in managed.client.get("/metrics").text


def test_what_cannot_be_added(managed, adapters, tmp_path, monkeypatch):
    monkeypatch.setattr("vprompt.model.hub.fetch", None)  # nothing is
    put = managed.client.put
    for name in (".hidden", "a b", "a%00b", "x" * 101, 'a"b'):
        assert_problem(put(f"/v1/adapters/{name}", json={"path": str(adapters / "pets")}), 422, "invalid")
    for path in (str(tmp_path), str(tmp_path / "nowhere"), "me/on-the-hub", str(adapters / "pets" / "README.md"), ""):
        assert_problem(put("/v1/adapters/new", json={"path": path}), 409, "refused")
    for body in (b"", b"{", b"[]", b'{"path": 3}', b'{"place": "x"}', b"\xff"):
        assert_problem(put("/v1/adapters/new", content=body), 422, "invalid", '{"path": FOLDER}')
    assert_problem(put("/v1/adapters/new", content=bytes(70_000)), 413, "too_many_bytes")
    assert [one["name"] for one in managed.client.get("/v1/adapters").json()["adapters"]] == ["birds"]


def test_nothing_is_managed_unless_that_was_asked_for(strict, adapters):
    for method in ("PUT", "DELETE"):
        response = strict.client.request(method, "/v1/adapters/birds", content=b"{}")
        assert_problem(response, 405, "wrong_method", method)
        assert response.headers["Allow"] == "GET"
    with pytest.raises(VPromptError, match="token"):
        Server(strict.service, manage=True)


# ── health, metrics, schema ──────────────────────────────────────────────────────────────────────────────────────────


def test_metrics_are_what_prometheus_reads(server):
    server.ask("birds")
    for number in range(30):
        assert_problem(server.ask(f"nobody{number}"), 404, "unknown_adapter", f"nobody{number}")
    response = server.client.get("/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "nobody" not in response.text
    assert response.text.endswith("\n")
    sample = re.compile(r'[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\[\\n"])*"(,[a-z]+="(?:[^"\\\n]|\\[\\n"])*")*\})? [0-9.e+-]+')
    comment = re.compile(r"# (HELP [a-z_]+ .+|TYPE [a-z_]+ (counter|gauge|histogram))")
    for line in response.text.splitlines():
        assert (comment if line.startswith("#") else sample).fullmatch(line), line
    assert server.metric('vprompt_requests_total{adapter="",status="404"}') >= 30
    assert server.metric('vprompt_requests_total{adapter="birds",status="200"}') >= 1
    assert server.metric('vprompt_adapter_bytes{adapter="birds"}') > 0
    for name in ("vprompt_request_seconds", "vprompt_batch_size"):
        buckets = re.findall(rf'{name}_bucket{{le="([^"]+)"}} (\d+)', response.text)
        counts = [int(count) for _, count in buckets]
        assert counts == sorted(counts)
        assert buckets[-1][0] == "+Inf"
        assert f"{name}_count {counts[-1]}.0\n" in response.text


def test_labels_are_escaped_and_go_with_their_adapters():
    metrics = Metrics()
    odd = 'a"b\\c\nd'
    for adapter, status in ((odd, 200), ("gone", 200), ("", 404)):
        metrics.answers.labels(adapter, status).inc()
    text = metrics.text({odd: 5})
    assert 'vprompt_requests_total{adapter="a\\"b\\\\c\\nd",status="200"} 1.0\n' in text
    assert "gone" not in text
    assert 'adapter="",status="404"' in text


def test_health_says_when_the_service_stops(alone, adapters):
    bank = Bank(alone["birds"].backbone)
    bank.add("birds", adapters / "birds")
    with running(bank) as server:
        server.service.stopping = True
        response = server.client.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "stopping")
        assert_problem(server.ask("birds"), 503, "stopping")


def test_the_schema_is_of_what_is_answered_and_no_page_loads_anything(server, managed):
    schema = server.client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        *("/health", "/metrics", "/v1/adapters", "/v1/adapters/{adapter}", "/v1/predict", "/v1/predict/{adapter}"),
    }
    answer = schema["components"]["schemas"]["Answer"]
    assert {*answer["required"]} <= {*server.ask("birds").json()} <= {*answer["properties"]}  # more for other targets
    predict_one = schema["paths"]["/v1/predict/{adapter}"]["post"]
    assert "image/*" in predict_one["requestBody"]["content"]
    assert {"200", "400", "401", "403", "404", "408", "409", "413", "415", "422", "429", "500", "503"} == set(
        predict_one["responses"]
    )
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    assert {"put", "delete"} <= set(managed.client.get("/openapi.json").json()["paths"]["/v1/adapters/{adapter}"])
    assert "securitySchemes" in managed.client.get("/openapi.json").json()["components"]
    for path in ("/docs", "/redoc", "/"):
        assert_problem(server.client.get(path), 404, "not_found", path)


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass
    return False


def test_sigterm_answers_what_was_asked_and_ends_with_status_0(adapters, tmp_path):
    process = Command("serve", adapters / "birds", "--port", 0, folder=tmp_path)
    try:
        eventually(lambda: process.printed()[1].endswith("\n") or process.status is not None)
        line = process.printed()[1]
        url = re.search(r"Listening on (http://[\d.]+:\d+)", line)[1]
        port = int(url.rsplit(":", 1)[1])
        data = IMAGES["png"]
        connections = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(3)]
        for connection in connections:
            connection.sendall(head(Content_Length=len(data)) + data[:50])
        with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE) as client:
            eventually(lambda: "vprompt_under_way 3.0\n" in client.get("/metrics").text)
            os.kill(process.pid, signal.SIGTERM)
            eventually(lambda: refused(port))
            for connection in connections:
                connection.sendall(data[50:])
            for connection in connections:
                status, body = answer_of(everything(connection))
                assert (status, body["adapter"]) == (200, "birds")
        assert process.end() == (0, "", line)
    finally:
        process.process.kill()


def serve_here(adapters, *arguments, during):
    """`vprompt serve` in this process, with `during(url)` in a thread once it listens."""
    outcomes = []

    class Told(io.StringIO):
        def write(self, text):
            if (url := re.search(r"http://[\d.:]+\d", text)) is not None:
                thread = threading.Thread(target=lambda: outcomes.append(during(url[0])))
                thread.start()
                threads.append(thread)
            return super().write(text)

    threads = []
    out = Told()
    with contextlib.redirect_stdout(out):
        status = vprompt.cli.main(["serve", str(adapters / "birds"), "--port", "0", "--json", *arguments])
    for thread in threads:
        thread.join(PATIENCE)
    return status, out.getvalue(), outcomes


def test_ctrl_c_ends_with_status_130_and_json_is_only_json(adapters, capsys):
    def during(url):
        status = httpx.post(f"{url}/v1/predict/birds", content=IMAGES["png"], trust_env=False).status_code
        os.kill(os.getpid(), signal.SIGINT)
        return status

    status, out, outcomes = serve_here(adapters, during=during)
    assert (status, outcomes) == (130, [200])
    document = json.loads(out)
    assert set(document) == {"url", "adapters"}
    assert document["adapters"] == ["birds"]
    assert capsys.readouterr().err == "vprompt: Stopped.\n"


def test_the_command_watches_a_folder_and_logs_as_json(adapters, tmp_path, capsys):
    shutil.copytree(adapters / "pets", tmp_path / "cats")

    def during(url):
        listed = httpx.get(f"{url}/v1/adapters", headers={"X-Request-ID": "me"}, trust_env=False).json()["adapters"]
        os.kill(os.getpid(), signal.SIGTERM)
        return [one["name"] for one in listed]

    status, out, outcomes = serve_here(adapters, "--watch", str(tmp_path), "--access-log", during=during)
    assert status == 0
    assert sorted(outcomes[0]) == sorted(json.loads(out)["adapters"]) == ["birds", "cats"]
    loaded, asked = map(json.loads, capsys.readouterr().err.splitlines())
    assert "'cats'" in loaded["message"]
    assert (asked["path"], asked["status"], asked["request_id"]) == ("/v1/adapters", 200, "me")


def test_a_stop_waits_no_longer_than_the_timeout(adapters):
    """A client that never sends the rest of its image; it is told, and the command ends."""
    received = []

    def during(url):
        port = int(url.rsplit(":", 1)[1])
        connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        connection.sendall(head(Content_Length=1000) + b"x")
        eventually(lambda: "vprompt_under_way 1.0\n" in httpx.get(f"{url}/metrics", trust_env=False).text)
        os.kill(os.getpid(), signal.SIGTERM)
        received.append(everything(connection))

    status, _, _ = serve_here(adapters, "--timeout", "2", during=during)
    assert status == 0
    assert answer_of(received[0])[0] in (408, 503)


# ── the command's mistakes ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def places(adapters, tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    shutil.copytree(adapters / "pets", root / "birds")
    shutil.copytree(adapters / "pets", root / "two words")
    (root / "empty").mkdir()
    (root / "blank-token").write_text(" \n")
    (root / "long-token").write_text("two words\n")
    (root / "binary-token").write_bytes(b"\xff\xfe")
    (root / "token").write_text(f"{TOKEN}\n")
    other = vprompt.attach(
        vprompt.backbones.bundled.BUNDLED_BACKBONE, vprompt.Linear(), head_init="paper", num_classes=2
    )
    other.save_pretrained(root / "other-backbone")
    return root


MISTAKES = {
    "adapter missing": ("HERE/nowhere", ["HERE/nowhere"]),
    "adapter that is none": ("HERE/empty", ["HERE/empty"]),
    "the same name twice": ("BIRDS HERE/birds", ["'birds'", "NAME="]),
    "the same name given": ("x=BIRDS x=HERE/birds", ["'x'"]),
    "a name that is none": ("a/b=BIRDS", ["'a/b'"]),
    "an empty name": ("=BIRDS", ["''"]),
    "port in use": ("BIRDS --port TAKEN", ["TAKEN", "--port"]),
    "no such port": ("BIRDS --port 65536", ["65536"]),
    "no such host": ("BIRDS --host 256.1.1.1", ["256.1.1.1", "--host"]),
    "a host that cannot be": ("BIRDS --host a..b", ["a..b", "--host"]),
    "open to all": ("BIRDS --host 0.0.0.0", ["0.0.0.0", "--token-file", "VPROMPT_TOKEN"]),
    "open to all, v6": ("BIRDS --host ::", ["::", "--token-file"]),
    "token file missing": ("BIRDS --token-file HERE/nowhere", ["HERE/nowhere", "--token-file"]),
    "token file empty": ("BIRDS --token-file HERE/blank-token", ["HERE/blank-token", "no token"]),
    "token of two words": ("BIRDS --token-file HERE/long-token", ["HERE/long-token", "no token"]),
    "token that is no text": ("BIRDS --token-file HERE/binary-token", ["HERE/binary-token", "no text"]),
    "no such device": ("BIRDS --device abacus", ["'abacus'", "cpu"]),
    "no second processor": ("BIRDS --device cpu:1", ["'cpu:1'", "cpu"]),
    "no batch": ("BIRDS --max-batch 0", ["max_batch", "0"]),
    "no queue": ("BIRDS --max-queue -1", ["max_queue", "-1"]),
    "no time": ("BIRDS --timeout nan", ["timeout", "nan"]),
    "endless wait": ("BIRDS --max-wait-ms inf", ["max_wait_ms", "inf"]),
    "too many pixels": ("BIRDS --max-pixels 999999999999", ["max_pixels", "999999999999"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name, adapters, places, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line, words = MISTAKES[name]
    if "::" in line and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        known = {"HERE": places, "BIRDS": adapters / "birds", "TAKEN": taken.getsockname()[1]}

        def filled(text):
            for key, value in known.items():
                text = text.replace(key, str(value))
            return text

        arguments = [filled(word) for word in line.split()]
        if "--port" not in arguments:
            arguments += ["--port", "0"]
        outcome = run_command("serve", *arguments)
    assert outcome.status == 1, outcome.out + outcome.err
    assert outcome.out == ""
    [sentence] = outcome.err.splitlines()
    assert sentence.startswith("vprompt: ")
    assert sentence.endswith(".")
    for word in words:
        assert filled(word) in sentence


def test_folders_with_unusual_names_are_served_under_others(places):
    from vprompt.serving.setup import named

    assert named((f"fine={places / 'two words'}",)) == {"fine": str(places / "two words")}
    (places / "a=b").mkdir()
    with pytest.raises(VPromptError, match="a=b"):
        named((str(places / "a=b"),))
    assert named((f"c={places / 'a=b'}",)) == {"c": str(places / "a=b")}


def test_wrong_usage_of_the_command(adapters, monkeypatch):
    monkeypatch.delenv("VPROMPT_TOKEN", raising=False)
    assert run_command("serve").status == 2
    outcome = run_command("serve", adapters / "birds", "--manage", "--port", "0")
    assert outcome.status == 2
    assert "--token-file" in outcome.err


def test_the_token_comes_from_a_file_or_the_environment(places, monkeypatch):
    from vprompt.serving.setup import Setup

    file, neither = Setup(token_file=str(places / "token")), Setup()
    monkeypatch.delenv("VPROMPT_TOKEN", raising=False)
    assert neither.token() is None
    assert file.token() == TOKEN
    monkeypatch.setenv("VPROMPT_TOKEN", "other\n")
    assert neither.token() == "other"
    assert file.token() == TOKEN
    monkeypatch.setenv("VPROMPT_TOKEN", "")
    with pytest.raises(VPromptError, match="VPROMPT_TOKEN holds no token"):
        neither.token()


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_extra_is_a_sentence_with_the_command(package, adapters, monkeypatch):
    users = [f"vprompt.serving.{name}" for name in ("server", "app", "service", "metrics")]
    for name in [*sys.modules]:
        if name.split(".")[0] == package or name in users:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    outcome = run_command("serve", adapters / "birds", "--port", "0")
    assert outcome.status == 1
    assert package in outcome.err
    assert "pip install 'vprompt[serve]'" in outcome.err


WEB = ("fastapi", "starlette", "uvicorn")


@pytest.mark.parametrize(
    ("module", "packages"),
    [
        ("vprompt.serving.predict", (*WEB, "prometheus_client")),
        ("vprompt.serving.bank.bank", (*WEB, "prometheus_client")),
        ("vprompt.serving.service", WEB),
    ],
)
def test_what_needs_no_extra_imports_none(module, packages, tmp_path):
    blocked = f"import sys; assert not {{{module!r}, *{packages}}} & sys.modules.keys()"
    code = f"{blocked}; sys.modules.update(dict.fromkeys({packages})); import {module}"
    status, _, errors = Script(code, folder=tmp_path).end()
    assert status == 0, errors


def test_the_command_needs_no_extra():
    code = f"import sys; sys.modules.update(dict.fromkeys({(*WEB, 'prometheus_client', 'torch')})); import vprompt.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


# ── the batcher by itself ────────────────────────────────────────────────────────────────────────────────────────────


class Gated:
    """A computation that doubles its items, when it is let."""

    def __init__(self):
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches = []

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.release()
        assert self.go.wait(PATIENCE)
        if any(item < 0 for item in items):
            raise ValueError(f"{min(items)} is negative")
        return [KeyError(item) if item == 0 else 2 * item for item in items]


@pytest.fixture
def gated():
    found = Gated()
    yield found
    found.go.set()


def test_batches_are_full_in_order_and_give_each_its_own(gated):
    sizes = []
    batcher = Batcher(gated, max_batch=4, observe=sizes.append)
    first = batcher.submit([1])
    assert gated.entered.acquire(timeout=PATIENCE)
    later = batcher.submit(range(2, 8)) + batcher.submit([8, 9])
    assert batcher.waiting == 8
    gated.go.set()
    assert [one.result(PATIENCE) for one in first + later] == list(range(2, 20, 2))
    assert gated.batches == [[1], [2, 3, 4, 5], [6, 7, 8, 9]]
    assert sizes == [1, 4, 4]
    assert batcher.close(PATIENCE)


def test_a_batch_does_not_wait_once_it_is_full_and_waits_for_others_before():
    batcher = Batcher(lambda items: [len(items)] * len(items), max_batch=3, max_wait=PATIENCE)
    started = time.monotonic()
    futures = [future for number in range(3) for future in batcher.submit([number])]
    assert [future.result(PATIENCE) for future in futures] == [3, 3, 3]
    assert time.monotonic() - started < PATIENCE
    # Closing does not wait for others either.
    [last] = batcher.submit([1])
    assert batcher.close(PATIENCE)
    assert last.result(0) == 1


@pytest.mark.parametrize("seed", range(5))
def test_errors_reach_their_items_only(gated, seed):
    chance = random.Random(seed)
    gated.go.set()
    items = [chance.choice([-3, -2, 0, 5, 6, 7, 8, 9]) for _ in range(200)]
    batcher = Batcher(gated, max_batch=chance.randint(1, 40), max_queue=200)
    for item, future in zip(items, batcher.submit(items), strict=True):
        if item > 0:
            assert future.result(PATIENCE) == 2 * item
        else:
            error = future.exception(PATIENCE)
            assert type(error) is (ValueError if item < 0 else KeyError)
            assert str(item) in str(error)
    assert batcher.close(PATIENCE)


def test_a_wrong_number_of_results_is_an_error_and_not_someone_elses_answer():
    batcher = Batcher(lambda items: [1], max_batch=4)
    pair = batcher.submit([1, 2])
    assert [one.result(PATIENCE) for one in pair] == [1, 1]  # alone, each has one
    none = Batcher(lambda items: [])
    with pytest.raises(RuntimeError, match="0 results came for 1"):
        none.submit([1])[0].result(PATIENCE)


def test_a_full_queue_takes_all_or_nothing_and_those_who_left_make_room(gated):
    batcher = Batcher(gated, max_batch=10, max_queue=3)
    batcher.submit([1])
    assert gated.entered.acquire(timeout=PATIENCE)
    waiting = batcher.submit([2, 3])
    with pytest.raises(RequestError, match="3 requests wait"):
        batcher.submit([4, 5])
    assert batcher.waiting == 2
    assert waiting[0].cancel()
    kept = batcher.submit([4, 5])
    gated.go.set()
    assert [one.result(PATIENCE) for one in (waiting[1], *kept)] == [6, 8, 10]
    assert gated.batches[1] == [3, 4, 5]
    assert batcher.close(PATIENCE)


def test_what_is_cancelled_or_late_is_not_computed(gated):
    batcher = Batcher(gated, max_batch=10)
    batcher.submit([1])
    assert gated.entered.acquire(timeout=PATIENCE)
    [left], [late], [kept] = (
        batcher.submit([2]),
        batcher.submit([3], deadline=time.monotonic()),
        batcher.submit([4], deadline=time.monotonic() + 10 * PATIENCE),
    )
    assert left.cancel()
    gated.go.set()
    assert kept.result(PATIENCE) == 8
    with pytest.raises(RequestError, match="in time"):
        late.result(PATIENCE)
    assert gated.batches == [[1], [4]]
    assert batcher.close(PATIENCE)


def test_closing_answers_what_waits_and_takes_nothing_new(gated):
    gated.go.set()
    batcher = Batcher(gated, max_batch=2)
    futures = batcher.submit([1, 2, 3, 4, 5])
    assert batcher.close(PATIENCE)
    assert [one.result(0) for one in futures] == [2, 4, 6, 8, 10]
    with pytest.raises(RequestError, match="stopped"):
        batcher.submit([6])
    assert batcher.close(0)


def test_closing_gives_up_on_what_never_ends(gated):
    batcher = Batcher(gated)
    [stuck] = batcher.submit([1])
    assert gated.entered.acquire(timeout=PATIENCE)
    [waiting] = batcher.submit([2])
    assert not batcher.close(0.01)
    with pytest.raises(RequestError, match="stopped"):
        waiting.result(PATIENCE)
    gated.go.set()
    assert stuck.result(PATIENCE) == 2
    assert batcher.close(PATIENCE)
