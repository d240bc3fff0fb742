"""`vprompt cost`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from vprompt.cli.console import print_json, print_table
from vprompt.utils.errors import VPromptError


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates and parameters of a backbone with prompts; needs no weights and no download."""

    backbone: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """timm name."""
    prompts: str = "0,50,100,150,200"
    """Prompts per block (deep), or in all (shallow), separated by commas."""
    shallow: bool = False
    """Count shallow instead of deep prompts."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        """Counts and prints."""
        from vprompt.model.cost import cost

        try:
            counts = [int(part) for part in self.prompts.split(",")]
        except ValueError:
            raise VPromptError(
                f"--prompts takes whole numbers separated by commas, such as 0,50,100; not {self.prompts!r}."
            ) from None
        costs = cost(self.backbone, counts, shallow=self.shallow, img_size=self.img_size)
        if self.json:
            print_json([asdict(row) for row in costs])
            return
        print_table(
            f"GMACs per image, {self.backbone}",
            ["prompts", "published", "prefix", "folded", "folded / published", "learned"],
            [
                [
                    f"{row.prompts:g}",
                    f"{row.published_gmacs:.2f}",
                    f"{row.prefix_gmacs:.2f}",
                    f"{row.folded_gmacs:.2f}",
                    f"{row.folded_gmacs / row.published_gmacs:.3f}",
                    f"{row.prompt_params:,}",
                ]
                for row in costs
            ],
        )
