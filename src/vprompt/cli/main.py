"""Entry point of the command line: the commands, and errors as sentences and exit statuses."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

from vprompt.cli.analyze import analyze_command
from vprompt.cli.backbones import Backbones
from vprompt.cli.bench import Bench
from vprompt.cli.compare import compare_command
from vprompt.cli.console import PLACES, Command, UsageError, check_places, print_note
from vprompt.cli.cost import Cost
from vprompt.cli.data import Prepare, Tasks
from vprompt.cli.demo import Demo
from vprompt.cli.embed import Embed
from vprompt.cli.export import Export
from vprompt.cli.fit import Condense, fit_command
from vprompt.cli.options import HELP_ALL, values_of
from vprompt.cli.predict import Eval, Predict
from vprompt.cli.report import Report
from vprompt.cli.serve import Serve
from vprompt.utils.distributed import launcher_checked
from vprompt.utils.errors import VPromptError, lacks_memory
from vprompt.utils.signals import INTERRUPTED, interrupted_imports
from vprompt.utils.text import printable
from vprompt.utils.version import __version__

DESCRIPTION = """Visual prompt tuning of vision transformers: train, condense, fold.

Start with `vprompt fit` (the bundled task on the bundled backbone, nothing to download) or `vprompt fit FOLDER`.
`vprompt COMMAND --help` explains a command, --help-all with every option; `vprompt --version` is the version."""

COMMANDS = {
    "fit": fit_command,
    "condense": Condense,
    "eval": Eval,
    "predict": Predict,
    "embed": Embed,
    "export": Export,
    "serve": Serve,
    "compare": compare_command,
    "bench": Bench,
    "report": Report,
    "analyze": analyze_command,
    "cost": Cost,
    "backbones": Backbones,
    "tasks": Tasks,
    "prepare": Prepare,
    "demo": Demo,
}
"""Name -> the command, or what makes it of a command line, where its options depend on others."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    0: done. 1: a problem that a sentence explains. 2: wrong usage. 130: Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A class name that the terminal has no letters for must not end the command.
            stream.reconfigure(errors="backslashreplace")
    if arguments in (["--version"], ["-V"]):
        print(f"vprompt {__version__}")  # noqa: T201
        return 0
    with interrupted_imports(), launcher_checked() as leftovers, warnings.catch_warnings():
        warnings.showwarning = print_note  # without the line of code that a programmer wants
        return _status(arguments, leftovers)


def commands(arguments: Sequence[str]) -> Any:
    """All commands as one union of types, which tyro parses."""
    kinds = {name: kind if isinstance(kind, type) else kind(arguments) for name, kind in COMMANDS.items()}
    return Union[  # noqa: UP007
        tuple(Annotated[(kind, tyro.conf.subcommand(name, prefix_name=False))] for name, kind in kinds.items())
    ]


def _status(arguments: Sequence[str], leftovers: Sequence[str]) -> int:
    """Parses and runs one command, and turns what goes wrong into a sentence and an exit status."""
    try:
        command: Command = tyro.cli(
            commands(arguments),
            prog="vprompt",
            description=DESCRIPTION,
            args=["--help" if argument == HELP_ALL else argument for argument in arguments or ["--help"]],
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.DisallowNone),
        )
        if leftovers:
            print_note(f"{', '.join(leftovers)}: left over, as no torchrun is at work; this is one process alone.")
        check_places(values_of(command, PLACES))
        command.run()
        sys.stdout.flush()
    except UsageError as error:
        return _say(str(error), 2)
    except VPromptError as error:
        return _say(str(error), 1)
    except KeyboardInterrupt as error:
        return _say(str(error) or "Stopped.", INTERRUPTED)
    except Exception as error:
        if lacks_memory(error):
            return _say("There is not enough memory; try a smaller --batch-size, or a smaller backbone.", 1)
        if not isinstance(error, OSError):
            raise
        # What is not written yet goes nowhere, so that Python does not fail once more when it closes the stream.
        with contextlib.suppress(OSError):  # a stream of a test has no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read our output has gone; nothing is left to say
            return 1
        where = f" ({printable(str(error.filename))})" if error.filename else ""
        return _say(f"The system refused something: {error.strerror or error}{where}.", 1)
    return 0


def _say(sentence: str, status: int) -> int:
    print_note(f"vprompt: {sentence}")
    return status
