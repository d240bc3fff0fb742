"""A training step with prompts as prefix against published token insertion: one thread, CPU time, interleaved.

python benchmarks/training.py [--backbone vit_base_patch16_224] [--prompts 200] [--rounds 3] [--batch 8] [--bf16]

Without prompt dropout and with it (0.1), where every image has prompts of its own; and against a step with one prompt.
Both executions run torch's fused attention.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from common import interleaved, print_ratios, random_backbone

import vprompt
from vprompt.model.model import PromptedModel


def step(model: PromptedModel, images: torch.Tensor, labels: torch.Tensor, *, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(images).float(), labels)
    loss.backward()
    model.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone, prompts = random_backbone(args.backbone), args.prompts
    models: dict[str, PromptedModel] = {}
    for dropout, words in ((0.0, "no dropout"), (0.1, "dropout 0.1")):
        model = vprompt.attach(backbone, vprompt.VPT(prompts, dropout=dropout), num_classes=10)
        models[f"published, {words}"] = model.copy(execution="published").train()
        models[f"prefix, {words}"] = model
    models["prefix, one prompt, no dropout"] = vprompt.attach(backbone, vprompt.VPT(1, dropout=0.0), num_classes=10)
    size = model.preprocessing.size
    images, labels = torch.randn(args.batch, 3, *size), torch.randint(0, 10, (args.batch,))
    variants = {name: partial(step, model, images, labels, bf16=args.bf16) for name, model in models.items()}
    times = interleaved(variants, rounds=args.rounds)
    kind = "bf16" if args.bf16 else "fp32"
    for words, base in (("no dropout", "published, no dropout"), ("dropout 0.1", "published, dropout 0.1")):
        chosen = {name: values for name, values in times.items() if words in name}
        title = f"Training step, {args.backbone}, {kind}, {prompts} prompts a block, {words}, ms per image"
        print_ratios(title, chosen, base, per=args.batch)
    few = "prefix, one prompt, no dropout"
    chosen = {name: times[name] for name in (few, "prefix, no dropout")}
    print_ratios("The same, against one prompt", chosen, few, per=args.batch)


if __name__ == "__main__":
    main()
