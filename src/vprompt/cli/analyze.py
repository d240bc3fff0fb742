"""`vprompt analyze`: one command for every registered analysis."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from vprompt.analysis.base import Analysis, Host, in_order
from vprompt.analysis.options import Training
from vprompt.cli.bench import complain, overview_document, run_overview, show_overview
from vprompt.cli.console import UsageError, print_json, print_note, print_table
from vprompt.experiments.folder import locked
from vprompt.utils.errors import VPromptError

if TYPE_CHECKING:
    from vprompt.experiments.bench.plan import Plan
    from vprompt.experiments.bench.store import Store


@dataclass(frozen=True, kw_only=True)
class Analyze:
    """Answer one question of the papers about a backbone, adapters or data: numbers, a picture, a page."""

    analysis: Analysis

    def run(self) -> None:
        """Runs that analysis, writes, prints.

        Raises:
            UsageError: If options cannot be meant.
            VPromptError: If it fails, or parts of it did, once the others are shown.
        """
        from vprompt.analysis.page import refuse_others

        analysis = self.analysis
        try:
            analysis.check()
        except VPromptError as error:
            raise UsageError(str(error)) from error
        out, name = Path(analysis.output.out), analysis.name
        refuse_others(out, name)
        terminal = _Terminal(json=analysis.output.json)
        with locked(out / f".{name}.lock", f"{name} in {out}", tidy=True):
            result = analysis.run(terminal)
            if result is not None:
                _show(analysis, asdict(result))
        if terminal.failure is not None:
            raise terminal.failure


def analyze_command(arguments: Sequence[str]) -> type[Analyze]:
    """`Analyze` with a subcommand for every analysis there is; without any where another command was typed.

    Raises:
        VPromptError: If a plugin cannot be loaded.
    """
    if arguments and arguments[0] != "analyze":
        return Analyze
    kinds = tuple(Annotated[(kind, tyro.conf.subcommand(kind.name, prefix_name=False))] for kind in in_order())
    return make_dataclass(
        "Analyze",
        [("analysis", Union[kinds])],  # noqa: UP007 - of any number
        bases=(Analyze,),
        namespace={"__doc__": Analyze.__doc__},
        frozen=True,
    )


class _Terminal(Host):
    """Bars, remarks and tables on standard error; failures wait until results are shown."""

    def __init__(self, *, json: bool) -> None:
        self.progress = not json
        self.failure: VPromptError | None = None

    def note(self, text: str) -> None:
        print_note(text)

    def fail(self, error: VPromptError) -> None:
        self.failure = error

    def train(self, plan: Plan, store: Store, training: Training) -> bool:
        from vprompt.experiments.bench.bench import overview, summary

        workers, reads = training.workers, training.read_only
        todo = overview(plan, store, root=training.root, workers=workers, estimate=not reads)
        if self.progress and (training.dry_run or not reads):
            show_overview(todo, store.address)
        elif training.dry_run:
            print_json(overview_document(todo))
        if not reads and not training.dry_run:
            run_overview(todo, store, workers=workers, retry_failed=training.retry_failed)
            try:
                complain(summary(todo, store))
            except VPromptError as error:
                self.fail(error)
        return not training.dry_run


def _show(analysis: Analysis, result: dict[str, Any]) -> None:
    """Writes a result, and prints its tables and its answer, or all of it as JSON."""
    from vprompt.analysis.page import write_analysis
    from vprompt.report.document import Table

    output = analysis.output
    command = shlex.join(["vprompt", *sys.argv[1:]])
    files = write_analysis(Path(output.out), analysis.name, result, command=command)
    if output.json:
        print_json({**result, "files": [str(file) for file in files]})
        return
    view = analysis.view()
    shown = view.read(result)
    for table in (block for block in view.tables(shown) if isinstance(block, Table)):
        print_table(table.caption, table.head, table.texts, whole_first=True)
    print_note(view.answer(shown))
    print_note(f"In {output.out}: {', '.join(file.name for file in files)}.")
