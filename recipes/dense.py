"""What do prompts, condensing and pruning do where every pixel has a label? Methods beside each other, one row a run.

    python recipes/dense.py DATA... --out docs/results/dense.csv [--backbone NAME --weights FILE --img-size 112
        --enlarge 1.75]

DATA are folders with `images/` and `masks/` in `train/`, `val/` and `test/`. Each run trains on the training images
with the learning rate that a short sweep on the validation images finds for the first seed; test images are read once,
at its end. The same command goes on where it was killed; several may write one table. `--runs` keeps the folders of the
runs.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image

from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.data.tasks import load_labelled
from vprompt.experiments.run import run
from vprompt.experiments.settings import settings_from
from vprompt.model.load import load
from vprompt.report.masks import coloured, errors
from vprompt.utils.errors import VPromptError

FULL = "VPT-Deep 50"

METHODS: dict[str, dict[str, Any]] = {
    "linear head": {"method": "linear"},
    "VPT-Deep 10": {"method": "vpt-deep", "prompts": 10},
    FULL: {"method": "vpt-deep", "prompts": 50},
    "LoRA": {"method": "lora", "stochastic_depth": 0.0},
    "E2VPT, pruned": {"method": "e2vpt", "prompts": 10, "prune_tokens": 0.5, "prune_segments": 0.25},
    "Adapter": {"method": "adapter"},
    "full": {"method": "full"},
}
"""Label -> its settings, in the order of running."""

RATIOS = (0.3, 0.1, 0.5)
"""Shares of the prompts of `FULL` that are kept."""

FIGURES = ("mean_iou", "pixel_accuracy", "boundary_f1", "loss")

COLUMNS = (
    *("task", "backbone", "method", "seed", "epochs", "lr", "converged", "learned_params", "prompts", "folded_gmacs"),
    *(f"{split}_{name}" for split in ("val", "test") for name in FIGURES),
    *("test_interval", "prompt_counts", "per_class", "training_seconds"),
)


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Task, label, seed and settings of every run; all methods of one task and seed, then the next."""
    tuned = {
        f"condensed to {100 * ratio:.0f} %, {word}": {"condense": ratio, "fine_tune": fine, **METHODS[FULL]}
        for ratio, (word, fine) in product(RATIOS, {"fine-tuned": True, "not tuned": False}.items())
    }
    for seed, task in product(range(options.seeds), options.data):
        for label, own in {**METHODS, **tuned}.items():
            if not options.only or label in options.only:
                yield str(task), label, seed, own


def row_of(task: str, backbone: str, label: str, seed: int, folder: Path) -> dict[str, Any]:
    """The row of a finished run, from its folder."""
    result, adapter = (
        json.loads((folder / name).read_text("utf-8")) for name in ("result.json", "adapter_config.json")
    )
    settings = result["settings"]
    values = {
        "task": task,
        "backbone": backbone,
        "method": label,
        "seed": seed,
        "epochs": settings["epochs"],
        "lr": adapter["recipe"]["lr"],
        "converged": result["converged"],
        "learned_params": result["learned_params"],
        "prompts": sum(result["prompt_counts"]),
        "folded_gmacs": result["folded_gmacs"],
        "training_seconds": result["training_seconds"],
        "prompt_counts": json.dumps(result["prompt_counts"]),
        "test_interval": json.dumps([round(end, 4) for end in result["test_interval"]]),
        "per_class": json.dumps(
            {name: row["iou"] and round(row["iou"], 4) for name, row in result["test_per_class"].items()}
        ),
    }
    values |= {f"{split}_{name}": round(result[f"{split}_{name}"], 4) for split in ("val", "test") for name in FIGURES}
    return {name: values[name] for name in COLUMNS}


def tables(rows: list[dict[str, str]]) -> Iterator[str]:
    """The lines of a page: a table for each task and backbone, means over the seeds."""
    heads = ("method", "learned", "prompts", "GMACs", "mean IoU, val", "test", "95 %", "pixels", "boundary F1", "seeds")
    for task, backbone in dict.fromkeys((row["task"], row["backbone"]) for row in rows):
        yield f"| {task}, {backbone}: {' | '.join(heads)} |"
        yield "|---" * len(heads) + "|"
        own = [row for row in rows if (row["task"], row["backbone"]) == (task, backbone)]
        for method in dict.fromkeys(row["method"] for row in own):
            runs = [row for row in own if row["method"] == method]
            low, high = json.loads(runs[0]["test_interval"])
            means = {
                name: 100 * fmean(float(row[name]) for row in runs)
                for name in COLUMNS
                if "_iou" in name or "_f1" in name or "_accuracy" in name
            }
            spread = stdev(100 * float(row["test_mean_iou"]) for row in runs) if len(runs) > 1 else None
            test = f"{means['test_mean_iou']:.1f}" + ("" if spread is None else f" ± {spread:.1f}")
            ends = f"{100 * low:.0f}-{100 * high:.0f}" if len(runs) == 1 else "-"
            cells = [
                method,
                f"{int(runs[0]['learned_params']):,}",
                runs[0]["prompts"],
                f"{float(runs[0]['folded_gmacs']):.3f}",
                f"{means['val_mean_iou']:.1f}",
                test,
                ends,
                f"{means['test_pixel_accuracy']:.1f}",
                f"{means['test_boundary_f1']:.1f}",
                str(len(runs)),
            ]
            yield f"| {' | '.join(cells)} |"
        yield ""


def enlarged(data: str, factor: float, folder: Path) -> str:
    """A copy of DATA whose images are so much larger, and its place: for backbones with larger patches."""
    copy = folder / f"{Path(data).name} x{factor:g}"
    for file in filter(Path.is_file, Path(data).rglob("*")):
        target = copy / file.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".txt":
            target.write_bytes(file.read_bytes())
            continue
        with Image.open(file) as image:
            how = Image.Resampling.NEAREST if file.parent.name == "masks" else Image.Resampling.BICUBIC
            image.resize((round(factor * image.width), round(factor * image.height)), how).save(
                target.with_suffix(".png")
            )
    return str(copy)


def pictures(data: str, adapters: list[Path], file: Path) -> None:
    """A row for each of four test images from all over: image, mask, what each adapter says; errors below."""
    models = [load(adapter).fold() for adapter in adapters]
    images = load_labelled(data, models[0].preprocessing, models[0].target, split="test")[0]
    classes, rows = len(models[0].target.names), list[np.ndarray]()
    for number in torch.linspace(0, len(images) - 1, 4).long():
        pixels, true = next(images.pairs(number[None]))
        picture = pixels[0].permute(1, 2, 0).numpy()
        tops, bottoms = [picture, coloured(true[0].numpy(), classes)], [np.full_like(picture, 255)] * 2
        for model in models:
            said = model.predict(picture).masks[0].numpy()
            tops.append(coloured(said, classes))
            bottoms.append(errors(said, true[0].numpy()))
        rows += [np.hstack(tops), np.hstack(bottoms)]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(file, quality=85)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--pictures", type=Path, help="file for a picture of the first DATA, by adapters of --only")
    parser.add_argument("--show", action="store_true", help="print the tables of what there is")
    parser.add_argument("--backbone", default=BUNDLED_BACKBONE)
    parser.add_argument("--name", help="of the backbone in the table")
    parser.add_argument("--weights")
    parser.add_argument("--img-size", type=int)
    parser.add_argument("--enlarge", type=float, help="make the images so much larger first")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--only", nargs="*", help="labels")
    return parser.parse_args()


def main() -> None:
    """Runs what the table lacks."""
    options = parsed()
    if options.show:
        with options.out.open(encoding="utf-8", newline="") as opened:
            print("\n".join(tables([*csv.DictReader(opened)])))
        return
    name = options.name or options.backbone
    if options.enlarge:
        options.data = [enlarged(data, options.enlarge, options.runs) for data in options.data]
    if options.pictures:
        task = Path(options.data[0]).name
        adapters = [options.runs / f"{task}-{name}-{label}-0".replace(" ", "_") for label in options.only]
        pictures(options.data[0], adapters, options.pictures)
        return
    for data, label, seed, own in cells(options):
        task = Path(data).name
        done: dict[tuple[str, ...], str] = {}
        if options.out.exists():
            with options.out.open(encoding="utf-8", newline="") as opened:
                rows = csv.DictReader(opened)
                done = {tuple(row[key] for key in ("task", "backbone", "method", "seed")): row["lr"] for row in rows}
        if (task, name, label, str(seed)) in done:
            continue
        folder = options.runs / f"{task}-{name}-{label}-{seed}".replace(" ", "_").replace("%", "")
        full = options.runs / f"{task}-{name}-{FULL}-{seed}".replace(" ", "_")
        common = {"data": data, "backbone": options.backbone, "weights": options.weights, "img_size": options.img_size}
        common |= {"epochs": options.epochs, "batch_size": options.batch_size, "seed": seed}
        common["precision"] = "auto"
        first = (task, name, FULL if "condense" in own else label, "0")
        common["lr"] = float(done[first]) if first in done else "auto"
        common |= {"fine_tune_epochs": max(1, options.epochs // 3)}
        try:
            if "condense" in own and not (full / "result.json").exists():  # as when it was made elsewhere
                run(settings_from({**common, **METHODS[FULL]}), full, resume=True)
            trained = full if "condense" in own else None
            run(settings_from({**common, **own}), folder, resume=True, trained=trained)
        except VPromptError as error:
            print(task, label, seed, "failed:", error, flush=True)
            continue
        fresh = not options.out.exists()
        with options.out.open("a", encoding="utf-8", newline="") as opened:
            table = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
            if fresh:
                table.writeheader()
            table.writerow(row := row_of(task, name, label, seed, folder))
        print({key: row[key] for key in ("task", "method", "seed", "lr", "val_mean_iou", "test_mean_iou")}, flush=True)


if __name__ == "__main__":
    main()
