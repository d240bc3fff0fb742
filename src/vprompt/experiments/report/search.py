"""Search for hyper-parameters: the trials, those that were stopped early, and those that were chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from vprompt.experiments.report.study import Run, Study, flat
from vprompt.report.document import Block, Fold, Paragraph, Section, simple_table
from vprompt.utils.text import amount, count, line, listed, number, percent

MOST = 1500
"""So many trials are listed one by one."""


def section(study: Study) -> Section | None:
    """One row for each search, and the trials; None where nothing was searched for."""
    searches = _searches(study)
    if not searches:
        return None
    rows: list[list[str]] = []
    trials: list[list[str]] = []
    stops = 0
    for name, search in searches:
        tried = trials_of(search)
        stopped = sum(bool(trial.get("stopped")) for trial in tried)
        stops += stopped
        best = max((score for trial in tried if (score := _score(trial)) is not None), default=None)
        epochs = sum(number(trial.get("epochs")) or 0.0 for trial in tried)
        cells = [str(len(tried)), str(stopped), amount(epochs), percent(best), settings(search.get("chosen"))]
        rows.append([name, settings(search.get("space")), *cells])
        trials += [_trial(name, trial, search.get("chosen")) for trial in tried]
    by = {line(search.get("by") or "validation accuracy", 40) for _, search in searches}
    criteria = sorted(criterion.replace("accuracy", study.score) for criterion in by)
    words = (
        f"{count(len(trials), 'trial')} for {count(len(searches), 'choice')}, {stops} of them stopped early; "
        f"chosen by {' or '.join(criteria)} on validation images, never on test images."
    )
    head = ["Task, method", "Tried", "Trials", "Stopped", "Epochs", "Best val, %", "Chosen"]
    table = simple_table("Searches", head, rows, words=True)
    shown = table if len(rows) <= 30 else Fold("What was chosen", [table])
    blocks: list[Block] = [Paragraph(words), shown, Fold("Every trial", _listed(trials))]
    return Section(key="search", title="Hyper-parameter search", blocks=blocks)


def trials_of(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials of a search."""
    trials = search.get("trials")
    return [t for t in cast("list[Any]", trials) if isinstance(t, Mapping)] if isinstance(trials, list) else []


def settings(value: Any) -> str:
    """Settings or a space of them in a line.

    Example:
        >>> settings({"lr": [0.1, 0.01], "wd": 0.0})
        'lr 0.1, 0.01; wd 0.0'
    """
    if not isinstance(value, Mapping) or not value:
        return "–"
    return "; ".join(f"{name} {text}" for name, text in flat(cast("Mapping[str, Any]", value)).items())


def _searches(study: Study) -> list[tuple[str, Mapping[str, Any]]]:
    """The searches with their names; one that serves several seeds, or several methods, once."""
    searches: dict[tuple[str, str], list[Run]] = {}
    for run in study.runs:
        if run.search is not None:
            key = (run.task.key, json.dumps(run.search, sort_keys=True, default=str))
            searches.setdefault(key, []).append(run)
    return [(_name(runs, study), runs[0].search or {}) for runs in searches.values()]


def _score(trial: Mapping[str, Any]) -> float | None:
    """The score of a trial on validation images, whatever its target."""
    keys = [key for key in trial if str(key).startswith("val_")]
    score = number(trial[keys[0]]) if keys else None
    return score if score is None or score <= 1 else None


def _name(runs: Sequence[Run], study: Study) -> str:
    methods = listed(list(dict.fromkeys(run.method.label for run in runs)))
    seeds = list(dict.fromkeys(line(run.seed, 20) for run in runs))
    words = f", seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if len(seeds) < len(study.seeds) else ""
    return f"{runs[0].task.title}, {methods}{words}"


def _trial(name: str, trial: Mapping[str, Any], chosen: Any) -> list[str]:
    tried = trial.get("settings")
    marks = ["stopped"] * bool(trial.get("stopped")) + ["chosen"] * (bool(chosen) and tried == chosen)
    return [name, settings(tried), amount(number(trial.get("epochs"))), percent(_score(trial)), ", ".join(marks)]


def _listed(trials: Sequence[Sequence[str]]) -> list[Block]:
    head = ["Task, method", "Settings", "Epochs", "Val, %", ""]
    blocks: list[Block] = [simple_table("Trials", head, trials[:MOST], words=True)]
    if len(trials) > MOST:
        blocks.append(
            Paragraph(f"{len(trials) - MOST:,} more trials are not listed here; they are in the study's files.")
        )
    return blocks
