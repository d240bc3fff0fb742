"""`vprompt analyze e2vpt`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from vprompt.cli.analyze.common import numbers
from vprompt.cli.analyze.training import Trainings


@dataclass(frozen=True, kw_only=True)
class E2VPT:
    """Train E2VPT and what differs from it in one thing: its ablations."""

    trainings: Trainings = field(default_factory=Trainings)
    parts: Annotated[str, tyro.conf.arg(metavar="PART,...")] = "parts,sharing,lengths,pruning"
    """Which ablations. parts: one kind of prompts alone, and as many of VPT-Deep. sharing: what key-value prompts have
    in common. lengths: numbers of prompts. pruning: prompts and segments pruned."""
    prompts: int = 10
    """Visual prompts per block."""
    kv_prompts: int = 5
    """Key-value prompts per block."""
    visual: Annotated[str, tyro.conf.arg(metavar="N,...")] = "5,10,20"
    """lengths: numbers of visual prompts."""
    key_value: Annotated[str, tyro.conf.arg(metavar="N,...")] = "1,5,10"
    """lengths: numbers of key-value prompts."""
    pruned: Annotated[str, tyro.conf.arg(metavar="SHARE,...")] = "0.05,0.1,0.2,0.3,0.4,0.5"
    """pruning: shares of the prompts, and of the segments, to prune."""

    def run(self) -> None:
        """Runs, writes, prints."""
        from vprompt.analysis.e2vpt import measure as e2vpt

        plan = e2vpt.plan_of(
            self.trainings.study(),
            parts=list(dict.fromkeys(part.strip() for part in self.parts.split(","))),
            prompts=self.prompts,
            kv_prompts=self.kv_prompts,
            visual=numbers(self.visual, int, "--visual", "5,10,20"),
            key_value=numbers(self.key_value, int, "--key-value", "1,5,10"),
            pruned=numbers(self.pruned, float, "--pruned", "0.1,0.5"),
        )
        self.trainings.analyze(plan, e2vpt.read)
