"""The commands `vprompt fit` and `condense`: options from the run's settings, and the tables of its result."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.backbones.names import full_name
from vprompt.cli.console import UsageError, percent, print_json, print_note, print_table, resumable
from vprompt.cli.options import chosen, command, group, option, shown, values_of
from vprompt.experiments.folder import PAGE, check_out, converged_in, score_key, target_of
from vprompt.experiments.settings import (
    DEFAULT_METHOD,
    CondenseSettings,
    Condensing,
    Pruning,
    Settings,
    setting_types,
    settings_from,
)
from vprompt.methods.registry import METHODS
from vprompt.model.records import Recipe
from vprompt.tasks.columns import Columns
from vprompt.utils.distributed import is_main_process
from vprompt.utils.io import checksum, encoded
from vprompt.utils.serialization import Option, build, options_of
from vprompt.utils.statistics import DOUBLED

BEST_METHOD = "lora"
"""By the validation images of development tasks (docs/results/methods.md)."""

LONGEST = 120
"""Characters of the name of a folder, beyond which it is cut."""

IMAGES = ("root", *options_of(Columns), "target", "head", "resize", "augment", "split_seed", "skip_bad")
"""Settings of how images are read."""

OUTPUT = {
    **option("out", str | None, None, "Folder for what comes out; named after the run when left out."),
    **option("resume", bool, False, "Go on with the run in --out, or start it where there is none."),
    **option("device", str, "auto", "Such as cpu or cuda; auto takes an accelerator."),
    **option("json", bool, False, "Print the result as JSON."),
}
"""Options of all commands that leave a folder."""

REPORT = option("report", bool, True, "Leave report.html, a page to look at.")
"""Option of commands that leave a page about one run."""

RATIO = replace(
    options_of(Condensing)["condense"],
    flag="ratio",
    type=float | Literal["auto"],
    default=0.3,
    help="Share of the prompts to keep; auto: the smallest that is not worse on the validation images.",
)
"""Option of commands that condense in any case."""


@dataclass(frozen=True, kw_only=True)
class FitCommand:
    """Train an adapter on labelled images: a table; class/image.jpg, or images/ and masks/, in train/, val/ and test/.

    These are the usual options; --help-all shows all.
    """

    def run(self) -> None:
        """Trains, condenses, evaluates, saves."""
        values, asked = values_of(self, setting_types()), values_of(self, OUTPUT | REPORT)
        settings = settings_from({**values, "backbone": values["backbone"] or BUNDLED_BACKBONE})
        kinds: dict[str, type] = {"condense": Condensing, "prune": Pruning}
        read = {
            name for flag, kind in kinds.items() if getattr(settings, flag) is not None for name in options_of(kind)
        }
        for flag, kind in kinds.items():
            rest = {name: option.default for name, option in options_of(kind).items() if name not in {*read, flag}}
            if given := [name for name, default in rest.items() if values.get(name, default) != default]:
                raise UsageError(f"--{given[0].replace('_', '-')} goes with --{flag}: give both, or leave it out.")
        out = None if asked["out"] is None else Path(asked["out"])
        if out is not None:
            check_out(out, resume=asked["resume"])  # before seconds of imports
        settings = replace(settings, backbone=backbone_of(values, out if asked["resume"] else None))
        out = out or default_out(settings)
        check_out(out, resume=asked["resume"])
        from vprompt.experiments.report.outcome import write_page
        from vprompt.experiments.run import run

        page = write_page if asked["report"] else None
        with resumable(out, asked["device"]):
            result = run(settings, out, resume=asked["resume"], progress=is_main_process(), page=page)
        show_result(result, out, as_json=asked["json"])


def fit_command(arguments: Sequence[str]) -> type[FitCommand]:
    """The command `fit` with the options of the method that a command line names.

    Args:
        arguments: The command line, not parsed yet.
    """
    usual = usual_method(arguments)
    name = chosen(arguments, "--method", usual)
    kind = METHODS.get(name if name in METHODS else usual)
    # Of several that have an option, one that is taken without --method is named.
    named = (*sorted(METHODS.names()), BEST_METHOD, DEFAULT_METHOD)
    having = {flag: other for other in named for flag in METHODS.get(other).options}
    foreign = sorted(_flags(arguments) & having.keys() - kind.options.keys())
    if foreign and name in METHODS and arguments[0] == "fit":
        flag, other = f"--{foreign[0].replace('_', '-')}", having[foreign[0]]
        raise UsageError(f"The method {kind.name} has no {flag}; {other} has (--method {other}).")
    help_method = (
        "Method of adaptation; each has options of its own: vprompt fit --method NAME --help. When left out, "
        f"{DEFAULT_METHOD} where prompts are asked for (--prompts, --condense, --prune, ...), and else {BEST_METHOD}."
    )
    options = {
        **settings_options("data", "backbone", "weights", "backbone_precision"),
        **option("method", Literal[METHODS.names()], usual, help_method),
        **settings_options("head_init", "train_on", "img_size", "in_chans", "calibrate", "check_convergence", "track"),
        **OUTPUT,
        **REPORT,
    }
    groups = {
        kind.name: group(kind.name, kind.options, doc=f"Options of the method {kind.name}."),
        "condensing": group("condensing", shown(options_of(Condensing), arguments), doc="Condensing after training."),
        "pruning": pruning_options(arguments),
        "training": group("training", shown(options_of(Recipe), arguments), doc="Training."),
        "images": group("images", shown(settings_options(*IMAGES), arguments), doc="Reading of images."),
    }
    return command(FitCommand, shown(options, arguments), groups)


def usual_method(arguments: Sequence[str]) -> str:
    """The method where a command line names none: one with prompts where it asks for some, or else the best."""
    prompts = {*METHODS.get(DEFAULT_METHOD).options, *options_of(Condensing), *options_of(Pruning), "prune"}
    return DEFAULT_METHOD if _flags(arguments) & prompts else BEST_METHOD


def _flags(arguments: Sequence[str]) -> set[str]:
    """The names of the options on a command line."""
    flags = (argument.partition("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--"))
    return {flag.removeprefix("__no_").removeprefix("__") for flag in flags}


def settings_options(*names: str) -> dict[str, Option]:
    """Some of the options of `Settings`; the backbone may be left out."""
    options = options_of(Settings)
    text = f"{options['backbone'].help} When left out: small, or bundled for the tasks that come with vprompt."
    options = {**options, "backbone": replace(options["backbone"], type=str | None, default=None, help=text)}
    return {name: options[name] for name in names}


def backbone_of(values: Mapping[str, Any], out: Path | None = None) -> str:
    """The backbone that a command line names, or the one that suits the data.

    Args:
        values: Of the command line.
        out: Folder of an earlier run that goes on.
    """
    if values["backbone"] is not None:
        return full_name(values["backbone"])
    from vprompt.experiments.stages import backbone_for

    name, problem = backbone_for(values["data"], root=values["root"], weights=values["weights"], out=out)
    if problem is not None and is_main_process():
        print_note(problem)
    return name


def pruning_options(arguments: Sequence[str], *, prune: bool = False) -> type:
    """Options of pruning; criterion and scope are those of condensing.

    Args:
        arguments: The command line.
        prune: The default of --prune.
    """
    switch = replace(options_of(Settings)["prune"], default=prune)
    own = {name: option for name, option in options_of(Pruning).items() if name not in options_of(Condensing)}
    return group("pruning", shown({"prune": switch, **own}, arguments), doc="Pruning after training, as E2VPT does.")


def default_out(settings: Settings) -> Path:
    """A folder whose name tells apart runs that a user makes side by side: by what differs from the defaults."""
    *words, seed = settings.words()
    name = "-".join([data_name(settings.data), *words, *_differing(settings), seed])
    if len(name) > LONGEST:
        name = f"{name[:LONGEST]}-{checksum(encoded(repr(settings)))[:8]}"
    return Path("runs") / name


def _differing(settings: Settings) -> Iterator[str]:
    """Words for settings that are not as by default and that no other word of the name tells."""
    own = METHODS.get(settings.method.name).options
    sizes, types = re.findall(r"\d+", settings.method.size), {**setting_types(), **own}
    told = {"data", "method", "condense", "prune", "merge", "seed"}
    for name, value in settings.to_flat(places=False).items():
        known = name in told or (name in own and str(value) in sizes)
        if known or value in (types[name].default, BUNDLED_BACKBONE):
            continue
        text = f"{value:g}" if isinstance(value, float) else "" if value is True else str(value)
        if name == "weights" and isinstance(value, str):
            text = f"-{Path(value).stem}-{checksum(encoded(value))[:6]}"
        yield re.sub(r"[^\w.+-]+", "-", text if name == "backbone" else f"{name}{text}")


def data_name(data: str | None) -> str:
    """Name of a run's folder, after its DATA."""
    return re.sub(r"[:*?]", "-", Path(data).resolve().name) if data else "fashion-mnist"


@dataclass(frozen=True, kw_only=True)
class CondenseCommand:
    """Score the prompts of a trained adapter, keep the best, fine-tune them, and save the smaller adapter."""

    def run(self) -> None:
        """Scores, keeps, fine-tunes, evaluates, saves."""
        values, asked = values_of(self, _OPTIONS), values_of(self, OUTPUT | REPORT)
        settings = build(CondenseSettings, {**values, "condense": values["ratio"]})
        out: Path = asked["out"]
        check_out(out, resume=asked["resume"])
        from vprompt.experiments.report.outcome import write_page
        from vprompt.experiments.run import run_condense

        page = write_page if asked["report"] else None
        with resumable(out, asked["device"]):
            result = run_condense(settings, out, resume=asked["resume"], progress=is_main_process(), page=page)
        show_result(result, out, as_json=asked["json"])


_OPTIONS = {entry.flag: entry for entry in ({**options_of(CondenseSettings), "condense": RATIO}).values()}
_OUT = {
    **OUTPUT,
    **REPORT,
    "out": replace(OUTPUT["out"], type=Path, default=MISSING, help="Folder for the smaller adapter and result.json."),
}

Condense = command(CondenseCommand, {**_OPTIONS, **_OUT}, {})


def show_result(result: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Prints a finished run: a table of before and after, where it lies, what to do next."""
    if not is_main_process():
        return
    if as_json:
        print_json(result)
        return
    after = "pruned" if "pruning" in result else "condensed"
    stages = [("all prompts", result["before"]), (after, result)] if "before" in result else [("", result)]
    titles = [" ".join(filter(None, [stage["method"], name])) for name, stage in stages]
    models = [stage for _, stage in stages]
    rows = [
        [title, str(sum(stage["prompt_counts"])), _learned(stage), f"{stage['training_seconds']:.0f} s"]
        for title, stage in zip(titles, models, strict=True)
    ]
    print_table(
        f"{result['provenance']['data']['source']} on {result['backbone']}",
        ["method", "prompts", "learned", "time"],
        rows,
    )
    target = target_of(result)
    for split in ("val", "test"):
        if result[score_key(result, split)] is not None:
            cells = [target.cells(stage, f"{split}_") for stage in models]
            rows = [[title, *row.values()] for title, row in zip(titles, cells, strict=True)]
            print_table(f"{split}{target.beside(result, f'{split}_')}", ["method", *cells[0]], rows)
    counts = [stage["prompt_counts"] for _, stage in stages]
    if len(stages) > 1 or len(set(counts[0])) > 1:
        rows = [[str(block), *map(str, row)] for block, row in enumerate(zip(*counts, strict=True))]
        print_table("Prompts in each block", ["block", *(name or "prompts" for name, _ in stages)], rows)
    for remark in _remarks(result, stages):
        print_note(remark)
    if (out / "full").exists():
        print_note(f"The adapter with all prompts is in {out / 'full'}.")
    there = f"Adapter and result.json are in {out}"
    if (out / PAGE).is_file():
        there = f"{out / PAGE} shows it all. {there}"
    print_note(f"{there}. Next: vprompt predict {out} IMAGE")


def _remarks(result: dict[str, Any], stages: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """Sentences below the tables: doubts, cost, what fewer prompts lost, images left out, convergence."""
    yield from result.get("notes", [])
    if all("folded_gmacs" in stage for _, stage in stages):
        costs = [" ".join(filter(None, [f"{stage['folded_gmacs']:.3g}", name])) for name, stage in stages]
        yield f"GMACs per {'window' if target_of(result).dense else 'image'}, folded: {', '.join(costs)}."
    if pruning := result.get("pruning"):
        shares = f"{percent(pruning['tokens'])} of the prompts and {percent(pruning['segments'])} of the others'"
        yield f"Pruned {shares} segments. All of it cost as much as {pruning['trainings']:.1f} trainings."
    if peak := result.get("scores"):
        spread = f"The scores of {peak['prompts']} prompts are spread as those of {peak['effective']:.1f} equal ones"
        yield f"{spread}; the prompts that were kept have {percent(peak['kept_share'])} of the sum."
    if trials := result.get("condensing", {}).get("trials"):
        tried = [f"{100 * trial['ratio']:g} %: {_points(trial['difference'])}" for trial in trials]
        score = target_of(result).title
        yield f"Validation {score} with shares of the prompts, against all of them: {', '.join(tried)} points."
    for split, images in (("val", "validation"), ("test", "test")):
        if (ends := result.get("lost", {}).get(f"{split}_interval")) is not None:
            lost = result["lost"][score_key(result, split)]
            change, low, high = (_points(-share) for share in (lost, ends[1], ends[0]))
            yield f"Against all prompts, {change} points on the {images} images (95 %: {low} to {high})."
    data = result["provenance"]["data"]
    if skipped := data.get("skipped"):
        yield f"Skipped {len(skipped)}: {skipped[0]}" + " ..." * (len(skipped) > 1)
    if differences := data.get("differences"):
        from vprompt.experiments.bench.tasks import known

        more = f" ({len(differences) - 1} more in result.json)" if len(differences) > 1 else ""
        what = "Not the benchmark's own data" if known(data["source"]) else "About the data"
        yield f"{what}: {differences[0]}{more}"
    for name, stage in stages:
        of = f" ({name})" if name else ""
        if stage.get("overfits"):
            yield f"The loss{of} on the validation images rose at the end: it overfits, and fewer epochs may do better."
        elif (converged := converged_in(stage)) is False:
            yield f"The training{of} had not converged: {DOUBLED}. More epochs may help."
        elif stage["epochs"]:
            unknown = f"Whether the training{of} had converged is not known; --check-convergence finds out."
            yield f"The training{of} had converged: twice the epochs change nothing." if converged else unknown


def _learned(stage: dict[str, Any]) -> str:
    """Learned numbers, and what share of the backbone's they are, where the result says it."""
    share = f" ({100 * stage['learned_params'] / stage['backbone_params']:.2f} %)" if "backbone_params" in stage else ""
    return f"{stage['learned_params']:,}{share}"


def _points(share: float) -> str:
    return f"{100 * share + 0.0:+.1f}"  # never -0.0
