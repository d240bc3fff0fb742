"""Exported files against the folded model in eager PyTorch: one thread, CPU time of the process, interleaved.

python benchmarks/formats.py [--backbone NAME] [--prompts 20] [--rounds 15] [--batch 1] [--formats pt2,onnx,...]

Formats whose packages are missing are left out. The bundled backbone has its weights, others have random ones: no
accuracy is meant, and int8 is calibrated on the bundled images. CPU time counts all threads of a runtime.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from common import interleaved, print_ratios, random_backbone

import vprompt
from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.factory import create_backbone
from vprompt.data.tasks import load_bundled
from vprompt.exporters.base import FORMATS
from vprompt.exporters.export import Int8
from vprompt.exporters.exported import Exported
from vprompt.model.model import FoldedModel
from vprompt.utils.errors import VPromptError


def exports(model: FoldedModel, folder: Path, wanted: list[str]) -> dict[str, Exported]:
    """The model in every format, and in int8 where there is that."""
    images = load_bundled(model.preprocessing).val
    assert images is not None
    found: dict[str, Exported] = {}
    for name in wanted:
        for int8 in (None, Int8(calibration=images.subset(range(0, 200, 4)))):
            label = name if int8 is None else f"{name}, int8"
            try:
                path = folder / f"{'float32' if int8 is None else 'int8'}{FORMATS.get(name).suffix}"
                found[label] = vprompt.export(model, path, int8=int8)
            except VPromptError as error:
                if int8 is None:
                    print(error)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=BUNDLED_BACKBONE)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--formats", default=",".join(FORMATS.names()))
    args = parser.parse_args()
    torch.set_num_threads(1)
    bundled = args.backbone == BUNDLED_BACKBONE
    backbone = create_backbone(args.backbone) if bundled else random_backbone(args.backbone)
    model = vprompt.attach(backbone, vprompt.VPT(args.prompts), num_classes=10).fold()
    images = torch.randn(args.batch, 3, *model.preprocessing.size)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        files = exports(model, Path(folder), args.formats.split(","))
        sizes = {name: file.bytes / 1e6 for name, file in files.items()}
        variants = {"eager": lambda: model(images)}
        variants |= {name: lambda file=file: file(images) for name, file in files.items()}
        times = interleaved(variants, rounds=args.rounds, warmup=3)
    print_ratios(f"{args.backbone}, batch of {args.batch}, ms per image", times, "eager", per=args.batch)
    print("\n".join(f"{name:42s} {size:8.1f} MB" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
