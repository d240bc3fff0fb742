"""Folded prompts against timm's plain forward: ViT-B/16, 224 pixels, one thread, CPU time, interleaved.

python benchmarks/inference.py [--rounds 7] [--batch 4]
"""

from __future__ import annotations

import argparse

import torch
from common import interleaved, print_ratios, vit_base

import laconic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone = vit_base()
    images = torch.randn(args.batch, 3, 224, 224)
    variants = {"timm's plain forward": lambda: backbone(images)}
    for prompts in (50, 100, 200):
        model = laconic.attach(backbone, laconic.VPT(prompts), num_classes=10).eval()
        folded, published = model.fold(), model.copy(execution="published").eval()
        variants[f"{prompts} prompts, folded"] = lambda folded=folded: folded(images)
        if prompts == 200:
            variants[f"{prompts} prompts, prefix"] = lambda model=model: model(images)
            variants[f"{prompts} prompts, as published"] = lambda published=published: published(images)
    with torch.inference_mode():
        times = interleaved(variants, rounds=args.rounds)
    print_ratios("Inference, ViT-B/16, ms per image", times, "timm's plain forward", per=args.batch)


if __name__ == "__main__":
    main()
