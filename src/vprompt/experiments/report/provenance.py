"""Settings and provenance: every setting of every run once, data, weights, versions; and what does not match."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vprompt.experiments.report.study import Run, Study
from vprompt.report.document import Block, Fold, Section, Table, Warn, simple_table
from vprompt.utils.text import amount, count, duration, line, listed, percent

_SAME = {
    "data.fingerprint": "data",
    "preprocessing": "normalisation or resizing",
    "backbone_fingerprint": "backbone weights",
}
"""The facts that the runs of one task must share to be compared, and their names."""


def section(study: Study) -> Section:
    """Settings and provenance of all runs, compactly: what is common to all, then what goes with method and task."""
    runs = study.finished
    keys = dict.fromkeys(key for run in runs for key in run.facts)
    left = [key for key in keys if not key.endswith("seed") or "split" in key]
    blocks: list[Block] = [Warn(sentence) for sentence in warnings(study)]
    kinds: list[tuple[str, Callable[[Run], str]]] = [
        ("all runs", lambda _: "all"),
        ("method", lambda run: run.method.label),
        ("task", lambda run: run.task.title),
        ("task and method", lambda run: f"{run.task.title}, {run.method.label}"),
        ("run", lambda run: run.title),
    ]
    for kind, name in kinds:
        groups: dict[str, list[Mapping[str, str]]] = {}
        for run in runs:
            groups.setdefault(name(run), []).append(run.facts)
        values = {key: {name: {facts.get(key) for facts in group} for name, group in groups.items()} for key in left}
        shared = [key for key in left if kind == "run" or all(len(of_group) == 1 for of_group in values[key].values())]
        left = [key for key in left if key not in shared]
        if shared:
            blocks.append(_table(kind, shared, {name: group[0] for name, group in groups.items()}))
    blocks += [_tasks(study), Fold("Every run", [_runs(study)])]
    return Section(key="origin", title="Settings and provenance", blocks=blocks)


def warnings(study: Study) -> list[str]:
    """Sentences about runs of one task that cannot be compared with one another."""
    sentences: list[str] = []
    for task in study.tasks:
        facts = [run.facts for run in study.finished if run.task is task]
        for key, what in _SAME.items():
            values = {tuple(fact for fact in each.items() if fact[0].startswith(key)) for each in facts}
            if len(values) > 1:
                sentences.append(
                    f"The runs of {task.title} differ in their {what} ({len(values)} kinds); do not compare them."
                )
    odd = [
        run.title
        for run in study.finished
        if run.model is not None and run.model.test_score is None and run.model.val_score is None
    ]
    if odd:
        sentences.append(f"{count(len(odd), 'finished run')} without {study.score}: {listed(odd, 5)}.")
    if study.unread:
        sentences.append(
            f"{count(len(study.unread), 'file')} that cannot be read as results: {listed([*study.unread], 5)}."
        )
    return sentences


def _table(kind: str, keys: Sequence[str], groups: Mapping[str, Mapping[str, str]]) -> Block:
    """A row for each setting where all runs have it in common, or else one for each of what it goes with."""
    if kind == "all runs":
        rows = [[key, next(iter(groups.values())).get(key, "–")] for key in keys]
        table = simple_table("Common to all runs", ["Setting", "Value"], rows, words=True)
        return table if len(rows) <= 8 else Fold(f"Common to all runs ({len(rows)} settings)", [table])
    rows = [[name, *(facts.get(key, "–") for key in keys)] for name, facts in groups.items()]
    table = simple_table(f"What goes with the {kind}", [kind.capitalize(), *keys], rows, words=True)
    return table if len(rows) <= 30 else Fold(table.caption, [table])


def _tasks(study: Study) -> Table:
    rows: list[list[str]] = []
    for task in study.tasks:
        images = [amount(task.images.get(name)) for name in ("train", "val", "test")]
        rows.append([task.title, line(task.key, 80), *images, str(task.classes) if task.classes else "–"])
    return simple_table("Tasks and their images", ["Task", "Name", "Train", "Val", "Test", "Classes"], rows)


def _runs(study: Study) -> Table:
    rows: list[list[str]] = []
    for run in study.runs:
        test, val = (None, None) if run.model is None else (run.model.test_score, run.model.val_score)
        state = run.state + " †" * run.unconverged
        rows.append([run.title, state, percent(test), percent(val), duration(run.seconds), run.name or "–"])
    return simple_table("Every run", ["Run", "State", "Test, %", "Val, %", "Took", "Result"], rows, words=True)
