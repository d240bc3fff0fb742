"""Where a benchmark's results lie: whole or not there, in a folder or at any address that fsspec knows."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vprompt.utils.errors import VPromptError
from vprompt.utils.io import write_json, write_text

Document = dict[str, Any]


class StoreError(VPromptError):
    """Results cannot be read or written."""


class Store(Protocol):
    """Results, failures and adapters by name; several processes and machines may use one at the same time.

    A result is the last thing of a run that is written, in one step: where there is one, the run is done.
    """

    address: str

    def finished(self) -> set[str]:
        """Names of all runs that have a whole result."""
        ...

    def result(self, name: str) -> Document | None:
        """The result of a run; None where there is none, or where it is not whole."""
        ...

    def publish(self, name: str, document: Document, adapter: Path | None = None) -> None:
        """Puts a run's adapter and then its result in their places; the folder `adapter` may be used up."""
        ...

    def adapter(self, name: str) -> Path:
        """A folder on this machine with the adapter and the result of a finished run."""
        ...

    def fail(self, name: str, document: Document) -> None:
        """Records why a run failed."""
        ...

    def failure(self, name: str) -> Document | None:
        """Why a run failed; None where it did not, or has succeeded since."""
        ...

    def failures(self) -> set[str]:
        """Names of all runs that have failed."""
        ...

    def scratch(self, name: str) -> Path:
        """Folder on this machine for the state of an unfinished run."""
        ...

    def reclaim(self, name: str) -> None:
        """Puts the adapter of a run that was killed before its result was written back to its unfinished state."""
        ...

    def forget(self, name: str) -> None:
        """Removes the state of a run that will not go on."""
        ...

    def keep_plan(self, name: str, text: str) -> None:
        """Keeps the plan beside its results."""
        ...

    def plans(self) -> dict[str, str]:
        """The texts of the plans that were run here, by name."""
        ...


def open_store(address: str) -> Store:
    """The store at an address: a folder, or a URL such as `s3://bucket/runs` for which fsspec has a filesystem.

    Example:
        >>> import tempfile
        >>> open_store(tempfile.mkdtemp()).finished()
        set()
    """
    if "://" in address:
        from vprompt.experiments.bench.remote_store import RemoteStore

        return RemoteStore(address)
    return FolderStore(Path(address))


def seal(document: Document) -> Document:
    """A document with the checksum of everything else in it.

    Example:
        >>> whole(json.dumps(seal({"a": 1})))["a"], whole('{"a": 1}'), whole('{"a": ')
        (1, None, None)
    """
    return document | {"checksum": _checksum(document)}


def whole(text: str) -> Document | None:
    """A sealed document from its text; None where it is damaged, cut off or was changed by hand."""
    try:
        document = json.loads(text)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return document if document.get("checksum") == _checksum(rest) else None


def named(document: Document | None, name: str) -> Document | None:
    """A result that is that of the run it is called after; None where it was copied from another.

    Example:
        >>> named({"name": "a"}, "a"), named({"name": "a"}, "b")
        ({'name': 'a'}, None)
    """
    return document if document is not None and document.get("name") == name else None


def _checksum(document: Document) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


class FolderStore:
    """Results in a folder of this machine, or one that several machines share.

    `results/NAME.json` is the result, `adapters/NAME/` the adapter, `failures/NAME.json` why there is none,
    `work/NAME/` the state of an unfinished run, `plans/NAME.toml` what was to be run.

    Args:
        root: The folder; made when it is first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.address = str(self.root)

    def finished(self) -> set[str]:
        """See `Store`."""
        return self._names("results")

    def result(self, name: str) -> Document | None:
        """See `Store`."""
        return named(_read(self.root / "results" / f"{name}.json"), name)

    def publish(self, name: str, document: Document, adapter: Path | None = None) -> None:
        """See `Store`."""
        if adapter is not None:
            place = self.root / "adapters" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            os.replace(adapter, place)
        write_json(self.root / "results" / f"{name}.json", seal(document))
        (self.root / "failures" / f"{name}.json").unlink(missing_ok=True)

    def adapter(self, name: str) -> Path:
        """See `Store`."""
        return self.root / "adapters" / name

    def fail(self, name: str, document: Document) -> None:
        """See `Store`."""
        write_json(self.root / "failures" / f"{name}.json", seal(document))

    def failure(self, name: str) -> Document | None:
        """See `Store`."""
        return _read(self.root / "failures" / f"{name}.json")

    def failures(self) -> set[str]:
        """See `Store`."""
        return self._names("failures")

    def scratch(self, name: str) -> Path:
        """See `Store`."""
        return self.root / "work" / name

    def reclaim(self, name: str) -> None:
        """See `Store`."""
        place = self.scratch(name)
        if not place.exists() and self.adapter(name).exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.adapter(name), place)

    def forget(self, name: str) -> None:
        """See `Store`."""
        shutil.rmtree(self.scratch(name), ignore_errors=True)

    def keep_plan(self, name: str, text: str) -> None:
        """See `Store`."""
        write_text(self.root / "plans" / f"{name}.toml", text)

    def plans(self) -> dict[str, str]:
        """See `Store`."""
        return {path.stem: path.read_text(encoding="utf-8") for path in sorted((self.root / "plans").glob("*.toml"))}

    def _names(self, folder: str) -> set[str]:
        try:
            names = os.listdir(self.root / folder)
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StoreError(f"The results in {self.root} cannot be listed ({error.strerror}).") from error
        return {name[:-5] for name in names if name.endswith(".json") and not name.startswith(".")}


def _read(path: Path) -> Document | None:
    try:
        return whole(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError):
        return None


class BusyError(VPromptError):
    """Another process is at work on the same run."""


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """Keeps other processes, also on other machines that share the folder, from working in it; ends with the process.

    Raises:
        BusyError: If another process is there first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"  # beside the folder, which is moved away at the end
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(file.fileno()).st_ino == lock.stat().st_ino  # or its last owner has just removed it
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise BusyError(f"Another process is at work on {folder.name}.") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def scratch_root(address: str) -> Path:
    """Where this machine keeps the state of unfinished runs whose results go elsewhere."""
    place = hashlib.sha256(address.encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if not os.access(os.path.dirname(base), os.W_OK):
        base = tempfile.gettempdir()
    return Path(base) / "vprompt" / "bench" / place
