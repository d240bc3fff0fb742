"""What all analyses share on the command line: where their files go, and what adapters they are about."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from vprompt.cli.console import UsageError, print_json, print_note, print_table
from vprompt.utils.errors import VPromptError


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the analysis goes."""

    out: Annotated[str, tyro.conf.arg(metavar="DIR")] = "runs/analyses"
    """Folder for NAME.json, NAME.png, and one page with all analyses that are there: analyses.html and analyses.md."""
    json: bool = False
    """Print the result as JSON."""

    def check(self) -> None:
        """Raises a `UsageError`, before anything is measured, for a folder that nothing can be written to."""
        if not self.out:
            raise UsageError("An empty name is no folder; give one by --out.")
        out = Path(self.out).absolute()
        there = next(place for place in (out, *out.parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise UsageError(f"The folder {self.out} cannot be written; choose another --out.")

    def show(self, name: str, result: Mapping[str, Any]) -> None:
        """Writes an analysis, prints its answer and its tables, or the result as JSON."""
        from vprompt.analysis.page import write_analysis
        from vprompt.analysis.view import view_of
        from vprompt.report.document import Cell, Table

        files = write_analysis(Path(self.out), name, result, command=command_line())
        if self.json:
            print_json({**result, "files": [str(file) for file in files]})
            return
        view = view_of(name)
        for table in (block for block in view.tables(result) if isinstance(block, Table)):
            rows = [
                [cell.text if isinstance(cell, Cell) else cell for cell in row]
                for body in table.bodies
                for row in body.rows
            ]
            print_table(table.caption, table.head, rows, whole_first=True)
        print_note(view.answer(result))
        print_note(f"In {self.out}: {', '.join(file.name for file in files)}.")


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """Which adapters, and on which images."""

    data: str | None = None
    """Images instead of those that the adapters were trained on; as `vprompt fit` takes them."""
    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds the tasks of VTAB-1k and FGVC; where the runs had it when left out."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The backbone's weights, where the adapters were trained with a file of them that is no longer where it was."""
    split: Literal["auto", "train", "val", "test"] = "auto"
    """Images to measure on; auto: the validation images, or the test images where no others were left to measure on."""


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["vprompt", *sys.argv[1:]])


def numbers(text: str, kind: Callable[[str], Any], option: str, example: str, *, distinct: bool = True) -> list[Any]:
    """Numbers separated by commas, each once where they are `distinct`.

    Raises:
        VPromptError: If there are none, or something else is among them.

    Example:
        >>> numbers("10,30", int, "--prompts", "10,30")
        [10, 30]
    """
    try:
        found: Sequence[Any] = [kind(part) for part in text.split(",")]
    except ValueError:
        raise VPromptError(f"{option} takes numbers separated by commas, such as {example}; not {text!r}.") from None
    return list(dict.fromkeys(found)) if distinct else list(found)
