"""Comparison of methods: a plan of the benchmark with one task, and a table of scores, size and time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vprompt.backbones.factory import create_backbone, describe_name
from vprompt.backbones.info import num_parameters
from vprompt.data.sources.bundled import SOURCE as BUNDLED_TASK
from vprompt.experiments.bench.bench import changed_images, run_here
from vprompt.experiments.bench.engine import Watch
from vprompt.experiments.bench.grid import AFTERWARDS
from vprompt.experiments.bench.plan import MethodPlan, Plan, Search, check_number
from vprompt.experiments.bench.store import open_store
from vprompt.experiments.folder import converged_in, score_key, target_of
from vprompt.experiments.report.comparison import draw, markdown
from vprompt.experiments.settings import Condensing, Pruning, Settings, settings_from
from vprompt.methods.registry import METHODS
from vprompt.methods.vpt import VPT
from vprompt.model.cost import folded_gmacs
from vprompt.model.latency import Latency, latency
from vprompt.model.load import load
from vprompt.model.model import FoldedModel
from vprompt.model.records import AUTO
from vprompt.utils.devices import device_named
from vprompt.utils.errors import DataError, TrainingError, VPromptError
from vprompt.utils.io import write_json, write_text
from vprompt.utils.progress import bar
from vprompt.utils.serialization import options_of
from vprompt.utils.statistics import mean, mean_of, seeds_of

CONDENSED = "pc"
"""Label of Prompt Condensation: the condensed run of VPT-Deep."""

DOCUMENT = "compare.json"

GMACS_PER_CALL = 40.0
"""About a second on one thread of a processor."""


def measure(
    backbone: nn.Module, adapters: Mapping[str, Path], *, progress: bool = False
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Counts and times the folded models of several methods and the bare backbone, in turn.

    Args:
        backbone: What they were trained on; moved to the accelerator where there is one.
        adapters: Method -> folder of an adapter.
        progress: Say on standard error that it is going on.

    Returns:
        Of the backbone, `parameters` without its classifier, `device`, and `milliseconds` per image. Of each method,
        `kv_prompts`, `folded_gmacs`, `milliseconds` per image, and `time_ratio` to the backbone; or `failed`, why its
        model cannot be measured.
    """
    device = device_named("auto")
    backbone = backbone.to(device)
    folded: dict[str, FoldedModel] = {}
    costs: dict[str, dict[str, Any]] = {}
    for method, folder in adapters.items():
        try:
            model = load(folder, backbone)
            folded[method] = model.fold()
        except VPromptError as error:
            costs[method] = {"failed": str(error)}
            continue
        kv_prompts = sum(prompts.shape[-2] for prompts in model.kv_prompts)
        costs[method] = {"kv_prompts": kv_prompts, "folded_gmacs": folded_gmacs(model)}
    bare: dict[str, Any] = {"parameters": num_parameters(backbone), "device": device.type}
    if folded:
        most = max(costs[method]["folded_gmacs"] for method in folded)
        batch = 64 if device.type != "cpu" else max(1, min(16, int(GMACS_PER_CALL / most)))
        times = time_folded(backbone, folded, batch, progress=progress)
        bare["milliseconds"] = times[""].milliseconds
        for method in folded:
            costs[method] |= {"milliseconds": times[method].milliseconds, "time_ratio": times[method].ratio}
    return bare, costs


def time_folded(
    backbone: nn.Module, folded: Mapping[str, FoldedModel], batch: int, *, progress: bool = True
) -> dict[str, Latency]:
    """Milliseconds per image of folded models, in turn, and of the bare backbone under the empty name."""
    shape, device = next(iter(folded.values())).preprocessing.shape, next(backbone.parameters()).device
    with bar("timing", enabled=progress) as report:
        images = torch.randn(batch, *shape, device=device)
        return latency({"": backbone, **folded}, images, rounds=12, report=report)


def training_seconds(result: dict[str, Any]) -> float:
    """Of a run, with those of the model that it condensed, or of the whole search for how much to prune."""
    if "pruning" in result:
        return result["before"]["training_seconds"] * result["pruning"]["trainings"]
    return result["training_seconds"] + result.get("before", {}).get("training_seconds", 0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods that are compared, and how each is trained.

    Args:
        methods: Names of methods, and `pc`, the condensed run of VPT-Deep.
        seeds: Number of runs of each: seeds 0, 1, ... The splits are the same for all.
        rates: Peak learning rates of some methods, by name.
        search: Choose rate, weight decay and size of every method on validation images, with equal effort.
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
    search: bool = False
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
            settings = self.settings_of(method)
            if self.search and (settings.recipe.time is not None or settings.recipe.epochs == AUTO):
                raise VPromptError(
                    "A search stops the worse choices early and needs a number of epochs; give --epochs."
                )
            given = [size for size in settings.method.sizes if self.values.get(size) is not None]
            if self.search and given:
                flag = given[0].replace("_", "-")
                raise VPromptError(f"A search chooses --{flag} of {method}; leave one of both out.")

    @property
    def task(self) -> str:
        """The task that all are trained on; a folder by its whole path."""
        data = self.values.get("data")
        return BUNDLED_TASK if data is None else os.path.abspath(data) if os.path.isdir(data) else data

    def values_of(self, method: str) -> dict[str, Any]:
        """The settings that one method adds to those of all, by flat name."""
        name = VPT().name if method == CONDENSED else method
        values = {"method": name} | {
            k: v for k, v in self.values.items() if k in METHODS.get(name).options and v is not None
        }
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
            seeds=tuple(range(check_number(self.seeds, "seeds"))),
            settings={"train_on": "train"} | {k: v for k, v in self._common.items() if k not in ("data", "root")},
            methods=tuple(MethodPlan(label=name, settings=self.values_of(name)) for name in self.methods),
            search=Search(same=True) if self.search else None,
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
        The document in compare.json: `rows`, one per method (means of all figures, and the sample standard deviation of
        the score, as shares of one), `runs`, `bare` (the backbone's parameters and time), `settings` and `provenance`.

    Raises:
        VPromptError: Or one of its kinds, if no run can go well: the data, the backbone or the folder is at fault.
        KeyboardInterrupt: On Ctrl-C; the comparison can be resumed.
    """
    started, values = time.monotonic(), comparison.values
    describe_name(values["backbone"], img_size=values.get("img_size"))
    _check_folder(out, resume=resume)
    store = open_store(str(out))
    options: dict[str, Any] = {"root": values.get("root"), "progress": progress, "watch": watch}
    rows = run_here(comparison.plan(), store, retry_failed=resume, **options)
    if changed_images(rows):
        raise DataError(f"The images have changed between the runs in {out}; start again in another --out.")
    finished = [row for row in rows if row["failure"] is None]
    for row in finished:
        row["folder"] = str(store.adapter(row["name"]))
    origin = finished[0]["result"]["provenance"] if finished else None
    folders = {row["method"]: Path(row["folder"]) for row in reversed(finished)}
    bare, costs = None, dict[str, dict[str, Any]]()
    if folders:
        backbone = create_backbone(values["backbone"], img_size=values.get("img_size"), weights=values.get("weights"))
        bare, costs = measure(backbone, folders, progress=progress)
    document = {
        "data": None if origin is None else origin["data"]["source"],
        "backbone": values["backbone"],
        "bare": bare,
        "rows": [_row(method, rows, bare, costs.get(method, {})) for method in comparison.methods],
        "runs": [_record(row) for row in rows],
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


def _row(
    method: str, rows: Sequence[dict[str, Any]], bare: Mapping[str, Any] | None, cost: Mapping[str, Any]
) -> dict[str, Any]:
    """One row of a comparison, over the seeds; what is not known is None."""
    own = [row for row in rows if row["method"] == method]
    search = own[0]["search"]
    failed = [{"seed": row["seed"], "failed": row["failure"]} for row in own if row["failure"] is not None]
    results = [row["result"] for row in own if row["failure"] is None]
    if "failed" in cost:
        failed.append({"seed": results[0]["seed"], "failed": cost["failed"]})
    target = target_of(results[0] if results else {})
    keys = [score_key({"target": target.name}, split) for split in ("test", "val")]
    test, val = (seeds_of([result[key] for result in results]) for key in keys)
    learned = mean([result["learned_params"] for result in results])
    prompts = mean([sum(result["prompt_counts"]) for result in results])
    figures = [{key: value for key, value in result.items() if key.startswith("test_")} for result in results]
    return {
        "method": method,
        "runs": len(results),
        "chosen": None if search is None else search["chosen"],
        "tries": None if search is None else len(search["trials"]),
        "target": target.name,
        "test_interval": None,
        **(mean_of(figures) if figures else {}),
        keys[0]: test.mean,
        "test_std": test.std,
        keys[1]: val.mean,
        "learned_params": learned,
        "learned_share": None if learned is None or not bare else learned / bare["parameters"],
        "prompts": prompts + cost["kv_prompts"] if prompts is not None and "kv_prompts" in cost else None,
        **{key: cost.get(key) for key in ("folded_gmacs", "milliseconds", "time_ratio")},
        "training_seconds": mean([training_seconds(result) for result in results]),
        "converged": sum(converged_in(result) is True for result in results),
        "unknown": sum(converged_in(result) is None for result in results),
        "pruned": any("pruning" in result for result in results),
        "failed": failed,
    }


REPORTED = ("prompt_counts", "learned_params", "settings")


def _record(row: dict[str, Any]) -> dict[str, Any]:
    facts = {"method": row["method"], "seed": row["seed"], "failed": row["failure"], "folder": row.get("folder")}
    if row["failure"] is not None:
        return facts
    result, origin = row["result"], row["result"]["provenance"]
    return {
        **facts,
        **{key: result[key] for key in (score_key(result, "val"), score_key(result, "test"), *REPORTED)},
        "converged": converged_in(result),
        "training_seconds": training_seconds(result),
        "provenance": {
            "data_fingerprint": origin["data"]["fingerprint"],
            **{key: origin[key] for key in ("backbone_fingerprint", "weights", "versions", "device")},
        },
    }
