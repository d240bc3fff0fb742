"""A bank of adapters: a mixed batch against one adapter after the other and against loading each when it is asked.

python benchmarks/bank.py [--adapters 1,10,100] [--batch 100] [--prompts 20] [--rounds 5] [--backbone NAME]

One thread, CPU time, interleaved. Every adapter has another number of prompts, up to --prompts a block; each image of
the batch asks the next adapter in turn. The last part asks all adapters about one image, with prompts from the middle
block on, against asking them about as many images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from common import interleaved, print_ratios, random_backbone
from torch import nn

import vprompt


def adapter(backbone: nn.Module, number: int, prompts: int, *, first: int = 0) -> vprompt.PromptedModel:
    """An adapter with a count of its own, and no prompts below block `first`."""
    model = vprompt.attach(backbone, vprompt.VPT(prompts), num_classes=10 + number % 90)
    counts = [0 if block < first else 1 + number % prompts for block in range(len(model.prompts))]
    return model.keep([torch.arange(count) for count in counts]).eval()


def one_by_one(bank: vprompt.Bank, images: torch.Tensor, names: list[str]) -> None:
    for row, name in enumerate(names):
        bank(images[row : row + 1], [name])


def reloaded(backbone: nn.Module, folder: Path, images: torch.Tensor, names: list[str]) -> None:
    for row, name in enumerate(names):
        vprompt.load(folder / name, backbone=backbone).fold()(images[row : row + 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", default="1,10,100")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backbone", default="vprompt_vit_tiny_patch8_64.tiny_imagenet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone = random_backbone(args.backbone)
    size = vprompt.attach(backbone, num_classes=1).preprocessing.size
    images = torch.randn(args.batch, 3, *size)
    plain = "timm's plain forward"
    for count in map(int, args.adapters.split(",")):
        models = {f"a{number}": adapter(backbone, number, args.prompts) for number in range(count)}
        bank = vprompt.Bank(backbone)
        for name, model in models.items():
            bank.add(name, model)
        names = [f"a{row % count}" for row in range(args.batch)]
        with tempfile.TemporaryDirectory() as place:
            for name, model in models.items():
                model.save_pretrained(Path(place) / name)
            variants = {
                plain: lambda: backbone(images),
                "mixed in one batch": lambda bank=bank, names=names: bank(images, names),
                "one by one": lambda bank=bank, names=names: one_by_one(bank, images, names),
                "loaded when asked, one by one": lambda place=place, names=names: reloaded(
                    backbone, Path(place), images, names
                ),
            }
            with torch.inference_mode():
                times = interleaved(variants, rounds=args.rounds)
        kilobytes = sum(bank[name].nbytes for name in bank) / count / 1024
        title = f"{count} adapters, {args.batch} images, {args.backbone}, ms per image; {kilobytes:.0f} KiB an adapter"
        print_ratios(title, times, plain, per=args.batch)
    half = len(vprompt.backbones.info.describe(backbone).blocks) // 2
    bank, names = vprompt.Bank(backbone), [f"a{number}" for number in range(args.batch)]
    for number, name in enumerate(names):
        bank.add(name, adapter(backbone, number, args.prompts, first=half))
    variants = {
        "as many images": lambda: bank(images, names),
        "one image": lambda: bank(images[:1], names, rows=[0] * args.batch),
    }
    times = interleaved(variants, rounds=args.rounds)
    title = f"{args.batch} adapters with prompts from block {half} on, ms per answer"
    print_ratios(title, times, "as many images", per=args.batch)


if __name__ == "__main__":
    main()
