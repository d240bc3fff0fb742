"""With what settings does the demo show in minutes what prompts gain? Validation images only.

    python recipes/demo_task.py --out docs/demo/choice.csv --runs FOLDER

The task is `synthetic:dsprites-location`, where docs/results/small shows the largest gain over a linear probe. Test
images are not read. The same command goes on where it was killed.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vprompt.experiments.run import run
from vprompt.experiments.settings import settings_from
from vprompt.utils.io import write_atomically

COMMON = {"backbone": "bundled", "precision": "auto", "test": False}
PROBE = {"method": "linear", "epochs": 100}
PROMPTS = {"method": "vpt-deep", "epochs": 15}
LORA = {"method": "lora", "epochs": 15, "stochastic_depth": 0.0}
LOCATION = {"data": "synthetic:dsprites-location"}


def grid() -> Iterator[dict[str, Any]]:
    """The settings of every run, by flat name."""
    for size in (32, 40):
        yield {**LOCATION, **PROBE, "img_size": size, "lr": 0.02}
        yield {**LOCATION, **PROMPTS, "img_size": size, "lr": 0.02, "prompts": 20}
    for lr in (0.002, 0.005):
        yield {**LOCATION, **LORA, "img_size": 32, "lr": lr}
    yield {**LOCATION, **PROBE, "img_size": 32, "lr": 0.005}
    for lr, prompts in ((0.05, 20), (0.02, 50), (0.005, 20)):
        yield {**LOCATION, **PROMPTS, "img_size": 32, "lr": lr, "prompts": prompts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    options = parser.parse_args()
    columns = ("data", "method", "img_size", "prompts", "epochs", "lr")
    rows: list[dict[str, Any]] = []
    for values in grid():
        name = "-".join(f"{values.get(key, '')}".replace(":", "-") for key in columns)
        result = run(settings_from({**COMMON, **values}), options.runs / name, resume=True)
        facts = {"val_accuracy": result["val_accuracy"], "learned_params": result["learned_params"]}
        rows.append({**{key: values.get(key, "") for key in columns}, **facts})
        print(rows[-1], flush=True)

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as opened:
            table = csv.DictWriter(opened, rows[0], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    write_atomically(options.out, write)


if __name__ == "__main__":
    main()
