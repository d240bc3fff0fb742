"""Does the cheap search for how much to prune find as good a choice as the full one? Trains all 100 choices.

    python recipes/pruning_search.py FOLDER --out FILE.json

Every choice of shares of prompts and segments is pruned, rewound and trained on the whole schedule; then the search of
`vprompt.compression` chooses among the same at the price of about four trainings. Test data is read for the record and
decides nothing. A killed run goes on where it was with the same command.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

import vprompt
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.info import describe
from vprompt.compression.choices import Choice, PruneSettings, Trial, grid, ranked
from vprompt.compression.importance import importance, pruned
from vprompt.compression.prune import prune
from vprompt.data.dataset import Task
from vprompt.data.tasks import open_task
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.utils.io import write_json


def judge(model: PromptedModel, task: Task) -> dict[str, float]:
    val, test = vprompt.evaluate(model, task.val), vprompt.evaluate(model, task.test)  # pyright: ignore
    return {"val": val.accuracy, "val_loss": val.loss, "test": test.accuracy}


def trial(row: dict[str, Any], whole: dict[str, Any]) -> Trial:
    choice = Choice(tokens=row["tokens"], segments=row["segments"])
    kept = (row["prompts"] / whole["prompts"] + row["numbers"] / whole["numbers"]) / 2
    return Trial(choice=choice, kept=kept, epochs=0, accuracy=row["val"], loss=row["val_loss"])


def rank_correlation(first: list[float], second: list[float]) -> float:
    """Spearman's; equal values share the mean of their ranks."""
    values = torch.tensor([first, second], dtype=torch.float64)
    above, equal = (compare(values[:, :, None], values[:, None]).double().sum(2) for compare in (torch.gt, torch.eq))
    return float(torch.corrcoef(above + equal / 2)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    backbone = create_backbone(BUNDLED_BACKBONE, img_size=options.img_size)
    task = open_task(options.data, describe(backbone).preprocessing)
    recipe = Recipe(epochs=options.epochs, precision=options.precision, seed=options.seed)
    settings = PruneSettings()
    torch.manual_seed(options.seed)
    model = vprompt.attach(backbone, vprompt.E2VPT(), num_classes=len(task.classes), head_init="zero")
    early = model.state()
    history = vprompt.fit(model, task.train, recipe=recipe, progress=True)
    print("all prompts", judge(model, task), "loss", history.rows[-1]["loss"])

    worth = importance(model, task.train, seed=options.seed)
    rows: list[dict[str, Any]] = json.loads(options.out.read_text())["full"] if options.out.exists() else []
    document: dict[str, Any] = {"data": Path(options.data).name, "seed": options.seed, "epochs": options.epochs}
    document |= {"img_size": options.img_size, "saving": settings.saving, "all_prompts": judge(model, task)}
    done = {(row["tokens"], row["segments"]) for row in rows}
    for choice in grid():
        if (choice.tokens, choice.segments) in done:
            continue
        small = model
        if choice != Choice():
            small = pruned(model, worth, choice, early=early)
            vprompt.fit(small, task.train, recipe=recipe)
        facts = {"tokens": choice.tokens, "segments": choice.segments, "prompts": sum(small.prompt_counts)}
        rows.append({**facts, "numbers": sum(p.numel() for p in small.prompts), **judge(small, task)})
        print(len(rows), rows[-1], flush=True)
        write_json(options.out, {**document, "full": rows})

    found = prune(model, task.train, task.val, early=early, settings=settings, recipe=recipe, progress=True)
    by_choice = {(row["tokens"], row["segments"]): row for row in rows}
    best = ranked([trial(row, rows[0]) for row in rows], saving=settings.saving)[0].choice
    document["full_search"] = {**by_choice[best.tokens, best.segments], "trainings": float(len(rows))}
    chosen = by_choice[found.choice.tokens, found.choice.segments]
    document["cheap_search"] = {**chosen, "trainings": round(1 + found.trainings, 2)}
    write_json(options.out, {**document, "full": rows})
    test = [row["test"] for row in rows]
    for name, sign in (("val", 1), ("val_loss", -1)):
        print("rank correlation with test accuracy,", name, rank_correlation([sign * row[name] for row in rows], test))
    for name in ("all_prompts", "full_search", "cheap_search"):
        print(name, document[name])


if __name__ == "__main__":
    main()
