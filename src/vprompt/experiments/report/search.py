"""The search for hyper-parameters: what was tried, what was stopped early, what was chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from vprompt.experiments.report.study import Run, Study
from vprompt.report.document import Block, Body, Cell, Fold, Paragraph, Section, Table
from vprompt.utils.text import amount, count, line, listed, number, percent, share

MOST = 1500
"""So many trials are listed one by one."""


def section(study: Study) -> Section | None:
    """One row for each search, and the trials; None where nothing was searched for."""
    searches = _searches(study)
    if not searches:
        return None
    rows: list[list[Cell | str]] = []
    trials: list[list[Cell | str]] = []
    for name, search in searches:
        tried = trials_of(search)
        stopped = sum(bool(trial.get("stopped")) for trial in tried)
        best = max((value for trial in tried if (value := share(trial.get("val_accuracy"))) is not None), default=None)
        epochs = sum(number(trial.get("epochs")) or 0.0 for trial in tried)
        chosen = settings(search.get("chosen"))
        space = settings(search.get("space"))
        rows.append([name, space, str(len(tried)), str(stopped), amount(epochs), percent(best), chosen])
        trials += [_trial(name, trial, search.get("chosen")) for trial in tried]
    total = sum(len(trials_of(search)) for _, search in searches)
    stopped = sum(bool(trial.get("stopped")) for _, search in searches for trial in trials_of(search))
    bys = sorted({line(search.get("by") or "validation accuracy", 40) for _, search in searches})
    words = (
        f"{count(total, 'trial')} for {count(len(searches), 'choice')}, {stopped} of them stopped early; "
        f"chosen by {' or '.join(bys)} on validation images, never on test images."
    )
    head = ["Task, method", "Tried", "Trials", "Stopped", "Epochs", "Best val, %", "Chosen"]
    table = Table(caption="Searches", head=head, bodies=[Body(rows=rows)], words=True)
    blocks: list[Block] = [
        Paragraph(words),
        table if len(rows) <= 30 else Fold("What was chosen", [table]),
        Fold("Every trial", _listed(trials)),
    ]
    return Section(key="search", title="Hyper-parameter search", blocks=blocks)


def trials_of(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was tried."""
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
    return "; ".join(f"{line(key, 40)} {_value(entry)}" for key, entry in cast("Mapping[str, Any]", value).items())


def _value(entry: Any) -> str:
    if isinstance(entry, list | tuple):
        return ", ".join(line(one, 40) for one in cast("Sequence[Any]", entry)[:30])
    return line(entry, 80)


def _searches(study: Study) -> list[tuple[str, Mapping[str, Any]]]:
    """The searches with their names; one that serves several seeds, or several methods, once."""
    found: dict[tuple[str, str], tuple[list[Run], Mapping[str, Any]]] = {}
    for run in study.runs:
        if run.search is not None:
            key = (run.task.key, json.dumps(run.search, sort_keys=True, default=str))
            found.setdefault(key, ([], run.search))[0].append(run)
    return [(f"{runs[0].task.title}, {_methods(runs)}{_seeds(runs, study)}", search) for runs, search in found.values()]


def _methods(runs: Sequence[Run]) -> str:
    return listed(list(dict.fromkeys(run.method.label for run in runs)))


def _seeds(runs: Sequence[Run], study: Study) -> str:
    seeds = list(dict.fromkeys(line(run.seed, 20) for run in runs))
    if len(seeds) == len(study.seeds):
        return ""
    return f", seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"


def _trial(name: str, trial: Mapping[str, Any], chosen: Any) -> list[Cell | str]:
    accuracy = share(trial.get("val_accuracy"))
    mine = trial.get("settings")
    marks = ["stopped"] * bool(trial.get("stopped")) + ["chosen"] * (bool(chosen) and mine == chosen)
    epochs = amount(number(trial.get("epochs")))
    return [name, settings(mine), epochs, percent(accuracy), ", ".join(marks)]


def _listed(trials: Sequence[Sequence[Cell | str]]) -> list[Block]:
    head = ["Task, method", "Settings", "Epochs", "Val, %", ""]
    blocks: list[Block] = [Table(caption="Trials", head=head, bodies=[Body(rows=trials[:MOST])], words=True)]
    if len(trials) > MOST:
        blocks.append(
            Paragraph(f"{len(trials) - MOST:,} more trials are not listed here; they are in the study's files.")
        )
    return blocks
