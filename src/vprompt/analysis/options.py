"""Groups of options that analyses share, as Python and the command line take them; cheap to import."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from vprompt.backbones.bundled import BUNDLED_BACKBONE
from vprompt.utils.distributed import number_of_processes
from vprompt.utils.errors import VPromptError


def commas(
    kind: Callable[[str], Any], option: str, example: str, metavar: str = "N,N,...", *, distinct: bool = True
) -> PrimitiveConstructorSpec[tuple[Any, ...]]:
    """Type of an option that takes a tuple: its entries separated by commas, each once where they are `distinct`.

    Args:
        kind: Makes an entry of its text.
        option: Its name, for messages.
        example: For messages.
        metavar: Stands for it in the help.
        distinct: Drop repetitions.

    Example:
        >>> commas(int, "--prompts", "10,30").instance_from_str(["10,30,10"])
        (10, 30)
    """

    def parse(texts: list[str]) -> tuple[Any, ...]:
        try:
            entries = [kind(part) for part in texts[0].split(",")]
        except ValueError:
            what = "whole numbers" if kind is int else "numbers"
            raise VPromptError(
                f"{option} takes {what} separated by commas, such as {example}; not {texts[0]!r}."
            ) from None
        return tuple(dict.fromkeys(entries) if distinct else entries)

    def shown(entries: tuple[Any, ...]) -> list[str]:
        return [",".join(f"{entry:g}" if isinstance(entry, float) else str(entry) for entry in entries)]

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=shown,
    )


Shares = Annotated[tuple[float, ...], commas(float, "--shares", "0.1,0.3,0.5", "SHARE,...")]


@dataclass(frozen=True, kw_only=True)
class Output:
    """Output of an analysis."""

    out: Annotated[str, tyro.conf.arg(metavar="DIR")] = "runs/analyses"
    """Folder for NAME.json, NAME.png, and one page with all analyses that are there: analyses.html and analyses.md."""
    json: bool = False
    """Print the result as JSON."""

    def check(self) -> None:
        """Raises a `VPromptError` for a folder that nothing can be written to."""
        if not self.out:
            raise VPromptError("An empty name is no folder; give one by --out.")
        out = Path(self.out).absolute()
        existing = next(place for place in (out, *out.parents) if place.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise VPromptError(f"The folder {self.out} cannot be written; choose another --out.")


@dataclass(frozen=True, kw_only=True)
class RunsOutput(Output):
    """Output of runs and their analysis."""

    out: Annotated[str, tyro.conf.arg(metavar="RUNS")] = "runs/analyses"
    """Folder for the runs, and for NAME.json, NAME.png and one page with all analyses that are there. Analyses that
    share it share their runs; the same command again goes on where it stopped."""

    def check(self) -> None:
        """Raises a `VPromptError` for an address of another machine, or a folder that nothing can be written to."""
        if "://" in self.out:
            raise VPromptError("The analysis is written beside its runs; give a folder of this machine by --out.")
        super().check()


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Adapters, and the images to use."""

    places: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTER...")] = ()
    """Adapters, folders with adapters below them (what `vprompt fit` or `vprompt bench` left), or ids on the Hub; of
    several, means and spread."""
    data: str | None = None
    """Images instead of those that the adapters were trained on; as `vprompt fit` takes them."""
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; where the runs had it when left out."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The backbone's weights, where the adapters were trained with a file of them that is no longer where it was."""
    split: Literal["auto", "train", "val", "test"] = "auto"
    """Images to measure on; auto: the validation images, or the test images where no others were left to measure on."""

    def check(self) -> None:
        """Raises a `VPromptError` where no adapter is named."""
        if not self.places:
            raise VPromptError("Name an adapter, or a folder with adapters in it.")


@dataclass(frozen=True, kw_only=True)
class Training:
    """Trainings of a study."""

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[TASK...]")] = ()
    """Image folders, or tasks: vtab:NAME, fgvc:NAME (see `vprompt tasks`), synthetic:NAME, or all of vtab; the bundled
    one when left out."""
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out."""
    backbone: str = BUNDLED_BACKBONE
    """timm name of the vision transformer."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Weights of that backbone in a file instead of the published ones."""
    img_size: int | None = None
    """Input size in pixels, where it should differ from the backbone's own."""
    seeds: int = 3
    """Number of runs of each: seeds 0, 1, ..."""
    epochs: int = 100
    """Passes over the training images; the linear probe has at least 100."""
    batch_size: int = 64
    """Images per step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """SGD as in the papers, or AdamW, which needs less search."""
    lrs: Annotated[tuple[float, ...], commas(float, "--lrs", "0.005,0.02", "LR,...")] = ()
    """Learning rate. Of several, such as 0.005,0.02, each method and number of prompts has the one that validates
    best. 0.005 for adamw and 5.0 for sgd when left out."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16 is faster on GPUs and on recent CPUs; auto measures."""
    workers: int = 1
    """Number of runs at once."""
    dry_run: bool = False
    """Only say what would be run and how long that would take."""
    read_only: bool = False
    """Train nothing; show what there is so far."""
    retry_failed: bool = False
    """Try again also what failed for good, such as a loss that became no number."""

    def check(self) -> None:
        """Raises a `VPromptError` for options that no training can have."""
        if not all(self.tasks):
            raise VPromptError("An empty name is no folder; give tasks, and a folder for --out.")
        if min(self.seeds, self.workers) < 1:
            raise VPromptError(f"There must be at least one seed and one worker, not {min(self.seeds, self.workers)}.")
        if number_of_processes() > 1:
            raise VPromptError("The analysis starts its own workers; start it without torchrun.")


def depth_title(method: str) -> str:
    """A name of VPT on the command line as people write it.

    Example:
        >>> depth_title("vpt-deep"), depth_title("vpt-shallow")
        ('VPT-Deep', 'VPT-Shallow')
    """
    first, dash, depth = method.partition("-")
    return first.upper() + dash + depth.capitalize()


@dataclass(frozen=True, kw_only=True)
class Condensation:
    """Condensing in a study."""

    prompts: int | Literal["paper"] = 20
    """All prompts, per block (deep) or in all (shallow); paper: what the papers have for each task."""
    criterion: str = "taylor"
    """Importance of a prompt; `vprompt condense --help` names the criteria."""
    scope: Literal["global", "local", "shared"] = "global"
    """Choose over all blocks together, inside every block, or the same for all blocks."""
