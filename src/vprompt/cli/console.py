"""Output of commands: JSON, tables and notes; and the errors of usage."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, Protocol

from vprompt.utils.errors import VPromptError
from vprompt.utils.progress import tell
from vprompt.utils.registry import plugins
from vprompt.utils.text import printable


class UsageError(VPromptError):
    """A command line that cannot be meant."""


class Command(Protocol):
    """A parsed command line that can be run."""

    def run(self) -> None:
        """Does what was asked and prints it."""
        ...


PLACES = ("data", "adapter", "weights", "images", "plan", "runs", "out", "engine")
"""Options that name files or folders, or say (`engine`) that another names none."""


def check_places(values: Mapping[str, Any]) -> None:
    """Raises a `VPromptError` for what is not there: before seconds of imports, which would end with the same.

    Args:
        values: Of `PLACES`, as far as a command has them.
    """
    if "" in values.values():
        raise UsageError("An empty name is no file and no folder; leave it out, or give another.")

    def gone(name: str) -> str | None:
        path = values.get(name)
        return path if isinstance(path, str) and path and not os.path.lexists(path) else None

    others = plugins() or entry_points(group="vprompt.data")  # of which nobody knows what they take for data
    if (data := gone("data")) is not None and ":" not in data and not others and not glob.glob(data):
        raise VPromptError(f"The image folder or table {printable(data)} does not exist; check the path.")
    adapter = None if values.get("engine") is True else gone("adapter")  # of which the adapter may be a backbone's name
    if adapter is not None and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", adapter):
        raise VPromptError(
            f"There is no folder {printable(adapter)!r}, and that is no id on the Hub ('user/name'); check the path."
        )
    if (weights := gone("weights")) is not None:
        raise VPromptError(f"There is no weights file {printable(weights)}; check the path.")
    images = values.get("images")
    if isinstance(images, tuple | list) and images and not any(map(os.path.lexists, images)):
        raise VPromptError(f"The image {printable(str(images[0]))} does not exist; check the path.")


@contextmanager
def goes_on(how: Callable[[], str]) -> Generator[None]:
    """Says of a command that is stopped by Ctrl-C how it goes on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{error} {how()}".strip()) from error


@contextmanager
def resumable(out: object, device: str = "auto") -> Generator[None]:
    """Trains on a device; what is stopped goes on with --resume."""
    from vprompt.utils.devices import computing_on

    with goes_on(lambda: f"Go on with the same command and --resume (in {out})."), computing_on(device):
        yield


def print_json(document: Any) -> None:
    """Prints one JSON document on standard output."""
    sys.stdout.write(json_text(document, indent=2) + "\n")
    sys.stdout.flush()


def json_text(document: Any, *, indent: int | None = None) -> str:
    """JSON for standard output; what a terminal would not show as a character is in JSON's own escapes."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(document, indent=indent, ensure_ascii=not unicode, allow_nan=False)
    if printable(text, keep="\n") == text:
        return text
    return "".join(c if c == "\n" or printable(c) == c else json.dumps(c)[1:-1] for c in text)


@contextmanager
def json_rows() -> Generator[Callable[[Any], None]]:
    """Prints a JSON list row by row, one on each line; it is closed also where the command is stopped on the way."""
    rows = 0

    def write(row: Any) -> None:
        nonlocal rows
        sys.stdout.write((",\n" if rows else "[\n") + json_text(row))
        sys.stdout.flush()
        rows += 1

    try:
        yield write
    finally:
        if rows:
            sys.stdout.write("\n]\n")
            sys.stdout.flush()


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, whole_first: bool = False
) -> None:
    """Prints a table on standard output, numbers to the right, as narrow as its text; text is never markup.

    Args:
        title: Stands above it.
        columns: Their heads.
        rows: Their cells.
        whole_first: Let the other columns be folded first where the terminal is narrow.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        right = bool(rows) and all(_numeric(row[number]) for row in rows)
        # On a narrow terminal a cell goes on in the next line, but the digits of a number stay together.
        if right:
            longest = max(len(word) for row in rows for word in printable(row[number]).split() or [""])
            table.add_column(Text(column), justify="right", overflow="fold", min_width=longest)
        else:
            table.add_column(Text(column), overflow="fold", no_wrap=whole_first and not number)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(file=sys.stdout)
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    console.print(table, crop=False)


def print_note(text: str | Warning, *_: object) -> None:
    """Prints lines on standard error; of a warning, as `warnings.showwarning` is given it, the text alone."""
    tell(printable(str(text), keep="\n").split("\n"))


def percent(share: float | None) -> str:
    """A share of one as a percentage, or a dash.

    Example:
        >>> percent(0.875), percent(None)
        ('87.5 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def _numeric(cell: str) -> bool:
    return cell in ("", "-", "–") or cell.lstrip("+-")[:1].isdigit()
