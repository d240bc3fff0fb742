"""Plain JSON data as typed values: a dataclass says by its type hints what must be there."""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, NoReturn, Union, cast, get_args, get_origin, get_type_hints

from vprompt.utils.errors import VPromptError

_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


class Reader:
    """Turns plain JSON data into typed values; a message names the key at which it fails.

    Args:
        where: The file, for messages.
    """

    beside: ClassVar[frozenset[str]] = frozenset()
    """Keys that may stand beside a dataclass's fields, with all names above them."""
    may_lack: ClassVar[tuple[type, ...]] = ()
    """Dataclasses whose fields may be missing where they have a default."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.unknown: list[str] = []

    def fail(self, problem: str) -> NoReturn:
        """Raises the error that says what is wrong with the file."""
        raise VPromptError(f"In {self.where}, {problem}.")

    def entries(self, value: object, kind: type, at: str) -> dict[str, Any]:
        """The typed fields of a dataclass, by name."""
        if not isinstance(value, dict):
            self.fail(f"'{at}' should be an object, not {show(value)}")
        document = cast("dict[str, Any]", value)
        hints = get_type_hints(kind)
        dot = f"{at}." if at else ""
        known = {field.name for field in fields(kind)}
        self.unknown += [f"'{dot}{key}'" for key in document if key not in known and f"{dot}{key}" not in self.beside]
        found: dict[str, Any] = {}
        for field in fields(kind):
            if field.name in document:
                found[field.name] = self.value(document[field.name], hints[field.name], f"'{dot}{field.name}'")
            elif kind not in self.may_lack or field.default is MISSING:
                self.fail(f"'{dot}{field.name}' is missing")
        return found

    def value(self, value: Any, hint: Any, at: str) -> Any:
        """The value as its type hint wants it."""
        origin, options = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):
            inner = next(option for option in options if option is not NoneType)
            return None if value is None and NoneType in options else self.value(value, inner, at)
        if origin is tuple:
            return self.sequence(value, options, at)
        if origin is dict:
            return self.mapping(value, options[1], at)
        if is_dataclass(hint):
            return self.instance(value, cast("type", hint), at)
        if origin is Literal:
            fits, wanted = value in options, " or ".join(map(repr, options))
        else:
            value = float(value) if hint is float and type(value) is int and abs(value) < 2**64 else value
            fits, wanted = type(value) is hint and _in_range(value), _WORDS[hint]
        if not fits:
            self.fail(f"{at} should be {wanted}, not {show(value)}")
        return value

    def sequence(self, value: object, options: tuple[Any, ...], at: str) -> tuple[Any, ...]:
        """A list as a tuple with the types of a hint."""
        if not isinstance(value, list):
            self.fail(f"{at} should be a list, not {show(value)}")
        items = cast("list[Any]", value)
        if options[-1] is not Ellipsis and len(items) != len(options):
            self.fail(f"{at} should have {len(options)} values, not {len(items)}")
        return tuple(self.value(item, options[0], f"{at}[{index}]") for index, item in enumerate(items))

    def mapping(self, value: object, hint: Any, at: str) -> dict[str, Any]:
        """An object all of whose values are of one type."""
        if not isinstance(value, dict):
            self.fail(f"{at} should be an object, not {show(value)}")
        items = cast("dict[str, Any]", value)
        return {key: self.value(item, hint, f"{at}[{key!r}]") for key, item in items.items()}

    def instance(self, value: object, kind: type, at: str) -> object:
        """An object as the dataclass that it should be."""
        entries = self.entries(value, kind, at.strip("'"))
        try:
            return kind(**entries)
        except VPromptError as error:
            self.fail(f"{at} cannot be: {str(error).rstrip('.')}")


def parse(text: str | bytes) -> Any:
    """What JSON text stands for, without the constants that JSON does not know.

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


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _in_range(value: object) -> bool:
    """A finite float, a whole number that any format can hold, or anything else."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) < 2**64
