"""Provenance of a result: data, preprocessing, weights, versions, machine."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from vprompt.backbones.info import fingerprint
from vprompt.data.dataset import ImageDataset, Task
from vprompt.model.model import PromptedModel
from vprompt.utils.version import __version__


def provenance(
    model: PromptedModel, trained_on: ImageDataset, task: Task, weights: dict[str, str] | None, *, tested: bool = True
) -> dict[str, Any]:
    """The provenance of a result, as plain data."""
    splits = {"train": task.train, "val": task.val, "test": task.test}
    return {
        "data": {
            "source": task.source,
            "fingerprint": task.fingerprint(),
            "classes": list(task.classes),
            "images": {name: None if split is None else len(split) for name, split in splits.items()},
            "skipped": list(task.skipped),
            "differences": list(task.differences),
            "per_split": {split: dict(counts) for split, counts in task.summary.per_split.items()},
            "passed_over": {reason: len(names) for reason, names in task.summary.passed_over.items()},
            "notes": list(task.summary.notes),
            "sample": task.summary.sample,
        },
        "preprocessing": asdict(task.preprocessing),
        "trained_on": {"images": len(trained_on), "augment": trained_on.augment},
        "backbone_fingerprint": fingerprint(model.backbone),
        "weights": weights,
        "epoch_rule": f"last epoch; test data {'read once, at the end' if tested else 'not read'}",
        "versions": {
            "vprompt": __version__,
            "torch": torch.__version__,
            **{name: version(name) for name in ("timm", "accelerate", "numpy")},
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": next(model.parameters()).device.type,
    }
