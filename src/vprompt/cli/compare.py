"""`vprompt compare`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.cli.console import UsageError, print_json, print_note, print_table
from vprompt.cli.fit import Images, Pruning, UnseededTraining, data_name, flat_settings
from vprompt.utils.errors import VPromptError


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train several methods with several seeds each: accuracy, learned parameters and time in one table and plot."""

    data: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[DATA]")] = None
    """Image folder; the bundled task when left out."""
    methods: str = "linear,vpt-shallow,vpt-deep,pc,e2vpt"
    """What to compare, separated by commas: names that `fit --method` takes, and pc (Prompt Condensation), which
    condenses the run of vpt-deep."""
    seeds: int = 3
    """How many runs of each: seeds 0, 1, ...; all share the splits."""
    backbone: str = BUNDLED_BACKBONE
    """timm name of the vision transformer."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Weights of that backbone in a file (.safetensors, a PyTorch checkpoint, or a .npz of Google's ViT) instead of
    the published ones."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    prompts: int = 20
    """Prompts per block (deep, E2VPT), or in all (shallow)."""
    kv_prompts: int = 5
    """E2VPT: prompts per block that are keys and values from the start."""
    share: Literal["key-value", "heads", "none"] = "key-value"
    """E2VPT: what those have in common: keys and values are the same, all heads have the same, or nothing."""
    ratio: float = 0.3
    """pc: share of the prompts to keep."""
    fine_tune_epochs: int = 20
    """pc: epochs of fine-tuning after that."""
    rates: Annotated[str, tyro.conf.arg(metavar="METHOD=RATE,...")] = ""
    """Learning rates of some methods, such as full=0.0005,lora=0.002; the others have --lr, or their own default."""
    pruning: Pruning = Pruning(prune=True)
    """Of e2vpt alone."""
    training: UnseededTraining = UnseededTraining()
    images: Images = Images()
    out: str | None = None
    """Folder for the runs, compare.json, compare.md and compare.png; runs/DATA-compare when left out."""
    resume: bool = False
    """Go on with the comparison in --out, also with more methods or seeds; finished runs are read, not run again."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        """Runs, measures, writes, prints."""
        from vprompt.experiments.compare import Comparison, compare
        from vprompt.experiments.settings import settings_from

        if self.data == "" or self.out == "":
            raise UsageError("An empty name is no folder; leave DATA or --out away instead.")
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError("A comparison runs in one process; start it without torchrun.")
        settings = settings_from(flat_settings(self))
        methods = tuple(name.strip() for name in self.methods.split(",")) if self.methods.strip() else ()
        comparison = Comparison(
            methods=methods, seeds=self.seeds, ratio=self.ratio, rates=_rates(self.rates), settings=settings
        )
        out = Path(self.out) if self.out is not None else self.default_out()
        try:
            found = compare(comparison, out, resume=self.resume, progress=True)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"{error} Go on with the same command and --resume (in {out}).".strip()) from error
        if self.json:
            print_json(found)
        else:
            show(found, out)
        failed = [f"{row['method']}, seed {one['seed']}" for row in found["rows"] for one in row["failed"]]
        if failed:
            raise VPromptError(
                f"{len(failed)} of {len(found['runs'])} runs failed ({'; '.join(failed)}); --resume tries them again "
                "and reads the others. Remove the folder of a damaged run first."
            )

    def default_out(self) -> Path:
        """A folder named after the data."""
        return Path("runs") / f"{data_name(self.data)}-compare"


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
    print_table(f"{title(document)}\n\n{first.caption}", first.head, first.texts)
    for table in others:
        print_table(table.caption, table.head, table.texts, whole_first=True)
    files = ", ".join(name for name in ("compare.json", "compare.md", "compare.png") if (out / name).exists())
    print_note(f"In {out}: {files}, and every run in METHOD/seedN.")
