"""Fine-tuning a condensed model whose first blocks are empty, with what lies below them computed once against anew.

python benchmarks/caching.py [--backbone vit_base_patch16_224] [--empty 3,6] [--rounds 3] [--images 8] [--batch 4]

CPU time of one thread. The first epoch with the cache computes what is kept; all later ones only use it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import print_ratios, random_backbone
from torch.utils.data import TensorDataset

import vprompt
from vprompt.model.model import PromptedModel


def epochs(model: PromptedModel, data: TensorDataset, *, batch: int, cache_gb: float) -> tuple[float, float]:
    """Seconds of the first epoch of a training, and of the second."""
    times: list[float] = []
    recipe = vprompt.Recipe(epochs=2, batch_size=batch, lr=1e-4, cache_gb=cache_gb)
    vprompt.fit(model, data, recipe=recipe, at_epoch=lambda _: times.append(time.process_time()))  # pyright: ignore
    return times[1] - times[0], times[2] - times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--empty", default="3,6")
    parser.add_argument("--prompts", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    full = vprompt.attach(random_backbone(args.backbone), vprompt.VPT(args.prompts, dropout=0), num_classes=10)
    images = torch.randn(args.images, 3, *full.preprocessing.size)
    data = TensorDataset(images, torch.arange(args.images) % 10)
    for empty in (int(count) for count in args.empty.split(",")):
        counts = [0 if block < empty else args.prompts for block in range(len(full.info.blocks))]
        small = full.keep([torch.arange(count) for count in counts])
        times: dict[str, list[float]] = {"anew": [], "once, first epoch": [], "once, later epochs": []}
        for _ in range(args.rounds):
            first, second = epochs(small, data, batch=args.batch, cache_gb=0)
            times["anew"].append((first + second) / 2)
            first, second = epochs(small, data, batch=args.batch, cache_gb=64)
            times["once, first epoch"].append(first)
            times["once, later epochs"].append(second)
        print_ratios(
            f"Fine-tuning, {args.backbone}, {args.prompts} prompts a block, first {empty} blocks empty, ms per image",
            times,
            "anew",
            per=args.images,
        )
        shares = [(first + 19 * later) / (20 * anew) for anew, first, later in zip(*times.values(), strict=True)]
        low, high = min(shares), max(shares)
        print(f"20 epochs then take {statistics.median(shares):.3f} ({low:.3f}-{high:.3f}) of the time.")


if __name__ == "__main__":
    main()
