"""What the plans of the studies have in common: tasks, backbone, recipe, and how learning rates are chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laconic.bench.plan import Plan, PlanError, parse_plan
from laconic.bundled import BUNDLED_BACKBONE
from laconic.data.bundled import SOURCE

LINEAR_EPOCHS = 100
"""At least so many for the linear probe, which learns on features that are computed once."""
RUNGS = (0.25,)
"""After a quarter of the epochs the worse half of the learning rates is given up."""
TITLES = {"vpt-deep": "VPT-Deep", "vpt-shallow": "VPT-Shallow"}


@dataclass(frozen=True, kw_only=True)
class Study:
    """What all runs of a study share.

    Args:
        tasks: Specs, as `laconic.data.open_task` takes them, or groups of them (`vtab`).
        backbone: timm name.
        weights: File with other weights.
        img_size: Input size in pixels, where it should differ from the backbone's own.
        seeds: How many runs of each: seeds 0, 1, ...
        epochs: Of every training; the linear probe has at least 100.
        batch_size: Images per step.
        optimizer: `"adamw"` or `"sgd"`.
        lrs: Learning rates; of several, the one is taken that validates best, for every method and count by itself.
        precision: `"fp32"` or `"bf16"`.
        workers: Runs at the same time.
    """

    tasks: Sequence[str] = (SOURCE,)
    backbone: str = BUNDLED_BACKBONE
    weights: str | None = None
    img_size: int | None = None
    seeds: int = 3
    epochs: int = 100
    batch_size: int = 64
    optimizer: str = "adamw"
    lrs: Sequence[float] = ()
    precision: str = "fp32"
    workers: int = 1

    @property
    def linear(self) -> dict[str, Any]:
        """The linear probe, as a method of a plan."""
        return {"label": "Linear", "method": "linear", "epochs": max(LINEAR_EPOCHS, self.epochs)}


def make_plan(
    name: str,
    study: Study,
    methods: Sequence[Mapping[str, Any]],
    *,
    title: str,
    description: str,
    source: str,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """A plan whose text is what a TOML file of it would be.

    Args:
        name: Its name.
        study: Tasks and recipe.
        methods: Tables, as a plan has them.
        title: A line for people.
        description: What it is to show.
        source: The paper it follows.
        settings: Of every run, besides those of the study.

    Raises:
        PlanError: If it cannot be meant.

    Example:
        >>> plan = make_plan("p", Study(lrs=(0.1, 0.01)), [Study().linear], title="", description="", source="")
        >>> plan.search.space, parse_plan(plan.text, name="") == plan
        ({'lr': (0.1, 0.01)}, True)
    """
    if not study.tasks:
        raise PlanError("A study needs at least one task.")
    shared: dict[str, Any] = {
        "backbone": study.backbone,
        "weights": study.weights,
        "img_size": study.img_size,
        "epochs": study.epochs,
        "batch_size": study.batch_size,
        "optimizer": study.optimizer,
        "precision": study.precision,
        "lr": study.lrs[0] if len(study.lrs) == 1 else None,
        **(settings or {}),
    }
    document: dict[str, Any] = {
        "name": name,
        "title": title,
        "description": description,
        "source": source,
        "tasks": list(study.tasks),
        "seeds": study.seeds,
        "settings": {key: value for key, value in shared.items() if value is not None},
        "methods": list(methods),
        "workers": {"number": study.workers},
    }
    if len(study.lrs) > 1:
        document["search"] = {"rungs": list(RUNGS), "space": {"lr": list(study.lrs)}}
    return parse_plan(toml(document), name=name)


def toml(document: Mapping[str, Any]) -> str:
    """Plain data as TOML: text, numbers, true and false, lists of these, tables and lists of tables.

    Example:
        >>> print(toml({"a": 1, "b": [0.5, "x"], "c": {"d": True}, "e": [{"f": 2}]}), end="")
        a = 1
        b = [0.5, "x"]
        <BLANKLINE>
        [c]
        d = true
        <BLANKLINE>
        [[e]]
        f = 2
    """
    return "\n".join(_table(document, "")) + "\n"


def _table(table: Mapping[str, Any], above: str) -> list[str]:
    lines = [f"{key} = {_value(value)}" for key, value in table.items() if not _is_table(value)]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{above}{key}]", *_table(value, f"{above}{key}.")]
        elif _is_table(value):
            for entry in value:
                lines += ["", f"[[{above}{key}]]", *_table(entry, f"{above}{key}.")]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PlanError(f"The name {value!a} is not text; a plan can only have names that are.") from None
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
