"""Time of prompts before and after condensation, by execution, on each kind of device here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from vprompt.analysis.base import Analysis, analyses
from vprompt.analysis.options import Shares, commas


@dataclass(frozen=True, kw_only=True)
class Latency(Analysis):
    """Time with prompts and with what condensation leaves of them, over the bare backbone's (the paper's Table 4).

    Weights are random: they do not matter to time.
    """

    name: ClassVar[str] = "latency"
    order: ClassVar[int] = 2
    backbone: str = "vit_base_patch16_224"
    """timm name."""
    prompts: Annotated[tuple[int, ...], commas(int, "--prompts", "200,100,50")] = (200, 100, 50)
    """Prompts per block before condensation."""
    shares: Shares = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
    """Shares of them that are retained, above 0 and up to 1."""
    images: int | None = None
    """In a batch; 64 when left out, fewer where a device would take longer than four minutes."""
    rounds: int | None = None
    """Number of times that each model is timed; 20 when left out, 5 on a CPU, or 3 on a slow one."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """cpu, or cuda or another accelerator; both when left out."""


analyses.register(Latency)
