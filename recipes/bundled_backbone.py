"""Train the backbone that vprompt ships: a ViT for 64x64 images, on Tiny ImageNet.

    python recipes/bundled_backbone.py --data DIR --out runs/backbone

DIR holds `train-*.parquet`, `val.parquet` (columns `image` = {bytes, path} and `label`) and `classes.txt`. The run is
cheap enough for two CPU cores: it starts on small images (few tokens) and grows them, trains in bf16, and
orthogonalises the updates of the blocks' matrices (Muon), everything else by AdamW. It checkpoints after every epoch
and goes on from there when started again with the same arguments.

Should give about 40 % top-1 on the 10,000 validation images with the default stages (see the model card in
`src/vprompt/backbones/bundled/`). Needs `pip install pyarrow` besides vprompt.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

CLASSES = 200
FULL_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`epochs` epochs at images of `size` pixels; `cutmix` is the share of batches that are cut and mixed."""

    size: int
    epochs: int
    cutmix: float


def parse_stages(text: str) -> list[Stage]:
    """Reads `32:14:0.5,48:8:0.5,64:8:0` as stages of (pixels, epochs, cutmix share)."""
    fields = [part.split(":") for part in text.split(",")]
    return [Stage(size=int(size), epochs=int(epochs), cutmix=float(cutmix)) for size, epochs, cutmix in fields]


def build_model() -> VisionTransformer:
    """ViT, patch 8, width 192, 12 blocks, 3 heads, class token: 5.5 M parameters, 64 + 1 tokens at 64 pixels."""
    return VisionTransformer(
        img_size=FULL_SIZE, patch_size=8, embed_dim=192, depth=12, num_heads=3, num_classes=CLASSES, drop_path_rate=0.02
    )


def read_split(files: list[Path], cache: Path) -> tuple[Tensor, Tensor]:
    """Decodes parquet files to (N, 3, 64, 64) uint8 and (N,) labels, once; later calls read the cache."""
    if not cache.exists():
        import pyarrow.parquet as pq

        images, labels = [], []
        for file in files:
            for row in pq.read_table(file).to_pylist():
                with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
                    images.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
                labels.append(row["label"])
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": torch.from_numpy(np.stack(images)).contiguous(), "labels": torch.tensor(labels)}, cache)
    split = load_file(cache)
    return split["images"], split["labels"]


def normalise(images_BCHW: Tensor) -> Tensor:
    """uint8 or float in 0..255 to -1..1 (mean 0.5, standard deviation 0.5)."""
    return images_BCHW.float().div_(127.5).sub_(1.0)


def random_crops(images_BCHW: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random resized crops (area 25-100 %, aspect 3/4-4/3) with flips, for a whole uint8 batch at once."""
    batch = images_BCHW.shape[0]
    uniform = torch.rand(5, batch, generator=generator)
    area = 0.25 + 0.75 * uniform[0]
    ratio = torch.exp((uniform[1] * 2 - 1) * math.log(4 / 3))
    scale_x = (area * ratio).sqrt().clamp(max=1.0)
    scale_y = (area / ratio).sqrt().clamp(max=1.0)
    shift_x = (uniform[2] * 2 - 1) * (1 - scale_x)
    shift_y = (uniform[3] * 2 - 1) * (1 - scale_y)
    flip = torch.where(uniform[4] < 0.5, -1.0, 1.0)
    zero = torch.zeros(batch)
    theta = torch.stack([scale_x * flip, zero, shift_x, zero, scale_y, shift_y], dim=1).view(batch, 2, 3)
    images = images_BCHW.float()
    # Sampling far below the source resolution would alias: average to about the target size first.
    if size <= FULL_SIZE // 2:
        images = F.interpolate(images, size=int(FULL_SIZE * 0.75), mode="bilinear", antialias=True)
    grid = F.affine_grid(theta, [batch, 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def cutmix(images_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Pastes one box of a shuffled batch; returns images, the permutation, and the share of the original left."""
    height, width = images_BCHW.shape[-2:]
    order = torch.randperm(images_BCHW.shape[0], generator=generator)
    keep = float(torch.rand((), generator=generator))
    side = math.sqrt(1 - keep)
    box_h, box_w = round(height * side), round(width * side)
    top = int(torch.randint(0, height - box_h + 1, (), generator=generator))
    left = int(torch.randint(0, width - box_w + 1, (), generator=generator))
    mixed = images_BCHW.clone()
    mixed[..., top : top + box_h, left : left + box_w] = images_BCHW[order][..., top : top + box_h, left : left + box_w]
    return mixed, order, 1 - box_h * box_w / (height * width)


def build_optimizers(model: nn.Module, optimizer: str, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else (or AdamW alone)."""
    inside = [(name, p) for name, p in model.named_parameters() if name.startswith(("blocks.", "layers."))]
    matrices = [p for name, p in inside if p.ndim == 2 and "table" not in name] if optimizer == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2 and p.shape[0] != 1], "weight_decay": 0.05},
        {"params": [p for p in rest if p.ndim < 2 or p.shape[0] == 1], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)]
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"))
    return found


def learning_rate(progress: float, peak: float, warmup: float = 0.04) -> float:
    """Linear warm-up, then linear decay to zero; `progress` runs from 0 to 1 over the whole training."""
    return peak * min(progress / warmup, (1 - progress) / (1 - warmup))


@torch.inference_mode()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, size: int) -> float:
    """Top-1 accuracy (0-1) on uint8 images, resized to `size`."""
    model.eval()
    correct = 0
    for batch, target in zip(images.split(500), labels.split(500), strict=True):
        inputs = (
            F.interpolate(batch.float(), size=size, mode="bilinear", antialias=True) if size != FULL_SIZE else batch
        )
        with torch.autocast("cpu", torch.bfloat16):
            correct += int((model(normalise(inputs)).argmax(1) == target).sum())
    return correct / len(labels)


class Trainer:
    """One run: model, optimisers, data and the place where it checkpoints; `build`, `resize` know the architecture."""

    model: Any

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.stages = parse_stages(args.stages)
        self.epochs = sum(stage.epochs for stage in self.stages)
        data = Path(args.data)
        self.train = read_split(sorted(data.glob("train-*.parquet")), self.out / "train.cache")
        self.val = read_split([data / "val.parquet"], self.out / "val.cache")
        self.model = self.build()
        self.optimizers = build_optimizers(self.model, args.optimizer, args.lr)
        self.history: list[dict[str, float]] = []
        # Work, not epochs, drives the schedule: an epoch on small images moves it less.
        self.work = [(stage.size / FULL_SIZE) ** 2 for stage in self.stages for _ in range(stage.epochs)]

    def stage_of(self, epoch: int) -> Stage:
        return next(s for i, s in enumerate(self.stages) if epoch < sum(t.epochs for t in self.stages[: i + 1]))

    def run(self) -> None:
        checkpoint = self.out / "checkpoint.pt"
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            # The size first: it replaces parameters, which the optimisers must know.
            self.resize(state["size"])
            self.model.load_state_dict(state["model"])
            self.optimizers = build_optimizers(self.model, self.args.optimizer, self.args.lr)
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.history = state["history"]
        for epoch in range(len(self.history), self.epochs):
            self.run_epoch(epoch)
            state = {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "history": self.history,
                "size": self.stage_of(epoch).size,
            }
            torch.save(state, checkpoint.with_suffix(".part"))
            os.replace(checkpoint.with_suffix(".part"), checkpoint)
            self.export()

    def run_epoch(self, epoch: int) -> None:
        stage = self.stage_of(epoch)
        self.resize(stage.size)
        self.model.train()
        generator = torch.Generator().manual_seed(self.args.seed * 1000 + epoch)
        torch.manual_seed(self.args.seed * 1000 + epoch)  # drop path
        images, labels = self.train
        order = torch.randperm(len(labels), generator=generator)
        batches = order[: len(order) // self.args.batch * self.args.batch].view(-1, self.args.batch)
        done, total = sum(self.work[:epoch]), sum(self.work)
        losses, started = [], time.time()
        for step, index in enumerate(batches):
            lr = learning_rate((done + self.work[epoch] * (step + 0.5) / len(batches)) / total, self.args.lr)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
            losses.append(self.step(images[index], labels[index], stage, generator))
            if step % 50 == 0:
                print(f"epoch {epoch} step {step} lr {lr:.2e} loss {np.mean(losses[-50:]):.3f}", flush=True)
        row = {
            "epoch": epoch,
            "size": stage.size,
            "train_loss": float(np.mean(losses)),
            "val_accuracy": evaluate(self.model, *self.val, size=stage.size),
            "seconds": time.time() - started,
        }
        self.history.append(row)
        print(json.dumps(row), flush=True)

    def step(self, images: Tensor, labels: Tensor, stage: Stage, generator: torch.Generator) -> float:
        inputs = normalise(random_crops(images, stage.size, generator))
        order, keep = torch.arange(len(labels)), 1.0
        if float(torch.rand((), generator=generator)) < stage.cutmix:
            inputs, order, keep = cutmix(inputs, generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(inputs).float()
        smooth = self.args.label_smoothing
        loss = keep * F.cross_entropy(logits, labels, label_smoothing=smooth)
        if keep < 1:
            loss = loss + (1 - keep) * F.cross_entropy(logits, labels[order], label_smoothing=smooth)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def build(self) -> nn.Module:
        """The model for images of full size."""
        return build_model()

    def resize(self, size: int) -> None:
        """Changes the input size, keeping each optimiser's state where the shape stays."""
        if self.model.patch_embed.img_size == (size, size):
            return
        old = self.model.pos_embed
        self.model.set_input_size(img_size=size)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [self.model.pos_embed if p is old else p for p in group["params"]]
            optimizer.state.pop(old, None)

    def full_size(self) -> dict[str, Tensor]:
        """The weights as they are at full size."""
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if state["pos_embed"].shape != build_model().pos_embed.shape:
            from timm.layers import resample_abs_pos_embed

            grid = FULL_SIZE // 8
            state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [grid, grid])
        return state

    def export(self) -> None:
        """Writes the weights at full size as fp16, and what was measured."""
        save_file(
            {name: tensor.half().contiguous() for name, tensor in self.full_size().items()},
            self.out / "backbone.safetensors",
        )
        report = {"arguments": vars(self.args), "stages": [asdict(s) for s in self.stages], "history": self.history}
        (self.out / "history.json").write_text(json.dumps(report, indent=1))


def read_arguments(description: str | None, *, out: str, stages: str) -> argparse.Namespace:
    """The command line, with the given defaults; sets what torch computes with."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", default=out)
    parser.add_argument("--stages", default=stages, help="pixels:epochs:cutmix share, ...")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_fused_attn(False)  # on CPUs the fused attention's bf16 backward costs as much as the rest of the network
    return args


def main() -> None:
    """Trains as the command line says."""
    Trainer(read_arguments(__doc__, out="runs/backbone", stages="32:10:0,48:5:0.25,64:2:0")).run()


if __name__ == "__main__":
    main()
