"""Folded prompts against timm's plain forward: one thread, CPU time, interleaved.

python benchmarks/inference.py [--backbone vit_base_patch16_224] [--prompts 50,100,200] [--rounds 7] [--batch 4]
                               [--bf16] [--compile]

Where timm leaves fused attention off (Swin), its forward with fused attention is a variant of its own. With --compile,
timm's forward and the folded models are compiled, and nothing else is measured.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from common import interleaved, print_ratios, random_backbone
from torch import nn

import vprompt


def fused(backbone: nn.Module) -> nn.Module | None:
    """A copy with fused attention wherever timm has it but leaves it off; None where it does so nowhere."""
    twin = copy.deepcopy(backbone)
    off = [module for module in twin.modules() if getattr(module, "fused_attn", True) is False]
    for module in off:
        module.fused_attn = True
    return twin if off else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--prompts", default="50,100,200")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kind = torch.bfloat16 if args.bf16 else torch.float32
    backbone = random_backbone(args.backbone).to(kind)
    images = torch.randn(args.batch, 3, *vprompt.attach(backbone, num_classes=1).preprocessing.size).to(kind)
    counts = [int(count) for count in args.prompts.split(",")]
    ready: Callable[[nn.Module], Callable[..., object]] = torch.compile if args.compile else lambda model: model
    plain = ready(backbone)
    variants: dict[str, Callable[[], object]] = {"timm's plain forward": lambda: plain(images)}
    if not args.compile and (twin := fused(backbone)) is not None:
        variants["timm's, fused attention"] = lambda: twin(images)
    for prompts in counts:
        model = vprompt.attach(backbone, vprompt.VPT(prompts), num_classes=10).eval()
        folded, published = ready(model.fold()), model.copy(execution="published").eval()
        variants[f"{prompts} prompts, folded"] = lambda folded=folded: folded(images)
        if prompts == max(counts) and not args.compile:
            variants[f"{prompts} prompts, prefix"] = lambda model=model: model(images)
            variants[f"{prompts} prompts, as published"] = lambda published=published: published(images)
    with torch.inference_mode():
        times = interleaved(variants, rounds=args.rounds)
    how = f"{'bf16' if args.bf16 else 'fp32'}{', compiled' if args.compile else ''}"
    print_ratios(f"Inference, {args.backbone}, {how}, ms per image", times, "timm's plain forward", per=args.batch)


if __name__ == "__main__":
    main()
