"""Memory and time of a training step, and time of folded inference, with the backbone held in each precision.

python benchmarks/quantised.py [--backbones bundled,vit_base_patch16_224] [--prompts 10] [--batch 4] [--rounds 3]
                               [--json FILE]

Bytes are counted: the backbone as it is held, and the most that all tensors take that a step makes. Times are CPU time
of one thread, variants in turn, in one run; ratios are to fp32. Then one linear layer (768 to 2304, 788 rows): what its
forward and backward pass take, and what it keeps for the backward pass, in ours and, where it is installed, in torchao.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from common import interleaved, print_ratios
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from training_memory import Live

import vprompt
from vprompt.backbones.factory import create_backbone
from vprompt.backbones.frozen_linear import FORMS, FrozenLinear
from vprompt.backbones.names import BackbonePrecision
from vprompt.model.model import PromptedModel


def step(model: PromptedModel, images: torch.Tensor, labels: torch.Tensor) -> None:
    F.cross_entropy(model(images), labels).backward()
    model.zero_grad()


def ratios(times: dict[str, list[float]], base: str) -> dict[str, list[float]]:
    """Median, lowest and highest ratio to the base, over the rounds."""
    found: dict[str, list[float]] = {}
    for name, values in times.items():
        each = [mine / other for mine, other in zip(values, times[base], strict=True)]
        found[name] = [round(value, 3) for value in (statistics.median(each), min(each), max(each))]
    return found


def measured(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    backbone = create_backbone(name, pretrained=name == "bundled")
    backbone.reset_classifier(0)  # type: ignore[operator]
    models: dict[str, PromptedModel] = {}
    for precision in get_args(BackbonePrecision):
        torch.manual_seed(0)
        method = vprompt.VPT(options.prompts)
        models[precision] = vprompt.attach(backbone, method, num_classes=10, backbone_precision=precision)
    images = torch.randn(options.batch, *models["fp32"].preprocessing.shape)
    labels = torch.arange(options.batch) % 10
    peaks: dict[str, int] = {}
    for precision, model in models.items():
        with Live() as live:
            step(model, images, labels)
        peaks[precision] = live.peak
    steps = {precision: lambda m=model: step(m, images, labels) for precision, model in models.items()}
    trained = interleaved(steps, rounds=options.rounds)
    print_ratios(f"{name}: a training step", trained, "fp32", per=options.batch)
    folded = {precision: model.eval().fold() for precision, model in models.items()}
    runs: dict[str, dict[str, list[float]]] = {}
    for batch in (1, options.batch):
        with torch.inference_mode():
            calls = {precision: lambda m=model, n=batch: m(images[:n]) for precision, model in folded.items()}
            runs[f"folded_{batch}"] = interleaved(calls, rounds=2 * options.rounds)
        print_ratios(f"{name}: folded, batch {batch}", runs[f"folded_{batch}"], "fp32", per=batch)
    rows: list[dict[str, Any]] = []
    for precision, model in models.items():
        held = sum(tensor.nbytes for tensor in [*model.backbone.parameters(), *model.backbone.buffers()])
        row: dict[str, Any] = {"backbone": name, "held_in": precision, "backbone_bytes": held}
        row |= {"step_peak_bytes": peaks[precision], "step_ratio": ratios(trained, "fp32")[precision]}
        row |= {f"{what}_ratio": ratios(times, "fp32")[precision] for what, times in runs.items()}
        rows.append(row)
        print(f"{precision}: backbone {held / 1e6:.1f} MB, step {peaks[precision] / 1e6:.1f} MB")
    return rows


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it has its numbers itself: torchao's weights are of classes of their own."""
    return type(tensor) in (torch.Tensor, nn.Parameter)


def one_layer(rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    plain = nn.Linear(768, 2304).requires_grad_(False)
    layers: dict[str, nn.Module] = {"fp32": plain, **{f"{form}": FrozenLinear(plain, form) for form in FORMS}}
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

        for label, config in {"int8": Int8WeightOnlyConfig(), "fp8": Float8WeightOnlyConfig()}.items():
            made = nn.Sequential(copy.deepcopy(plain))
            quantize_(made, config)
            layers[f"torchao {label}"] = made
    except ImportError as error:
        print(f"Without torchao: {error}")
    x = torch.randn(788, 768, requires_grad=True)
    calls: dict[str, Callable[[], object]] = {label: lambda m=m: m(x).sum().backward() for label, m in layers.items()}
    times = interleaved(calls, rounds=4 * rounds)
    print_ratios("One layer, forward and backward", times, "fp32", per=1)
    rows: list[dict[str, Any]] = []
    for label, layer in layers.items():
        held = [tensor for tensor in [*layer.parameters(), *layer.buffers(), x] if is_plain(tensor)]
        there = {tensor.untyped_storage().data_ptr() for tensor in held}
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            if is_plain(tensor):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            layer(x)
        extra = sum(size for place, size in kept.items() if place not in there)
        rows.append({"layer": label, "kept_bytes": extra, "ratio": ratios(times, "fp32")[label]})
        print(f"{label}: keeps {extra / 1e6:.1f} MB for the backward pass beside its weight")
    return rows


def tables(document: dict[str, Any]) -> Iterator[str]:
    """Memory and time of steps and of folded inference; then of one layer."""
    batch = document["batch"]
    yield f"| backbone | held in | backbone MB | step MB | a step | folded, one image | folded, {batch} images |"
    yield "|---|---|---:|---:|---|---|---|"
    for row in document["models"]:
        sizes = [f"{row[part] / 1e6:.1f}" for part in ("backbone_bytes", "step_peak_bytes")]
        times = [_ratio(row[what]) for what in ("step_ratio", "folded_1_ratio", f"folded_{batch}_ratio")]
        yield f"| {' | '.join([row['backbone'], row['held_in'], *sizes, *times])} |"
    yield ""
    yield "| layer | kept for the backward pass MB | forward and backward |"
    yield "|---|---:|---|"
    for row in document["layer"]:
        yield f"| {row['layer']} | {row['kept_bytes'] / 1e6:.1f} | {_ratio(row['ratio'])} |"


def _ratio(found: list[float]) -> str:
    middle, low, high = found
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbones", default="bundled,vit_base_patch16_224")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {"prompts": options.prompts, "batch": options.batch, "torch": torch.__version__}
    document["models"] = [row for name in options.backbones.split(",") for row in measured(name, options)]
    document["layer"] = one_layer(options.rounds)
    print("", *tables(document), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
