"""Answers in bulk: seconds of the plain command, of one process that writes Parquet, and of workers on Ray.

    python benchmarks/bulk.py --images 2000 --out benchmarks/bulk.json

Each way runs as a process of its own, start included; a second size of the task tells what an image costs by itself.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

import vprompt

WAYS = {
    "plain": ["--json"],
    "one process": ["--workers", "0"],
    "2 workers": ["--workers", "2"],
}


def seconds(adapter: Path, images: Path, way: list[str], out: Path) -> float:
    options = [] if way == ["--json"] else ["--out", str(out), "--shard-size", "128"]
    began = time.perf_counter()
    command = [sys.executable, "-m", "vprompt", "predict", str(adapter), str(images), *way, *options]
    subprocess.run(command, check=True, capture_output=True)
    return round(time.perf_counter() - began, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vprompt.attach("bundled", vprompt.VPT(10), num_classes=10).save_pretrained(folder / "adapter")
        for count in (options.images // 4, options.images):
            (images := folder / f"images-{count}").mkdir()
            for number in range(count):
                noise = Image.frombytes("RGB", (20, 15), random.Random(number).randbytes(900))
                noise.resize((640, 480)).save(images / f"{number:06}.jpg")
            for way, arguments in WAYS.items():
                row = {"way": way, "images": count}
                row["seconds"] = seconds(folder / "adapter", images, arguments, folder / f"{way}-{count}")
                rows.append(row)
                print(row, flush=True)
                document = {"cores": os.cpu_count(), "load": round(os.getloadavg()[1], 1), "rows": rows}
                if options.out is not None:  # after each, for a run may take long
                    options.out.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
