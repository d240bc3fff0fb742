"""Table of all runs for a spreadsheet, a row for each."""

from __future__ import annotations

import json
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from vprompt.experiments.report.search import trials_of
from vprompt.experiments.report.study import Model, Run, Study
from vprompt.report.document import Table, simple_table

_FACTS = {
    "data": "data.source",
    "data_fingerprint": "data.fingerprint",
    "backbone": "settings.backbone",
    "backbone_fingerprint": "backbone_fingerprint",
    "weights_sha256": "weights.sha256",
    "size": "preprocessing.size",
    "mean": "preprocessing.mean",
    "std": "preprocessing.std",
    "resize": "preprocessing.resize",
    "optimizer": "settings.optimizer",
    "lr": "settings.lr",
    "weight_decay": "settings.weight_decay",
    "batch_size": "settings.batch_size",
    "device": "device",
    "vprompt": "versions.vprompt",
    "torch": "versions.torch",
}
"""Column -> where its value stands in the settings and the provenance of a run."""


_MODEL: dict[str, Callable[[Model], Any]] = {
    **{name: attrgetter(name) for name in ("test_accuracy", "val_accuracy", "converged")},
    "epochs": lambda model: len(model.losses),
    "final_loss": lambda model: next(reversed(model.losses), None),
    "prompts": lambda model: model.prompts,
    "prompts_per_block": lambda model: None if model.prompt_counts is None else " ".join(map(str, model.prompt_counts)),
    **{name: attrgetter(name) for name in ("learned_params", "folded_gmacs", "published_gmacs", "training_seconds")},
}
"""Column -> its value for a model."""


def runs_table(study: Study) -> Table:
    """One row a run; nothing at all, not even a head, for a study without runs."""
    rows = [_row(study, run) for run in study.runs]
    texts = [[_text(value) for value in row.values()] for row in rows]
    return simple_table("Every run", list(rows[0]) if rows else [], texts)


def _row(study: Study, run: Run) -> dict[str, Any]:
    search = run.search or {}
    return {
        "study": study.name,
        "task": run.task.key,
        "title": run.task.title,
        "group": run.task.group,
        "method": run.method.label,
        "seed": run.seed,
        "state": run.state,
        "failure": run.failure,
        **_model(run.model),
        **{f"before_{name}": value for name, value in _model(run.before).items()},
        "backbone_params": study.backbone_params,
        "seconds": run.seconds,
        "trials": len(trials_of(search)) if run.search else None,
        "chosen": json.dumps(search.get("chosen"), default=str) if run.search else None,
        **{name: run.facts.get(key) for name, key in _FACTS.items()},
        "result": run.name,
    }


def _model(model: Model | None) -> dict[str, Any]:
    return {name: None if model is None else value(model) for name, value in _MODEL.items()}


def _text(value: Any) -> str:
    """Numbers as they are, whole ones without a point."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    whole = isinstance(value, float) and value.is_integer() and abs(value) > 1
    return str(int(value) if whole else value)
