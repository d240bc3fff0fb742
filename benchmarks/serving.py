"""`vprompt serve` with and without batching: requests a second and latency of the real command, over real connections.

python benchmarks/serving.py [--concurrency 1,8,32] [--seconds 4] [--rounds 3] [--max-batch 32] [--threads 1]

Two servers over the bundled backbone and the same three adapters, one of them with --max-batch 1, are asked in turn by
as many clients as said, each of which sends its next image when it has the answer to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

import vprompt
from vprompt.backbones.bundled import BUNDLED_BACKBONE

ADAPTERS = ("first", "second", "third")


def make_adapters(root: Path) -> list[str]:
    for seed, name in enumerate(ADAPTERS):
        torch.manual_seed(seed)
        model = vprompt.attach(BUNDLED_BACKBONE, vprompt.VPT(num_prompts=10), num_classes=10)
        torch.nn.init.normal_(model.head.weight)
        model.save_pretrained(root / name)
    return [str(root / name) for name in ADAPTERS]


def photo() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def start(adapters: list[str], max_batch: int, threads: int) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "vprompt", "serve", *adapters, "--port", "0", "--max-batch", str(max_batch)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    return listening([*command, "--json"], environment)


def listening(command: list[str], environment: dict[str, str] | None = None) -> tuple[subprocess.Popen[str], int]:
    """A service, and the port at which it listens by what it prints as JSON."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n"):
        text += (line := process.stdout.readline())
        if not line:
            raise SystemExit("The server did not start.")
    return process, urlsplit(json.loads(text)["url"]).port or 0


async def client(port: int, number: int, image: bytes, until: float, took: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    path = f"/v1/predict/{ADAPTERS[number % len(ADAPTERS)]}"
    request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image
    while (started := time.perf_counter()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
        took.append(time.perf_counter() - started)
    writer.close()


async def load(port: int, clients: int, image: bytes, seconds: float) -> tuple[float, list[float]]:
    """Requests a second, and what each took."""
    took: list[float] = []
    started = time.perf_counter()
    await asyncio.gather(*(client(port, number, image, started + seconds, took) for number in range(clients)))
    return len(took) / (time.perf_counter() - started), took


def percentiles(took: list[float]) -> tuple[float, float]:
    """Median and 95th percentile in milliseconds."""
    cuts = statistics.quantiles(took, n=20)
    return 1000 * cuts[9], 1000 * cuts[18]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    image = photo()
    with tempfile.TemporaryDirectory() as folder:
        adapters = make_adapters(Path(folder))
        started = {size: start(adapters, size, args.threads) for size in (1, args.max_batch)}
        try:
            print(f"{'clients':>8}{'max batch':>11}{'requests/s':>12}{'p50 ms':>9}{'p95 ms':>9}")
            for clients in map(int, args.concurrency.split(",")):
                rates = {size: list[float]() for size in started}
                took = {size: list[float]() for size in started}
                for _, port in started.values():  # warm
                    asyncio.run(load(port, clients, image, 0.3))
                for _ in range(args.rounds):
                    for size, (_, port) in started.items():
                        rate, times = asyncio.run(load(port, clients, image, args.seconds))
                        rates[size].append(rate)
                        took[size] += times
                for size in started:
                    p50, p95 = percentiles(took[size])
                    print(f"{clients:>8}{size:>11}{statistics.median(rates[size]):>12.1f}{p50:>9.1f}{p95:>9.1f}")
                ratios = [many / one for one, many in zip(rates[1], rates[args.max_batch], strict=True)]
                spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
                print(f"{'':>8}requests/s, {args.max_batch} over 1: {statistics.median(ratios):.2f} ({spread})")
        finally:
            for process, _ in started.values():
                process.terminate()
            for process, _ in started.values():
                process.wait()


if __name__ == "__main__":
    main()
