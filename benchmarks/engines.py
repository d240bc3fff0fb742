"""An engine that takes adapters as inputs against the export of one adapter: one thread, CPU time, interleaved.

python benchmarks/engines.py [--backbone vit_small_patch16_224] [--prompts 20] [--classes 200] [--rounds 9]

Weights are random: no accuracy is meant.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import interleaved, print_ratios, random_backbone
from PIL import Image

import vprompt
from vprompt.exporters.engine import export_engine, open_engine, packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    backbone = random_backbone(args.backbone)
    model = vprompt.attach(backbone, vprompt.VPT(args.prompts), num_classes=args.classes, head_init="paper").eval()
    with tempfile.TemporaryDirectory() as place:
        folder, noise = Path(place), np.random.default_rng(0)
        (folder / "images").mkdir()
        for number in range(3):  # engines are compared with eager on them
            pixels = noise.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        exported = vprompt.export(model, folder / "one.onnx", images=[str(folder / "images")])
        export_engine(backbone, folder / "engine.onnx", images=[str(folder / "images")])
        engine, adapter = open_engine(folder / "engine.onnx", trust=True), packed(model)
        for batch in (1, 16):
            images = torch.randn(batch, *model.preprocessing.shape)
            runs: dict[str, Callable[[], object]] = {
                "one adapter": partial(exported, images),
                "engine": partial(engine, images, [adapter] * batch),
            }
            times = interleaved(runs, rounds=args.rounds)
            print_ratios(f"onnx, {args.backbone}, batch {batch}, per image", times, "one adapter", per=batch)


if __name__ == "__main__":
    main()
