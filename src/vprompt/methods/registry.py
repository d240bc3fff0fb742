"""Methods by their names: those in this folder, those of other packages, and those in files of users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from vprompt.methods.base import Method
from vprompt.utils.errors import VPromptError
from vprompt.utils.registry import Registry
from vprompt.utils.serialization import Option, build, flat, options_of

M = TypeVar("M", bound=Method)


@dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
    """A name on the command line and in files, and the method that it stands for.

    Args:
        name: The name.
        method: The class.
        fixed: Options that the name fixes, such as the depth of `vpt-shallow`.
    """

    name: str
    method: type[Method]
    fixed: Mapping[str, Any]

    @property
    def defined_by(self) -> type[Method]:
        """The class; two methods of one name are told apart by it."""
        return self.method

    @property
    def options(self) -> dict[str, Option]:
        """The options that remain, by their names on the command line."""
        return {flag: option for flag, option in options_of(self.method).items() if flag not in self.fixed}

    def make(self, values: Mapping[str, Any]) -> Method:
        """A method of this name from flat values; those of other methods are passed over.

        Raises:
            VPromptError: If a value is of the wrong type or out of range.

        Example:
            >>> METHODS.get("vpt-shallow").make({"prompts": 5, "rank": 4})
            VPT(num_prompts=5, dropout=None, init='random', depth='shallow')
        """
        return build(self.method, {**values, **self.fixed})


METHODS: Registry[Kind] = Registry("method", "vprompt.methods", "vprompt.methods")
"""All methods by name. A method in a file of its own registers itself with `register`."""


def register(method: type[M]) -> type[M]:
    """Makes a method known by its name; a decorator for its class.

    Raises:
        VPromptError: If the name is another method's, or an option is named as something that every method has.
    """
    if taken := [entry.name for entry in fields(method) if hasattr(Method, entry.name)]:
        raise VPromptError(
            f"Every method has a {taken[0]!r} of its own, so no option of {method.__name__} can be called that; choose "
            "another name."
        )
    for name, fixed in method.variants().items():
        METHODS.register(Kind(name=name, method=method, fixed=fixed))
    return method


def to_flat(method: Method) -> dict[str, Any]:
    """A method as flat plain data: its name, and the options that the name leaves open.

    Example:
        >>> to_flat(METHODS.get("lora").make({"rank": 4}))
        {'method': 'lora', 'rank': 4, 'alpha': 16.0}
    """
    return {"method": method.name, **{k: v for k, v in flat(method).items() if k in METHODS.get(method.name).options}}


def to_config(method: Method) -> dict[str, Any]:
    """A method as plain data for an adapter's configuration: its name and its fields."""
    return {"name": method.name, **asdict(method)}


def from_config(config: Mapping[str, Any]) -> Method:
    """A method from `to_config`'s data; keys that this version does not know are passed over.

    Raises:
        VPromptError: If there is no such method, or its options cannot be.
    """
    name = str(config.get("name"))
    if name not in METHODS:
        raise VPromptError(
            f"The method {config.get('name')!r} is not known to this version of vprompt, which knows "
            f"{', '.join(METHODS.names())}."
        )
    kind = METHODS.get(name)
    known = {entry.name for entry in fields(kind.method)}
    return kind.method(**{**kind.fixed, **{key: value for key, value in config.items() if key in known}})
