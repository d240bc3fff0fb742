"""How many epochs does a training need? VPT-Deep on development tasks, with few and many images; validation only.

    python recipes/schedule.py --out docs/results/schedule.csv [--tasks FOLDER]

Two tasks are rendered here, by seeds that no task of the library has. FOLDER may hold more in the format of VTAB-1k
(`NAME/images/...`, `NAME/train800val200.txt`, `NAME/test.txt`), of which all images are pooled and split anew: 1,000 to
validate on, the rest to train on; of a task that has too few, the longer trainings are left out. A row of the table is
a whole training with its own schedule, at the default learning rate. The same command goes on where it was killed;
then, and with `--show`, it prints what the rule of
`vprompt.model.records.schedule_for` loses.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import vprompt
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import describe
from vprompt.data.images import render, render_arrays
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.synthetic.counting import COUNTS, picture
from vprompt.data.synthetic.draws import Draws
from vprompt.data.synthetic.dsprites import FACTORS, sprites
from vprompt.model.records import schedule_for
from vprompt.utils.io import write_atomically

IMAGES, VALIDATION, SEED, BATCH = (100, 1000, 5000), 1000, 77, 64
EPOCHS = {100: (20, 40, 100), 1000: (10, 20, 40, 100), 5000: (10, 20, 40)}
RENDERED = ("location", "counting")
COLUMNS = ("task", "images", "epochs", "seed", "val_accuracy", "val_loss", "seconds")

Cell = tuple[str, int, int, int]
"""Task, images, epochs, seed."""


def cells(tasks: dict[str, int], seeds: int) -> list[Cell]:
    """All trainings, short ones first, so that a study that is cut short has seen all tasks.

    Args:
        tasks: Name -> number of images.
        seeds: Number of seeds.
    """
    grid = [entry for entry in product(range(seeds), tasks, IMAGES) if entry[2] + VALIDATION <= tasks[entry[1]]]
    every = [(task, images, epochs, seed) for seed, task, images in grid for epochs in EPOCHS[images]]
    return sorted(every, key=lambda cell: (cell[3], cell[1] * cell[2]))


def rendered(name: str) -> tuple[np.ndarray, list[int]]:
    """Images and labels of one of `RENDERED`."""
    draws, wanted = Draws(SEED), max(IMAGES) + VALIDATION
    if name == "counting":
        labels = [draws.below(len(COUNTS)) for _ in range(wanted)]
        return np.stack([picture(COUNTS[label], draws) for label in labels]), labels
    factors = [tuple(draws.below(number) for number in FACTORS) for _ in range(wanted)]
    return sprites(factors), [place // 2 for _, _, _, place, _ in factors]  # pyright: ignore


def pooled(folder: Path, preprocessing: Preprocessing) -> tuple[torch.Tensor, list[int]]:
    """All images of a task in the format of VTAB-1k, in an order drawn by `SEED`."""
    lists = [folder / name for name in ("train800val200.txt", "test.txt")]
    pairs = [line.rsplit(" ", 1) for file in lists for line in file.read_text().splitlines()]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(SEED))[: max(IMAGES) + VALIDATION]
    pixels: list[torch.Tensor] = []
    for path, _ in (pairs[index] for index in order):
        with Image.open(folder / path) as image:
            pixels.append(render(image, preprocessing))
    return torch.stack(pixels), [int(pairs[index][1]) for index in order]


def train(cell: Cell, pixels: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> dict[str, object]:
    """One training; the row of the table."""
    _, images, epochs, seed = cell
    backbone = create_backbone(BUNDLED_BACKBONE, img_size=options.img_size)
    torch.manual_seed(seed)
    model = vprompt.attach(backbone, vprompt.VPT(num_prompts=options.prompts), num_classes=int(labels.max()) + 1)
    start = VALIDATION + seed * 100 % (len(pixels) - VALIDATION - images + 1)  # other images for another seed
    val, some = slice(None, VALIDATION), slice(start, start + images)
    recipe = vprompt.Recipe(epochs=epochs, batch_size=BATCH, precision="auto", seed=seed)
    began = time.monotonic()
    vprompt.fit(model, TensorDataset(pixels[some], labels[some]), recipe=recipe)
    seconds = time.monotonic() - began
    found = vprompt.evaluate(model, TensorDataset(pixels[val], labels[val]))
    values = (*cell, round(found.accuracy, 4), round(found.loss, 4), round(seconds, 1))
    return dict(zip(COLUMNS, values, strict=True))


def run(options: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    """Trains what the table does not have yet, and writes it after every training."""
    preprocessing = describe(create_backbone(BUNDLED_BACKBONE, img_size=options.img_size)).preprocessing
    folders = (
        {file.parent.name: file.parent for file in sorted(options.tasks.glob("*/test.txt"))} if options.tasks else {}
    )
    data: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in RENDERED:
        arrays, labels = rendered(name)
        data[name] = render_arrays(arrays, preprocessing), torch.tensor(labels)
    for name, folder in folders.items():
        pixels, labels = pooled(folder, preprocessing)
        data[name] = pixels, torch.tensor(labels)
    done = {tuple(str(row[key]) for key in COLUMNS[:4]) for row in rows}
    for cell in cells({name: len(labels) for name, (_, labels) in data.items()}, options.seeds):
        if tuple(map(str, cell)) not in done:
            pixels, labels = data[cell[0]]
            rows.append(train(cell, preprocessing.normalise(pixels), labels, options))
            write_atomically(options.out, lambda part: write(part, rows))
            print(rows[-1], flush=True)


def write(file: Path, rows: list[dict[str, object]]) -> None:
    """The table as CSV."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        table = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def means(rows: list[dict[str, object]]) -> Iterator[tuple[int, int, dict[int, float]]]:
    """Of each number of images: how many curves are whole, and epochs -> their mean accuracy, over tasks and seeds.

    Numbers of epochs that most curves lack, as in a study that was cut short, do not count.
    """
    by_run: dict[tuple[int, str, str], dict[int, float]] = defaultdict(dict)
    for row in rows:
        key = int(str(row["images"])), str(row["task"]), str(row["seed"])
        by_run[key][int(str(row["epochs"]))] = float(str(row["val_accuracy"]))
    for images in IMAGES:
        curves = [curve for (number, _, _), curve in by_run.items() if number == images]
        known = [epochs for curve in curves for epochs in curve]
        epochs = [number for number in sorted(set(known)) if 2 * known.count(number) > len(curves)]
        whole = [curve for curve in curves if set(curve) >= set(epochs)]
        if whole:
            yield images, len(whole), {number: fmean(curve[number] for curve in whole) for number in epochs}


def lost(images: int, curve: dict[int, float]) -> float:
    """Accuracy of the best number of epochs less that of the rule's; between two, along the logarithm."""
    known = sorted(curve)
    mine = np.interp(
        np.log(schedule_for(math.ceil(images / BATCH))), np.log(known), [curve[epochs] for epochs in known]
    )
    return max(curve.values()) - float(mine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", type=Path)
    parser.add_argument("--img-size", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()

    rows: list[dict[str, object]] = []
    if options.out.exists():
        with options.out.open(newline="", encoding="utf-8") as opened:
            rows = [dict(row) for row in csv.DictReader(opened)]
    if not options.show:
        run(options, rows)
    for images, curves, curve in means(rows):
        print(images, "images:", ", ".join(f"{epochs} epochs {100 * mean:.1f} %" for epochs, mean in curve.items()))
        rule = schedule_for(math.ceil(images / BATCH))
        loses = f"lose {100 * lost(images, curve):.1f} points" if rule <= max(curve) else "were not measured"
        print(f"  {curves} curves; the rule's {rule} epochs {loses}")


if __name__ == "__main__":
    main()
