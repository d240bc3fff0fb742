"""Demo of the main job from end to end: the plan `demo`, with a table and pictures of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vprompt.data.tasks import open_task
from vprompt.experiments.bench.bench import run_here
from vprompt.experiments.bench.engine import Watch
from vprompt.experiments.bench.plan import Plan, load_plan
from vprompt.experiments.bench.scheduler import BenchError
from vprompt.experiments.bench.store import open_store
from vprompt.experiments.compare import time_folded
from vprompt.experiments.folder import converged_in
from vprompt.model.cost import model_cost
from vprompt.model.latency import Latency
from vprompt.model.load import load
from vprompt.model.model import PromptedModel
from vprompt.report.plots import plot_accuracy, plot_answers, plot_kept
from vprompt.utils.io import write_json

DOCUMENT = "demo.json"

SHOWN = 8
"""The first test images, in a picture with what the first and the last model take them for."""


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
        What `demo.json` in `out` says: `rows`, one per model, as the table shows them; `failed`, why there is none of a
        model; `title`; `epochs`; `machine`; `seconds` since the last start, and those of processors; `pictures`.

    Raises:
        BenchError: If every run fails.
    """
    started, plan = time.monotonic(), plan or demo_plan(seed=seed)
    store = open_store(str(out))
    runs = run_here(plan, store, progress=True, watch=watch)
    failed = {run["method"]: run["failure"] for run in runs if run["failure"] is not None}
    runs = [run for run in runs if run["failure"] is None]
    if not runs:
        raise BenchError(f"All models of the demo failed, {next(iter(failed))}: {next(iter(failed.values()))}")
    folders = {run["method"]: out / "adapters" / store.adapter(run["name"]).name for run in runs}
    models = {label: load(folder) for label, folder in folders.items()}
    folded = {label: model.fold() for label, model in models.items()}
    times = time_folded(next(iter(models.values())).backbone, folded, 16)
    rows = [
        _row(label, models[label], run["result"], folders[label], times[label])
        for label, run in zip(folders, runs, strict=True)
    ]
    document = {
        "title": plan.title,
        "epochs": plan.settings["epochs"],
        "rows": rows,
        "failed": failed,
        "machine": runs[0]["result"]["machine"],
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(time.process_time(), 1),
        "pictures": [str(picture) for picture in _draw(out, plan, rows, models)],
    }
    write_json(out / DOCUMENT, document)
    return document


def _row(name: str, model: PromptedModel, result: dict[str, Any], folder: Path, time_: Latency) -> dict[str, Any]:
    return {
        "name": name,
        "adapter": str(folder),
        "test_accuracy": result["test_accuracy"],
        "test_interval": result["test_interval"],
        "learned_params": result["learned_params"],
        "adapter_bytes": (folder / "adapter_model.safetensors").stat().st_size,
        **asdict(model_cost(model)),
        "prompts": sum(model.prompt_counts),
        "condensed": model.condensation is not None,
        "milliseconds": time_.milliseconds,
        "time_ratio": time_.ratio,
        "training_seconds": result["training_seconds"],
        "converged": converged_in(result),
    }


def _draw(
    out: Path, plan: Plan, rows: Sequence[Mapping[str, Any]], models: Mapping[str, PromptedModel]
) -> Iterator[Path]:
    """Accuracy against prompts; what the last condensed model retained in each block; answers to some test images."""
    points = [(row["name"], row["prompts"], row["test_accuracy"]) for row in rows]
    intervals = [row["test_interval"] for row in rows]
    plot_accuracy(out / "accuracy.png", points, title=plan.title, intervals=intervals)
    yield out / "accuracy.png"
    condensed = [model for model in models.values() if model.condensation is not None]
    for model in condensed[-1:]:
        before = [len(scores) for scores in model.condensation.scores] if model.condensation else []
        plot_kept(out / "kept.png", before, model.prompt_counts, title="Prompts kept per block")
        yield out / "kept.png"
    test = open_task(plan.tasks[0], next(iter(models.values())).preprocessing).test
    if test is not None:
        pixels_BCHW = test.pixels(torch.arange(min(SHOWN, len(test))))
        answers = {name: models[name].predict(pixels_BCHW).class_names for name in (rows[0]["name"], rows[-1]["name"])}
        truths = [next(iter(models.values())).class_names[label] for label in test.labels[:SHOWN]]
        plot_answers(out / "answers.png", pixels_BCHW.movedim(1, -1).numpy(), truths, answers)
        yield out / "answers.png"
