"""Steps of a cell of a plan: choosing settings by successive halving, the first stage that several share, the run."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vprompt.experiments.bench.grid import AFTERWARDS, Cell
from vprompt.experiments.bench.jobs import Job
from vprompt.experiments.bench.plan import Search, combinations
from vprompt.experiments.folder import score_key

Results = Mapping[str, dict[str, Any]]
"""Name of a job -> its result, or `{"failed": sentence}`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of a cell: the run whose result is its number, or the sentence that says why there is none."""

    run: Job | None = None
    failure: str | None = None
    search: dict[str, Any] | None = None


def steps(cell: Cell) -> Generator[list[Job], Results, Outcome]:
    """Yields the jobs that a cell needs next, is sent what came of them, and returns its outcome.

    What it asks for depends on nothing but the results it is sent, so that it can be followed again from results on
    disk.

    Example:
        >>> cell = Cell(task="t", method="PC", seed=0, values={"backbone": "test_vit", "data": "t", "condense": 0.3})
        >>> asked = steps(cell)
        >>> [job.settings.condense for job in next(asked)]
        [None]
    """
    chosen: dict[str, Any] = {}
    record: dict[str, Any] | None = None
    if cell.search is not None:
        try:
            chosen, record = yield from _choose(cell, cell.search)
        except _UntriedError as error:
            return Outcome(failure=str(error))
        if not chosen:
            why = next((f" The first: {trial['failed']}" for trial in record["trials"] if "failed" in trial), "")
            return Outcome(failure=f"No choice of its settings could be trained.{why}", search=record)
    job = Job(settings=cell.settings(**chosen).resolved(), names=cell.names)
    if job.first is not None:
        results = yield [job.first]
        if failure := results[job.first.name].get("failed"):
            return Outcome(failure=f"Its first stage failed: {failure}", search=record)
    results = yield [job]
    return Outcome(run=job, failure=results[job.name].get("failed"), search=record)


class _UntriedError(Exception):
    """A choice could not be tried for a reason that may pass; without it, another one would be chosen."""


def _require(results: Results, jobs: Mapping[int, Job], choices: Sequence[dict[str, Any]]) -> None:
    for number, job in jobs.items():
        if "failed" in results[job.name] and results[job.name].get("again"):
            shown = ", ".join(f"{key} {value}" for key, value in choices[number].items())
            raise _UntriedError(
                f"Its settings cannot be chosen before all of them were tried ({shown}): {results[job.name]['failed']}"
            )


def _choose(cell: Cell, search: Search) -> Generator[list[Job], Results, tuple[dict[str, Any], dict[str, Any]]]:
    """The settings that validate best: first those of the training, then, with these, those of what follows it."""
    training = {name: choices for name, choices in search.space.items() if name not in AFTERWARDS}
    after = {name: choices for name, choices in search.space.items() if name in AFTERWARDS}
    trials: list[dict[str, Any]] = []
    chosen: dict[str, Any] = {}
    if training:
        values = {name: value for name, value in cell.values.items() if name not in AFTERWARDS}
        chosen = yield from _halve(replace(cell, values=values), search, combinations(training), trials)
    if after and (chosen or not training):
        chosen = yield from _compare(cell, search, [{**chosen, **choice} for choice in combinations(after)], trials)
    record = {"space": {name: list(choices) for name, choices in search.space.items()}, "by": search.by}
    return chosen, {**record, "seed": search.seed, "trials": trials, "chosen": chosen}


def _halve(
    cell: Cell, search: Search, choices: Sequence[dict[str, Any]], trials: list[dict[str, Any]]
) -> Generator[list[Job], Results, dict[str, Any]]:
    """Successive halving: all choices share the schedule, and the worse of them do not get to its end."""
    settings = [cell.settings(**_to_choose(search), **choice).resolved() for choice in choices]
    going = list(range(len(choices)))
    records: list[dict[str, Any]] = [{"settings": choice, "epochs": 0, "stopped": True} for choice in choices]
    trials += records
    longest = max(choice.recipe.num_epochs for choice in settings)  # a search may try several
    shares = {max(1, round(share * longest)): share for share in sorted(search.rungs)}
    for share in [*(share for until, share in shares.items() if until < longest), 1.0]:
        if len(choices) > 1 and len(going) == 1:
            break
        epochs = {number: settings[number].recipe.num_epochs for number in going}
        untils = {number: min(many, max(1, round(share * many))) for number, many in epochs.items()}
        jobs = {
            number: Job(settings=settings[number], until=until, names=cell.names) for number, until in untils.items()
        }
        answers = yield list(jobs.values())
        _require(answers, jobs, choices)
        results = {number: answers[job.name] for number, job in jobs.items()}
        for number, result in results.items():
            records[number] |= _seen(result, untils[number])
        alive = [number for number in going if _rank(results[number], search) < (math.inf,)]
        alive.sort(key=lambda number: (_rank(results[number], search), number))
        keep = math.ceil(len(alive) * search.keep) if share < 1 else 1
        going = sorted(alive[: max(1, keep)])
        if not going:
            return {}
    for number, record in enumerate(records):
        record["stopped"] = number != going[0] and record["epochs"] < settings[number].recipe.num_epochs
    return dict(choices[going[0]])


def _compare(
    cell: Cell, search: Search, choices: Sequence[dict[str, Any]], trials: list[dict[str, Any]]
) -> Generator[list[Job], Results, dict[str, Any]]:
    """Whole runs side by side, for what cannot be compared before its end."""
    settings = [cell.settings(**_to_choose(search), **choice).resolved() for choice in choices]
    jobs = {number: Job(settings=choice, names=cell.names) for number, choice in enumerate(settings)}
    firsts = {number: job.first for number, job in jobs.items() if job.first is not None}
    results = (yield list({first.name: first for first in firsts.values()}.values())) if firsts else {}
    _require(results, firsts, choices)
    for number, first in firsts.items():
        if why := results[first.name].get("failed"):
            trials.append({"settings": choices[number], **_seen({"failed": why}, 0), "stopped": False})
            del jobs[number]
    if not jobs:
        return {}
    results = yield list(jobs.values())
    _require(results, jobs, choices)
    ranks = {number: _rank(results[job.name], search) for number, job in jobs.items()}
    best = min(ranks, key=lambda number: (ranks[number], number))
    for number, job in jobs.items():
        seen = _seen(results[job.name], settings[number].recipe.num_epochs)
        trials.append({"settings": choices[number], **seen, "stopped": False})
    return dict(choices[best]) if ranks[best] < (math.inf,) else {}


def _to_choose(search: Search) -> dict[str, Any]:
    """Settings of a training that serves to choose: validation images are kept out of it, test images are not read."""
    return {"train_on": "train", "test": False, "check_convergence": False, "seed": search.seed}


def _seen(result: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    seen = {"epochs": epochs, (key := score_key(result, "val")): result.get(key)}
    if result.get("seconds") is not None:
        seen["seconds"] = result["seconds"]
    if why := result.get("failed") or result.get("diverged"):
        seen["failed"] = why
    return seen


def _rank(result: Mapping[str, Any], search: Search) -> tuple[float, ...]:
    """Smaller is better; what diverged or failed comes last, at infinity."""
    score, loss = result.get(score_key(result, "val")), result.get("val_loss")
    if score is None or loss is None or not math.isfinite(loss):
        return (math.inf,)
    return (-score, loss) if search.by == "accuracy" else (loss, -score)
