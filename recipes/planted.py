"""What `vprompt embed` finds of copies and wrong labels that are planted in image folders: docs/results/planted.csv.

    python recipes/planted.py FOLDER ... --out planted.csv [--model MODEL --weights FILE --img-size 112 --name NAME]

Each folder is one of train, val and test images, such as a task of VTAB-1k. Copies of 60 training images, ten of each
kind, go among the test images, of which there are at most `--test`. Then 5 % of the labels of train and val are
changed. Rows for another model are added to those of the file.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import describe
from vprompt.data.dataset import ImageDataset, Task
from vprompt.data.images import decode
from vprompt.data.tasks import open_task
from vprompt.experiments.embed import Embeddings, embed
from vprompt.utils.progress import bar

EACH, SHARE = 10, 0.05

Edit = Callable[[Image.Image, random.Random], bytes]


def encoded(image: Image.Image, kind: str = "PNG", quality: int = 40) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def cropped(share: float) -> Edit:
    def edit(image: Image.Image, rng: random.Random) -> bytes:
        width, height = (int(side * share) for side in image.size)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        return encoded(image.crop((left, top, left + width, top + height)))

    return edit


KINDS: dict[str, Edit] = {
    "jpeg40": lambda image, _: encoded(image, "JPEG"),
    "half": lambda image, _: encoded(image.resize((max(8, image.width // 2), max(8, image.height // 2)))),
    "brighter": lambda image, _: encoded(image.point([min(255, int(value * 1.3)) for value in range(256)] * 3)),
    "mirrored": lambda image, _: encoded(ImageOps.mirror(image)),
    "crop90": cropped(0.9),
    "crop75": cropped(0.75),
}


def with_copies(task: Task, folder: Path, tests: int, seed: int) -> tuple[Task, list[tuple[str, str, str]]]:
    """The task with copies behind its test images; kind, original and copy of each."""
    rng, test = random.Random(seed), task.test
    assert test is not None
    assert test.paths is not None
    assert task.train.paths is not None
    chosen = rng.sample(range(len(task.train)), min(len(task.train), EACH * len(KINDS)))
    kept = sorted(rng.sample(range(len(test)), min(len(test), tests)))
    pixels, planted = [test.pixels(torch.tensor(kept))], list[tuple[str, str, str]]()
    for number, row in enumerate(chosen):
        kind, path = [*KINDS][number % len(KINDS)], task.train.paths[row]
        with Image.open(folder / path) as image:
            made = KINDS[kind](image.convert("RGB"), rng)
        pixels.append(decode(made, task.preprocessing)[None])
        planted.append((kind, path, f"copy {number}"))
    images = ImageDataset(
        torch.cat([test.labels[kept], task.train.labels[chosen]]),
        task.preprocessing,
        pixels=torch.cat(pixels),
        paths=[*(test.paths[row] for row in kept), *(copy for _, _, copy in planted)],
        root=folder,
    )
    return replace(task, test=images), planted


def copies_found(found: Embeddings, planted: list[tuple[str, str, str]]) -> dict[str, object]:
    """The share of each kind that is named, and other pairs of a training and a test image."""
    wanted = {frozenset(pair): kind for kind, *pair in planted}
    named = {frozenset(pair["images"]) for pair in found.duplicates() if {*pair["splits"]} == {"train", "test"}}
    copies = {copy for _, _, copy in planted}
    kinds = [wanted[pair] for pair in named if pair in wanted]
    row: dict[str, object] = {kind: round(kinds.count(kind) / EACH, 4) for kind in KINDS}
    others = sum(not pair & copies for pair in named)
    return row | {
        "all": round(len(kinds) / len(planted), 4),
        "others": others,
        "tests": found.splits.count("test") - len(planted),
    }


def labels_found(found: Embeddings, planted: int, seed: int) -> dict[str, object]:
    """How well changed labels are found, without the copies."""
    assert found.labels is not None
    assert found.target is not None
    assert found.looks is not None
    rows = torch.arange(len(found.names) - planted)
    learned = [row for row in rows.tolist() if found.splits[row] != "test"]
    rng, labels, classes = random.Random(seed), found.labels.clone(), len(found.target.names)
    wrong = rng.sample(learned, round(SHARE * len(learned)))
    for row in wrong:
        labels[row] = (int(labels[row]) + rng.randrange(1, classes)) % classes
    part = {"names": found.names[: len(rows)], "splits": found.splits[: len(rows)]}
    features: dict[str, Tensor] = {"features": found.features[rows], "looks": found.looks[rows]}
    clean = replace(found, labels=found.labels[rows], **part, **features)
    changed = replace(clean, labels=labels[rows])
    names, known = {found.names[row] for row in wrong}, {found.names[row] for row in learned}
    named = [row["image"] in names for row in changed.label_errors() if row["image"] in known]
    return {
        "linear": round(clean.linear().accuracy, 4),
        "named": len(named),
        "precision": round(sum(named) / max(1, len(named)), 4),
        "recall": round(sum(named) / len(wrong), 4),
        "first10": sum(named[:10]),
    }


def main() -> None:
    """Adds a row for each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="bundled", help="name of a backbone")
    parser.add_argument("--weights")
    parser.add_argument("--name", help="what the file calls it")
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--test", type=int, default=2000, help="most test images of a folder")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    backbone = create_backbone(options.model, weights=options.weights, img_size=options.img_size).eval()
    rows = [*csv.DictReader(options.out.open())] if options.out.exists() else []
    for folder in options.folders:
        task = open_task(folder, describe(backbone).preprocessing)
        task, planted = with_copies(task, folder, options.test, options.seed)
        with bar(folder.name) as report:
            found = embed(backbone, task, report=report)
        row: dict[str, object] = {"model": options.name or options.model, "task": folder.name}
        row |= copies_found(found, planted) | labels_found(found, len(planted), options.seed)
        rows = [each for each in rows if (each["model"], each["task"]) != (row["model"], row["task"])]
        rows.append({key: str(value) for key, value in row.items()})
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*row], lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda each: (each["model"], each["task"])))


if __name__ == "__main__":
    main()
