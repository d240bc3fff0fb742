"""The command `vprompt demo`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.cli.console import goes_on, percent, print_json, print_note, print_table
from vprompt.cli.options import Json


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The main job on the bundled backbone: probe, LoRA, prompts and condensation on one task; a table and pictures."""

    out: Path = Path("demo")
    """Folder for the adapters, results and pictures."""
    seed: int = 0
    """Seed of all runs."""
    json: Json = False

    def run(self) -> None:
        """Runs all models and prints what came out."""
        from vprompt.cli.compare import Lines
        from vprompt.experiments.demo import run_demo

        with goes_on(lambda: f"The same command goes on (in {self.out})."):
            document = run_demo(self.out, seed=self.seed, watch=Lines())
        if self.json:
            print_json(document)
        else:
            show_demo(document)


Columns = dict[str, Callable[[dict[str, Any]], str]]
"""Head -> the text of a row under it."""

_COLUMNS: Columns = {
    "": lambda row: row["name"],
    "test": lambda row: percent(row["test_accuracy"]),
    "95 %": lambda row: "{:.0f}-{:.0f}".format(*(100 * end for end in row["test_interval"])),
    "prompts": lambda row: str(row["prompts"]),
    "learned": lambda row: f"{row['learned_params']:,}",
    "adapter": lambda row: f"{row['adapter_bytes'] / 1024:.0f} KiB",
    "x bare": lambda row: f"{row['time_ratio']:.2f}",
}


def show_demo(document: dict[str, Any]) -> None:
    """Prints the table, where the pictures are, and what to try next."""
    title = f"{document['title']}; last, time per image when folded, against the bare backbone"
    print_table(title, list(_COLUMNS), [[text(row) for text in _COLUMNS.values()] for row in document["rows"]])
    for name, why in document["failed"].items():
        print_note(f"There is no {name}: {why}")
    best = max(document["rows"], key=lambda row: (row["condensed"], row["test_accuracy"]))["adapter"]
    print_note(
        f"{document['epochs']} epochs and one seed, where the papers take 100 and several: a demonstration, not a "
        f"result. {document['seconds']:.0f} s.\nPictures: {', '.join(document['pictures'])}\n\n"
        f"Next:\n  vprompt predict {best} IMAGE_OR_FOLDER\n  vprompt eval {best}\n"
        "  vprompt fit YOUR_FOLDER --condense 0.3 --out runs/mine\n"
        "  vprompt cost vit_base_patch16_224 --prompts 0,50,100,150,200"
    )
