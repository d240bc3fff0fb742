"""How many empty runs a benchmark schedules in a second, with either engine: what a run costs besides itself.

python benchmarks/scheduling.py [--runs 3000] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PLAN = """
tasks = ["synthetic:counting"]
seeds = {seeds}
settings = {{backbone = "test_vit", img_size = 32, epochs = 1}}
[[methods]]
label = "Linear"
method = "linear"
[[methods]]
label = "VPT"
method = "vpt-deep"
[[methods]]
label = "PC"
method = "vpt-deep"
condense = 0.3
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.toml"
        plan.write_text(PLAN.format(seeds=options.runs // 3))
        for engine in ("local", "ray"):
            command = [sys.executable, "-m", "vprompt", "bench", str(plan), "--out", f"{folder}/runs", "--rehearse"]
            command += ["--engine", engine, "--workers", str(options.workers), "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{engine}: {done.stderr.strip().splitlines()[-1]}")
                continue
            found = json.loads(done.stdout)
            print(f"{engine}: {found['runs']} runs, {found['seconds']:.1f} s, {found['runs_per_second']:.0f} a second")


if __name__ == "__main__":
    main()
