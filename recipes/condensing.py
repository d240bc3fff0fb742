"""What condensing keeps, against training from scratch, chance and other choices: one row a model, seeds paired.

    python recipes/condensing.py --out docs/results/condensing.csv --root FOLDER [--of TASK...] [--seeds 3]

The bundled backbone at 32 pixels (17 tokens), `--prompts` prompts in each block, of which a share is kept. Everything
that is compared on one task with one seed has the same images and starts; everything that is condensed starts from the
same trained model, has the same number of prompts and the same fine-tuning. The learning rate of every number of
prompts is the better of `RATES` on the validation images, after a quarter of the schedule, with the first seed. How
long and at which share of the rate condensed prompts are fine-tuned is tried (part `tuning`) on validation images of
the tasks in `CHOOSING`, and fixed in `FINE` for all others. Test images are read once a model and serve no choice.
The same command goes on where it was killed.

Parts: `tuning` (validation only), `main`, `length` (twice the epochs, for convergence), `many` (other
numbers of prompts), `defaults` (only all prompts, and what the library's defaults keep) and `further` (all prompts,
trained on as those that are kept).
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

import vprompt
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import create_backbone
from vprompt.data.tasks import Task
from vprompt.model.model import PromptedModel
from vprompt.training.evaluate import doubled, evaluate
from vprompt.utils.statistics import mean, std
from vprompt.utils.text import spread

CHOOSING = ("vtab:dsprites_loc", "vtab:gtsrb")
RATES = (0.005, 0.02)
SHARES = (0.3, 0.1)

KEPT: dict[str, dict[str, Any]] = {
    "taylor, global": {},
    "taylor, local": {"scope": "local"},
    "random, global": {"criterion": "random"},
}
"""Label -> how prompts are chosen."""

FINE = (0.1, 10)
"""Share of the rate, and epochs, of fine-tuning."""

TRIED = ((0.1, 10), (0.3, 10), (1.0, 10), (1.0, 20))

NUMBERS = (0, 15, 200, 5)
"""Prompts in each block, beside those of the other parts."""

COLUMNS = (
    *("part", "task", "backbone", "seed", "method", "prompts", "share", "kept", "fine_tuned", "lr", "epochs"),
    *("train_loss", "val_accuracy", "val_loss", "test_accuracy", "test_loss", "counts", "seconds", "extra"),
)


class Study:
    """One task: its data, and the table that rows are added to."""

    def __init__(self, task: str, options: argparse.Namespace) -> None:
        self.task, self.options, self.out = task, options, options.out
        given = {"weights": options.weights} if options.weights else {}
        self.backbone = create_backbone(options.backbone, img_size=options.img_size, **given)
        self.data: Task = vprompt.open_data(task, self.backbone, root=options.root)
        self.rates: dict[int, float] = {}

    def rows(self) -> list[dict[str, str]]:
        """What the table holds of this task."""
        if not self.out.exists():
            return []
        with self.out.open(encoding="utf-8", newline="") as opened:
            own = (self.task, self.options.name)
            return [row for row in csv.DictReader(opened) if (row["task"], row["backbone"]) == own]

    def has(self, part: str, seed: int, method: str, prompts: int, share: float | str, fine: str) -> bool:
        """Whether a row is there."""
        key = (part, str(seed), method, str(prompts), str(share), fine)
        names = ("part", "seed", "method", "prompts", "share", "fine_tuned")
        return any(tuple(row[name] for name in names) == key for row in self.rows())

    def add(self, model: PromptedModel, *, test: bool = True, **facts: Any) -> dict[str, Any]:
        """Evaluates a model and adds its row."""
        val = evaluate(model, self.data.val)
        row = dict.fromkeys(COLUMNS, "") | {
            "task": self.task,
            "backbone": self.options.name,
            "kept": sum(model.prompt_counts),
            "counts": json.dumps(model.prompt_counts),
            "val_accuracy": round(val.score, 4),
            "val_loss": round(val.loss, 4),
            **facts,
        }
        if test:
            found = evaluate(model, self.data.test)
            row |= {"test_accuracy": round(found.score, 4), "test_loss": round(found.loss, 4)}
        fresh = not self.out.exists()
        with self.out.open("a", encoding="utf-8", newline="") as opened:
            table = csv.DictWriter(opened, COLUMNS, lineterminator="\n")
            if fresh:
                table.writeheader()
            table.writerow(row)
        print({name: row[name] for name in ("part", "task", "seed", "method", "share", "val_accuracy")}, flush=True)
        return row

    def rate(self, prompts: int) -> float:
        """The better learning rate on validation images after a quarter of the schedule, with the first seed."""
        if prompts not in self.rates:
            known = [row for row in self.rows() if row["method"] == "scratch" and row["prompts"] == str(prompts)]
            self.rates[prompts] = (
                float(known[0]["lr"]) if known else min(RATES, key=lambda lr: self._early(prompts, lr))
            )
        return self.rates[prompts]

    def _early(self, prompts: int, lr: float) -> float:
        model, epochs = self.fresh(prompts, 0), self.options.epochs
        file = self.options.runs / "rate.safetensors"
        file.unlink(missing_ok=True)
        self.trained(model, epochs, lr, 0, until=epochs // 4, checkpoint=file)
        return evaluate(model, self.data.val).loss

    def fresh(self, prompts: int, seed: int) -> PromptedModel:
        """An untrained model; without prompts, a linear probe."""
        torch.manual_seed(seed)
        return vprompt.attach(
            self.backbone, vprompt.VPT(num_prompts=prompts) if prompts else vprompt.Linear(), data=self.data
        )

    def trained(self, model: PromptedModel, epochs: int, lr: float, seed: int, **more: Any) -> dict[str, Any]:
        """Trains in place; what a row says of it."""
        recipe = vprompt.Recipe(epochs=epochs, lr=lr, seed=seed, precision=self.options.precision)
        history = vprompt.fit(model, self.data.train, recipe=recipe, **more)
        loss = round(history.rows[-1]["loss"], 4)
        return {"lr": lr, "epochs": epochs, "train_loss": loss, "seconds": round(history.seconds, 1)}

    def scratch(self, part: str, prompts: int, seed: int, epochs: int) -> PromptedModel:
        """A model trained from scratch, from the folder of runs where it is there; adds its row."""
        folder = self.options.runs / f"{self.task}-{self.options.name}-{prompts}-{epochs}-{seed}".replace(":", "-")
        known = self.has(part, seed, "scratch", prompts, 1.0, "")
        if folder.exists() and known:
            return vprompt.load(folder)
        model = self.fresh(prompts, seed)
        facts = self.trained(model, epochs, self.rate(prompts), seed)
        model.save_pretrained(folder)
        if not known:
            self.add(model, part=part, seed=seed, method="scratch", prompts=prompts, share=1.0, **facts)
        return model

    def condensed(
        self, part: str, full: PromptedModel, seed: int, label: str, share: float, fine: tuple[float, int]
    ) -> None:
        """What is kept of a model before and after fine-tuning."""
        prompts, test = self.options.prompts, part != "tuning"
        word = f"{fine[0]:g} x {fine[1]}"
        if self.has(part, seed, label, prompts, share, word):
            return
        torch.manual_seed(seed)
        small = vprompt.condense(full, self.data.train, ratio=share, fine_tune=False, **KEPT[label])
        facts: dict[str, Any] = {"part": part, "seed": seed, "method": label, "prompts": prompts, "share": share}
        if not self.has(part, seed, label, prompts, share, "no"):
            self.add(small, test=test, fine_tuned="no", **facts)
        base = self.rate(prompts)
        self.add(small, test=test, fine_tuned=word, **facts, **self.trained(small, fine[1], base * fine[0], seed))

    def further(self, part: str, full: PromptedModel, seed: int, fine: tuple[float, int]) -> None:
        """All prompts trained on as what is kept of them is: what fine-tuning alone is worth."""
        prompts, word = self.options.prompts, f"{fine[0]:g} x {fine[1]}"
        if not self.has(part, seed, "all", prompts, 1.0, word):
            facts = self.trained(full, fine[1], self.rate(prompts) * fine[0], seed)
            self.add(full, part=part, seed=seed, method="all", prompts=prompts, share=1.0, fine_tuned=word, **facts)


def tables(rows: list[dict[str, str]]) -> Iterator[str]:
    """The lines of a page: tables of each backbone."""
    for backbone in dict.fromkeys(row["backbone"] for row in rows):
        yield from _tables([row for row in rows if row["backbone"] == backbone], backbone)


def _tables(rows: list[dict[str, str]], backbone: str) -> Iterator[str]:
    """Fine-tuning on validation images, what is kept, numbers of prompts, and twice the epochs."""
    parts: dict[str, dict[str, dict[str, list[str]]]] = {"tuning": {}, "kept": {}, "numbers": {}}

    def note(part: str, label: str, row: dict[str, str], value: str) -> None:
        parts[part].setdefault(label, {}).setdefault(row["task"].split(":")[1], []).append(value)

    tried = {row["task"] for row in rows if row["part"] == "tuning"}
    for row in rows:
        val = f"{100 * float(row['val_accuracy']):.1f} ({float(row['val_loss']):.2f})"
        share = f"{100 * float(row['share']):.0f} %"
        if row["part"] == "tuning":
            note("tuning", f"{share}, {row['fine_tuned']}", row, val)
        elif row["method"] != "scratch":
            word = "not tuned" if row["fine_tuned"] == "no" else "tuned"
            note("kept", f"{share}, {row['method']}, {word}", row, row["test_accuracy"])
        elif row["part"] != "length":
            note("numbers", row["prompts"], row, row["test_accuracy"])
            if row["part"] == "main":
                note("kept", f"all {row['kept']}", row, row["test_accuracy"])
            if row["part"] == "main" and row["seed"] == "0" and row["task"] in tried:
                note("tuning", f"all {row['kept']}", row, val)
    titles = (
        "share of the rate x epochs: validation accuracy (loss)",
        "kept, chosen by: test accuracy",
        "prompts a block, from scratch: test accuracy",
    )
    for title, (part, found) in zip(titles, parts.items(), strict=True):
        tasks = [*dict.fromkeys(task for by_task in found.values() for task in by_task)]
        if len(found) < 2:  # nothing to compare
            continue
        yield f"| {backbone}: {title} | {' | '.join(tasks)} |"
        yield "|---" * (len(tasks) + 1) + "|"
        for label in sorted(found, key=int) if part == "numbers" else found:
            yield f"| {label} | {' | '.join(_cell(found[label].get(task, [])) for task in tasks)} |"
        yield ""
    for row in rows:
        if row["part"] == "length":
            extra, name = json.loads(row["extra"]), row["task"].split(":")[1]
            yield (
                f"- {name}, {row['prompts']} prompts, {row['epochs']} epochs instead of half as many: the validation "
                f"loss changes by {extra['difference']:+.3f} (standard error {extra['standard_error']:.3f})."
            )


def _cell(values: list[str]) -> str:
    """Percentages over seeds; text as it is."""
    if not values or "(" in values[0]:
        return values[0] if values else "-"
    points = [float(value) for value in values]
    return spread(mean(points), std(points))


def main() -> None:
    """Trains and condenses what the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("tuning", "main", "length", "many", "defaults", "further"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--root", help="folder of tasks")
    parser.add_argument("--of", nargs="*", default=["vtab:dsprites_loc", "vtab:gtsrb", "vtab:eurosat"], help="tasks")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--backbone", default=BUNDLED_BACKBONE)
    parser.add_argument("--name", default="bundled", help="of the backbone in the table")
    parser.add_argument("--weights")
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--show", action="store_true", help="print the tables of what there is")
    options = parser.parse_args()
    if options.show:
        with options.out.open(encoding="utf-8", newline="") as opened:
            print("\n".join(tables([*csv.DictReader(opened)])))
        return
    options.runs.mkdir(parents=True, exist_ok=True)
    part, number, epochs = options.part, options.prompts, options.epochs
    studies = {task: Study(task, options) for task in options.of}
    if part == "tuning":
        for task in CHOOSING:
            full = studies[task].scratch("main", number, 0, epochs)
            for fine in TRIED:
                studies[task].condensed(part, full, 0, "taylor, global", SHARES[0], fine)
        return
    for seed, study in product(range(options.seeds), studies.values()):
        if part in ("main", "defaults"):
            full = study.scratch("main", number, seed, epochs)
            for label in KEPT if part == "main" else ["taylor, global"]:
                for share in SHARES:
                    study.condensed("main", full, seed, label, share, FINE)
        if part == "further":
            study.further("main", study.scratch("main", number, seed, epochs), seed, FINE)
        if part == "many":
            for prompts in NUMBERS:
                study.scratch("many", prompts, seed, epochs)
        if part == "length" and not study.has(part, seed, "scratch", number, 1.0, ""):
            short, long = study.scratch("main", number, seed, epochs), study.fresh(number, seed)
            facts = study.trained(long, 2 * epochs, study.rate(number), seed)
            extra = json.dumps(asdict(doubled(*(evaluate(m, study.data.val) for m in (short, long)), 2 * epochs)))
            facts |= {"part": part, "seed": seed, "method": "scratch", "prompts": number, "share": 1.0, "extra": extra}
            study.add(long, **facts)


if __name__ == "__main__":
    main()
