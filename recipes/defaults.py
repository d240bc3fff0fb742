"""Which method and settings should `vprompt fit` take by default? Trainings beside each other, one row each.

    python recipes/defaults.py development --out docs/results/defaults.csv --root FOLDER
    python recipes/defaults.py held-out --out docs/results/defaults.csv --root FOLDER

Development tasks are evaluated on their validation images alone, and all that is chosen is chosen there. Held-out tasks
served no choice: the default of before and the one that was chosen are trained with three seeds and the schedule that
they have by default, and their test images are read once. FOLDER holds tasks in the format of VTAB-1k; `synthetic:`
ones are rendered. The same command goes on where it was killed; with `--show` it prints what there is.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import vprompt
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import create_backbone
from vprompt.methods.registry import METHODS

DEVELOPMENT = ("synthetic:dsprites-location", "synthetic:counting", "vtab:eurosat", "vtab:cifar")
HELD_OUT = ("vtab:oxford_flowers102", "synthetic:dsprites-orientation", "vtab:gtsrb", "vtab:caltech101")

EPOCHS = 30
"""On development tasks, 390 steps of 64 images."""

BEFORE, CHOSEN = "vpt-deep", "lora, stochastic depth 0.2"
CHOICES: dict[str, dict[str, Any]] = {
    BEFORE: {"lr": 0.005},
    "linear": {"method": "linear", "lr": 0.005},
    "vpt-deep, rate 0.02": {"lr": 0.02},
    "vpt-deep, 50 prompts": {"prompts": 50, "lr": 0.005},
    "vpt-deep, 50 prompts, no dropout, rate 0.02": {"prompts": 50, "dropout": 0.0, "lr": 0.02},
    "vpt-deep, 50 prompts, rate 0.02": {"prompts": 50, "lr": 0.02},
    "vpt-deep from tokens, 50 prompts, no dropout, rate 0.02": {
        "prompts": 50,
        "dropout": 0.0,
        "init": "tokens",
        "lr": 0.02,
    },
    "vpt-deep, label smoothing 0.1, rate 0.01": {"label_smoothing": 0.1, "lr": 0.01},
    "e2vpt, 20 key-value prompts only": {
        "method": "e2vpt",
        "prompts": 0,
        "kv_prompts": 20,
        "share": "none",
        "lr": 0.005,
    },
    **{
        f"{method}{word}": {"method": method, "lr": rate}
        for word, rate in {"": 0.005, ", rate 0.02": 0.02}.items()
        for method in ("bpt", "vfpt", "pae", "cvpt", "pro-vpt")
    },
    "lora": {"method": "lora", "lr": 0.002, "stochastic_depth": 0.0},
    "lora, rate 0.005": {"method": "lora", "lr": 0.005, "stochastic_depth": 0.0},
    "lora, label smoothing 0.1": {"method": "lora", "lr": 0.002, "stochastic_depth": 0.0, "label_smoothing": 0.1},
    "lora, mixup 0.2": {"method": "lora", "lr": 0.002, "stochastic_depth": 0.0, "mixup": 0.2},
    "lora, label smoothing 0.1, mixup 0.2": {
        "method": "lora",
        "lr": 0.002,
        "stochastic_depth": 0.0,
        "label_smoothing": 0.1,
        "mixup": 0.2,
    },
    "lora, stochastic depth 0.1": {"method": "lora", "lr": 0.002, "stochastic_depth": 0.1},
    CHOSEN: {"method": "lora", "lr": 0.002, "stochastic_depth": 0.2},
    "vpt-deep, stochastic depth 0.1": {"lr": 0.005, "stochastic_depth": 0.1},
    "vpt-deep, rate 0.02, stochastic depth 0.1": {"lr": 0.02, "stochastic_depth": 0.1},
    "lora, all layers": {"method": "lora", "targets": "all", "lr": 0.002, "stochastic_depth": 0.0},
    "adapter": {"method": "adapter", "lr": 0.002},
    "adapter-plus": {"method": "adapter-plus", "lr": 0.002},
    "adapter-plus, rate 0.005": {"method": "adapter-plus", "lr": 0.005},
}
"""Label -> what differs from the method and the recipe of before."""

COLUMNS = (
    *("task", "method", "seed", "epochs", "img_size", "settings", "learned", "converged"),
    *("train_loss", "val_accuracy", "val_loss", "test_accuracy", "seconds"),
)


def row_of(task: str, label: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one model and evaluates it."""
    own = dict(CHOICES[label])
    method = METHODS.get(own.pop("method", BEFORE)).make(own)
    recipe = {name: own[name] for name in ("lr", "label_smoothing", "mixup", "stochastic_depth") if name in own}
    backbone = create_backbone(BUNDLED_BACKBONE, img_size=options.img_size)
    data = vprompt.open_data(task, backbone, root=options.root)
    epochs: Any = "auto" if options.tasks == "held-out" else EPOCHS
    torch.manual_seed(seed)
    model = vprompt.attach(backbone, method, data=data)
    settings = vprompt.Recipe(epochs=epochs, precision=options.precision, seed=seed, **recipe)
    history = vprompt.fit(model, data.train, recipe=settings)
    val = vprompt.evaluate(model, data.val)
    test = vprompt.evaluate(model, data.test).score if options.tasks == "held-out" else None
    return {
        "task": task,
        "method": label,
        "seed": seed,
        "epochs": len(history.rows),
        "img_size": options.img_size,
        "settings": json.dumps(CHOICES[label]),
        "learned": model.num_learned,
        "converged": history.converged,
        "train_loss": round(history.rows[-1]["loss"], 4),
        "val_accuracy": round(val.score, 4),
        "val_loss": round(val.loss, 4),
        "test_accuracy": test and round(test, 4),
        "seconds": round(history.seconds, 1),
    }


def tables(rows: list[dict[str, str]]) -> list[str]:
    """The lines of a page: accuracies of development tasks, and of held-out ones."""
    lines: list[str] = []
    for name, tasks, figure in (
        ("development, validation", DEVELOPMENT, "val_accuracy"),
        ("held out, test", HELD_OUT, "test_accuracy"),
    ):
        found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row["task"] in tasks:
                found[row["method"]][row["task"]].append(100 * float(row[figure]))
        lines += [f"| {name} | {' | '.join(task.split(':')[1] for task in tasks)} | mean |"]
        lines += ["|---" * (len(tasks) + 2) + "|"]
        for method, own in sorted(found.items(), key=lambda pair: -fmean(map(fmean, pair[1].values()))):
            cells = [
                "-"
                if task not in own
                else f"{fmean(own[task]):.1f}" + (f" ± {stdev(own[task]):.1f}" if len(own[task]) > 1 else "")
                for task in tasks
            ]
            mean = f"{fmean(map(fmean, own.values())):.1f}" if len(own) == len(tasks) else "-"
            lines.append(f"| {method} | {' | '.join(cells)} | {mean} |")
        lines.append("")
    return lines


def main() -> None:
    """Trains what the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", choices=("development", "held-out"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", help="folder of tasks")
    parser.add_argument("--only", nargs="*", help="labels")
    parser.add_argument("--of", nargs="*", help="tasks")
    parser.add_argument("--seeds", type=int, help="one on development tasks, three on others")
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--show", action="store_true", help="print the tables of what there is")
    options = parser.parse_args()

    def rows() -> list[dict[str, str]]:
        with options.out.open(encoding="utf-8", newline="") as opened:
            return list(csv.DictReader(opened))

    if options.show:
        print("\n".join(tables(rows())))
        return
    every = DEVELOPMENT if options.tasks == "development" else HELD_OUT
    labels, default_seeds = ([*CHOICES], 1) if options.tasks == "development" else ([BEFORE, CHOSEN], 3)
    seeds = range(options.seeds or default_seeds)
    for seed, label, task in product(seeds, options.only or labels, options.of or every):
        fresh = not options.out.exists()
        done = set() if fresh else {(row["task"], row["method"], row["seed"]) for row in rows()}
        if (task, label, str(seed)) in done:
            continue
        row = row_of(task, label, seed, options)
        with options.out.open("a", encoding="utf-8", newline="") as opened:
            table = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
            if fresh:
                table.writeheader()
            table.writerow(row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
