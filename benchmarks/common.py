"""What the benchmarks share: a backbone with random weights, and a fair clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from vprompt.backbones.factory import create_backbone


def random_backbone(name: str = "vit_base_patch16_224") -> nn.Module:
    """A timm model; the values of the weights do not matter to its speed."""
    torch.manual_seed(0)
    return create_backbone(name, pretrained=False).eval()


def interleaved(variants: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """CPU seconds of every variant in every round, the variants in turn."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + rounds):
        for name, run in variants.items():
            started = time.process_time()
            run()
            if number >= warmup:
                times[name].append(time.process_time() - started)
    return times


def print_ratios(title: str, times: dict[str, list[float]], base: str, *, per: int) -> None:
    """Prints each variant's median time and its ratio to `base`: median, lowest and highest over the rounds."""
    print(f"\n{title}")
    print(f"{'':42s} {'ms':>8s}  ratio to {base} (median, min-max)")
    for name, values in times.items():
        ratios = [mine / other for mine, other in zip(values, times[base], strict=True)]
        print(
            f"{name:42s} {1000 * statistics.median(values) / per:8.1f}  {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f}-{max(ratios):.3f})"
        )
