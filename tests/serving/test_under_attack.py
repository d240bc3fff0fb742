"""The service and those who wear it out: bodies of every kind, work, connections, memory; and its logs."""

import base64
import contextlib
import json
import logging
import os
import re
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import forkserver

import httpx
import pytest
import torch
from PIL import Image
from test_serving import (
    BEARER,
    IMAGES,
    PATIENCE,
    TOKEN,
    Held,
    answer_of,
    assert_problem,
    assert_same,
    encoded,
    eventually,
    everything,
    head,
    noise,
    running,
    scans,
)

import vprompt
from vprompt.data.preprocessing import Preprocessing
from vprompt.serving import decoding, middleware, service
from vprompt.serving import server as http_server
from vprompt.serving.bank.bank import Bank
from vprompt.serving.batcher import Batcher
from vprompt.serving.body import image_in
from vprompt.serving.errors import RequestError
from vprompt.serving.limits import Limits
from vprompt.serving.log import logging_to_stderr
from vprompt.serving.middleware import host_of
from vprompt.serving.predict import predict_each
from vprompt.serving.service import Service

LOOKS = Preprocessing(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))


@pytest.fixture(scope="module")
def backbone(tiny_weights):
    return vprompt.attach("test_vit", vprompt.Linear(), num_classes=2, weights=tiny_weights, img_size=32).backbone


@pytest.fixture(scope="module")
def models(backbone):
    """Two that share a pass, one of its own pass, and one whose images cannot be made."""
    made = {}
    kinds = {"birds": vprompt.VPT(3), "pets": vprompt.Linear(), "low": vprompt.LoRA(rank=2), "odd": vprompt.Linear()}
    for seed, (name, method) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        made[name] = vprompt.attach(backbone, method, num_classes=3, classes=["a", "b", f"caf\udce9 {name}"])
        torch.nn.init.normal_(made[name].head.weight)
        made[name].preprocessing = LOOKS
    made["odd"].preprocessing = replace(LOOKS)
    object.__setattr__(made["odd"].preprocessing, "std", (0.5, 0.5))  # which it refuses when it is made
    return made


@pytest.fixture
def held(backbone, models):
    bank = Held(backbone)
    for name, model in models.items():
        bank.add(name, model)
    return bank


@pytest.fixture(scope="module")
def server(backbone, models):
    bank = Bank(backbone)
    for name, model in models.items():
        bank.add(name, model)
    with running(bank, Limits(max_bytes=20_000, timeout=PATIENCE)) as found:
        yield found


# ── bodies ───────────────────────────────────────────────────────────────────────────────────────────────────────────

PHOTO = IMAGES["png"]
TEXT = base64.b64encode(PHOTO).decode()
URLSAFE = base64.urlsafe_b64encode(PHOTO).decode().rstrip("=")


def as_json(text, **more):
    return {"content": json.dumps({"image": text, **more}), "headers": {"Content-Type": "application/json"}}


BODIES = {
    "curl --data-binary": {"content": PHOTO, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    "another type": {"content": PHOTO, "headers": {"Content-Type": "text/plain"}},
    "a form": {"files": {"image": ("photo.png", PHOTO, "image/png")}},
    "a form under another name": {"files": {"file": ("x", PHOTO)}, "data": {"note": "--x\r\n", "more": "\r\n\r\n"}},
    "a form with a field": {"files": {"image": (None, PHOTO)}},
    "json": as_json(TEXT),
    "json in lines": as_json("\n".join(re.findall(".{1,76}", TEXT)), note=[1]),
    "json for addresses": as_json(URLSAFE),
    "json of a page": as_json(f"data:image/png;base64,{TEXT}"),
    "json with a charset": {**as_json(TEXT), "headers": {"Content-Type": "Application/JSON; charset=utf-8"}},
}


@pytest.mark.parametrize("kind", BODIES)
def test_an_image_comes_in_any_body(server, kind):
    wanted = server.ask("birds").json()
    response = server.client.post("/v1/predict/birds", **BODIES[kind])
    assert response.status_code == 200, response.text
    assert {**response.json(), "top": 0, "probability": 0} == {**wanted, "top": 0, "probability": 0}
    assert response.json()["probability"] == pytest.approx(wanted["probability"], abs=1e-5)


def part(*lines, boundary="XX"):
    return b"".join(line if isinstance(line, bytes) else line.encode() + b"\r\n" for line in lines), boundary


FILE = 'Content-Disposition: form-data; name="image"; filename="a.png"'
BAD_FORMS = {
    "no boundary": part("--XX", FILE, "", PHOTO, b"\r\n--XX--\r\n", boundary=""),
    "another boundary": part("--XX", FILE, "", PHOTO, b"\r\n--XX--\r\n", boundary="YY"),
    "cut off": part("--XX", FILE, "", PHOTO),
    "cut off before its end": part("--XX", FILE, "", PHOTO, b"\r\n--XX"),
    "no file": part("--XX", 'Content-Disposition: form-data; name="top"', "", "3", "--XX--"),
    "two files": part("--XX", FILE, "", "a", "--XX", FILE, "", "b", "--XX--"),
    "many parts": part(*["--XX", FILE, "", "a"] * 1000, "--XX--"),
    "nothing": (b"", "XX"),
}


@pytest.mark.parametrize("kind", BAD_FORMS)
def test_a_bad_form_is_a_sentence(server, kind):
    body, boundary = BAD_FORMS[kind]
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    assert_problem(server.client.post("/v1/predict/birds", content=body, headers=headers), 422, "invalid", "curl -F")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b'{"image": 3}', b'{"image": "a?b"}', b'{"image": "\xff"}', b"[" * 10_000, b'"x"']
)
def test_bad_json_is_a_sentence(server, body):
    headers = {"Content-Type": "application/json"}
    assert_problem(server.client.post("/v1/predict/birds", content=body, headers=headers), 422, "invalid", "base64")


def test_the_size_of_an_image_counts_and_not_that_of_what_is_around_it(server):
    for size, status in ((20_000, 200), (20_001, 413)):
        data = PHOTO + bytes(size - len(PHOTO))
        for body in ({"files": {"image": ("a", data)}}, as_json(base64.b64encode(data).decode()), {"content": data}):
            assert server.client.post("/v1/predict/birds", **body).status_code == status
    huge = server.client.post("/v1/predict/birds", **as_json("A" * 200_000))
    assert_problem(huge, 413, "too_many_bytes")


def test_a_form_may_hold_any_bytes():
    data = b"\r\n\r\n--X\r\n--XX-ish\r\n" + bytes(range(256))
    body, _ = part("a preamble", "--XX", FILE, "", data, b"\r\n--XX--\r\nan epilogue")
    with pytest.raises(RequestError):  # a line begins like the boundary: no writer of forms chooses such a one
        image_in(body, "multipart/form-data; boundary=XX", 999)
    body, _ = part("a preamble", "--a b", FILE, "", data, b"\r\n--a b--\r\nan epilogue")
    assert image_in(body, 'multipart/form-data; boundary="a b"', 999) == data


# ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_scans_times_pixels_are_bounded(backbone, models):
    bank = Bank(backbone)
    bank.add("birds", models["birds"])
    with running(bank, Limits(max_pixels=64 * 64, timeout=PATIENCE)) as server:
        assert server.ask("birds", scans(decoding.MAX_PASSES)).status_code == 200
        response = server.ask("birds", scans(decoding.MAX_PASSES + 1))
        assert_problem(response, 422, "too_much_work", f"{decoding.MAX_PASSES + 1} scans")


def test_scans_are_those_of_the_image_alone():
    for number in (6, 30, 99):
        assert decoding.scans(scans(number)) == number
    inner = scans(50)
    exif = b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner
    image = scans(6)
    assert decoding.scans(image[:2] + exif + image[2:] + inner) == 6  # neither its thumbnail's nor what is behind it
    assert decoding.scans(encoded(noise(), "JPEG")) == 1
    assert decoding.scans(PHOTO) == decoding.scans(b"") == decoding.scans(b"\xff\xd8") == 0


def test_a_header_of_a_million_segments_is_not_read(server):
    data = b"\xff\xd8" + b"\xff\xe0\0\2" * 4000 + encoded(noise(), "JPEG")[2:]
    assert_problem(server.ask("birds", data), 400, "broken_image", "segments")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="decodes in processes on Linux only")
def test_an_adapter_of_other_channels_is_the_only_one_that_is_refused():
    five = Preprocessing(size=(8, 8), mean=(0.5,) * 5, std=(0.5,) * 5)
    found = decoding.decoded(PHOTO, [LOOKS, five], 10**7)
    assert found[LOOKS].shape == (3, *LOOKS.size)
    assert isinstance(found[five], RequestError)
    assert "3 channels, not 5" in str(found[five])


def test_large_images_are_decoded_elsewhere_and_just_the_same(server, models, tmp_path, monkeypatch):
    large = {
        "png": encoded(noise((1300, 1000)).resize((1500, 1200)), compress_level=1),
        "tiff": encoded(noise((60, 40), mode="RGBA"), "TIFF"),
        "grey": encoded(Image.new("L", (5000, 4000), 77)),
        "a tiff of more work than its size tells": encoded(Image.new("L", (2100, 1000), 77), "TIFF"),
    }
    server.service.limits = replace(server.service.limits, max_bytes=2**23)
    for kind, data in large.items():
        path = tmp_path / f"{kind}.png"
        path.write_bytes(data)
        response = server.ask("birds", data)
        assert response.status_code == 200, response.text
        [[wanted]] = predict_each(models["birds"].fold(), [path])
        assert_same(response.json(), wanted)
        several = server.client.post("/v1/predict?adapter=odd&adapter=pets", content=data).json()["answers"]
        assert several[0]["error"]["code"] == "failed"
        assert several[1]["adapter"] == "pets"
    assert_problem(server.ask("birds", large["grey"][:-30]), 400, "broken_image", "decoded")
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    eventually(lambda: server.ask("birds", large["tiff"]).status_code == 200)  # by another one
    # The next one may take little memory: what takes more is refused, and the one after it is decoded.
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "BYTES_A_PIXEL", 0)
        huge = encoded(Image.new("RGB", (7000, 6000)))
        assert_problem(server.ask("birds", huge), 422, "too_many_pixels", "memory")
    assert server.ask("birds", large["tiff"]).status_code == 200


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="decodes in processes on Linux only")
def test_decoding_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_SECONDS", 1)
    with pytest.raises(RequestError, match="more than 1 s") as caught:
        decoding.decode(2, PHOTO, [LOOKS] * 300_000, 50_000_000)
    assert caught.value.code == "too_much_work"
    images = decoding.decode(2, PHOTO, [LOOKS], 50_000_000)
    torch.testing.assert_close(images, decoding.decode(0, PHOTO, [LOOKS], 50_000_000), rtol=0, atol=0)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="decodes in processes on Linux only")
def test_decoding_that_cannot_begin_is_a_sentence():
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(RequestError, match="again in a moment"):
            decoding.decode(2, PHOTO, [LOOKS], 50_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_small_images_do_not_wait_for_large_ones(server, monkeypatch):
    go, entered = threading.Event(), threading.Event()
    decode = decoding.decode

    def slow(lane, data, preprocessings, max_pixels):
        if lane:
            entered.set()
            assert go.wait(PATIENCE)
            return {each: torch.zeros(3, *each.size) for each in preprocessings}
        return decode(lane, data, preprocessings, max_pixels)

    monkeypatch.setattr(service, "decode", slow)
    large = encoded(Image.new("L", (5000, 4000)))[:19_000]
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(server.ask, "birds", large) for _ in range(50)]
        assert entered.wait(PATIENCE)
        # A quarter of all places is for large ones.
        eventually(lambda: sum(one.done() for one in waiting) >= 50 - 33)
        assert [server.ask("birds").status_code for _ in range(3)] == [200] * 3
        go.set()
        statuses = [one.result().status_code for one in waiting]
    assert set(statuses) == {200, 503}
    assert 32 <= statuses.count(200) <= 33


def test_clients_take_turns():
    go, batches = threading.Event(), []

    def compute(items):
        batches.append(list(items))
        assert go.wait(PATIENCE)
        return items

    batcher = Batcher(compute, max_batch=4, max_queue=100)
    batcher.submit(["first"], client="a")
    eventually(lambda: batches)
    futures = batcher.submit([f"a{number}" for number in range(6)], client="a")
    futures += batcher.submit(["b0", "b1"], client="b") + batcher.submit(["c0"], client="c")
    assert batcher.waiting == 9
    go.set()
    assert [future.result(PATIENCE) for future in futures][-3:] == ["b0", "b1", "c0"]
    assert batches[1:] == [["a0", "b0", "c0", "a1"], ["b1", "a2", "a3", "a4"], ["a5"]]
    assert batcher.close(PATIENCE)


def test_a_client_that_takes_all_places_leaves_others_their_share(backbone):
    service = Service(Bank(backbone), Limits(max_queue=4))
    with contextlib.ExitStack() as places:
        places.enter_context(service.place("greedy", ["a"] * 4))
        for client, asks, fits in (("greedy", 1, False), ("b", 3, False), ("b", 2, True), ("b", 1, False)):
            with pytest.raises(RequestError, match="under way") if not fits else contextlib.nullcontext():
                service.check(client, ["a"] * asks)
                places.enter_context(service.place(client, ["a"] * asks))
        places.enter_context(service.place("c", ["a"]))
        for number in range(20):  # many addresses do not take more than twice the limit
            with contextlib.suppress(RequestError):
                places.enter_context(service.place(f"other {number}", ["a"]))
        assert service._places.total() == 8
    assert not service._places
    service.close(PATIENCE)


def test_clients_are_told_apart_by_address():
    assert host_of({"client": ("10.0.0.1", 1)}) == "10.0.0.1"
    assert host_of({"client": ("2001:db8:1:2:3::4", 1)}) == host_of({"client": ("2001:db8:1:2::9", 2)})
    assert host_of({"client": ("2001:db8:1:3::9", 2)}) != host_of({"client": ("2001:db8:1:2::9", 2)})
    assert host_of({"client": None}) == host_of({}) == ""


# ── one adapter that fails ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_adapter_that_fails_costs_the_others_nothing(held, caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError("the low one is broken")

    with running(held) as server:
        monkeypatch.setattr(held._adapters["low"].model, "forward", fail)
        params = {"adapter": ["odd", "birds", "low", "pets"]}
        answers = server.client.post("/v1/predict", params=params, content=PHOTO).json()["answers"]
        assert [one.get("error", {}).get("code") for one in answers] == ["failed", None, "failed", None]
        alone = [server.ask(name).json() for name in ("birds", "pets")]
    assert [one["class_index"] for one in alone] == [answers[1]["class_index"], answers[3]["class_index"]]
    assert held.asked == [["birds", "low", "pets"], ["birds"], ["pets"]]  # once: nothing was computed again
    assert "expected sequence of length 3" in caplog.text
    assert "the low one is broken" in caplog.text


# ── bodies that come slowly, and connections that ask nothing ────────────────────────────────────────────────────────


def half(server, sent=1, length=5000):
    return server.raw(head(Content_Length=length) + bytes(sent))


def test_bodies_that_are_not_there_take_no_places(held):
    with running(held, Limits(max_queue=2, timeout=PATIENCE)) as server:
        waiting = [half(server) for _ in range(9)]
        eventually(lambda: server.metric("vprompt_under_way") == 9)
        assert [server.ask("birds").status_code for _ in range(3)] == [200] * 3
        for connection in waiting:
            connection.close()


def test_a_body_comes_at_a_rate(held, monkeypatch):
    monkeypatch.setattr(middleware, "GRACE_SECONDS", 0.3)
    with running(held, Limits(timeout=PATIENCE)) as server:
        assert answer_of(everything(half(server)))[1]["error"]["code"] == "too_slow"
        assert server.ask("birds").status_code == 200


def test_bodies_together_take_only_so_much_memory(held):
    with running(held, Limits(max_queue=1, max_bytes=1000, timeout=PATIENCE)) as server:
        connections = []
        for number in range(3):
            connections.append(half(server, 900, 1000))
            if number:  # the one before was given up
                assert answer_of(everything(connections[-2]))[0] == 408
        connections[2].sendall(bytes(100))
        with connections[2] as connection:
            assert connection.recv(12) == b"HTTP/1.1 415"


def closed(connection):
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def test_connections_that_ask_nothing_make_room(held, monkeypatch):
    monkeypatch.setattr(http_server, "most_connections", lambda: 6)
    monkeypatch.setattr(http_server, "IDLE_SECONDS", PATIENCE)
    with running(held, Limits(timeout=PATIENCE)) as server:
        held.go.clear()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(
                httpx.post, f"{server.url}/v1/predict/birds", content=PHOTO, trust_env=False, timeout=99
            )
            assert held.entered.acquire(timeout=PATIENCE)
            crowd = [server.raw(head()[: 20 + number]) for number in range(10)]
            crowd += [half(server) for _ in range(10)]
            held.go.set()
            assert first.result().status_code == 200
            assert server.ask("birds").status_code == 200
        assert all(closed(connection) for connection in crowd[:14])
        crowd[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            crowd[-1].recv(1)
        for connection in crowd:
            connection.close()


def test_a_half_head_is_waited_for_a_moment_and_not_for_the_timeout(held, monkeypatch):
    monkeypatch.setattr(http_server, "IDLE_SECONDS", 0.4)
    with running(held, Limits(timeout=PATIENCE)) as server:
        connection = server.raw(head()[:30])
        assert closed(connection)
        assert server.ask("birds").status_code == 200


def test_a_body_of_tiny_chunks_is_not_read(server, monkeypatch):
    monkeypatch.setattr(middleware, "GRACE_SECONDS", 0.3)
    start = head(Transfer_Encoding="chunked")
    for first, more in ((b"", 5000), (b"4\r\nabcd\r\n", 5000), (b"1\r\nx\r\n" * 50_000, 1)):
        connection = server.raw(start + first)
        connection.sendall(b"1\r\nx\r\n" * more)
        assert answer_of(everything(connection))[0] == 408
    pieces = [PHOTO[at : at + 700] for at in range(0, len(PHOTO), 700)]
    assert server.ask("birds", iter(pieces)).status_code == 200
    flat = encoded(Image.new("RGB", (60, 60), (0, 10, 13)), "BMP")
    assert server.ask("birds", flat).status_code == 200
    large = {f"X-{number}": "y" * 90 for number in range(150)}
    assert server.ask("birds", headers=large).status_code == 200
    large |= {f"Y-{number}": "y" * 90 for number in range(50)}
    assert server.ask("birds", headers=large).status_code == 400


def test_files_can_be_opened_beside_the_connections():
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = http_server.most_connections()
    assert 0 < most <= http_server.MOST_CONNECTIONS
    assert soft < 0 or most < soft


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_answer_has_an_id(server):
    asked = server.client.get("/health", headers={"X-Request-ID": "a1b2-c3.d:4/e+f="})
    assert asked.headers["X-Request-ID"] == "a1b2-c3.d:4/e+f="
    ids = [server.client.get("/health").headers["X-Request-ID"] for _ in range(2)]
    for odd in ("a b", "x" * 129, '"}', "é".encode(), ""):
        ids.append(server.client.get("/health", headers={"X-Request-ID": odd}).headers["X-Request-ID"])
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert len(set(ids)) == len(ids)
    assert server.ask("nobody").headers["X-Request-ID"]


def test_the_access_log_is_json_lines(held, capsys):
    with logging_to_stderr("warning", json_lines=True), running(held, token=TOKEN) as server:
        named = {"headers": {"X-Request-ID": "number-1"}}
        assert server.client.post("/v1/predict?adapter=birds&adapter=odd&top=1", content=PHOTO, **named).is_success
        assert httpx.get(f"{server.url}/v1/a%0Ab%E2%80%AE", trust_env=False).status_code == 401
        server.raw(head(Authorization=BEARER, Content_Length=9)).close()
        eventually(lambda: server.metric('vprompt_requests_total{adapter="birds",status="499"}') == 1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    failure, access, refused, left = [line for line in lines if line.get("path") != "/metrics"]
    assert failure["request_id"] == access["request_id"] == "number-1"
    assert (failure["level"], failure["logger"]) == ("error", "vprompt.serving")
    assert "expected sequence of length 3" in failure["traceback"]
    wanted = {"client": "127.0.0.1", "method": "POST", "path": "/v1/predict", "status": 200, "bytes": len(PHOTO)}
    assert wanted.items() <= access.items()
    assert access["adapters"] == ["birds", "odd"]
    assert 0 < access["seconds"] < PATIENCE
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", access["time"])
    assert (refused["status"], left["status"]) == (401, 499)
    assert "\n" not in refused["path"]
    assert TOKEN not in json.dumps(lines)


def test_the_log_is_as_loud_as_it_should_be_and_ends(capsys):
    log, access = logging.getLogger("vprompt.serving"), logging.getLogger("vprompt.access")
    with logging_to_stderr("warning", json_lines=False):
        log.info("too little")
        log.warning("enough")
        access.info("an access")
    log.error("afterwards")
    with logging_to_stderr("error", json_lines=True):
        log.warning("too little")
        access.info("an access")
    text, line = [line for line in capsys.readouterr().err.splitlines() if "afterwards" not in line]
    assert text.endswith("WARNING: enough")
    assert json.loads(line)["message"] == "an access"


def test_a_refused_connection_is_no_crash(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # TLS
        assert connection.recv(12) == b"HTTP/1.1 400"
    assert server.ask("birds").status_code == 200
