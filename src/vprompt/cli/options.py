"""Options of commands, made from the library's configuration dataclasses, as tyro parses them, and their values."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from typing import Annotated, Any, TypeVar

import tyro

from vprompt.utils.serialization import Option

POSITIONAL = {"data": "[DATA]", "adapter": "ADAPTER"}
METAVARS = {"root": "DIR", "weights": "FILE", "out": "DIR"}

Json = Annotated[bool, tyro.conf.arg(help="Print the result as JSON.")]

_DEVICE = "Device to compute on, such as cpu or cuda; auto takes the accelerator where there is one."
Device = Annotated[str, tyro.conf.arg(help=_DEVICE)]

_ROOT = "Folder that holds the tasks of VTAB-1k and FGVC; $VPROMPT_DATA or ./data when left out."
Root = Annotated[str | None, tyro.conf.arg(metavar="DIR", help=_ROOT)]

_WEIGHTS = "The backbone's weights, where the adapter was trained with a file of them that is no longer where it was."
Weights = Annotated[str | None, tyro.conf.arg(metavar="FILE", help=_WEIGHTS)]

C = TypeVar("C")


HELP, HELP_ALL = frozenset({"-h", "--help"}), "--help-all"

USUAL = {
    *("data", "target", "head", "label_column", "group", "backbone", "weights", "method", "methods", "seeds"),
    *("prompts", "condense", "ratio", "fine_tune_epochs", "prune", "epochs", "batch_size", "lr", "time", "balance"),
    *("augment", "stochastic_depth", "best_epoch", "early_stopping", "track", "seed", "skip_bad"),
    *("out", "resume", "json"),
}
"""Options that --help shows of a command with many; --help-all shows all."""


def option(flag: str, kind: Any, default: Any, words: str) -> dict[str, Option]:
    """An option of a command that is none of a run's settings, by its flag."""
    return {flag: Option(flag=flag, type=kind, default=default, help=words)}


def shown(options: Mapping[str, Option], arguments: Sequence[str]) -> dict[str, Option]:
    """The options that a command has for a command line: the usual ones where that asks for no more than --help."""
    few = not HELP.isdisjoint(arguments) and HELP_ALL not in arguments
    return {flag: option for flag, option in options.items() if not few or flag in USUAL}


def command(base: type[C], options: Mapping[str, Option], groups: Mapping[str, type]) -> type[C]:
    """A command with options and groups of options as fields, which tyro parses.

    Args:
        base: A frozen dataclass without fields; says what the command does.
        options: By flag; `data` and `adapter` are positional.
        groups: Title -> what `group` made.
    """
    entries = [_entry(option) for option in options.values()]
    entries += [
        (title.replace("-", "_"), kind, field(default=kind())) for title, kind in groups.items() if fields(kind)
    ]
    made = make_dataclass(base.__name__, entries, bases=(base,), kw_only=True, frozen=True)
    made.__doc__ = base.__doc__
    return made


def group(title: str, options: Mapping[str, Option], *, doc: str) -> type:
    """A dataclass with options as fields, which tyro shows as one group of flags.

    Args:
        title: Its name.
        options: By flag.
        doc: A line about all of them.
    """
    made = make_dataclass(title.title().replace("-", ""), map(_entry, options.values()), kw_only=True, frozen=True)
    made.__doc__ = doc
    return made


def values_of(parsed: object, names: Collection[str]) -> dict[str, Any]:
    """The values of those options among a command's, also those in its groups, that are named.

    Args:
        parsed: What tyro made.
        names: Flags.
    """
    values: dict[str, Any] = {}
    for entry in fields(parsed):  # pyright: ignore[reportArgumentType]
        value = getattr(parsed, entry.name)
        if is_dataclass(value):
            values |= values_of(value, names)
        elif entry.name in names:
            values[entry.name] = os.path.abspath(value) if entry.name == "weights" and value is not None else value
    return values


def chosen(arguments: Sequence[str], flag: str, default: str) -> str:
    """The value of one flag on a command line that is not parsed yet, since other flags depend on it.

    Example:
        >>> chosen(["fit", "--method", "lora"], "--method", "vpt-deep"), chosen(["--method=side"], "--method", "")
        ('lora', 'side')
    """
    value = default
    for place, argument in enumerate(arguments):
        name, equals, rest = argument.partition("=")
        if name == flag:
            value = rest if equals else next(iter(arguments[place + 1 : place + 2]), default)
    return value


def _entry(option: Option) -> tuple[str, Any, Any]:
    marks: list[Any] = [tyro.conf.Positional] if option.flag in POSITIONAL else []
    metavar = {**POSITIONAL, **METAVARS}.get(option.flag)
    marks.append(tyro.conf.arg(help=option.help, metavar=metavar))
    hint = Annotated[(option.type, *marks)]  # pyright: ignore[reportInvalidTypeForm]
    return option.flag, hint, field() if option.default is MISSING else field(default=option.default)
