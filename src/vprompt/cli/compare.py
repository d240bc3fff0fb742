"""The command `vprompt compare`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vprompt.cli.console import UsageError, print_json, print_note, print_table, resumable
from vprompt.cli.fit import IMAGES, OUTPUT, RATIO, backbone_of, data_name, pruning_options, settings_options
from vprompt.cli.options import chosen, command, group, option, shown, values_of
from vprompt.experiments.bench.engine import Event, Watch
from vprompt.experiments.settings import Condensing, setting_types
from vprompt.methods.registry import METHODS
from vprompt.model.records import Recipe
from vprompt.utils.distributed import number_of_processes
from vprompt.utils.errors import VPromptError
from vprompt.utils.serialization import Option, options_of
from vprompt.utils.text import duration, printable

if TYPE_CHECKING:
    from vprompt.experiments.bench.jobs import Job

METHODS_SHOWN = "linear,vpt-shallow,vpt-deep,pc,e2vpt"

_METHODS = (
    "What to compare, separated by commas: names that `fit --method` takes, and pc (Prompt Condensation), which "
    "condenses the run of vpt-deep."
)
_RATES = (
    "Learning rates of some methods (METHOD=RATE,...), such as full=0.0005,lora=0.002; the others have --lr, or their "
    "own default."
)
_SEARCH = (
    "Choose rate, weight decay and size of every method on the validation images: twelve trainings of each, of which "
    "the worse half stops after a quarter and half of --epochs."
)
_OWN = {
    **option("methods", str, METHODS_SHOWN, _METHODS),
    **option("seeds", int, 3, "How many runs of each: seeds 0, 1, ...; all share the splits."),
    **option("rates", str, "", _RATES),
    **option("search", bool, False, _SEARCH),
}


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Train several methods with several seeds each: accuracy, learned parameters and time in one table and plot.

    These are the usual options; --help-all shows all.
    """

    def run(self) -> None:
        """Runs, measures, writes, prints."""
        from vprompt.experiments.compare import Comparison, compare

        asked = values_of(self, {**_OWN, **OUTPUT, "ratio": None})
        values = values_of(self, setting_types()) | {"condense": asked["ratio"]}
        if number_of_processes() > 1:
            raise UsageError("A comparison runs in one process; start it without torchrun.")
        methods = tuple(_names(asked["methods"]))
        values["backbone"] = backbone_of(values)
        own = {name: asked[name] for name in ("seeds", "search")}
        comparison = Comparison(methods=methods, rates=_rates(asked["rates"]), values=values, **own)
        out = Path("runs") / f"{data_name(values['data'])}-compare" if asked["out"] is None else Path(asked["out"])
        with resumable(out, asked["device"]):
            document = compare(comparison, out, resume=asked["resume"], progress=True, watch=Lines())
        if asked["json"]:
            print_json(document)
        else:
            show(document, out)
        if failed := [f"{row['method']}, seed {run['seed']}" for row in document["rows"] for run in row["failed"]]:
            raise VPromptError(
                f"{len(failed)} of {len(document['runs'])} runs failed ({'; '.join(failed)}); --resume tries them "
                "again and reads the others."
            )


def compare_command(arguments: Sequence[str]) -> type[CompareCommand]:
    """The command `compare` with the options of all methods, first of those that a command line names.

    Args:
        arguments: The command line, not parsed yet.
    """
    named = _names(chosen(arguments, "--methods", METHODS_SHOWN))
    kinds = sorted(METHODS, key=lambda kind: kind.name in named)  # the last one to say what a flag is prevails
    methods = {flag: _left_out(option) for kind in kinds for flag, option in kind.options.items()}
    condensing = {name: option for name, option in options_of(Condensing).items() if name != "condense"}
    recipe = {name: option for name, option in options_of(Recipe).items() if name != "seed"}
    groups = {
        "compared": group("compared", shown(methods, arguments), doc="Options of the methods; each reads its own."),
        "condensing": group("condensing", shown({"ratio": RATIO, **condensing}, arguments), doc="Condensing of pc."),
        "pruning": pruning_options(arguments, prune=True),
        "training": group("training", shown(recipe, arguments), doc="Training of every run."),
        "images": group("images", shown(settings_options(*IMAGES), arguments), doc="Reading of images."),
    }
    own = {
        **settings_options("data", "backbone", "weights", "head_init", "img_size", "check_convergence"),
        **_OWN,
        **OUTPUT,
    }
    return command(CompareCommand, shown(own, arguments), groups)


def _left_out(option: Option) -> Option:
    """An option of which each method has a default of its own."""
    return replace(option, type=option.type | None, default=None)


class Lines(Watch):
    """A line on standard error for each run, with the time that the others are likely to take."""

    def __init__(self) -> None:
        self.number = 0

    def event(self, event: Event) -> None:
        """Tells of a run that starts."""
        if event.kind == "started":
            self.number += 1
            print_note(f"[{self.number}] {event.name}")

    def settled(self, job: Job, result: Mapping[str, Any]) -> None:
        """Tells of a run that has ended."""
        seconds = f" ({duration(result['seconds'])})" if result.get("seconds") is not None else ""
        print_note(f"failed: {result['failed']}" if "failed" in result else f"done: {job.name}{seconds}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")] if text.strip() else []


def _rates(text: str) -> dict[str, float]:
    """From METHOD=RATE,... to numbers."""
    try:
        pairs = [part.split("=") for part in text.split(",") if part.strip()]
        rates = {name.strip(): float(rate) for name, rate in pairs}
        if len(rates) < len(pairs):
            raise ValueError
        return rates
    except ValueError:
        raise UsageError(
            f"--rates takes METHOD=RATE,..., each method once, such as full=0.0005,lora=0.002; not {text!r}."
        ) from None


def show(document: dict[str, Any], out: Path) -> None:
    """Prints the tables, and where everything lies."""
    from vprompt.experiments.report.comparison import tables, title

    first, *others = tables(document)
    sys.stdout.write(f"{printable(title(document))}\n\n")
    print_table(first.caption, first.head, first.texts)
    for table in others:
        print_table(table.caption, table.head, table.texts, whole_first=True)
    weak = [
        row["method"]
        for row in document["rows"]
        if row["test_interval"] and row["test_interval"][0] <= row.get("test_majority_accuracy", -math.inf)
    ]
    if weak:
        print_note(f"Not clearly above always saying the commonest class: {', '.join(weak)}.")
    files = ", ".join(name for name in ("compare.json", "compare.md", "compare.png") if (out / name).exists())
    print_note(f"In {out}: {files}, and every run's adapter. More: vprompt report {out}")
