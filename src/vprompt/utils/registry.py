"""Registries: what a name stands for, found in a room of the library, in installed packages and in files of users."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from vprompt.utils.errors import VPromptError

PLUGINS = "VPROMPT_PLUGINS"
"""Environment variable with Python files or module names to load, separated as in PATH."""


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """Its name."""
        ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Names and what they stand for; open to other packages.

    Built-in members are the modules of one package: adding one is adding a file. Others come from installed packages by
    an entry-point group, and from files or modules in the environment variable `VPROMPT_PLUGINS`. Nothing is imported
    before the first look-up.

    Args:
        what: What its members are, in a word, for messages.
        package: Package whose modules register the built-in members, or its subpackages with `folders`.
        group: Entry-point group of other packages.
        folders: Members are subpackages instead of modules.

    Example:
        >>> class Fruit:
        ...     name = "apple"
        >>> fruits = Registry[type[Fruit]]("fruit", "vprompt.utils.version", "example.fruits")
        >>> fruits.register(Fruit).name, fruits.names()
        ('apple', ('apple',))
        >>> fruits.get("aple")
        Traceback (most recent call last):
        vprompt.utils.errors.VPromptError: There is no fruit called 'aple'; did you mean apple?
    """

    def __init__(self, what: str, package: str, group: str, *, folders: bool = False) -> None:
        self.what = what
        self.package = package
        self.group = group
        self.folders = folders
        self._members: dict[str, T] = {}
        self._loaded = False

    def register(self, member: T) -> T:
        """Adds a member under its name; serves as a decorator.

        Raises:
            VPromptError: If the name is taken by something else.
        """
        before = self._members.setdefault(name := member.name, member)
        if before is not member and _origin(before) != _origin(member):
            raise VPromptError(f"There are two {self.what}s called {name!r}: {_origin(before)}, {_origin(member)}.")
        self._members[name] = member
        return member

    def get(self, name: str) -> T:
        """The member of this name.

        Raises:
            VPromptError: If there is none.
        """
        self._load()
        if name in self._members:
            return self._members[name]
        near = difflib.get_close_matches(name, self._members, n=1)
        plugin = f"one of a file of yours is found with {PLUGINS}=FILE.py"
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self._members)}; {plugin}."
        raise VPromptError(f"There is no {self.what} called {name!r}; {hint}")

    def names(self) -> tuple[str, ...]:
        """All names, built-in ones first."""
        self._load()
        return tuple(self._members)

    def __iter__(self) -> Iterator[T]:
        self._load()
        return iter(self._members.values())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._members

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # first: a member may ask for others
        try:
            self._find()
        except BaseException:
            self._loaded = False
            raise

    def _find(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
            if module.ispkg == self.folders:
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group):
            try:
                point.load()  # which registers it
            except ImportError as error:
                raise VPromptError(f"The {self.what} {point.name!r} of {point.value} cannot load: {error}.") from error
        for place in plugins():
            load_plugin(place)


def plugins() -> list[str]:
    """Files, by their whole paths, and modules that `VPROMPT_PLUGINS` names."""
    places = filter(None, os.environ.get(PLUGINS, "").split(os.pathsep))
    return [os.path.abspath(place) if place.endswith(".py") else place for place in places]


def load_plugin(place: str) -> None:
    """Imports a module by its name, or a Python file by its path, once.

    Raises:
        VPromptError: If it is not there, or fails.
    """
    try:
        if not place.endswith(".py"):
            importlib.import_module(place)
            return
        path = Path(place).resolve()
        name = f"vprompt_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        files = {getattr(module, "__file__", None) for module in tuple(sys.modules.values())}
        if name in sys.modules or str(path) in files:  # a script may have imported it by a name of its own
            return
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError("it is no Python file")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    except Exception as error:  # a user's file may raise anything
        why = str(error) or type(error).__name__
        raise VPromptError(f"The plugin {place} of ${PLUGINS} cannot load: {why}.") from error


def _origin(member: object) -> str:
    """The file and the name under which a member is defined, whatever its module was imported as.

    A member that only stands for a class says which as its `defined_by`.
    """
    member = getattr(member, "defined_by", member)
    kind = member if isinstance(member, type) else type(member)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return f"{kind.__qualname__} of {file or kind.__module__}"
