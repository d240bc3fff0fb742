"""What the runs of one method come to: means over its seeds, and the size and time of its models."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vprompt.backbones.factory import create_backbone, describe_name
from vprompt.backbones.info import num_parameters
from vprompt.cli.console import print_note
from vprompt.experiments.folder import RESULT, changed_settings
from vprompt.experiments.report.comparison import draw, markdown
from vprompt.experiments.run import run, run_condense
from vprompt.experiments.settings import CondenseSettings, Settings
from vprompt.methods.registry import METHOD_NAMES
from vprompt.model.cost import folded_gmacs
from vprompt.model.latency import latency
from vprompt.model.load import load
from vprompt.model.model import FoldedModel
from vprompt.utils.errors import BackboneError, DataError, TrainingError, VPromptError
from vprompt.utils.io import read_json, write_json, write_text
from vprompt.utils.progress import bar

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


CONDENSED, TRAINED = "pc", "vpt-deep"
"""Prompt Condensation, and what it condenses."""

PRUNED = "e2vpt"
"""What pruning is a part of."""

SETTINGS = "settings.json"

SHARED = ("data", "root", "backbone", "weights", "img_size", "resize", "augment", "split_seed", "skip_bad")

REPORTED = ("val_accuracy", "test_accuracy", "prompt_counts", "learned_params", "converged", "settings")

NEEDED = (*REPORTED, "training_seconds", "provenance", "seconds")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Which methods are compared, and how each is trained.

    Args:
        methods: Names that `Settings` takes, and `pc`, the condensed run of `vpt-deep`.
        seeds: How many: 0, 1, ... The splits are the same for all.
        ratio: Share of the prompts that `pc` keeps.
        rates: Peak learning rates of some methods, by name; the others have that of `settings`.
        settings: Of every run, but for its method and the seed of its recipe; its pruning is that of `e2vpt`.

    Raises:
        VPromptError: If a method is not known or given twice, or a setting is out of range.

    Example:
        >>> Comparison(methods=("linear", "pc"), settings=Settings(backbone="test_vit")).seeds
        3
    """

    methods: tuple[str, ...]
    seeds: int = 3
    ratio: float = 0.3
    rates: dict[str, float] = field(default_factory=dict)
    settings: Settings

    def __post_init__(self) -> None:
        known = (*METHOD_NAMES, CONDENSED)
        if not self.methods:
            raise VPromptError(f"There is no method to compare; there are {', '.join(known)}.")
        for method in self.methods:
            if method not in known:
                raise VPromptError(f"There is no method called {method!r}; there are {', '.join(known)}.")
            if self.methods.count(method) > 1:
                raise VPromptError(f"The method {method!r} is given twice; name each once.")
        for method, rate in self.rates.items():
            if method not in METHOD_NAMES:
                raise VPromptError(f"No method that is trained is called {method!r}; give rates to others.")
            if not 0 < rate < float("inf"):
                raise VPromptError(f"The learning rate of {method} must be above 0, not {rate}.")
        if self.seeds < 1:
            raise VPromptError(f"A comparison needs at least one seed, not {self.seeds}.")
        for method in self.methods:
            settings_of(self, method, self.seeds - 1, Path())

    @property
    def trained_methods(self) -> list[str]:
        """Those that run, in that order: what `pc` condenses also where it is not shown."""
        methods = [method for method in self.methods if method != CONDENSED]
        if CONDENSED in self.methods:
            methods += [CONDENSED] if TRAINED in methods else [TRAINED, CONDENSED]
        return methods


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a comparison: its result, or the sentence that says why there is none."""

    method: str
    seed: int
    result: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None


def run_folder(out: Path, method: str, seed: int) -> Path:
    """Where a comparison in `out` keeps one of its runs."""
    return out / method / f"seed{seed}"


def settings_of(comparison: Comparison, method: str, seed: int, out: Path) -> Settings | CondenseSettings:
    """What one run does; the place for what only one method has."""
    common = comparison.settings
    if method != CONDENSED:
        prune = common.prune if method == PRUNED else None
        recipe = replace(common.recipe, seed=seed, lr=comparison.rates.get(method, common.recipe.lr))
        return replace(common, method=method, prune=prune, recipe=recipe)
    return CondenseSettings(
        adapter=os.path.abspath(run_folder(out, TRAINED, seed)),
        weights=common.weights,
        data=common.data,
        root=common.root,
        ratio=comparison.ratio,
        criterion=common.criterion,
        scope=common.scope,
        merge=common.merge,
        fine_tune=common.fine_tune,
        fine_tune_epochs=common.fine_tune_epochs,
        seed=seed,
        split_seed=common.split_seed,
        skip_bad=common.skip_bad,
    )


def compare(comparison: Comparison, out: Path, *, resume: bool = False, progress: bool = False) -> dict[str, Any]:
    """Makes every run that is not there yet, measures one model of each method, and writes compare.json.

    A run that fails is reported, and the others go on.

    Args:
        comparison: What to run.
        out: Folder for the runs (METHOD/seedK) and the document; must be empty unless `resume`.
        resume: Go on with the comparison in `out`, also with other methods or more seeds; finished runs are read.
        progress: Say on standard error which run it is, and show its bars.

    Returns:
        The document in compare.json: `rows`, one per method (accuracies and their sample standard deviation as shares
        of one), `runs`, `bare` (the backbone's parameters and time), `settings` and `provenance`.

    Raises:
        VPromptError: Or one of its kinds, if no run can go well: the data, the backbone or the folder is at fault.
        KeyboardInterrupt: On Ctrl-C; the comparison can be resumed.
    """
    started = time.monotonic()
    settings = comparison.settings
    describe_name(settings.backbone, img_size=settings.img_size)
    _claim(comparison, out, resume=resume)
    try:
        runs = _run_all(comparison, out, progress=progress)
    except VPromptError:
        _abandon(out)
        raise
    shown = [found for found in runs if found.method in comparison.methods]
    finished = [found for found in shown if found.failure is None]
    _require_same_data(finished, out)
    origin = finished[0].result["provenance"] if finished else None
    firsts = {found.method: run_folder(out, found.method, found.seed) for found in reversed(finished)}
    measured = measure(_make_backbone(comparison), firsts, progress=progress) if firsts else Measured()
    document = {
        "data": None if origin is None else origin["data"]["source"],
        "backbone": settings.backbone,
        "bare": measured.bare,
        "rows": [_row(method, shown, measured) for method in comparison.methods],
        "runs": [_record(found, out) for found in shown],
        "settings": asdict(comparison),
        "provenance": origin,
        "seconds": round(time.monotonic() - started, 1),
    }
    document = json.loads(json.dumps(document))
    write_json(out / "compare.json", document)
    write_text(out / "compare.md", markdown(document))
    if not draw(document, out / "compare.png"):
        (out / "compare.png").unlink(missing_ok=True)
    return document


def _claim(comparison: Comparison, out: Path, *, resume: bool) -> None:
    """Makes the folder this comparison's own; one with other methods or seeds may go on in it."""
    if out.exists() and not out.is_dir():
        raise TrainingError(f"The output folder {out} is a file; choose another --out.")
    record, mine = out / SETTINGS, _settings_document(comparison)
    if out.exists() and any(path.suffix != ".part" for path in out.iterdir()):
        if not resume:
            hint = "add --resume to go on with it, or " if record.exists() else ""
            what = "a comparison" if record.exists() else "files already"
            raise TrainingError(f"{out} holds {what}; {hint}choose another --out.")
        if not record.exists():
            raise TrainingError(f"{out} holds something that is no comparison; choose another --out.")
        known = read_json(record)
        both = {part: {key: mine[part][key] for key in mine[part] if key in known.get(part, {})} for part in mine}
        if changed := changed_settings(known, both):
            raise TrainingError(
                f"The comparison in {out} has other settings ({', '.join(changed)}); give the same, or choose another "
                "--out."
            )
        mine = {part: {**known.get(part, {}), **mine[part]} for part in mine}
    try:
        write_json(record, mine)
    except OSError as error:
        raise TrainingError(f"The output folder {out} cannot be written ({error.strerror}).") from error


def _settings_document(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """What all runs have in common, and what each method's are told, but for the seed; other methods may join them."""
    common = {key: value for key, value in asdict(comparison.settings).items() if key in SHARED}
    methods: dict[str, Any] = {}
    for method in comparison.trained_methods:
        methods[method] = asdict(settings_of(comparison, method, 0, Path()))
        methods[method].pop("adapter", None)  # where the comparison lies does not matter
    return json.loads(json.dumps({"shared": common, "methods": methods}))


def _abandon(out: Path) -> None:
    """After an error that all runs share: where nothing was trained, nothing is left in the way."""
    for folder in out.iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    if [path.name for path in out.iterdir()] == [SETTINGS]:
        shutil.rmtree(out)


def _run_all(comparison: Comparison, out: Path, *, progress: bool) -> list[Run]:
    """All runs, seed by seed; those that `pc` condenses also where they are not shown."""
    jobs = [(method, seed) for seed in range(comparison.seeds) for method in comparison.trained_methods]
    runs: list[Run] = []
    for number, (method, seed) in enumerate(jobs):
        if progress:
            hidden = "" if method in comparison.methods else f" (for {CONDENSED})"
            todo = [job for job in jobs[number:] if not (run_folder(out, *job) / RESULT).exists()]
            left = _time_left(todo, runs) if (method, seed) in todo else " (finished)"
            print_note(f"[{number + 1}/{len(jobs)}] {method}{hidden}, seed {seed}{left}")
        base = next((r for r in runs if method == CONDENSED and (r.method, r.seed) == (TRAINED, seed)), None)
        if base is not None and base.failure is not None:
            failure = f"There is nothing to condense, {TRAINED} of the same seed failed: {base.failure}"
            runs.append(Run(method=method, seed=seed, failure=failure))
        else:
            runs.append(_run_one(comparison, method, seed, out, progress=progress))
        if progress and runs[-1].failure is not None:
            print_note(f"failed: {runs[-1].failure}")
    return runs


def _run_one(comparison: Comparison, method: str, seed: int, out: Path, *, progress: bool) -> Run:
    folder, settings = run_folder(out, method, seed), settings_of(comparison, method, seed, out)
    try:
        if isinstance(settings, Settings):
            result = run(settings, folder, resume=True, progress=progress)
        else:
            result = run_condense(settings, folder, resume=True, progress=progress)
        if missing := [key for key in NEEDED if key not in result]:
            raise TrainingError(f"{folder / RESULT} is damaged: there is no {missing[0]} in it.")
    except DataError:  # the same for all
        raise
    except (VPromptError, MemoryError, torch.OutOfMemoryError) as error:
        if isinstance(error, BackboneError):
            _make_backbone(comparison)  # where that fails too, no method is at fault
        sentence = str(error) if isinstance(error, VPromptError) else "There is not enough memory."
        return Run(method=method, seed=seed, failure=sentence)
    return Run(method=method, seed=seed, result=result)


def _time_left(jobs: Sequence[tuple[str, int]], runs: Sequence[Run]) -> str:
    """What the runs so far let one expect of those still to come; nothing while there is none."""
    seconds: dict[str, list[float]] = {}
    for found in runs:
        if found.failure is None:
            seconds.setdefault(found.method, []).append(found.result["seconds"])
    if not seconds:
        return ""
    known = {method: statistics.fmean(values) for method, values in seconds.items()}
    left = sum(known.get(method, statistics.fmean(known.values())) for method, _ in jobs)
    shown = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"
    return f" (about {shown} left)"


def _require_same_data(finished: Sequence[Run], out: Path) -> None:
    """Runs that were made at different times may have seen different images in the same folder."""
    seen = {found.result["provenance"]["data"]["fingerprint"] for found in finished if found.failure is None}
    if len(seen) > 1:
        raise DataError(f"The images have changed between the runs in {out}; start again in another --out.")


def _make_backbone(comparison: Comparison) -> torch.nn.Module:
    settings = comparison.settings
    return create_backbone(settings.backbone, img_size=settings.img_size, weights=settings.weights)


def _row(method: str, runs: Sequence[Run], measured: Measured) -> dict[str, Any]:
    mine = [found for found in runs if found.method == method]
    good = [found for found in mine if found.failure is None]
    failed = [{"seed": found.seed, "failed": found.failure} for found in mine if found.failure is not None]
    if method in measured.failures:
        failed.append({"seed": good[0].seed, "failed": measured.failures[method]})
    return {"method": method, **summary([found.result for found in good], measured, method), "failed": failed}


def _record(found: Run, out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"method": found.method, "seed": found.seed, "failed": found.failure}
    facts["folder"] = str(run_folder(out, found.method, found.seed))
    if found.failure is not None:
        return facts
    origin = found.result["provenance"]
    return {
        **facts,
        **{key: found.result[key] for key in REPORTED},
        "training_seconds": training_seconds(found.result),
        "provenance": {
            "data_fingerprint": origin["data"]["fingerprint"],
            **{key: origin[key] for key in ("backbone_fingerprint", "weights", "versions", "device")},
        },
    }
