"""Adapters from a folder that is watched: what is added, replaced or removed there is so in the service."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from vprompt.model.tensors import CONFIG_FILE
from vprompt.serving.bank.banks import Banks
from vprompt.serving.errors import RequestError
from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable

SECONDS = 2.0
"""Seconds between two looks."""

_LOG = logging.getLogger("vprompt.serving")

ENGINE_FILE = ".safetensors"
"""End of the names of adapters for engines; may be left out."""

State = tuple[tuple[str, int, int, int], ...]
"""Names, times, sizes and numbers of an adapter's files."""


class Watch:
    """Keeps banks like a folder of adapters; one that is bad is logged, and the one before it stays.

    Inside its `with` block a thread looks again and again.

    Args:
        banks: Adapters in it under other names, or that are not from the folder, are left alone.
        folder: Its subfolders that hold a configuration are adapters, by their names.

    Raises:
        VPromptError: If the folder cannot be read.
    """

    def __init__(self, banks: Banks, folder: Path) -> None:
        self._banks = banks
        self._folder, self._shown = folder, printable(str(folder))
        self._others = {entry.name for entry in banks.entries}
        self._last: dict[str, State] = {}
        self._done: dict[str, State] = {}
        self._over = threading.Event()
        try:
            self._last = self._found()
        except OSError as error:
            raise VPromptError(
                f"{printable(str(folder))} cannot be watched ({error.strerror}); check --watch."
            ) from error
        self.look()

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def look(self) -> None:
        """Does what was done in the folder; what changed since the last look may still be written, and waits."""
        try:
            found = self._found()
        except OSError as error:
            _LOG.warning("%s cannot be read (%s); its adapters stay.", self._shown, error.strerror)
            return
        for name in {**self._done, **found}:
            state = found.get(name)
            if state == self._last.get(name) and state != self._done.get(name):
                self._change(name, state)
        self._last = found

    def _found(self) -> dict[str, State]:
        folders = [path for path in sorted(self._folder.iterdir()) if not path.name.startswith(".")]
        return self._states({path.name: path for path in folders if (path / CONFIG_FILE).is_file()})

    def _states(self, adapters: Mapping[str, Path]) -> dict[str, State]:
        """The states of adapters; what cannot be looked at is as it was."""
        found: dict[str, State] = {}
        for name, path in adapters.items():
            try:
                found[name] = state_of(path)
            except OSError as error:
                _LOG.warning("The adapter %r cannot be looked at: %s", name, error.strerror)
                found |= {name: self._last[name]} if name in self._last else {}
        return found

    def _change(self, name: str, state: State | None) -> None:
        try:
            if state is None:
                self._done.pop(name, None)
                self._remove(name)
            else:
                self._done[name] = state
                self._add(name)
        except VPromptError as error:
            _LOG.warning("The adapter %r in %s cannot be served: %s", name, self._shown, printable(str(error)))
        except Exception:
            _LOG.exception("The adapter %r in %s cannot be served.", name, self._shown)

    def _add(self, name: str) -> None:
        if name in self._others:
            raise VPromptError("another adapter is served under this name")
        self._banks.add(check_name(name), self._folder / name, replace=True)
        _LOG.info("The adapter %r was loaded.", name)

    def _remove(self, name: str) -> None:
        if name in self._banks and name not in self._others:
            self._banks.remove(name)
            _LOG.info("The adapter %r was removed.", name)

    def _run(self) -> None:
        while not self._over.wait(SECONDS):
            self.look()


def adapter_in(folder: Path, name: str) -> Path | None:
    """The adapter of a name in a folder: a folder with a configuration, or a file for an engine; None without."""
    path, file = folder / name, folder / f"{name}{ENGINE_FILE}"
    # Unlike Path.is_file, this never raises, whatever the name.
    return path if os.path.isfile(path / CONFIG_FILE) else file if os.path.isfile(file) else None


def state_of(path: Path) -> State:
    """The state of an adapter's files; hidden ones and links to nothing are none.

    Raises:
        OSError: If they cannot be looked at.
    """
    inside = [] if path.is_file() else path.iterdir()
    files = [file for file in inside if not file.name.startswith(".") and file.exists()] or [path]
    stats = [(file.name, file.stat()) for file in files]
    return tuple(sorted((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats))


def check_name(name: str) -> str:
    """The name, if an address can hold it as it is; it names nothing outside a folder.

    Raises:
        RequestError: If not.
    """
    plain = all(c.isalnum() or c in "._-" for c in name)
    if not name or not plain or name.startswith(".") or len(name) > 100:
        raise RequestError(
            "invalid",
            f"An adapter cannot be served as {printable(name[:100])!r}: take up to 100 letters, digits, '.', '_' and "
            "'-', no '.' first (name=FOLDER on the command line).",
        )
    return name
