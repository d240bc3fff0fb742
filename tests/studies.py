"""Studies to make reports of: results shaped like those that runs write, filled by chance."""

import math
import random

VTAB = {
    "natural": ["cifar", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397"],
    "specialized": ["patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"],
    "structured": [
        *("clevr_count", "clevr_dist", "dmlab", "kitti"),
        *("dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele"),
    ],
}
METHODS = ["Linear", "VPT-Shallow", "VPT-Deep", "E²VPT", "PC 30 %", "PC 10 %", "Adapter", "LoRA"]
BLOCKS = 12


def model(chance, accuracy, prompts, learned, epochs):
    """The numbers of one trained model."""
    converged = chance.random() < 0.9
    return {
        "val_accuracy": min(1.0, max(0.0, accuracy + chance.gauss(0, 0.02))),
        "test_accuracy": accuracy,
        "prompt_counts": prompts,
        "learned_params": learned,
        "backbone_params": 85798656,
        "folded_gmacs": 17.56 + sum(prompts) / 3300,
        "method": "vpt-deep",
        "training_seconds": round(chance.uniform(50, 90), 1),
        "converged": converged,
        "convergence": {"epochs": 2 * epochs, "difference": 0.0 if converged else 1.0, "standard_error": 0.1},
        "epochs": [
            {
                "epoch": epoch,
                "loss": 2.3 * math.exp(-epoch / (15 if converged else 60)) + 0.05 * chance.random(),
                "accuracy": accuracy,
                "lr": 0.001,
            }
            for epoch in range(1, epochs + 1)
        ],
    }


def result(task, method, seed, *, epochs=20, base=0.6):
    """A finished run; condensed methods have the model before."""
    chance = random.Random(f"{task} {method} {seed}")
    level = random.Random(task).uniform(-0.25, 0.25) + random.Random(method).uniform(-0.05, 0.05)
    accuracy = base + level + chance.gauss(0, 0.01)
    before = None
    prompts = [0 if method in ("Linear", "LoRA", "Adapter") else 50] * BLOCKS
    learned = {"Linear": 7690, "LoRA": 294912, "Adapter": 1800000}.get(method, 460800 + 7690)
    if method.startswith(("PC", "E²VPT")):
        before = model(chance, accuracy + 0.005, prompts, learned, epochs)
        prompts = [chance.randint(3, 30) for _ in range(BLOCKS)]
        learned = 768 * sum(prompts) + 7690
    found = model(chance, accuracy, prompts, learned, epochs if before is None else max(1, epochs // 4))
    if before is not None:
        found["before"] = before
    return {
        **found,
        "backbone": "vit_base_patch16_224.augreg_in21k",
        "seed": seed,
        "settings": {
            "data": task,
            "backbone": "vit_base_patch16_224.augreg_in21k",
            "weights": None,
            "method": method,
            "prompts": 50,
            "condense": 0.3 if before else None,
            "epochs": epochs,
            "batch_size": 64,
            "optimizer": "adamw",
            "lr": 0.001 * (1 + len(method) % 3) * (1 + len(task) % 2),
            "seed": seed,
            "split_seed": 0,
        },
        "provenance": {
            "data": {
                "source": task,
                "fingerprint": f"{random.Random(task).getrandbits(64):016x}",
                "classes": ["0", "1"],
                "images": {"train": 800, "val": 200, "test": 2000},
                "skipped": [],
            },
            "preprocessing": {
                "size": [224, 224],
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "interpolation": "bicubic",
                "resize": "squash",
            },
            "backbone_fingerprint": "818486df291ba94a",
            "weights": {"file": "model.safetensors", "sha256": "0123456789abcdef"},
            "versions": {"vprompt": "0.1.0", "torch": "2.9.0", "timm": "1.0.31", "numpy": "2.1.0"},
            "python": "3.11.7",
            "platform": "Linux",
            "device": "cuda",
        },
        "seconds": 140.5,
        "name": f"runs/{task.replace(':', '-')}/{method}/seed{seed}/result.json",
    }


def search(chance):
    """A search of six trials."""
    trials = [
        {
            "settings": {"lr": lr, "weight_decay": wd},
            "epochs": 20 if lr < 0.01 else 5,
            "val_accuracy": chance.uniform(0.3, 0.6),
            "stopped": lr >= 0.01,
        }
        for lr in (0.001, 0.005, 0.02)
        for wd in (0.0, 0.0001)
    ]
    return {
        "space": {"lr": [0.001, 0.005, 0.02], "weight_decay": [0.0, 0.0001]},
        "by": "accuracy",
        "trials": trials,
        "chosen": trials[2]["settings"],
    }


def make_study(tasks=None, methods=METHODS, seeds=(0, 1, 2), *, epochs=20, searched=True, failing=0.0, missing=0.0):
    """A study of VTAB tasks (all 19 by default), of which some runs failed or are missing."""
    names = [(group, name) for group, members in VTAB.items() for name in members if tasks is None or name in tasks]
    cells = []
    for _, name in names:
        for method in methods:
            for seed in seeds:
                chance = random.Random(f"{name}/{method}/{seed}")
                luck = chance.random()
                cell = {"task": f"vtab:{name}", "method": method, "seed": seed, "state": "finished", "failure": None}
                if luck < failing:
                    failure = "The loss is no longer a number after epoch 3; lower --lr."
                    cell |= {"state": "failed", "failure": failure, "result": None, "search": None}
                elif luck < failing + missing:
                    cell |= {"state": "missing", "result": None, "search": None}
                else:
                    made = result(f"vtab:{name}", method, seed, epochs=epochs)
                    cell |= {"result": made, "search": search(chance) if searched else None}
                cells.append(cell)
    return {
        "name": "small",
        "title": "Prompt methods on VTAB-1k",
        "description": "Eight methods side by side.\n\nThe second paragraph says more.",
        "source": "the VPT paper, arXiv 2203.12119",
        "plan": '[study]\nname = "small"\nseeds = [0, 1, 2]\n',
        "hours_planned": 3.5,
        "tasks": [
            {
                "task": f"vtab:{name}",
                "title": name.replace("_", " ").capitalize(),
                "group": group,
                "published": name,
                "benchmark": "vtab",
                "comparable": name != "svhn",
                "differences": ["Its images are other ones."] if name == "svhn" else [],
                "classes": ["0", "1"],
                "images": {"train": 800, "val": 200, "test": 2000},
            }
            for group, name in names
        ],
        "methods": [{"label": method, "method": "vpt-deep"} for method in methods],
        "seeds": list(seeds),
        "backbone": {"name": "vit_base_patch16_224.augreg_in21k", "parameters": 85798656, "bare_gmacs": 17.56},
        "cells": cells,
        "made": "2026-11-21T12:00:00Z",
    }
