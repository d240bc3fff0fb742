"""Store of a benchmark: results, adapters and failures by name, in a folder or at any URL that fsspec knows."""

from __future__ import annotations

import functools
import json
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypedDict, cast

import fsspec

from vprompt.experiments.bench.jobs import current_name
from vprompt.experiments.folder import BusyError, Figures, fits, locked
from vprompt.utils.errors import StorageError, VPromptError
from vprompt.utils.io import checksum, encoded, verified, with_checksum, write_bytes
from vprompt.utils.serialization import parse

Document = dict[str, Any]

_FORMER_NAME = re.compile(r"-s\d+(-until\d+)?-[0-9a-f]{16}$")
"""Names of runs in version 0.1.0; today's say `seed`."""


class NamedPath(TypedDict):
    """A folder or file that runs have read.

    Args:
        path: As a plan writes it.
        name: In the names of runs: as the first plan wrote it, which may lie elsewhere but has the same content.
        place: Its place on the machine, without links.
        fingerprint: Of its content.
    """

    path: str
    name: str
    place: str
    fingerprint: str


class _Failure(TypedDict):
    failure: str
    again: bool


class StoreError(VPromptError):
    """Results cannot be read or written."""


class Store:
    """Results, failures and adapters of runs; several processes and machines may use one at the same time.

    `results/NAME.json` is the result of a run, `adapters/NAME/` its adapter, `failures/NAME.json` why there is none,
    `plans/NAME.toml` what was to be run, `paths/HASH.json` what a plan's folder or file is called in names of runs. A
    result is the last thing of a run that is written, in one step: where there is one, the run is done. The state of an
    unfinished run lies in `work/NAME/` on this machine: in the same folder, or in the user's cache for a URL.

    Args:
        address: A folder, made when it is first written to, or what `fsspec.core.url_to_fs` takes.

    Raises:
        StoreError: If there is no such filesystem, or it cannot be reached.
    """

    def __init__(self, address: str) -> None:
        self.is_folder = "://" not in address
        self.address = os.path.abspath(address) if self.is_folder else address.rstrip("/")
        self.here = Path(self.address) if self.is_folder else _cache_folder(self.address)
        try:
            fs, root = fsspec.core.url_to_fs(self.address)
        except (ValueError, ImportError, OSError) as error:
            raise StoreError(f"Results cannot be kept at {address}: {error}.") from error
        self.fs: Any = fs
        self.root: str = root

    def finished(self) -> set[str]:
        """Names of all runs that have a result, as they are made today."""
        former = self._former_names
        return self._names("results", ".json") - set(former.values()) | former.keys()

    def result(self, name: str) -> Document | None:
        """The result of a run; None where there is none, or it is damaged, or a copy of another run's."""
        for stored in (name, self._former_names.get(name)):
            document = None if stored is None else self._read(f"results/{stored}.json")
            if document is not None and document.get("name") == stored and fits(document, Figures):
                return {**document, "name": name}
        return None

    def publish(self, name: str, document: Document, adapter: Path | None = None) -> None:
        """Puts a run's adapter and then its result in their places; the folder `adapter` is moved away."""
        place = self.here / "adapters" / name
        if adapter is not None:
            with self._reached():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(place, ignore_errors=True)
                os.replace(adapter, place)
            if not self.is_folder:
                self._upload(name, place)
        self._write_document(f"results/{name}.json", document)
        with self._reached():
            if self.fs.exists(failure := self._path(f"failures/{name}.json")):
                self.fs.rm_file(failure)
        if not self.is_folder:
            shutil.rmtree(place, ignore_errors=True)

    def adapter(self, name: str) -> Path:
        """A folder on this machine with the adapter and the result of a finished run."""
        folder = self.here / "adapters" / name
        if not folder.exists() and name in self._former_names:
            return self.adapter(self._former_names[name])
        if not self.is_folder:
            for file in self._list(f"adapters/{name}"):
                if not (folder / file).exists():
                    write_bytes(folder / file, self._bytes(f"adapters/{name}/{file}"))
        return folder

    def fail(self, name: str, document: Document) -> None:
        """Records why a run failed."""
        self._write_document(f"failures/{name}.json", document)

    def failure(self, name: str) -> Document | None:
        """Why a run failed; None where it did not, or has succeeded since, or what is said of it is damaged."""
        document = self._read(f"failures/{name}.json")
        return document if fits(document, _Failure, "failure", "again") else None

    def failures(self) -> set[str]:
        """Names of all runs that have failed."""
        return self._names("failures", ".json")

    def scratch(self, name: str) -> Path:
        """Folder on this machine for the state of an unfinished run."""
        return self.here / "work" / name

    @contextmanager
    def locked(self, name: str) -> Generator[Path]:
        """The folder for the state of an unfinished run, with other processes kept out of it.

        Raises:
            BusyError: If another process is at work there.
        """
        scratch, adapter = self.scratch(name), self.here / "adapters" / name
        # The lock lies beside: the folder is moved away at the end.
        with locked(scratch.with_name(f".{scratch.name}.lock"), name):
            if not scratch.exists() and adapter.exists() and self.result(name) is None:
                # It was killed, or its result was damaged, after its adapter had been put in its place.
                scratch.parent.mkdir(parents=True, exist_ok=True)
                os.replace(adapter, scratch)
            yield scratch

    def delete_scratch(self, name: str) -> None:
        """Removes the state of a run that will not go on."""
        shutil.rmtree(self.scratch(name), ignore_errors=True)

    @contextmanager
    def planned(self, name: str, text: str) -> Generator[None]:
        """Records what is run here, and keeps out other plans of the same name; the same one may run several times.

        Raises:
            BusyError: If another plan of that name is at work.
            StoreError: If there is a file in the way that no benchmark wrote.
        """
        earlier, ours = self.plans().get(name), ("results", "failures", "adapters", "work", "paths")
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.here / "plans" / f".{name}.lock", f"{name} in {self.address}"))
            except BusyError:
                if earlier != text:
                    raise
            if earlier not in (None, text) and not any(self.fs.exists(self._path(folder)) for folder in ours):
                raise StoreError(f"{self.address} has a plan {name} that no benchmark wrote; choose another --out.")
            self._write(f"plans/{name}.toml", encoded(text))
            yield
        for lock in self.here.glob("work/.*.lock"):
            with suppress(BusyError), locked(lock, self.address):
                pass  # of a process that was killed right after its result: nobody else does that job again

    def plans(self) -> dict[str, str]:
        """The texts of the plans that were run here, by name."""
        names = sorted(self._names("plans", ".toml"))
        return {name: self._bytes(f"plans/{name}.toml").decode(errors="replace") for name in names}

    def paths(self) -> dict[str, NamedPath]:
        """Folders and files that runs here have read, as plans write them."""
        documents = [self._read(f"paths/{name}.json") for name in self._names("paths", ".json")]
        return {each["path"]: cast("NamedPath", each) for each in documents if each and fits(each, NamedPath)}

    def write_path(self, path: NamedPath) -> None:
        """Records what a plan calls a folder or a file that its runs read."""
        self._write_document(f"paths/{checksum(encoded(path['path']))[:16]}.json", {**path})

    def delete(self) -> None:
        """Removes everything."""
        with self._reached():
            if self.fs.exists(self.root):
                self.fs.rm(self.root, recursive=True)
        shutil.rmtree(self.here, ignore_errors=True)

    def _upload(self, name: str, adapter: Path) -> None:
        for file in sorted(adapter.rglob("*")):
            relative = file.relative_to(adapter)
            if file.is_file() and not any(part.startswith(".") for part in relative.parts):
                self._write(f"adapters/{name}/{relative.as_posix()}", file.read_bytes())

    @functools.cached_property
    def _former_names(self) -> dict[str, str]:
        """Today's name of every run that version 0.1.0 named, and its name here."""
        names: dict[str, str] = {}
        for former in filter(_FORMER_NAME.search, self._names("results", ".json")):
            document = self._read(f"results/{former}.json")
            if document is not None and (name := current_name(document)) is not None:
                names[name] = former
        return names

    def _path(self, name: str) -> str:
        return posixpath.join(self.root, name)

    def _list(self, folder: str) -> list[str]:
        try:
            with self._reached():
                paths = self.fs.ls(self._path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        names = [posixpath.basename(str(path).rstrip("/")) for path in paths]
        return [name for name in names if not name.startswith(".")]

    def _names(self, folder: str, ending: str) -> set[str]:
        return {name.removesuffix(ending) for name in self._list(folder) if name.endswith(ending)}

    def _bytes(self, name: str) -> bytes:
        with self._reached():
            return self.fs.cat_file(self._path(name))

    def _read(self, name: str) -> Document | None:
        """A document; None where there is none, or it is damaged, cut off or was changed by hand."""
        try:
            document = parse(self._bytes(name))
        except (FileNotFoundError, ValueError):
            return None
        return document if isinstance(document, dict) and verified(document) else None

    def _write_document(self, name: str, document: Document) -> None:
        text = json.dumps(with_checksum(document), indent=2, ensure_ascii=False, allow_nan=False)
        self._write(name, encoded(f"{text}\n"))

    def _write(self, name: str, data: bytes) -> None:
        """Under another name first: a reader would otherwise see half of it."""
        with self._reached():
            if self.is_folder:  # survives a power cut as well
                write_bytes(self.here / name, data)
                return
            path = self._path(name)
            part = posixpath.join(posixpath.dirname(path), f".{uuid.uuid4().hex}.part")
            self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
            try:
                self.fs.pipe_file(part, data)
                self.fs.mv(part, path)
            except BaseException:
                if self.fs.exists(part):
                    self.fs.rm_file(part)
                raise

    @contextmanager
    def _reached(self) -> Generator[None]:
        try:
            yield
        except (FileNotFoundError, StorageError):
            raise
        except Exception as error:  # every filesystem has errors of its own
            raise StoreError(f"{self.address} cannot be used ({type(error).__name__}: {error}).") from error


def open_store(address: str) -> Store:
    """The store at an address: a folder, or a URL such as `s3://bucket/runs` for which fsspec has a filesystem.

    Example:
        >>> open_store(tempfile.mkdtemp()).finished()
        set()
    """
    return Store(address)


def _cache_folder(address: str) -> Path:
    """Folder in which this machine keeps the state of unfinished runs whose results go to a URL."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if not os.access(os.path.dirname(base), os.W_OK):
        base = tempfile.gettempdir()
    return Path(base) / "vprompt" / "bench" / checksum(os.fsencode(address))[:16]
