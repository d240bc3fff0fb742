"""`vprompt serve` under attack: latency of a good client beside clients that wear the service out.

python benchmarks/serving_attacks.py [--seconds 8] [--rounds 3] [--only NAME,...] [--out FILE]

One server with its usual limits and 1,024 open files. In every round, and for every attack, a good client (one small
photo on a connection of its own every 50 ms) is measured without the attack and right after that under it, so that what
else the machine does is in both. Attackers run in a process of their own. Written: percentiles of all rounds together,
their ratio, and the answers other than 200.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from serving import listening, make_adapters, photo

HEAD = "POST /v1/predict/first HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n"


def ask(port: int, body: bytes) -> int:
    """Status of one request, 0 where there is no answer."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(HEAD.format(len(body)).encode() + body)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        return int(answer[9:12])
    except (OSError, ValueError):
        return 0


def encoded(size: tuple[int, int], format: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format, **options)
    return buffer.getvalue()


def progressive(count: int) -> bytes:
    """A JPEG of 50 million pixels and as many scans: some 300 kB."""
    data = encoded((7000, 7140), "JPEG", progressive=True, quality=5)
    last = data.rfind(b"\xff\xda")
    tables = data.rfind(b"\xff\xc4", 0, last)
    scan = data[tables if tables > data.rfind(b"\xff\xda", 0, last) else last : -2]
    return data[:-2] + scan * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


def flood(body: bytes, clients: int = 4) -> Callable[[int], None]:
    """Clients each of which sends the body again when it has its answer."""

    def client(port: int) -> None:
        while True:
            ask(port, body)

    def run(port: int) -> None:
        for _ in range(clients):
            threading.Thread(target=client, args=(port,), daemon=True).start()

    return run


CHUNKS = (HEAD.replace("Content-Length: {}", "Transfer-Encoding: chunked")).encode() + b"1\r\nx\r\n" * 500_000


def send(port: int) -> None:
    """Clients that send a body of the smallest chunks."""

    def client() -> None:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(CHUNKS)
                connection.recv(1)

    for _ in range(4):
        threading.Thread(target=client, daemon=True).start()


def hold(start: bytes, connections: int) -> Callable[[int], None]:
    """Connections that send a beginning, again when they are closed, then a byte a second."""

    def run(port: int) -> None:
        def again() -> None:
            held: list[socket.socket] = []
            while True:
                with contextlib.suppress(OSError):
                    while len(held) < connections:
                        held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                        held[-1].sendall(start)
                time.sleep(1)
                for connection in list(held):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        held.remove(connection)
                        connection.close()

        threading.Thread(target=again, daemon=True).start()

    return run


ATTACKS: dict[str, tuple[str, Callable[[], Callable[[int], None]]]] = {
    "refused-scans": ("4 clients, JPEG of 50 Mpixels and 99 scans", lambda: flood(progressive(99))),
    "allowed-scans": ("4 clients, JPEG of 50 Mpixels and 10 scans", lambda: flood(progressive(10))),
    "deep-png": ("4 clients, PNG of 50 Mpixels, 16 bits", lambda: flood(encoded((7000, 7140), "PNG", "I;16"))),
    "webp": ("4 clients, WebP of 30 Mpixels", lambda: flood(encoded((6000, 5000), "WEBP", quality=1, method=0))),
    "many-large": ("40 clients, PNG of 12 Mpixels", lambda: flood(encoded((4000, 3000), "PNG"), 40)),
    "tiny-chunks": ("4 clients, a body of chunks of one byte", lambda: send),
    "slow-bodies": ("140 bodies, a byte a second", lambda: hold(HEAD.format(100_000).encode() + b"x", 140)),
    "half-heads": ("1,100 half heads", lambda: hold(HEAD[:40].encode(), 1100)),
}


def attack(name: str, port: int) -> None:
    """Goes on until its standard input is closed."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    start = ATTACKS[name][1]()
    sys.stdin.readline()
    start(port)
    sys.stdin.read()
    os._exit(0)


def start_server(adapters: list[str]) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "vprompt", "serve", *adapters, "--port", "0", "--json"]
    limited = ["sh", "-c", 'ulimit -n 1024 && exec "$@"', "sh", *command]
    return listening(limited)


def measure(port: int, body: bytes, seconds: float) -> tuple[list[float], list[int]]:
    """Seconds of a good client's requests, and the statuses of their answers."""
    took: list[float] = []
    statuses: list[int] = []
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        statuses.append(ask(port, body))
        took.append(time.monotonic() - began)
        time.sleep(0.05)
    return took, statuses


def percentiles(took: list[float]) -> dict[str, float]:
    """Median and 99th percentile in milliseconds."""
    return {"p50_ms": 1000 * statistics.median(took), "p99_ms": 1000 * float(np.quantile(took, 0.99))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(ATTACKS))
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    parser.add_argument("--attack", nargs=2, metavar=("NAME", "PORT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.attack:
        attack(args.attack[0], int(args.attack[1]))
    body, load = photo(), os.getloadavg()[0]
    rows: list[dict[str, object]] = []
    before = {name: list[float]() for name in args.only.split(",")}
    under, statuses = {name: list[float]() for name in before}, {name: list[int]() for name in before}
    with tempfile.TemporaryDirectory() as folder:
        server, port = start_server(make_adapters(Path(folder)))
        try:
            measure(port, body, 3)  # warm; the processes for large images start meanwhile
            ask(port, encoded((4000, 3000), "PNG"))
            for name in list(before) * args.rounds:
                command = [sys.executable, __file__, "--attack", name, str(port)]
                attackers = subprocess.Popen(command, stdin=subprocess.PIPE)
                assert attackers.stdin is not None
                time.sleep(5)  # it imports, and makes its images
                before[name] += measure(port, body, args.seconds)[0]
                attackers.stdin.write(b"go\n")
                attackers.stdin.flush()
                time.sleep(2)
                took, answers = measure(port, body, args.seconds)
                under[name] += took
                statuses[name] += answers
                attackers.kill()
                attackers.wait()
                time.sleep(2)
        finally:
            server.terminate()
            server.wait()
    print(f"{'attack':>16}{'p50 ms':>9}{'p99 ms':>9}{'under':>9}{'under':>9}{'p99 ratio':>11}  not 200")
    for name, took in before.items():
        calm, worn = percentiles(took), percentiles(under[name])
        failed = [status for status in statuses[name] if status != 200]
        ratio = worn["p99_ms"] / calm["p99_ms"]
        row = {"attack": name, "what": ATTACKS[name][0], "before": calm, "under": worn, "p99_ratio": ratio}
        rows.append({**row, "requests": len(statuses[name]), "not_200": len(failed)})
        numbers = [*calm.values(), *worn.values()]
        print(f"{name:>16}{''.join(f'{number:9.1f}' for number in numbers)}{ratio:11.2f}  {len(failed)}")
    machine = {"cores": os.cpu_count(), "load_before": load, "threads": os.environ.get("OMP_NUM_THREADS")}
    Path(args.out).write_text(json.dumps({"machine": machine, "attacks": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
