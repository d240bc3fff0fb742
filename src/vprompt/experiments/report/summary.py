"""Summary of a study in sentences that are computed: the methods compared, their progress, and the best of them."""

from __future__ import annotations

import math

from vprompt.experiments.report.aggregate import Spread, over_groups
from vprompt.experiments.report.provenance import warnings
from vprompt.experiments.report.study import GROUPS, Study
from vprompt.report.document import Bullets, Paragraph, Section, Warn
from vprompt.utils.statistics import UNKNOWN
from vprompt.utils.text import amount, count, gmacs, listed, percent, spread


def section(study: Study) -> Section:
    """The first section: description, summary and warnings."""
    description = [Paragraph(text) for text in study.description]
    warned = [Warn(sentence) for sentence in warnings(study)]
    return Section(key="summary", title="Summary", blocks=[*description, Bullets(sentences(study)), *warned])


def sentences(study: Study) -> list[str]:
    """The methods compared, how much of it is there, and which is best."""
    groups = ", ".join(f"{len(tasks)} {GROUPS[group]}" for group, tasks in study.groups.items())
    groups = f" ({groups})" if len(study.groups) > 1 else ""
    methods = listed([method.label for method in study.methods], 12)
    compared = (
        f"{count(len(study.methods), 'method')} ({methods}) on {count(len(study.tasks), 'task')}{groups}, "
        f"{count(len(study.seeds), 'seed')} each."
    )
    texts = [compared, _backbone(study), _progress(study), *_best(study)]
    unconverged = sum(run.unconverged for run in study.runs)
    if unconverged:
        texts.append(
            f"{unconverged:,} of {count(len(study.finished), 'finished run')} had not converged (†): they say what "
            "this schedule gives, not what the method can reach."
        )
    if unknown := sum(run.unknown for run in study.runs):
        texts.append(f"Of {count(unknown, 'finished run')} it is not known whether {UNKNOWN}.")
    if study.source:
        texts.append(f"The plan follows {study.source.rstrip('.')}." + " But:" * bool(study.departures))
    texts += study.departures
    return texts


def _backbone(study: Study) -> str:
    words = f"Backbone: {study.backbone}"
    if study.backbone_params is not None:
        words += f", {amount(study.backbone_params)} parameters"
    if study.bare_gmacs is not None:
        words += f", {gmacs(study.bare_gmacs)} GMACs per image without prompts (not folded)"
    return words + "."


def _progress(study: Study) -> str:
    states = {state: sum(run.state == state for run in study.runs) for state in ("finished", "failed", "missing")}
    if states["finished"] == len(study.runs):
        return f"All {count(len(study.runs), 'run')} finished."
    parts = ", ".join(f"{many:,} {state}" for state, many in states.items())
    return f"Of {count(len(study.runs), 'run')}: {parts}."


def _best(study: Study) -> list[str]:
    """The best by the mean of the group means, of the methods that have every task, and how far the next one is."""
    means = {method.label: over_groups(study, method, list(study.groups.values())) for method in study.methods}
    ranked = [(label, mean) for label, mean in means.items() if mean.mean is not None]
    ranked.sort(key=lambda entry: -(entry[1].mean or 0.0))
    if not study.finished:
        return ["Nothing has finished yet, so there is nothing to compare."]
    if not ranked:
        return ["No method has a result on every task yet, so no means are given."]
    what = "By the mean of the group means" if len(study.groups) > 1 else "By the mean of the tasks"
    if len(study.tasks) == 1:
        what = f"On {study.tasks[0].title}"
    name, first = ranked[0]
    if len(ranked) == 1:
        sentences = [f"{what}, {name} reaches {_said(first)}."]
    else:
        other, second = ranked[1]
        gap = _gap(first, second)
        sentences = [f"{what}, {name} is best: {_said(first)}; {other} follows with {_said(second)}{gap}."]
    if without := [label for label, mean in means.items() if mean.mean is None]:
        sentences.append(f"Without a result on every task, and not ranked: {listed(without)}.")
    if len(study.groups) > 1:
        plain = {method.label: over_groups(study, method, [study.tasks]) for method in study.methods}
        name, best = max(plain.items(), key=lambda entry: -math.inf if entry[1].mean is None else entry[1].mean)
        sentences.append(f"By the plain mean of the {len(study.tasks)} tasks it is {name}: {_said(best)}.")
    return sentences


def _said(mean: Spread) -> str:
    return f"{spread(mean.mean, mean.std)} % ({count(mean.n, 'seed')})"


def _gap(first: Spread, second: Spread) -> str:
    """Whether a difference is more than what seeds make; unknown with one seed."""
    gap = (first.mean or 0.0) - (second.mean or 0.0)
    if first.std is None or second.std is None:
        return ", but with one seed the noise is not known"
    if gap <= math.hypot(first.std, second.std):
        return f", and the {percent(gap)} points between them are within the spread over the seeds"
    return f", {percent(gap)} points less"
