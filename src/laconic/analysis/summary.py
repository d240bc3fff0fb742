"""What the runs of one method come to: means over its seeds, and the size and time of its models."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laconic.adapter import load
from laconic.analysis.cost import folded_gmacs
from laconic.analysis.latency import latency
from laconic.backbone import num_parameters
from laconic.errors import LaconicError
from laconic.model import FoldedModel
from laconic.progress import bar

GMACS_PER_CALL = 40.0
"""About a second on one thread of a processor."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Models of several methods side by side.

    Args:
        bare: Of the backbone: `parameters` without its classifier, `device`, and `milliseconds` per image.
        costs: Method -> `kv_prompts`, `folded_gmacs`, `milliseconds` per image, and `time_ratio` to the backbone.
        failures: Method -> why its model cannot be measured.
    """

    bare: dict[str, Any] | None = None
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def measure(backbone: nn.Module, adapters: Mapping[str, Path], *, progress: bool = False) -> Measured:
    """Counts and times the folded models of several methods and the bare backbone, in turn.

    Args:
        backbone: What they were trained on; moved to the accelerator where there is one.
        adapters: Method -> folder of an adapter.
        progress: Say on standard error that it is going on.
    """
    if torch.accelerator.is_available():
        backbone = backbone.to(torch.accelerator.current_accelerator())
    device = next(backbone.parameters()).device
    folded: dict[str, FoldedModel] = {}
    costs: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    for method, folder in adapters.items():
        try:
            model = load(folder, backbone)
            folded[method] = model.fold()
        except LaconicError as error:
            failures[method] = str(error)
            continue
        kv_prompts = sum(prompts.shape[-2] for prompts in model.kv_prompts)
        costs[method] = {"kv_prompts": kv_prompts, "folded_gmacs": folded_gmacs(model)}
    bare: dict[str, Any] = {"parameters": num_parameters(backbone), "device": device.type}
    if folded:
        most = max(cost["folded_gmacs"] for cost in costs.values())
        batch = 64 if device.type != "cpu" else max(1, min(16, int(GMACS_PER_CALL / most)))
        images = torch.randn(batch, 3, *next(iter(folded.values())).preprocessing.size, device=device)
        with bar("timing", enabled=progress):
            times = latency({"": backbone, **folded}, images, rounds=12)
        bare["milliseconds"] = times[""].milliseconds
        for method, cost in costs.items():
            cost |= {"milliseconds": times[method].milliseconds, "time_ratio": times[method].ratio}
    return Measured(bare=bare, costs=costs, failures=failures)


def summary(results: Sequence[dict[str, Any]], measured: Measured, method: str) -> dict[str, Any]:
    """One row of a comparison; what is not known is None.

    Args:
        results: The documents of its finished runs, one per seed.
        measured: With the costs of this method, where it could be measured.
        method: Its name.

    Example:
        >>> row = summary([], Measured(), "linear")
        >>> row["runs"], row["test_accuracy"]
        (0, None)
    """
    tests = [result["test_accuracy"] for result in results if result["test_accuracy"] is not None]
    learned = _mean([result["learned_params"] for result in results])
    prompts = _mean([sum(result["prompt_counts"]) for result in results])
    costs = measured.costs.get(method)
    return {
        "runs": len(results),
        "test_accuracy": _mean(tests),
        "test_std": statistics.stdev(tests) if len(tests) > 1 else None,
        "val_accuracy": _mean([result["val_accuracy"] for result in results if result["val_accuracy"] is not None]),
        "learned_params": learned,
        "learned_share": None if learned is None or not measured.bare else learned / measured.bare["parameters"],
        "prompts": None if prompts is None or costs is None else prompts + costs["kv_prompts"],
        **{key: costs[key] if costs else None for key in ("folded_gmacs", "milliseconds", "time_ratio")},
        "training_seconds": _mean([training_seconds(result) for result in results]),
        "converged": sum(result["converged"] for result in results),
    }


def training_seconds(result: dict[str, Any]) -> float:
    """Of a run, with those of the model that it condensed, or of the whole search for how much to prune."""
    if "pruning" in result:
        return result["before"]["training_seconds"] * result["pruning"]["trainings"]
    return result["training_seconds"] + result.get("before", {}).get("training_seconds", 0)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None
