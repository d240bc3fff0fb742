"""The main job from end to end on the bundled backbone and task: what `vprompt demo` and `make demo` run."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.cli.console import percent, print_note, print_table
from vprompt.experiments.run import run, run_condense
from vprompt.experiments.settings import CondenseSettings, Settings
from vprompt.model.cost import model_cost
from vprompt.model.latency import Latency, latency
from vprompt.model.load import load
from vprompt.model.model import PromptedModel
from vprompt.model.records import Recipe
from vprompt.report.plots import Point, plot_accuracy, plot_kept
from vprompt.utils.progress import bar

TITLE = "Fashion-MNIST, 800 training images, on the bundled ViT"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long the demo trains; far shorter than the papers' 100 epochs, so that it ends in minutes.

    Args:
        prompts: Prompts per block.
        keep: Share that condensation keeps.
        epochs: For prompts; the linear probe, whose features are computed once, takes 100.
        fine_tune_epochs: After condensation.
        precision: `"bf16"` where the processor has instructions for it.
    """

    prompts: int = 20
    keep: float = 0.3
    epochs: int = 20
    fine_tune_epochs: int = 8
    precision: str = "fp32"


def run_demo(out: Path, *, seed: int = 0, plan: Plan | None = None) -> dict[str, Any]:
    """Runs all stages, or goes on where an earlier demo in `out` was stopped, and draws the pictures.

    Args:
        out: Folder for adapters, results and pictures.
        seed: Of all runs.
        plan: How long to train.

    Returns:
        `rows`, one per model, as the table shows them; `seconds`; `pictures`.
    """
    plan = plan or Plan(precision="bf16" if _fast_bf16() else "fp32")
    started = time.monotonic()
    recipe = Recipe(epochs=plan.epochs, precision=plan.precision, seed=seed)  # pyright: ignore[reportArgumentType]
    scratch = max(1, round(plan.prompts * plan.keep))
    full = Settings(backbone=BUNDLED_BACKBONE, prompts=plan.prompts, recipe=recipe)
    fewer = CondenseSettings(
        adapter=str(out / "vpt-deep"), ratio=plan.keep, seed=seed, fine_tune_epochs=plan.fine_tune_epochs
    )
    share = f"{100 * plan.keep:.0f} %"
    stages: list[tuple[str, str, Settings | CondenseSettings]] = [
        ("linear probe", "linear", dataclasses.replace(full, method="linear", recipe=Recipe(seed=seed))),
        (f"VPT-Deep, {plan.prompts} a block", "vpt-deep", full),
        (f"condensed to {share}, not tuned", "condensed-untuned", dataclasses.replace(fewer, fine_tune=False)),
        (f"condensed to {share}, fine-tuned", "condensed", fewer),
        (f"VPT-Deep from scratch, {scratch} a block", "from-scratch", dataclasses.replace(full, prompts=scratch)),
    ]
    results: dict[str, dict[str, Any]] = {}
    for number, (name, folder, settings) in enumerate(stages, start=1):
        print_note(f"[{number}/{len(stages)}] {name}")
        job = run if isinstance(settings, Settings) else run_condense
        results[folder] = job(settings, out / folder, resume=True, progress=True)  # pyright: ignore[reportArgumentType]
    models = {folder: load(out / folder) for folder in results}
    times = _latencies(models)
    names = {folder: name for name, folder, _ in stages}
    rows = [_row(names[f], models[f], results[f], out / f, times[f]) for f in results]
    return {
        "rows": rows,
        "plan": asdict(plan),
        "seconds": round(time.monotonic() - started, 1),
        "pictures": _draw(out, rows, results),
    }


def show_demo(found: dict[str, Any], out: Path) -> None:
    """Prints two tables, where the pictures are, and what to try next."""
    results = [
        [
            row["name"],
            percent(row["test_accuracy"]),
            str(row["prompts"]),
            f"{row['learned_params']:,}",
            f"{row['adapter_bytes'] / 1024:.0f} KiB",
        ]
        for row in found["rows"]
    ]
    print_table(TITLE, ["", "test", "prompts", "learned", "adapter"], results)
    costs = [
        [
            row["name"],
            *(f"{1000 * row[kind]:.0f}" for kind in ("published_gmacs", "prefix_gmacs", "folded_gmacs")),
            f"{row['milliseconds']:.2f} ms",
            f"{row['time_ratio']:.2f}",
        ]
        for row in found["rows"]
    ]
    print_table(
        "10^6 multiply-accumulates per image, and time folded (one thread) against the bare backbone",
        ["", "published", "prefix", "folded", "time", "x bare"],
        costs,
    )
    plan = found["plan"]
    print_note(
        f"{plan['epochs']} epochs and one seed, where the papers take 100 and several: a demonstration, not a result. "
        f"{found['seconds']:.0f} s.\nPictures: {', '.join(found['pictures'])}\n\n"
        f"Next:\n  vprompt predict {out}/condensed IMAGE_OR_FOLDER\n  vprompt eval {out}/condensed\n"
        "  vprompt fit YOUR_FOLDER --condense 0.3 --out runs/mine\n"
        "  vprompt cost vit_base_patch16_224 --prompts 0,50,100,150,200"
    )


def _row(name: str, model: PromptedModel, result: dict[str, Any], folder: Path, time_: Latency) -> dict[str, Any]:
    return {
        "name": name,
        "adapter": str(folder),
        "test_accuracy": result["test_accuracy"],
        "learned_params": result["learned_params"],
        "adapter_bytes": (folder / "adapter_model.safetensors").stat().st_size,
        **asdict(model_cost(model)),
        "prompts": sum(model.prompt_counts),
        "milliseconds": time_.milliseconds,
        "time_ratio": time_.ratio,
        "converged": result["converged"],
    }


def _latencies(models: dict[str, PromptedModel]) -> dict[str, Latency]:
    any_model = next(iter(models.values()))
    images = torch.randn(16, 3, *any_model.preprocessing.size)
    folded = {folder: model.fold() for folder, model in models.items()}
    with bar("timing"):
        return latency({"bare": any_model.backbone, **folded}, images, rounds=12)


def _draw(out: Path, rows: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> list[str]:
    points = [Point(name=r["name"], prompts=r["prompts"], accuracy=r["test_accuracy"]) for r in rows]
    plot_accuracy(out / "accuracy.png", points, title=TITLE)
    before, kept = results["vpt-deep"]["prompt_counts"], results["condensed"]["prompt_counts"]
    plot_kept(out / "kept.png", before, kept, title="Prompts kept per block")
    return [str(out / "accuracy.png"), str(out / "kept.png")]


def _fast_bf16() -> bool:
    """Whether this machine multiplies bf16 faster than fp32; emulated bf16 is slower."""
    if torch.accelerator.is_available():
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16", False))
