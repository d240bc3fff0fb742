"""E2VPT's ablations: which kinds of prompts, what they share, how many, and how much is pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vprompt.analysis.study import About, Result, Runs, Study, make_plan, tested
from vprompt.experiments.bench.plan import Plan, PlanError
from vprompt.experiments.bench.store import Store
from vprompt.utils.statistics import Seeds, difference

Part = Literal["parts", "sharing", "lengths", "pruning"]

PARTS: tuple[Part, ...] = ("parts", "sharing", "lengths", "pruning")

DEFAULT = "E2VPT"

VISUAL, KEY_VALUE = (5, 10, 20), (1, 5, 10)

PRUNED = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of an ablation on one task.

    Args:
        task: None is the mean over all tasks.
        accuracy: On the test images.
        change: Accuracy less that of the default, seed by seed.
        learned: Numbers that training changes, the head's among them; None where there is no result.
        share: That over the parameters of the backbone.
    """

    task: str | None
    accuracy: Seeds
    change: Seeds
    learned: float | None
    share: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One choice of an ablation.

    Args:
        label: What it is called.
        default: Whether it is what all others are compared with.
        entries: The mean over all tasks, where there are several, and each of them.
    """

    label: str
    default: bool
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One question and its rows, the default first."""

    part: Part
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class E2VPTStudy:
    """What `read` returns.

    Args:
        about: What was run.
        prompts: Visual prompts per block of the default.
        kv_prompts: Key-value prompts per block of the default.
        ablations: In the order of `PARTS`.
    """

    about: About
    prompts: int
    kv_prompts: int
    ablations: tuple[Ablation, ...]


def plan_of(
    study: Study,
    *,
    parts: Sequence[str] = PARTS,
    prompts: int = 10,
    kv_prompts: int = 5,
    visual: Sequence[int] = VISUAL,
    key_value: Sequence[int] = KEY_VALUE,
    pruned: Sequence[float] = PRUNED,
) -> Plan:
    """The plan: the default, and whatever differs from it in one thing.

    Args:
        study: Tasks and recipe.
        parts: Which ablations, of `PARTS`.
        prompts: Visual prompts per block.
        kv_prompts: Key-value prompts per block.
        visual: Other numbers of visual prompts.
        key_value: Other numbers of key-value prompts.
        pruned: Shares of the prompts, and then of their segments, to prune after the training; what is left is trained
            again from its initial values.

    Raises:
        PlanError: If it cannot be meant.

    Example:
        >>> [method.label for method in plan_of(Study(), parts=("parts", "sharing")).methods]
        ['E2VPT', 'Linear', 'VPT-Deep, 15 prompts', 'Visual only', 'Key-value only', 'Heads share', 'Nothing shared']

    Source: E²VPT (arXiv 2307.13770), section 4.
    """
    if not parts or any(part not in PARTS for part in parts):
        raise PlanError(f"The ablations are {', '.join(PARTS)}; give some of them, not {', '.join(parts) or 'none'}.")
    if min(prompts, kv_prompts, *visual, *key_value) < 1:
        raise PlanError(
            "The default has prompts of both kinds, and so has every other length; give at least 1 of each."
        )
    if wrong := [share for share in pruned if not 0 < share < 1]:
        raise PlanError(f"The shares to prune must be above 0 and below 1, not {wrong[0]}.")
    tables: list[dict[str, Any]] = [{"label": DEFAULT}]
    if "parts" in parts:
        # As many prompts in all, and as many learned numbers: one key-value prompt has those of a visual one.
        rival = {"label": f"VPT-Deep, {prompts + kv_prompts} prompts", "method": "vpt-deep"}
        tables += [study.linear, {**rival, "prompts": prompts + kv_prompts}]
        tables += [{"label": "Visual only", "kv_prompts": 0}, {"label": "Key-value only", "prompts": 0}]
    if "sharing" in parts:
        tables += [{"label": "Heads share", "share": "heads"}, {"label": "Nothing shared", "share": "none"}]
    if "lengths" in parts:
        tables += [{"label": f"{n} visual", "prompts": n} for n in sorted(set(visual)) if n != prompts]
        tables += [{"label": f"{n} key-value", "kv_prompts": n} for n in sorted(set(key_value)) if n != kv_prompts]
    if "pruning" in parts:
        shares = sorted(set(pruned))
        tables += [_pruning("Prompts", tokens=share) for share in shares]
        tables += [_pruning("Segments", segments=share) for share in shares]
    return make_plan(
        "e2vpt",
        study,
        [{"method": "e2vpt", **table} for table in tables],
        title="E2VPT's ablations",
        description="E2VPT, and what differs from it in one thing: a kind of prompts, what they share, their number, "
        "how much is pruned.",
        source="E2VPT (arXiv 2307.13770), section 4",
        settings={"prompts": prompts, "kv_prompts": kv_prompts},
    )


def _pruning(what: str, *, tokens: float = 0.0, segments: float = 0.0) -> dict[str, Any]:
    share = 100 * (tokens + segments)
    return {"label": f"{what} -{share:g} %", "prune_tokens": tokens, "prune_segments": segments}


def read(plan: Plan, store: Store) -> E2VPTStudy:
    """The ablations, from the results that are there.

    Args:
        plan: What `plan_of` returned.
        store: Where it was run, as far as it was.

    Raises:
        PlanError: If the plan cannot be meant.

    Example:
        >>> from vprompt.experiments.bench.store import open_store
        >>> found = read(plan_of(Study(), parts=("sharing",)), open_store("nowhere"))
        >>> [row.label for row in found.ablations[0].rows]
        ['E2VPT', 'Heads share', 'Nothing shared']
    """
    runs = Runs(plan, store)
    labels: dict[Part, list[str]] = {}
    for method in plan.methods:
        if method.label != DEFAULT:
            labels.setdefault(_part(method.settings), []).append(method.label)
    return E2VPTStudy(
        about=runs.about(),
        prompts=plan.settings["prompts"],
        kv_prompts=plan.settings["kv_prompts"],
        ablations=tuple(
            Ablation(part=part, rows=tuple(_row(runs, label) for label in [DEFAULT, *labels[part]]))
            for part in PARTS
            if part in labels
        ),
    )


def _part(settings: Mapping[str, Any]) -> Part:
    """Which ablation a method of the plan belongs to."""
    if "prune_tokens" in settings:
        return "pruning"
    if "share" in settings:
        return "sharing"
    counts = [settings[name] for name in ("prompts", "kv_prompts") if name in settings]
    return "lengths" if settings["method"] == "e2vpt" and 0 not in counts else "parts"


def _row(runs: Runs, label: str) -> Row:
    return Row(label=label, default=label == DEFAULT, entries=tuple(_entry(runs, task, label) for task in runs.places))


def _entry(runs: Runs, task: str | None, label: str) -> Entry:
    accuracy = runs.seeds(task, label, tested)
    return Entry(
        task=task,
        accuracy=accuracy,
        change=difference(accuracy, runs.seeds(task, DEFAULT, tested)),
        learned=runs.seeds(task, label, _learned).mean,
        share=runs.seeds(task, label, lambda result: _learned(result) / result["backbone_params"]).mean,
    )


def _learned(result: Result) -> float:
    return float(result["learned_params"])
