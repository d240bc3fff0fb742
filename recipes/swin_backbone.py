"""Train a small Swin on Tiny ImageNet, to see whether prompts condense in one as they do in a ViT.

    python recipes/swin_backbone.py --data DIR --out runs/swin

DIR and the way of training are those of `bundled_backbone.py`. Writes a folder that timm, and so vprompt, takes as
`--backbone local-dir:runs/swin` (at any size whose grid of patches the windows divide). The defaults take about forty
minutes of one CPU core and reach 39.0 % top-1 (the bundled ViT: 41.0 %). The one that docs/results/claims.md tells of
was begun with 3 epochs of 64 pixels in the schedule, so that its rate fell a little faster from the twelfth epoch on.
"""

from __future__ import annotations

import json
from typing import Any

import timm
from bundled_backbone import CLASSES, FULL_SIZE, Trainer, build_optimizers, read_arguments
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import Tensor

ARCHITECTURE = "swin_tiny_patch4_window7_224"
# 7.0 M parameters in 2 + 2 + 6 + 2 blocks; 16 tokens a window: 16, 4, 1 and 1 windows at 64 pixels.
SHAPE = {"embed_dim": 48, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 4}


def build_swin(size: int) -> SwinTransformer:
    """Swin with patches of 4 pixels and windows of 4x4 patches (less where the grid is smaller)."""
    options: dict[str, Any] = {**SHAPE, "img_size": size, "num_classes": CLASSES, "drop_path_rate": 0.02}
    return timm.create_model(ARCHITECTURE, pretrained=False, **options)


class SwinTrainer(Trainer):
    """The bundled backbone's training with another architecture."""

    def build(self) -> SwinTransformer:
        """The model for images of full size."""
        return build_swin(FULL_SIZE)

    def resize(self, size: int) -> None:
        """Another model with the same weights: tables of relative positions change with the windows."""
        if self.model.patch_embed.img_size == (size, size):
            return
        old, self.model = self.model, build_swin(size)
        self.model.load_state_dict(checkpoint_filter_fn(old.state_dict(), self.model))
        self.optimizers = build_optimizers(self.model, self.args.optimizer, self.args.lr)

    def full_size(self) -> dict[str, Tensor]:
        """The weights as they are at full size."""
        return dict(checkpoint_filter_fn(self.model.state_dict(), build_swin(FULL_SIZE)))

    def export(self) -> None:
        """Writes what timm reads of a `local-dir:`."""
        super().export()
        state = {name: tensor.float().contiguous() for name, tensor in self.full_size().items()}
        save_file(state, self.out / "model.safetensors")
        config = {
            "architecture": ARCHITECTURE,
            "num_classes": CLASSES,
            "model_args": {**SHAPE, "img_size": FULL_SIZE},
            "pretrained_cfg": {
                "input_size": [3, FULL_SIZE, FULL_SIZE],
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "crop_pct": 1.0,
                "interpolation": "bilinear",
                "num_classes": CLASSES,
                "first_conv": "patch_embed.proj",
                "classifier": "head.fc",
            },
        }
        (self.out / "config.json").write_text(json.dumps(config, indent=1))


def main() -> None:
    """Trains as the command line says."""
    SwinTrainer(read_arguments(__doc__, out="runs/swin", stages="32:12:0,64:2:0")).run()


if __name__ == "__main__":
    main()
