"""`vprompt demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vprompt.cli.console import print_json


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
        """Runs all stages and prints what came out."""
        from vprompt.experiments.demo import run_demo, show_demo

        found = run_demo(self.out, seed=self.seed)
        if self.json:
            print_json(found)
        else:
            show_demo(found, self.out)
