"""A store with made-up results of a plan's runs, shaped like those that runs write."""

import math
import random
from dataclasses import replace
from importlib import import_module

from vprompt.analysis.e2vpt import E2VPTAblations
from vprompt.analysis.options import Condensation, Training
from vprompt.analysis.schedule import Schedule
from vprompt.analysis.sweep import Sweep
from vprompt.experiments.bench.grid import cells_of, tasks_of
from vprompt.experiments.bench.halving import steps
from vprompt.experiments.bench.jobs import Job

BLOCKS, WIDTH = 12, 192


def _condensing(kind, training, options):
    names = ("prompts", "criterion", "scope")
    condensing = Condensation(**{name: options.pop(name) for name in names if name in options})
    return kind(training=training or Training(), condensing=condensing, **options)


def sweep_of(training=None, **options):
    """Options of the analysis, those of its groups among them."""
    return _condensing(Sweep, training, options)


def schedule_of(training=None, **options):
    """Options of the analysis, those of its groups among them."""
    return _condensing(Schedule, training, options)


def e2vpt_of(training=None, **options):
    """Options of the analysis."""
    return E2VPTAblations(training=training or Training(), **options)


def plan_of(options):
    """The plan of an analysis that trains."""
    return import_module(f"{type(options).__module__}.measure").plan_of(options)


def read(options, store):
    """Its result."""
    return import_module(f"{type(options).__module__}.measure").read(options, store)


def prompts_of(settings):
    """Prompts, and key-value prompts, per block or in all."""
    return getattr(settings.method, "num_prompts", 0), getattr(settings.method, "num_kv_prompts", 0)


def tuned_for(condense):
    """Epochs of fine-tuning."""
    return condense.fine_tune_epochs if condense.fine_tune else 0


def accuracy(settings, chance):
    """More prompts are better, less so the more there are; condensing costs little, and little more is learned late."""
    base = 0.25 + random.Random(settings.data).uniform(0, 0.4)
    if settings.method.name == "linear":
        return base
    found = base + 0.25 * (1 - math.exp(-sum(prompts_of(settings)) / 4))
    if settings.condense is not None:
        epochs = tuned_for(settings.condense)
        found -= 0.25 * (1 - settings.condense.ratio) ** 4 * math.exp(-epochs / 6)
    if settings.prune is not None:
        found -= 0.05 * (settings.prune.tokens or 0) ** 2 + 0.02 * (settings.prune.segments or 0)
    return found + chance.gauss(0, 0.008)


def stage(settings, chance, *, epochs, converged=True):
    """The numbers of one trained model."""
    prompts, kv_prompts = prompts_of(settings)
    counts = [prompts] * BLOCKS if settings.method.riding == "prefix" else [0] * BLOCKS
    if settings.method.riding == "tokens":
        counts[0] = prompts
    keep = settings.condense.ratio if settings.condense else 1 - ((settings.prune.tokens or 0) if settings.prune else 0)
    counts = [round(keep * count) for count in counts]
    found = accuracy(settings, chance)
    return {
        "val_accuracy": found + chance.gauss(0, 0.01) if settings.train_on == "train" else None,
        "val_loss": 1.0 if settings.train_on == "train" else None,
        "test_accuracy": found,
        "prompt_counts": counts,
        "learned_params": WIDTH * (sum(counts) + BLOCKS * kv_prompts) + 1940,
        "backbone_params": 5_380_992,
        "folded_gmacs": 0.13,
        "method": settings.method.name,
        "training_seconds": round(0.8 * epochs * chance.uniform(0.9, 1.1), 1),
        "converged": converged,
        "convergence": {"epochs": 2 * epochs, "difference": 0.0 if converged else 1.0, "standard_error": 0.1},
        "epochs": [{"epoch": n + 1, "loss": 1.0, "accuracy": found, "lr": 0.001} for n in range(epochs)],
    }


def made(job, *, converged=True):
    """The result of a run."""
    settings = job.settings
    chance = random.Random(repr((settings.data, settings.method.name, prompts_of(settings), settings.recipe.seed)))
    if job.until is not None:
        found = accuracy(settings, chance)
        return {"name": job.name, "until": job.until, "val_accuracy": found, "val_loss": 1 - found, "seconds": 1.0}
    epochs = settings.recipe.epochs
    extra = {}
    if settings.condense is not None:
        extra = {"before": stage(replace(settings, condense=None), chance, epochs=epochs), "scoring_seconds": 0.9}
        epochs = tuned_for(settings.condense)
    return {
        "name": job.name,
        "run": Job(settings=settings).identity,
        "until": None,
        **stage(settings, chance, epochs=epochs, converged=converged and bool(epochs)),
        **extra,
        "backbone": settings.backbone,
        "seed": settings.recipe.seed,
        "settings": {**Job(settings=settings).identity, "img_size": None},
        "provenance": {
            "data": {"source": settings.data, "fingerprint": "f", "classes": ["a"], "images": {}, "differences": []}
        },
        "seconds": 3.0,
    }


def fill(plan, store, make=made):
    """Publishes what `make(job)` returns for every job of a plan; a text is why it failed, None is not done."""
    for cell in cells_of(plan, tasks_of(plan)[0]):
        going = steps(cell)
        try:
            asked = next(going)
            while True:
                found = {}
                for job in asked:
                    result = make(job)
                    if isinstance(result, str):
                        store.fail(job.name, {"name": job.name, "failure": result, "again": False})
                        result = {"failed": result}
                    elif result is not None and store.result(job.name) is None:
                        store.publish(job.name, result)
                    found[job.name] = result
                if None in found.values():
                    break
                asked = going.send(found)
        except StopIteration:
            continue
