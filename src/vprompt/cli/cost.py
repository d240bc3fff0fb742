"""`vprompt cost`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

import tyro

from vprompt.analysis.options import commas
from vprompt.cli.console import print_json, print_note, print_table
from vprompt.cli.options import Json


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates and parameters of a backbone with prompts; needs no weights and no download."""

    backbone: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """timm name."""
    prompts: Annotated[tuple[int, ...], commas(int, "--prompts", "0,50,100")] = (0, 50, 100, 150, 200)
    """Prompts per block (deep), or in all (shallow), separated by commas."""
    kv_prompts: int = 0
    """Key-value prompts per block beside them, as E2VPT has."""
    shallow: bool = False
    """Count shallow instead of deep prompts."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    json: Json = False

    def run(self) -> None:
        """Counts and prints."""
        from vprompt.analysis import cost as analysis
        from vprompt.analysis.cost.report import lengths, printed_overheads
        from vprompt.model import cost as counting

        costs = analysis.Cost(
            backbone=self.backbone,
            prompts=self.prompts,
            originals=(),
            kv_prompts=self.kv_prompts,
            shallow=self.shallow,
            img_size=self.img_size,
            classes=1,
        ).run()
        shares = [row.prompt_params / costs.backbone_params for row in costs.prompts]
        if self.json:
            names = [entry.name for entry in fields(counting.Cost)]
            rows = [{name: getattr(row, name) for name in names} for row in costs.prompts]
            for row, count, share in zip(rows, costs.prompts, shares, strict=True):
                row |= {"kv_prompts": self.kv_prompts, "overhead": count.published.overhead, "learned_share": share}
            print_json(rows)
            return
        paper = printed_overheads(costs)
        print_table(
            f"GMACs per image, over the bare backbone's; numbers learned, of the backbone's: {self.backbone}",
            ["prompts", "published", *(["paper"] if paper else []), "prefix", "folded", "learned"],
            [
                [
                    f"{row.prompts:g}" + (f" + {self.kv_prompts}" if self.kv_prompts else ""),
                    f"{row.published_gmacs:.2f} {100 * row.published.overhead:+.1f} %",
                    *([paper.get(row.prompts, "-")] if paper else []),
                    f"{row.prefix_gmacs:.2f}",
                    f"{row.folded_gmacs:.2f} {100 * row.folded.overhead:+.0f} %",
                    f"{row.prompt_params:,} {100 * share:.2f} %",
                ]
                for row, share in zip(costs.prompts, shares, strict=True)
            ],
        )
        if words := lengths(costs):
            print_note(words)
