"""E2VPT's ablations: which kinds of prompts, what they share, how many, and how much is pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from vprompt.analysis.base import Study, analyses
from vprompt.analysis.options import commas

PARTS = ("parts", "sharing", "lengths", "pruning", "criteria", "rewinding")


@dataclass(frozen=True, kw_only=True)
class E2VPTAblations(Study):
    """Train E2VPT and what differs from it in one thing: its ablations."""

    name: ClassVar[str] = "e2vpt"
    order: ClassVar[int] = 8
    parts: Annotated[tuple[str, ...], commas(str.strip, "--parts", "parts,sharing", "PART,...")] = PARTS
    """Ablations. parts: one kind of prompts alone, and as many of VPT-Deep. sharing: what key-value prompts have
    in common. lengths: numbers of prompts. pruning: prompts and segments pruned, and what is left trained again.
    criteria: the same by other criteria, and by chance. rewinding: where what is left is trained from."""
    prompts: int = 10
    """Visual prompts per block."""
    kv_prompts: int = 5
    """Key-value prompts per block."""
    visual: Annotated[tuple[int, ...], commas(int, "--visual", "5,10,20")] = (5, 10, 20)
    """lengths: numbers of visual prompts."""
    key_value: Annotated[tuple[int, ...], commas(int, "--key-value", "1,5,10")] = (1, 5, 10)
    """lengths: numbers of key-value prompts."""
    pruned: Annotated[tuple[float, ...], commas(float, "--pruned", "0.1,0.5", "SHARE,...")] = (
        *(0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    )
    """pruning: shares of the prompts, and of the segments, to prune."""
    controlled: Annotated[tuple[float, ...], commas(float, "--controlled", "0.5,0.9", "SHARE,...")] = (0.5,)
    """criteria, rewinding: such shares."""
    criteria: Annotated[tuple[str, ...], commas(str.strip, "--criteria", "taylor,random", "NAME,...")] = (
        *("taylor", "magnitude", "random"),
    )
    """criteria: what is compared."""
    rewound: Annotated[tuple[float, ...], commas(float, "--rewound", "0.1,0.5", "SHARE,...")] = (0.1,)
    """rewinding: shares of the training after which the values were that what is left is trained from; beside them its
    start, its end (training goes on without rewinding), and new random values."""


analyses.register(E2VPTAblations)
