"""Cost of prompts before and after condensation: multiply-accumulates, parameters, and whether to condense for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from vprompt.analysis.base import Analysis, analyses
from vprompt.analysis.options import Shares, commas
from vprompt.utils.errors import VPromptError


@dataclass(frozen=True, kw_only=True)
class Cost(Analysis):
    """Cost of prompts before and after condensation (the paper's Tables 1 and 5), and whether condensing is worth it.

    It is counted, without weights or data.
    """

    name: ClassVar[str] = "cost"
    order: ClassVar[int] = 1
    backbone: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """timm name; vit_base_patch16_224 when left out."""
    prompts: Annotated[tuple[int, ...], commas(int, "--prompts", "0,50,100")] | None = None
    """Prompts per block (deep), or in all (shallow); 0,50,100,150,200 when left out, 0,5,10,25,50 with windows."""
    kv_prompts: int = 0
    """Key-value prompts per block beside them, as E2VPT has."""
    originals: Annotated[tuple[int, ...], commas(int, "--originals", "200,100,50")] | None = None
    """Prompts per block that are condensed; 200,100,50 when left out, 50,25,10 with windows."""
    shares: Shares = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
    """Shares of them that are retained, above 0 and up to 1."""
    counts: Annotated[tuple[int, ...], commas(int, "--counts", "14,6,18", distinct=False)] | None = None
    """Prompts that a condensed model has in each block, such as 14,6,18,21,13,19,27,10,20,10,19,3."""
    adapter: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Take the counts, the backbone and its size from this adapter."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    shallow: bool = False
    """Count shallow instead of deep prompts."""
    classes: int | None = None
    """Of the head, for the numbers of learned parameters; 100 when left out, those of the adapter with one."""
    threshold: float = 0.1
    """Overhead of prompts from which condensing is worth it."""

    def check(self) -> None:
        """Raises a `VPromptError` for groups of options that cannot be meant together."""
        super().check()
        of_adapter = {
            "NAME": self.backbone,
            "--counts": self.counts,
            "--img-size": self.img_size,
            "--classes": self.classes,
            "--shallow": self.shallow or None,
        }
        double = [option for option, value in of_adapter.items() if value is not None]
        if self.adapter is not None and double:
            raise VPromptError(f"--adapter says what {double[0]} says too; leave one of them out.")


analyses.register(Cost)
