"""Demo of the main job from end to end: the plan `demo`, with a table and pictures of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vprompt.experiments.bench.bench import run_here
from vprompt.experiments.bench.engine import Watch
from vprompt.experiments.bench.plan import Plan, load_plan
from vprompt.experiments.bench.scheduler import BenchError
from vprompt.experiments.bench.store import open_store
from vprompt.experiments.compare import time_folded
from vprompt.model.cost import model_cost
from vprompt.model.latency import Latency
from vprompt.model.load import load
from vprompt.model.model import PromptedModel
from vprompt.report.plots import plot_accuracy, plot_kept


def demo_plan(*, seed: int = 0) -> Plan:
    """The plan that comes with the library."""
    return replace(load_plan("demo"), seeds=(seed,), text="")


def run_demo(out: Path, *, seed: int = 0, plan: Plan | None = None, watch: Watch | None = None) -> dict[str, Any]:
    """Runs all models of the demo, or goes on where an earlier one in `out` was stopped, and draws the pictures.

    Args:
        out: Folder for adapters, results and pictures: a benchmark's, which `vprompt report` reads.
        seed: Of all runs.
        plan: Instead of the one that comes with the library.
        watch: Told of every run.

    Returns:
        `rows`, one per model, as the table shows them; `title`; `epochs`; `seconds`; `pictures`.

    Raises:
        BenchError: If a run fails.
    """
    started, plan = time.monotonic(), plan or demo_plan(seed=seed)
    store = open_store(str(out))
    runs = run_here(plan, store, progress=True, watch=watch)
    for run in runs:
        if run["failure"] is not None:
            raise BenchError(f"The demo's {run['method']} failed: {run['failure']}")
    folders = {run["method"]: store.adapter(run["name"]) for run in runs}
    models = {label: load(folder) for label, folder in folders.items()}
    folded = {label: model.fold() for label, model in models.items()}
    times = time_folded(next(iter(models.values())).backbone, folded, 16)
    rows = [
        _row(label, models[label], run["result"], folders[label], times[label])
        for label, run in zip(folders, runs, strict=True)
    ]
    return {
        "title": plan.title,
        "epochs": plan.settings["epochs"],
        "rows": rows,
        "seconds": round(time.monotonic() - started, 1),
        "pictures": _draw(out, plan, rows, models),
    }


def _row(name: str, model: PromptedModel, result: dict[str, Any], folder: Path, time_: Latency) -> dict[str, Any]:
    return {
        "name": name,
        "adapter": str(folder),
        "test_accuracy": result["test_accuracy"],
        "learned_params": result["learned_params"],
        "adapter_bytes": (folder / "adapter_model.safetensors").stat().st_size,
        **asdict(model_cost(model)),
        "prompts": sum(model.prompt_counts),
        "condensed": model.condensation is not None,
        "milliseconds": time_.milliseconds,
        "time_ratio": time_.ratio,
        "converged": result["converged"],
    }


def _draw(out: Path, plan: Plan, rows: list[dict[str, Any]], models: Mapping[str, PromptedModel]) -> list[str]:
    """Accuracy against prompts, and the prompts that the last condensed model retained in each block."""
    points = [(row["name"], row["prompts"], row["test_accuracy"]) for row in rows]
    plot_accuracy(out / "accuracy.png", points, title=plan.title)
    pictures = [str(out / "accuracy.png")]
    condensed = [model for model in models.values() if model.condensation is not None]
    for model in condensed[-1:]:
        before = [len(scores) for scores in model.condensation.scores] if model.condensation else []
        plot_kept(out / "kept.png", before, model.prompt_counts, title="Prompts kept per block")
        pictures.append(str(out / "kept.png"))
    return pictures
