"""Does a frozen backbone in few bits cost accuracy? The same training with each precision, one row a run.

    python recipes/quantised.py --out docs/results/quantised.csv [--root DIR] [--epochs 15]

All settings but the precision are equal, the seed included; test images are read once, at the end. An adapter that was
trained in float32 is also read on each precision. The same command goes on where it was killed.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vprompt.data.tasks import load_labelled
from vprompt.experiments.run import run
from vprompt.experiments.settings import settings_from
from vprompt.model.load import load
from vprompt.training.evaluate import evaluate

TASKS = ("vtab:eurosat", "vtab:dsprites_loc")
PRECISIONS = ("fp32", "int8", "int4", "bf16", "fp8")
COLUMNS = (
    "task",
    "backbone",
    "method",
    "img_size",
    "epochs",
    "seed",
    "trained_in",
    "read_in",
    "images",
    "test_accuracy",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", default=None)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.out.is_file():
        with options.out.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    done = {(row["task"], row["seed"], row["trained_in"]) for row in rows}
    for seed in range(options.seeds):
        for task in TASKS:
            for precision in PRECISIONS[:4]:
                if (task, str(seed), precision) not in done:
                    rows += trained(task, precision, seed, options)
                    with options.out.open("w", encoding="utf-8", newline="") as file:
                        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                        writer.writeheader()
                        writer.writerows(rows)


def tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Test accuracy by task and precision, and what it differs from that in fp32, in points."""
    yield "| task | precision | trained in it | against fp32 | trained in fp32, read in it | against fp32 |"
    yield "|---|---|---:|---:|---:|---:|"
    found = {(r["task"], r["trained_in"], r["read_in"]): 100 * float(r["test_accuracy"]) for r in rows}
    for task in dict.fromkeys(row["task"] for row in rows):
        for precision in PRECISIONS:
            base, cells = found[task, "fp32", "fp32"], list[str]()
            for key in ((task, precision, precision), (task, "fp32", precision)):
                cells += [f"{found[key]:.2f}", f"{found[key] - base:+.2f}"] if key in found else ["–", "–"]
            yield f"| {task} | {precision} | {' | '.join(cells)} |"


def trained(task: str, precision: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for a training; of that in float32, one for each precision that its adapter is read in."""
    given = {"data": task, "root": options.root, "backbone": "bundled", "img_size": options.img_size}
    given |= {"method": "vpt-deep", "prompts": 10, "epochs": options.epochs, "seed": seed}
    facts = {"task": task, "backbone": "bundled", "method": "vpt-deep", "img_size": options.img_size}
    facts |= {"epochs": options.epochs, "seed": seed, "trained_in": precision}
    with tempfile.TemporaryDirectory() as folder:
        result = run(settings_from({**given, "backbone_precision": precision}), Path(folder) / "run")
        images = result["provenance"]["data"]["images"]["test"]
        rows = [{**facts, "read_in": precision, "images": images, "test_accuracy": result["test_accuracy"]}]
        if precision == "fp32":
            model = load(Path(folder) / "run")
            test, *_ = load_labelled(task, model.preprocessing, model.target, root=options.root, split="test")
            for other in PRECISIONS[1:]:
                score = evaluate(load(Path(folder) / "run", backbone_precision=other), test).accuracy
                rows.append({**facts, "read_in": other, "images": images, "test_accuracy": round(score, 6)})
    for row in rows:
        print(*row.values(), flush=True)
    return rows


if __name__ == "__main__":
    main()
