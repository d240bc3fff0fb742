"""Results at any address that fsspec has a filesystem for."""

from __future__ import annotations

import os
import posixpath
import shutil
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from vprompt.experiments.bench.store import Document, StoreError, named, scratch_root, seal, whole
from vprompt.utils.io import write_atomically

T = TypeVar("T")


class RemoteStore:
    """Results at an address such as `s3://bucket/runs`; the state of unfinished runs stays on each machine.

    Args:
        address: What `fsspec.core.url_to_fs` takes.

    Raises:
        StoreError: If there is no such filesystem, or it cannot be reached.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        try:
            fs, root = fsspec.core.url_to_fs(self.address)
        except (ValueError, ImportError, OSError) as error:
            raise StoreError(f"Results cannot be kept at {address}: {error}.") from error
        self.fs: Any = fs
        self.root: str = root

    def finished(self) -> set[str]:
        """See `Store`."""
        return {name[:-5] for name in self._list("results") if name.endswith(".json")}

    def result(self, name: str) -> Document | None:
        """See `Store`."""
        return named(self._read(f"results/{name}.json"), name)

    def publish(self, name: str, document: Document, adapter: Path | None = None) -> None:
        """See `Store`."""
        if adapter is not None:
            for file in sorted(adapter.rglob("*")):
                if file.is_file() and not any(part.startswith(".") for part in file.relative_to(adapter).parts):
                    self._write(f"adapters/{name}/{file.relative_to(adapter).as_posix()}", file.read_bytes())
        self._write(f"results/{name}.json", _encoded(seal(document)))
        self._reached(lambda: self._remove(f"failures/{name}.json"))
        if adapter is not None:
            shutil.rmtree(adapter, ignore_errors=True)

    def adapter(self, name: str) -> Path:
        """See `Store`."""
        here = scratch_root(self.address) / "adapters" / name
        for file in self._list(f"adapters/{name}"):
            if not (here / file).exists():
                data = self._reached(partial(self.fs.cat_file, self._path(f"adapters/{name}/{file}")))
                write_atomically(here / file, lambda part, data=data: part.write_bytes(data))
        return here

    def fail(self, name: str, document: Document) -> None:
        """See `Store`."""
        self._write(f"failures/{name}.json", _encoded(seal(document)))

    def failure(self, name: str) -> Document | None:
        """See `Store`."""
        return self._read(f"failures/{name}.json")

    def failures(self) -> set[str]:
        """See `Store`."""
        return {name[:-5] for name in self._list("failures") if name.endswith(".json")}

    def scratch(self, name: str) -> Path:
        """See `Store`."""
        return scratch_root(self.address) / "work" / name

    def reclaim(self, name: str) -> None:
        """See `Store`; nothing was moved away."""

    def forget(self, name: str) -> None:
        """See `Store`."""
        shutil.rmtree(self.scratch(name), ignore_errors=True)

    def keep_plan(self, name: str, text: str) -> None:
        """See `Store`."""
        self._write(f"plans/{name}.toml", text.encode())

    def plans(self) -> dict[str, str]:
        """See `Store`."""
        names = sorted(name for name in self._list("plans") if name.endswith(".toml"))
        texts = [self._reached(partial(self.fs.cat_file, self._path(f"plans/{name}"))) for name in names]
        return {name[:-5]: text.decode() for name, text in zip(names, texts, strict=True)}

    def _path(self, name: str) -> str:
        return posixpath.join(self.root, name)

    def _list(self, folder: str) -> list[str]:
        try:
            found = self._reached(lambda: self.fs.ls(self._path(folder), detail=False, refresh=True))
        except FileNotFoundError:
            return []
        names = [os.path.basename(str(name).rstrip("/")) for name in found]
        return [name for name in names if not name.startswith(".")]

    def _read(self, name: str) -> Document | None:
        try:
            return whole(self._reached(lambda: self.fs.cat_file(self._path(name))).decode())
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    def _write(self, name: str, data: bytes) -> None:
        """Under another name first: on most filesystems a reader would otherwise see half of it."""
        path = self._path(name)
        part = posixpath.join(posixpath.dirname(path), f".{uuid.uuid4().hex}.part")

        def write() -> None:
            self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
            try:
                self.fs.pipe_file(part, data)
                self.fs.mv(part, path)
            except BaseException:
                if self.fs.exists(part):
                    self.fs.rm_file(part)
                raise

        self._reached(write)

    def _remove(self, name: str) -> None:
        if self.fs.exists(self._path(name)):
            self.fs.rm_file(self._path(name))

    def _reached(self, do: Callable[[], T]) -> T:
        try:
            return do()
        except FileNotFoundError:
            raise
        except Exception as error:  # every filesystem has errors of its own
            raise StoreError(f"{self.address} cannot be used ({type(error).__name__}: {error}).") from error


def _encoded(document: Document) -> bytes:
    import json

    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False).encode()
