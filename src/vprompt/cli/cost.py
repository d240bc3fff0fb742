"""`vprompt cost`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Annotated, Any, Literal, get_args

import tyro

from vprompt.backbones.names import BackbonePrecision
from vprompt.cli.console import print_json, print_table
from vprompt.utils.errors import VPromptError

SIZES = (8, 16, 24)
"""Gigabytes of usual cards."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Multiply-accumulates and parameters of a backbone with prompts; needs no weights and no download."""

    backbone: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """timm name."""
    prompts: str | None = None
    """Prompts per block (deep), or in all (shallow), separated by commas; 0,50,100,150,200 when left out, or 50 with
    --training."""
    shallow: bool = False
    """Count shallow instead of deep prompts."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    training: bool = False
    """Count the memory of a training instead, with the backbone held in each precision."""
    batch_size: int = 32
    """Images of a step of --training."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Numbers that --training computes in."""
    grad_checkpointing: bool = False
    """With --training: compute activations again in the backward pass."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        """Counts and prints."""
        from vprompt.model.cost import check_prompts, cost

        given = self.prompts if self.prompts is not None else "50" if self.training else "0,50,100,150,200"
        try:
            counts = [int(part) for part in given.split(",")]
        except ValueError:
            raise VPromptError(
                f"--prompts takes whole numbers separated by commas, such as 0,50,100; not {self.prompts!r}."
            ) from None
        if self.training:
            check_prompts(counts)
            self._memory(counts)
            return
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

    def _memory(self, counts: list[int]) -> None:
        """Counts and prints the memory of trainings."""
        from vprompt.methods.linear import Linear
        from vprompt.methods.vpt import VPT
        from vprompt.model.memory import training_memory

        if self.batch_size < 1:
            raise VPromptError(f"A step has at least 1 image, not {self.batch_size}; give another --batch-size.")
        rows: list[dict[str, Any]] = []
        for number, held in product(counts, get_args(BackbonePrecision)):
            found = training_memory(
                self.backbone,
                VPT(number, "shallow" if self.shallow else "deep") if number else Linear(),
                held,
                batch=self.batch_size,
                img_size=self.img_size,
                bf16=self.precision == "bf16",
                grad_checkpointing=self.grad_checkpointing,
            )
            most = {f"images_in_{size}_gb": found.most_images(size * 10**9) for size in SIZES}
            rows.append({"prompts": number, "held": held, **asdict(found), "total": found.total, **most})
        if self.json:
            print_json(rows)
            return
        print_table(
            f"GB of a training step on {self.batch_size} images, {self.backbone}; and images that fit",
            ["prompts", "held in", "weights", "learned", "step", "all", *(f"in {size} GB" for size in SIZES)],
            [
                [str(row["prompts"]), row["held"]]
                + [f"{row[part] / 1e9:.2f}" for part in ("weights", "state", "step", "total")]
                + [f"{row[f'images_in_{size}_gb']}" for size in SIZES]
                for row in rows
            ],
        )
