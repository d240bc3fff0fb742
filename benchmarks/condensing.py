"""What scoring and fine-tuning take of the time of the training they follow.

python benchmarks/condensing.py [--backbone vit_base_patch16_224] [--prompts 200] [--ratio 0.3] [--rounds 3] [--batch 8]

VPT-Deep with prompt dropout 0.1 is trained for 100 epochs; scoring is one pass over the training images, then the kept
prompts are fine-tuned for 20 epochs without dropout. One thread, CPU time, interleaved: a step of each, multiplied by
the number of epochs. Random weights: prompts are kept as evenly as chance would, which is the dearest case; the more
blocks at the front keep none, the less fine-tuning takes (benchmarks/caching.py).
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from common import interleaved, print_ratios, random_backbone
from torch.utils.data import TensorDataset

import vprompt
from vprompt.model.model import PromptedModel

EPOCHS, FINE_TUNING = 100, 20


def step(model: PromptedModel, images: torch.Tensor, labels: torch.Tensor) -> None:
    F.cross_entropy(model(images), labels).backward()
    model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = vprompt.attach(random_backbone(args.backbone), vprompt.VPT(args.prompts), num_classes=10)
    size = model.preprocessing.size
    images, labels = torch.randn(args.batch, 3, *size), torch.randint(0, 10, (args.batch,))
    data = TensorDataset(images, labels)
    small = vprompt.condense(model, data, ratio=args.ratio, criterion="random", fine_tune=False).train()
    model.train()
    times = interleaved(
        {
            "a step of training": partial(step, model, images, labels),
            "scoring as many images": lambda: vprompt.score(model, data),
            "a step of fine-tuning": partial(step, small, images, labels),
        },
        rounds=args.rounds,
    )
    print_ratios(
        f"{args.backbone}, {args.prompts} prompts a block, {args.ratio:.0%} kept, ms per image",
        times,
        "a step of training",
        per=args.batch,
    )
    shares = [
        (scoring + FINE_TUNING * tuning) / (EPOCHS * training)
        for training, scoring, tuning in zip(*times.values(), strict=True)
    ]
    print(
        f"Scoring and {FINE_TUNING} epochs of fine-tuning after {EPOCHS} epochs of training: "
        f"{statistics.median(shares):.1%} of its time ({min(shares):.1%}-{max(shares):.1%})"
    )


if __name__ == "__main__":
    main()
