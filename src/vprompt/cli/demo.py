"""The command `vprompt demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprompt.cli.console import percent, print_json, print_note, print_table


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The main job on the bundled backbone and task: probe, prompts, condensation; a table and two pictures."""

    out: Path = Path("demo")
    """Folder for the adapters, results and pictures."""
    seed: int = 0
    """Seed of all runs."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        """Runs all models and prints what came out."""
        from vprompt.cli.compare import Lines
        from vprompt.experiments.demo import run_demo

        document = run_demo(self.out, seed=self.seed, watch=Lines())
        if self.json:
            print_json(document)
        else:
            show_demo(document)


def show_demo(document: dict[str, Any]) -> None:
    """Prints two tables, where the pictures are, and what to try next."""
    results = [
        [
            row["name"],
            percent(row["test_accuracy"]),
            str(row["prompts"]),
            f"{row['learned_params']:,}",
            f"{row['adapter_bytes'] / 1024:.0f} KiB",
        ]
        for row in document["rows"]
    ]
    print_table(document["title"], ["", "test", "prompts", "learned", "adapter"], results)
    costs = [
        [
            row["name"],
            *(f"{1000 * row[kind]:.0f}" for kind in ("published_gmacs", "prefix_gmacs", "folded_gmacs")),
            f"{row['milliseconds']:.2f} ms",
            f"{row['time_ratio']:.2f}",
        ]
        for row in document["rows"]
    ]
    print_table(
        "10^6 multiply-accumulates per image, and time folded (one thread) against the bare backbone",
        ["", "published", "prefix", "folded", "time", "x bare"],
        costs,
    )
    best = max((row for row in document["rows"] if row["condensed"]), key=lambda row: row["test_accuracy"])["adapter"]
    print_note(
        f"{document['epochs']} epochs and one seed, where the papers take 100 and several: a demonstration, not a "
        f"result. {document['seconds']:.0f} s.\nPictures: {', '.join(document['pictures'])}\n\n"
        f"Next:\n  vprompt predict {best} IMAGE_OR_FOLDER\n  vprompt eval {best}\n"
        "  vprompt fit YOUR_FOLDER --condense 0.3 --out runs/mine\n"
        "  vprompt cost vit_base_patch16_224 --prompts 0,50,100,150,200"
    )
