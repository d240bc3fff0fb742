"""A training step with prompts as prefix against published token insertion: ViT-B/16, one thread, CPU time.

python benchmarks/training.py [--rounds 3] [--batch 4]
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from common import interleaved, print_ratios, random_backbone
from torch.nn.attention import SDPBackend, sdpa_kernel

import laconic
from laconic.model import PromptedModel


def step(model: PromptedModel, images: torch.Tensor, labels: torch.Tensor, *, bf16: bool, plain: bool) -> None:
    with ExitStack() as stack:
        if plain:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
    model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone = random_backbone()
    images, labels = torch.randn(args.batch, 3, 224, 224), torch.randint(0, 10, (args.batch,))
    for prompts in (100, 200):
        for dropout in (0.1, 0.0):
            model = laconic.attach(backbone, laconic.VPT(prompts, dropout=dropout), num_classes=10)
            published = model.copy(execution="published").train()
            variants = {
                f"{name}, {precision}, {attention} attention": partial(
                    step, which, images, labels, bf16=precision == "bf16", plain=attention == "plain"
                )
                for precision in ("fp32", "bf16")
                for name, which in (("published", published), ("prefix", model))
                for attention in ("fused", "plain")
            }
            times = interleaved(variants, rounds=args.rounds)
            for precision in ("fp32", "bf16"):
                chosen = {name: values for name, values in times.items() if precision in name}
                title = f"Training step, ViT-B/16, {prompts} prompts, prompt dropout {dropout}, ms per image"
                print_ratios(title, chosen, next(name for name in chosen if "fused" in name), per=args.batch)


if __name__ == "__main__":
    main()
