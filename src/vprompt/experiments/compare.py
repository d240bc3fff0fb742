"""Comparison of methods: a plan of the benchmark with one task, and a table of accuracy, size and time."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vprompt.backbones.factory import create_backbone, describe_name
from vprompt.backbones.info import num_parameters
from vprompt.experiments.bench.bench import overview, run_plan
from vprompt.experiments.bench.engine import Watch
from vprompt.experiments.bench.grid import AFTERWARDS
from vprompt.experiments.bench.inline import InlineEngine
from vprompt.experiments.bench.plan import MethodPlan, Plan
from vprompt.experiments.bench.store import Store, open_store
from vprompt.experiments.report.comparison import draw, markdown
from vprompt.experiments.settings import Condensing, Pruning, Settings, settings_from
from vprompt.methods.registry import METHODS
from vprompt.methods.vpt import VPT
from vprompt.model.cost import folded_gmacs
from vprompt.model.latency import latency
from vprompt.model.load import load
from vprompt.model.model import FoldedModel
from vprompt.utils.errors import DataError, TrainingError, VPromptError
from vprompt.utils.io import write_json, write_text
from vprompt.utils.progress import bar
from vprompt.utils.serialization import options_of

CONDENSED = "pc"
"""Label of Prompt Condensation: the condensed run of VPT-Deep."""

DOCUMENT = "compare.json"

BUNDLED_TASK = "bundled:fashion-mnist"

GMACS_PER_CALL = 40.0
"""About a second on one thread of a processor."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Models of several methods side by side.

    Args:
        bare: Of the backbone: `parameters` without its classifier, `device`, and `milliseconds` per image.
        costs: Method -> `kv_prompts`, `folded_gmacs`, `milliseconds` per image, and `time_ratio` to the backbone.
        failures: Method -> why its model cannot be measured.
    """

    bare: dict[str, Any] | None = None
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def measure(backbone: nn.Module, adapters: Mapping[str, Path], *, progress: bool = False) -> Measured:
    """Counts and times the folded models of several methods and the bare backbone, in turn.

    Args:
        backbone: What they were trained on; moved to the accelerator where there is one.
        adapters: Method -> folder of an adapter.
        progress: Say on standard error that it is going on.
    """
    if torch.accelerator.is_available():
        backbone = backbone.to(torch.accelerator.current_accelerator())
    device = next(backbone.parameters()).device
    folded: dict[str, FoldedModel] = {}
    costs: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    for method, folder in adapters.items():
        try:
            model = load(folder, backbone)
            folded[method] = model.fold()
        except VPromptError as error:
            failures[method] = str(error)
            continue
        kv_prompts = sum(prompts.shape[-2] for prompts in model.kv_prompts)
        costs[method] = {"kv_prompts": kv_prompts, "folded_gmacs": folded_gmacs(model)}
    bare: dict[str, Any] = {"parameters": num_parameters(backbone), "device": device.type}
    if folded:
        most = max(cost["folded_gmacs"] for cost in costs.values())
        batch = 64 if device.type != "cpu" else max(1, min(16, int(GMACS_PER_CALL / most)))
        images = torch.randn(batch, 3, *next(iter(folded.values())).preprocessing.size, device=device)
        with bar("timing", enabled=progress):
            times = latency({"": backbone, **folded}, images, rounds=12)
        bare["milliseconds"] = times[""].milliseconds
        for method, cost in costs.items():
            cost |= {"milliseconds": times[method].milliseconds, "time_ratio": times[method].ratio}
    return Measured(bare=bare, costs=costs, failures=failures)


def summary(results: Sequence[dict[str, Any]], measured: Measured, method: str) -> dict[str, Any]:
    """One row of a comparison; what is not known is None.

    Args:
        results: The documents of its finished runs, one per seed.
        measured: With the costs of this method, where it could be measured.
        method: Its name.

    Example:
        >>> row = summary([], Measured(), "linear")
        >>> row["runs"], row["test_accuracy"]
        (0, None)
    """
    tests = [result["test_accuracy"] for result in results if result["test_accuracy"] is not None]
    learned = _mean([result["learned_params"] for result in results])
    prompts = _mean([sum(result["prompt_counts"]) for result in results])
    costs = measured.costs.get(method)
    return {
        "runs": len(results),
        "test_accuracy": _mean(tests),
        "test_std": statistics.stdev(tests) if len(tests) > 1 else None,
        "val_accuracy": _mean([result["val_accuracy"] for result in results if result["val_accuracy"] is not None]),
        "learned_params": learned,
        "learned_share": None if learned is None or not measured.bare else learned / measured.bare["parameters"],
        "prompts": None if prompts is None or costs is None else prompts + costs["kv_prompts"],
        **{key: costs[key] if costs else None for key in ("folded_gmacs", "milliseconds", "time_ratio")},
        "training_seconds": _mean([training_seconds(result) for result in results]),
        "converged": sum(result["converged"] for result in results),
    }


def training_seconds(result: dict[str, Any]) -> float:
    """Of a run, with those of the model that it condensed, or of the whole search for how much to prune."""
    if "pruning" in result:
        return result["before"]["training_seconds"] * result["pruning"]["trainings"]
    return result["training_seconds"] + result.get("before", {}).get("training_seconds", 0)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods that are compared, and how each is trained.

    Args:
        methods: Names of methods, and `pc`, the condensed run of VPT-Deep.
        seeds: Number of runs of each: seeds 0, 1, ... The splits are the same for all.
        rates: Peak learning rates of some methods, by name.
        values: Settings of every run by flat name, without method and seed. Of what they say of condensing only `pc`
            takes notice, of pruning only methods that it is a part of.

    Raises:
        VPromptError: If a method is not known or given twice, or a setting is out of range.

    Example:
        >>> plan = Comparison(methods=("linear", "pc"), values={"backbone": "test_vit", "condense": 0.3}).plan()
        >>> [method.label for method in plan.methods], plan.seeds
        (['linear', 'pc'], (0, 1, 2))
    """

    methods: tuple[str, ...]
    seeds: int = 3
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        known = (*METHODS.names(), CONDENSED)
        if not self.methods:
            raise VPromptError(f"There is no method to compare; there are {', '.join(known)}.")
        for method in self.methods:
            if method not in known:
                raise VPromptError(f"There is no method called {method!r}; there are {', '.join(known)}.")
            if self.methods.count(method) > 1:
                raise VPromptError(f"The method {method!r} is given twice; name each once.")
        for method, rate in self.rates.items():
            if method not in METHODS:
                raise VPromptError(f"No method that is trained is called {method!r}; give rates to others.")
            if not 0 < rate < float("inf"):
                raise VPromptError(f"The learning rate of {method} must be above 0, not {rate}.")
        if self.seeds < 1:
            raise VPromptError(f"A comparison needs at least one seed, not {self.seeds}.")
        for method in self.methods:
            self.settings_of(method)

    @property
    def task(self) -> str:
        """The task that all are trained on; a folder by its whole path."""
        data = self.values.get("data")
        return BUNDLED_TASK if data is None else os.path.abspath(data) if os.path.isdir(data) else data

    def values_of(self, method: str) -> dict[str, Any]:
        """The settings that one method adds to those of all, by flat name."""
        name = VPT().name if method == CONDENSED else method
        values = {"method": name} | {k: v for k, v in self.values.items() if k in METHODS.get(name).options}
        after = options_of(Condensing) if method == CONDENSED else {"prune": None, **options_of(Pruning)}
        if method == CONDENSED or METHODS.get(name).method.prunes:
            values |= {key: value for key, value in self.values.items() if key in after and value is not None}
        return values | ({"lr": self.rates[name]} if name in self.rates else {})

    def settings_of(self, method: str) -> Settings:
        """The settings of a method's runs, but for their seed."""
        return settings_from({**self._common, **self.values_of(method)})

    @property
    def _common(self) -> dict[str, Any]:
        own = {flag for kind in METHODS for flag in kind.options}
        return {k: v for k, v in self.values.items() if k not in own | AFTERWARDS and v is not None}

    def plan(self) -> Plan:
        """The plan of all its runs."""
        return Plan(
            name="compare",
            title="Comparison of methods",
            tasks=(self.task,),
            seeds=tuple(range(self.seeds)),
            settings={"train_on": "train"} | {k: v for k, v in self._common.items() if k not in ("data", "root")},
            methods=tuple(MethodPlan(label=name, settings=self.values_of(name)) for name in self.methods),
        )


def compare(
    comparison: Comparison,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Makes every run that is not there yet, measures one model of each method, and writes compare.json.

    A run that fails is reported, and the others go on. The folder is a benchmark's: `vprompt report` reads it.

    Args:
        comparison: Methods and settings.
        out: Folder for the runs and the document; must be empty unless `resume`.
        resume: Go on with the comparison in `out`, also with other methods, seeds or settings; finished runs are read.
        progress: Show bars on standard error.
        watch: Told of every run.

    Returns:
        The document in compare.json: `rows`, one per method (accuracies and their sample standard deviation as shares
        of one), `runs`, `bare` (the backbone's parameters and time), `settings` and `provenance`.

    Raises:
        VPromptError: Or one of its kinds, if no run can go well: the data, the backbone or the folder is at fault.
        KeyboardInterrupt: On Ctrl-C; the comparison can be resumed.
    """
    started, values = time.monotonic(), comparison.values
    describe_name(values["backbone"], img_size=values.get("img_size"))
    _check_folder(out, resume=resume)
    store, plan, root = open_store(str(out)), comparison.plan(), values.get("root")
    found = overview(plan, store, root=root, estimate=False)
    for why in found.missing.values():
        raise DataError(why)
    engine = InlineEngine(store.address, progress=progress)
    outcomes = run_plan(found, store, engine, watch=watch)
    runs = [
        _run_of(store, cell.method, cell.seed, None if outcome.run is None else outcome.run.name, outcome.failure)
        for cell, outcome in zip(found.cells, outcomes, strict=True)
    ]
    finished = [run for run in runs if run["failed"] is None]
    if len({run["result"]["provenance"]["data"]["fingerprint"] for run in finished}) > 1:
        raise DataError(f"The images have changed between the runs in {out}; start again in another --out.")
    origin = finished[0]["result"]["provenance"] if finished else None
    folders = {run["method"]: Path(run["folder"]) for run in reversed(finished)}
    measured = measure(_backbone_of(values), folders, progress=progress) if folders else Measured()
    document = {
        "data": None if origin is None else origin["data"]["source"],
        "backbone": values["backbone"],
        "bare": measured.bare,
        "rows": [_row(method, runs, measured) for method in comparison.methods],
        "runs": [_record(run) for run in runs],
        "settings": {**vars(comparison), "values": {k: v for k, v in values.items() if v is not None}},
        "provenance": origin,
        "seconds": round(time.monotonic() - started, 1),
    }
    document = json.loads(json.dumps(document))
    write_json(out / DOCUMENT, document)
    write_text(out / "compare.md", markdown(document))
    if not draw(document, out / "compare.png"):
        (out / "compare.png").unlink(missing_ok=True)
    return document


def _check_folder(out: Path, *, resume: bool) -> None:
    """Raises a TrainingError for a folder that holds something else, or a comparison that is not to be resumed."""
    if out.exists() and not out.is_dir():
        raise TrainingError(f"The output folder {out} is a file; choose another --out.")
    if not out.exists() or not any(out.iterdir()):
        return
    ours = (out / "plans" / "compare.toml").exists()
    if not ours:
        what = "something that is no comparison" if resume else "files already"
        raise TrainingError(f"{out} holds {what}; choose another --out.")
    if not resume:
        raise TrainingError(f"{out} holds a comparison; add --resume to go on with it, or choose another --out.")


def _run_of(store: Store, method: str, seed: int, name: str | None, failure: str | None) -> dict[str, Any]:
    """One run: its result and folder, or the sentence that says why there is none."""
    result = store.result(name) if name is not None and failure is None else None
    if result is None and failure is None:
        failure = f"The result of {method}, seed {seed} has gone."
    folder = None if name is None or result is None else str(store.adapter(name))
    return {"method": method, "seed": seed, "failed": failure, "folder": folder, "result": result}


def _backbone_of(values: Mapping[str, Any]) -> nn.Module:
    return create_backbone(values["backbone"], img_size=values.get("img_size"), weights=values.get("weights"))


def _row(method: str, runs: Sequence[dict[str, Any]], measured: Measured) -> dict[str, Any]:
    own = [run for run in runs if run["method"] == method]
    failed = [{"seed": run["seed"], "failed": run["failed"]} for run in own if run["failed"] is not None]
    results = [run["result"] for run in own if run["failed"] is None]
    if method in measured.failures:
        failed.append({"seed": results[0]["seed"], "failed": measured.failures[method]})
    pruned = any("pruning" in result for result in results)
    return {"method": method, **summary(results, measured, method), "pruned": pruned, "failed": failed}


REPORTED = ("val_accuracy", "test_accuracy", "prompt_counts", "learned_params", "converged", "settings")


def _record(run: dict[str, Any]) -> dict[str, Any]:
    """A run in the document."""
    facts = {key: run[key] for key in ("method", "seed", "failed", "folder")}
    if run["failed"] is not None:
        return facts
    result, origin = run["result"], run["result"]["provenance"]
    return {
        **facts,
        **{key: result[key] for key in REPORTED},
        "training_seconds": training_seconds(result),
        "provenance": {
            "data_fingerprint": origin["data"]["fingerprint"],
            **{key: origin[key] for key in ("backbone_fingerprint", "weights", "versions", "device")},
        },
    }
