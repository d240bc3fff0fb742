"""Plan of E2VPT's ablations, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vprompt.analysis.e2vpt import PARTS, E2VPTAblations
from vprompt.analysis.study import Compared, RunResult, Runs, StudySummary, linear_probe, make_plan
from vprompt.experiments.bench.plan import Plan, PlanError
from vprompt.experiments.bench.store import Store

DEFAULT = "E2VPT"


@dataclass(frozen=True, kw_only=True)
class AblationEntry(Compared):
    """A row of an ablation on one task, against the default.

    Args:
        task: None is the mean over all tasks.
        learned: Numbers that training changes, the head's among them; None where there is no result.
        share: That over the parameters of the backbone.
    """

    task: str | None
    learned: float | None
    share: float | None


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One choice of an ablation.

    Args:
        label: What it is called.
        default: Whether it is what all others are compared with.
        entries: The mean over all tasks, where there are several, and each of them.
    """

    label: str
    default: bool
    entries: tuple[AblationEntry, ...]


@dataclass(frozen=True, kw_only=True)
class PartAblation:
    """One question and its rows, the default first."""

    part: str
    rows: tuple[AblationRow, ...]


@dataclass(frozen=True, kw_only=True)
class E2VPTResult:
    """Ablations of E2VPT.

    Args:
        about: What was run.
        prompts: Visual prompts per block of the default.
        kv_prompts: Key-value prompts per block of the default.
        ablations: In the order of `PARTS`.
    """

    about: StudySummary
    prompts: int
    kv_prompts: int
    ablations: tuple[PartAblation, ...]


def plan_of(options: E2VPTAblations) -> Plan:
    """The plan: the default, and whatever differs from it in one thing.

    Raises:
        PlanError: If it cannot be meant.

    Example:
        >>> [method.label for method in plan_of(E2VPTAblations(parts=("parts", "sharing"))).methods]
        ['E2VPT', 'Linear', 'VPT-Deep, 15 prompts', 'Visual only', 'Key-value only', 'Heads share', 'Nothing shared']

    Source: E²VPT (arXiv 2307.13770), section 4.
    """
    parts = options.parts
    if not parts or any(part not in PARTS for part in parts):
        raise PlanError(f"The ablations are {', '.join(PARTS)}; give some of them, not {', '.join(parts) or 'none'}.")
    if min(options.prompts, options.kv_prompts, *options.visual, *options.key_value) < 1:
        raise PlanError(
            "The default has prompts of both kinds, and so has every other length; give at least 1 of each."
        )
    if wrong := [share for share in (*options.pruned, *options.controlled, *options.rewound) if not 0 < share < 1]:
        raise PlanError(f"Shares to prune and to rewind to must be above 0 and below 1, not {wrong[0]}.")
    tables = [{"label": DEFAULT}, *(table for rows in _tables(options).values() for table in rows)]
    return make_plan(
        options,
        [{"method": "e2vpt", **table} for table in tables],
        title="E2VPT's ablations",
        description="E2VPT, and what differs from it in one thing: a kind of prompts, what they share, their number, "
        "how much is pruned, by which criterion, and what the rest is trained from.",
        source="E2VPT (arXiv 2307.13770), section 4",
        settings={"prompts": options.prompts, "kv_prompts": options.kv_prompts},
    )


def _tables(options: E2VPTAblations) -> dict[str, list[dict[str, Any]]]:
    """Trainings for each ablation, besides the default."""
    own, own_kv, epochs = options.prompts, options.kv_prompts, options.training.epochs
    # As many prompts in all, and as many learned numbers: one key-value prompt has those of a visual one.
    rival = {"label": f"VPT-Deep, {own + own_kv} prompts", "method": "vpt-deep", "prompts": own + own_kv}
    tables: dict[str, list[dict[str, Any]]] = {
        "parts": [
            linear_probe(options.training),
            rival,
            {"label": "Visual only", "kv_prompts": 0},
            {"label": "Key-value only", "prompts": 0},
        ],
        "sharing": [{"label": "Heads share", "share": "heads"}, {"label": "Nothing shared", "share": "none"}],
        "lengths": [
            *({"label": f"{n} visual", "prompts": n} for n in sorted(set(options.visual)) if n != own),
            *({"label": f"{n} key-value", "kv_prompts": n} for n in sorted(set(options.key_value)) if n != own_kv),
        ],
        "pruning": _pruned(options.pruned, {"": {}}),
        "criteria": _pruned(options.controlled, {f", {name}": {"criterion": name} for name in options.criteria}),
        "rewinding": _pruned(
            options.controlled,
            {
                ", rewound to the start": {},
                **{
                    f", rewound to epoch {epoch}": {"rewind_epoch": epoch}
                    for epoch in sorted({round(share * epochs) for share in options.rewound} - {0, epochs})
                },
                ", not rewound": {"rewind_epoch": epochs},
                ", fresh start": {"fresh_start": True},
            },
        ),
    }
    return {part: rows for part, rows in tables.items() if part in options.parts and rows}


def _pruned(shares: Sequence[float], ways: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Trainings that prune prompts, or segments, in several ways, whose names end their labels."""
    return [
        {"label": f"{kind} -{100 * share:g} %{name}", "prune_tokens": 0.0, "prune_segments": 0.0, setting: share, **way}
        for kind, setting in (("Prompts", "prune_tokens"), ("Segments", "prune_segments"))
        for share in sorted(set(shares))
        for name, way in ways.items()
    ]


def read(options: E2VPTAblations, store: Store) -> E2VPTResult:
    """The ablations of a plan, from the results that are there.

    Example:
        >>> from vprompt.experiments.bench.store import open_store
        >>> result = read(E2VPTAblations(parts=("sharing",)), open_store("nowhere"))
        >>> [row.label for row in result.ablations[0].rows]
        ['E2VPT', 'Heads share', 'Nothing shared']
    """
    runs = Runs(plan_of(options), store)
    return E2VPTResult(
        about=runs.about(),
        prompts=options.prompts,
        kv_prompts=options.kv_prompts,
        ablations=tuple(
            PartAblation(part=part, rows=tuple(_row(runs, label) for label in [DEFAULT, *(t["label"] for t in tables)]))
            for part, tables in _tables(options).items()
        ),
    )


def _row(runs: Runs, label: str) -> AblationRow:
    entries = tuple(
        AblationEntry(
            task=task,
            learned=runs.seeds(task, label, _learned).mean,
            share=runs.seeds(task, label, lambda result: _learned(result) / result["backbone_params"]).mean,
            **vars(runs.compared(task, label, DEFAULT)),
        )
        for task in runs.places
    )
    return AblationRow(label=label, default=label == DEFAULT, entries=entries)


def _learned(result: RunResult) -> float:
    return float(result["learned_params"])
