"""Configurations as plain data: flat options for commands and plans, nested JSON for files; checked by their types."""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from numbers import Number
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, NoReturn, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from vprompt.utils.errors import VPromptError
from vprompt.utils.version import FORMER_NAME

_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", NoneType: "nothing"}
"""Types in words, of a file."""

_SETTING_WORDS = {**_WORDS, str: "text in quotes", float: "a number"}
"""Types in words, of a setting that a user gives."""

PLACE = {"place": True}
"""Metadata of a setting that says where data lie, or how the work is done, not what comes out."""

ADDED = {"added": True}
"""Metadata of a setting that came later: where it has its default, names and hashes of runs leave it out."""

_hints = functools.cache(get_type_hints)
"""Types of the fields of a dataclass; they are read for every run that is named."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a configuration: what commands, plans and flat results call it, its type and default.

    Args:
        flag: Its flat name; that of the field unless the field's metadata has a `flag`.
        type: Its type hint.
        default: `dataclasses.MISSING` where it must be given.
        help: What the docstring of the dataclass says of it.
        place: Whether it only says where data lie or how the work is done, not what comes out.
    """

    flag: str
    type: Any
    default: Any
    help: str = ""
    place: bool = False


@functools.cache
def options_of(kind: type) -> dict[str, Option]:
    """The options of a configuration dataclass and of those nested in it, by their flat names.

    A field's metadata may hold `flag` (its flat name), `place`, and `added` (it came later: `flat` leaves out its
    default). A nested configuration that may be None has `when`, the options that call for it, and may have `switch`,
    an option of its own that does so. A field that is `polymorphic`, of one of several dataclasses, is left to others.

    Example:
        >>> from vprompt.model.records import Recipe
        >>> options_of(Recipe)["batch_size"].default
        64
    """
    found: dict[str, Option] = {}
    words = _documented(kind)
    for entry, hint, nested in _entries(kind):
        if nested is not None:
            if (switch := entry.metadata.get("switch")) is not None:
                found[switch] = Option(flag=switch, type=bool, default=False, help=words.get(entry.name, ""))
            found |= {flag: option for flag, option in options_of(nested).items() if flag not in found}
            continue
        flag = entry.metadata.get("flag", entry.name)
        default, wanted = (None, hint | None) if entry.metadata.get("off") else (_default(entry), hint)
        place = bool(entry.metadata.get("place"))
        found[flag] = Option(flag=flag, type=wanted, default=default, help=words.get(entry.name, ""), place=place)
    return found


def flat(config: Any, *, places: bool = True) -> dict[str, Any]:
    """A configuration as plain data under flat names; what is nested and None is left out.

    So is an option that was `added` to those of earlier versions and has its default: a run keeps its name.

    Args:
        config: An instance of a configuration dataclass.
        places: With options that only say where data lie or how the work is done.

    Example:
        >>> from vprompt.model.records import Recipe
        >>> flat(Recipe(epochs=3))["epochs"], "workers" in flat(Recipe(), places=False)
        (3, False)
    """
    found: dict[str, Any] = {}
    for entry, _, nested in _entries(type(config)):
        value = getattr(config, entry.name)
        if nested is not None:
            if value is None:
                continue
            if (switch := entry.metadata.get("switch")) is not None:
                found[switch] = True
            found |= flat(value, places=places)
        elif entry.metadata.get("added") and value == _default(entry):
            continue  # names of runs and results are as before there was such an option
        elif places or not entry.metadata.get("place"):
            found[entry.metadata.get("flag", entry.name)] = msgspec.to_builtins(value)
    return found


def build(kind: type, values: Mapping[str, Any], **ready: Any) -> Any:
    """A configuration from flat values; what is not named has its default, what it does not know is passed over.

    Args:
        kind: The dataclass.
        values: By flat name.
        **ready: Fields that are made already.

    Raises:
        VPromptError: If a value is of the wrong type or out of range.
    """
    given = dict(ready)
    for entry, hint, nested in _entries(kind):
        if entry.name in given:
            continue
        if nested is not None:
            when = entry.metadata.get("when")
            # Not `in (None, False)`: a share of 0 asks for it as well.
            if when is None or any(values.get(flag) is not None and values[flag] is not False for flag in when):
                given[entry.name] = build(nested, values)
            continue
        flag = entry.metadata.get("flag", entry.name)
        if flag in values and not (values[flag] is None and entry.metadata.get("off")):
            given[entry.name] = typed(flag, values[flag], hint)
    return kind(**given)


def check_known(names: Mapping[str, Any], known: Mapping[str, Any], what: str = "setting") -> None:
    """Raises a `VPromptError` for the first name that is not known, with the nearest one that is.

    Example:
        >>> check_known({"epoch": 3}, {"epochs": int})
        Traceback (most recent call last):
        vprompt.utils.errors.VPromptError: There is no setting called 'epoch'; did you mean epochs?
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}."
            raise VPromptError(f"There is no {what} called {name!r}{hint}")


def typed(name: str, value: Any, hint: Any) -> Any:
    """A value as its setting wants it: whole numbers serve as others, and nothing else is taken for something else.

    Raises:
        VPromptError: If it takes something else.

    Example:
        >>> typed("lr", 1, float | None)
        1.0
    """
    try:
        return msgspec.convert(value, hint)
    except (msgspec.ValidationError, UnicodeEncodeError):
        raise VPromptError(f"The setting {name} takes {_wanted(hint, _SETTING_WORDS)}, not {value!r}.") from None


def check_fields(config: Any) -> None:
    """Checks the values of a frozen dataclass, in its `__post_init__`, by the types of its fields.

    Whole numbers serve as others and NumPy's as Python's; they become what the fields say.

    Raises:
        VPromptError: If a value is of another type.

    Example:
        >>> from vprompt.model.records import Recipe
        >>> Recipe(seed=2.5)
        Traceback (most recent call last):
        vprompt.utils.errors.VPromptError: The setting seed takes a whole number, not 2.5.
    """
    for entry, hint, nested in _entries(type(config)):
        if nested is not None:
            continue  # which checks itself
        value = getattr(config, entry.name)
        plain = cast("Any", value).item() if isinstance(value, Number) and hasattr(value, "item") else value
        with suppress(TypeError):  # a type that only its method knows
            plain = typed(entry.name, plain, hint)
        if plain is not value:
            object.__setattr__(config, entry.name, plain)


class Reader:
    """Reads nested plain JSON data as configuration dataclasses; a message names the key at which it fails.

    Args:
        where: The file, for messages.
    """

    error: ClassVar[type[VPromptError]] = VPromptError
    """Class of the errors that it raises."""
    beside: ClassVar[frozenset[str]] = frozenset()
    """Keys that may stand beside a dataclass's fields, with all names above them."""
    may_lack: ClassVar[tuple[type, ...]] = ()
    """Dataclasses whose fields may be missing where they have a default; one that is `added` always may."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.unknown: list[str] = []

    def fail(self, problem: str) -> NoReturn:
        """Raises the error that says what is wrong with the file."""
        raise self.error(f"In {self.where}, {problem}.")

    def document(self, text: str | bytes, version: int) -> dict[str, Any]:
        """The JSON object of one of our files, of a version that this library reads.

        Args:
            text: JSON.
            version: The newest `format_version`.
        """
        try:
            document: Any = parse(text)
        except ValueError as error:
            self.fail(f"the text is not valid JSON ({error})")
        if not isinstance(document, dict):
            self.fail(f"there should be a JSON object, not {show(document)}")
        found = self.value(document.get("format_version"), int, "'format_version'")  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        if found > version:
            raise self.error(
                f"{self.where} has format version {found}, of a newer vprompt (this one reads versions up to "
                f"{version}); upgrade vprompt (pip install --upgrade vprompt)."
            )
        if found < 1:
            self.fail(f"'format_version' should be at least 1, not {found}")
        if (former := f"{FORMER_NAME}_version") in document:
            document["vprompt_version"] = document.pop(former)
        return cast("dict[str, Any]", document)

    def entries(self, value: object, kind: type, at: str) -> dict[str, Any]:
        """The typed fields of a dataclass, by name."""
        if not isinstance(value, dict):
            self.fail(f"'{at}' should be an object, not {show(value)}")
        document, hints, dot = cast("dict[str, Any]", value), _hints(kind), f"{at}." if at else ""
        known = {entry.name for entry in fields(kind)}
        self.unknown += [f"'{dot}{key}'" for key in document if key not in known and f"{dot}{key}" not in self.beside]
        found: dict[str, Any] = {}
        for entry in fields(kind):
            if entry.name in document:
                found[entry.name] = self.value(document[entry.name], hints[entry.name], f"'{dot}{entry.name}'")
            elif entry.default is MISSING or not (issubclass(kind, self.may_lack) or entry.metadata.get("added")):
                self.fail(f"'{dot}{entry.name}' is missing")
        return found

    def value(self, value: Any, hint: Any, at: str) -> Any:
        """The value as its type hint wants it."""
        if (nested := _nested(hint)) is not None:
            optional = NoneType in get_args(hint)
            return None if value is None and optional else self.instance(value, nested, at)
        try:
            typed_value = msgspec.convert(value, hint)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            inner = re.search(r"at `\$(.+)`$", str(error))
            place, wrong, kind = _inside(value, hint, inner[1] if inner else "")
            self.fail(f"{at}{place} should be {_wanted(kind)}, not {show(wrong)}")
        for place, number in _numbers(typed_value):
            if not (math.isfinite(number) if isinstance(number, float) else abs(number) < 2**64):
                self.fail(f"{at}{place} should be {_WORDS[type(number)]}, not {show(number)}")
        return typed_value

    def instance(self, value: object, kind: type, at: str) -> object:
        """An object as the dataclass that it should be."""
        entries = self.entries(value, kind, at.strip("'"))
        try:
            return kind(**entries)
        except VPromptError as error:
            self.fail(f"{at} cannot be: {str(error).rstrip('.')}")


def parse(text: str | bytes) -> Any:
    """Plain data from JSON text, without the constants that JSON does not know.

    Raises:
        ValueError: If it is no JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def show(value: object) -> str:
    """A value in few characters."""
    return reprlib.repr(value)


def brief(self: Any) -> str:
    """A dataclass in a line, for its `__repr__`: what differs from the defaults, and of long values the beginning."""
    short = reprlib.Repr()
    short.maxlevel, short.maxtuple, short.maxlist, short.maxstring, short.maxother = 2, 2, 2, 60, 60
    pairs = [(entry, getattr(self, entry.name)) for entry in fields(self)]
    shown = [f"{entry.name}={short.repr(value)}" for entry, value in pairs if value != _default(entry)]
    return f"{type(self).__name__}({', '.join(shown)})"


def _default(entry: Field[Any]) -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


@functools.cache
def _entries(kind: type) -> list[tuple[Field[Any], Any, type | None]]:
    """Fields of a dataclass that are not polymorphic, their hints, and the dataclasses that are nested in these."""
    hints, plain = _hints(kind), [entry for entry in fields(kind) if not entry.metadata.get("polymorphic")]
    return [(entry, hints[entry.name], _nested(hints[entry.name])) for entry in plain]


def _nested(hint: Any) -> type | None:
    """The dataclass in a hint, also where it may be None."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType] if _is_union(hint) else [hint]
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and is_dataclass(kinds[0]) else None


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _wanted(hint: Any, words: Mapping[Any, str] = _WORDS) -> str:
    """A type hint in words."""
    if _is_union(hint):
        # A file that may lack a value is not told that it may.
        kinds = [kind for kind in get_args(hint) if kind is not NoneType or words is not _WORDS]
        return " or ".join(_wanted(kind, words) for kind in kinds)
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        if inner[-1] is not Ellipsis:
            return f"a list of {len(inner)} values"
        return "a list" if words is _WORDS or inner[0] is Any else f"a list, each {_wanted(inner[0], words)}"
    return "an object" if get_origin(hint) is not None else words.get(hint, repr(hint))


def _inside(value: Any, hint: Any, place: str) -> tuple[str, Any, Any]:
    """Place in a value that is wrong, what stands there, and what should: by the place that msgspec names."""
    shown = ""
    for step in re.findall(r"\[(\d+|\.\.\.)\]", place):
        inner = [kind for kind in get_args(hint) if kind is not NoneType and kind is not Ellipsis]
        if _is_union(hint):
            inner = [kind for kind in get_args(inner[0]) if kind is not Ellipsis]
        if step == "..." and isinstance(value, dict):
            mapping = cast("dict[str, Any]", value)
            key = next((k for k, v in mapping.items() if not _fits(v, inner[-1])), next(iter(mapping)))
            shown, value, hint = f"{shown}[{key!r}]", mapping[key], inner[-1]
        elif isinstance(value, list) and step != "...":
            items = cast("list[Any]", value)
            shown, value, hint = f"{shown}[{step}]", items[int(step)], inner[min(int(step), len(inner) - 1)]
    return shown, value, hint


def _fits(value: Any, hint: Any) -> bool:
    try:
        msgspec.convert(value, hint)
    except (msgspec.ValidationError, UnicodeEncodeError):
        return False
    return True


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers in a value, and where they stand."""
    if isinstance(value, tuple | list):
        for index, item in enumerate(cast("tuple[Any, ...]", value)):
            yield from _numbers(item, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            yield from _numbers(item, f"{place}[{key!r}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield place, value


def _documented(kind: type) -> dict[str, str]:
    """Field -> what the `Args` of the docstrings of a dataclass and of its bases say of it."""
    words: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = re.search(r"Args:\n(.*?)(?:\n\s*\n\s*[A-Z]\w+:|\Z)", base.__doc__ or "", re.S)
        for name, text in re.findall(r"^ {4,8}(\w+): (.*(?:\n {9,}.*)*)", section[1] if section else "", re.M):
            words[name] = " ".join(text.split())
    return words
