"""A folder, a tar or a zip archive as the same thing: named files that are read, never unpacked."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from vprompt.utils.errors import DataError
from vprompt.utils.progress import Report, silent
from vprompt.utils.text import printable

LISTS = (".csv", ".json", ".mat", ".txt")
"""Endings of files that say what the images are; a tar keeps them from its first pass."""

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


class Files(Protocol):
    """Named files; names are relative, with slashes."""

    title: str
    """What errors call them."""

    def names(self) -> Collection[str]:
        """All regular files, in the order in which reading them is fastest."""
        ...

    def read(self, name: str) -> bytes:
        """One file."""
        ...

    def read_all(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Those of `names` that are there, each once, in the order of `self.names()`."""
        ...


class FolderFiles:
    """The files below a folder."""

    def __init__(self, root: Path) -> None:
        self.title = printable(str(root))
        self._root = root
        self._names: list[str] = []
        for folder, folders, names in os.walk(root):
            folders.sort()
            prefix = Path(folder).relative_to(root)
            self._names += [(prefix / name).as_posix() for name in sorted(names)]

    def names(self) -> Collection[str]:
        """See `Files`."""
        return self._names

    def read(self, name: str) -> bytes:
        """See `Files`."""
        return (self._root / name).read_bytes()

    def read_all(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See `Files`."""
        wanted = set(names)
        return ((name, self.read(name)) for name in self._names if name in wanted)


class ZipFiles:
    """The files in a zip archive."""

    def __init__(self, path: Path) -> None:
        self.title = printable(str(path))
        self._path = path
        with whole(self.title), zipfile.ZipFile(path) as archive:
            self._names = [safe(info.filename, self.title) for info in archive.infolist() if not info.is_dir()]

    def names(self) -> Collection[str]:
        """See `Files`."""
        return self._names

    def read(self, name: str) -> bytes:
        """See `Files`."""
        with whole(self.title), zipfile.ZipFile(self._path) as archive:
            return archive.read(name)

    def read_all(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See `Files`."""
        wanted = set(names)
        with whole(self.title), zipfile.ZipFile(self._path) as archive:
            for name in self._names:
                if name in wanted:
                    wanted.remove(name)
                    yield name, archive.read(name)


class TarFiles:
    """The files in a tar archive, compressed or not, also in one that lies in memory.

    A compressed tar can only be read from its start: there is one pass for the names, and one for the images.
    """

    def __init__(self, path: Path, stream: IO[bytes] | None = None) -> None:
        self.title = printable(str(path))
        self._path = path
        self._stream = stream
        self._names: dict[str, None] = {}
        self._lists: dict[str, bytes] = {}
        with self._open() as archive:
            for member in archive:
                name = safe(member.name, self.title)
                # Links could stand for files outside; the original archives need none.
                if not member.isreg():
                    continue
                self._names[name] = None
                if name.lower().endswith(LISTS):
                    self._lists[name] = _bytes_of(archive, member)

    def names(self) -> Collection[str]:
        """See `Files`."""
        return self._names.keys()

    def read(self, name: str) -> bytes:
        """See `Files`."""
        if name in self._lists:
            return self._lists[name]
        for _, data in self.read_all((name,)):
            return data
        raise DataError(f"{self.title} has no {printable(name)}; it is not the original.")

    def read_all(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See `Files`."""
        wanted = set(names)
        with self._open() as archive:
            for member in archive:
                name = safe(member.name, self.title)
                if name in wanted and member.isreg():
                    wanted.remove(name)
                    yield name, _bytes_of(archive, member)
                    if not wanted:
                        return

    @contextmanager
    def _open(self) -> Generator[tarfile.TarFile]:
        if self._stream is not None:
            self._stream.seek(0)
        with whole(self.title), tarfile.open(None if self._stream else self._path, "r:*", self._stream) as archive:
            yield archive


class Below:
    """Files below a prefix, by names without it."""

    def __init__(self, files: Files, prefix: str) -> None:
        self.title = files.title
        self._files = files
        self._prefix = prefix

    def names(self) -> Collection[str]:
        """See `Files`."""
        length = len(self._prefix)
        return [name[length:] for name in self._files.names() if name.startswith(self._prefix)]

    def read(self, name: str) -> bytes:
        """See `Files`."""
        return self._files.read(self._prefix + name)

    def read_all(self, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """See `Files`."""
        length = len(self._prefix)
        wanted = {self._prefix + name for name in names}
        return ((name[length:], data) for name, data in self._files.read_all(wanted))


def open_archive(path: Path) -> Files:
    """The files in an archive, by its ending."""
    return ZipFiles(path) if path.name.lower().endswith(".zip") else TarFiles(path)


def below(files: Files, marker: str) -> Files | None:
    """The files below the folder that has `marker` in it, the outermost one if there are several.

    Returns:
        None where nothing ends in `marker`.
    """
    prefix = prefix_of(files.names(), marker)
    return None if prefix is None else Below(files, prefix)


def prefix_of(names: Collection[str], marker: str) -> str | None:
    """What stands before `marker` in the shortest of the names that end in it.

    Example:
        >>> prefix_of(["dtd/labels/train1.txt", "dtd/images/a/a_1.jpg"], "labels/train1.txt")
        'dtd/'
    """
    ending = "/" + marker
    prefixes = [name[: -len(marker)] for name in names if name == marker or name.endswith(ending)]
    return min(prefixes, key=lambda prefix: (prefix.count("/"), prefix), default=None)


def safe(name: str, title: str) -> str:
    """The name of a member of an archive without a leading `./`.

    Raises:
        DataError: It would lie outside the folder that it is unpacked to.

    Example:
        >>> safe("./a/b.jpg", "x.tar")
        'a/b.jpg'
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts[:1] and path.parts[0].endswith(":")):
        raise DataError(f"{title} holds a path that leaves its folder ({printable(name)}); it is not the original.")
    return str(path)


@contextmanager
def whole(title: str) -> Generator[None]:
    """Turns what a cut or damaged archive raises into one sentence that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise damaged(title, error) from error
    except OSError as error:
        # A bad gzip header and wrong checksums are OSErrors without a number.
        if error.errno is not None:
            raise
        raise damaged(title, error) from error


def damaged(title: str, error: Exception) -> DataError:
    """What to say about an archive that cannot be read."""
    detail = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{title} is damaged or not whole ({printable(detail)}); fetch it again.")


def _bytes_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # only regular members come here
    data = file.read()
    if len(data) != member.size:
        raise EOFError(f"{member.name} ends early")
    return data


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One original archive or file.

    Args:
        names: The names under which it is given out, and the MD5 (32 digits) or SHA-256 (64) where one is known.
        marker: The path of a file that every copy has: names in the piece begin where it begins. Empty for a piece
            that is a single file, not an archive.
    """

    names: Mapping[str, str | None]
    marker: str = ""

    def text(self) -> str:
        """How the piece is named in a table."""
        return " or ".join(self.names)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The pieces of a task as they were found.

    Args:
        files: The contents of archives, or of an unpacked copy.
        paths: Where pieces are that are single files.
        record: For `source.json`: name, hash, and whether that is the known one, of every piece.
    """

    files: dict[str, Files] = field(default_factory=dict[str, Files])
    paths: dict[str, Path] = field(default_factory=dict[str, Path])
    record: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class Folder:
    """The user's folder: where every file in it is."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            kind = "is a file; give the folder that it is in" if root.exists() else "does not exist; check the path"
            raise DataError(f"The source {printable(str(root))} {kind}.")
        self.root = root
        self._where: dict[str, list[Path]] = {}
        for folder, folders, names in os.walk(root):
            # Hidden folders are what killed runs have left, or are not meant.
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                self._where.setdefault(name, []).append(Path(folder) / name)

    def named(self, name: str) -> Path | None:
        """The file of that name, the outermost one if there are several."""
        return min(self._where.get(name, []), key=lambda path: (len(path.parts), path), default=None)

    def having(self, marker: str) -> Path | None:
        """The outermost folder that has a file at the relative path `marker`."""
        parts = tuple(marker.split("/"))
        roots = [
            path.parents[len(parts) - 1]
            for path in self._where.get(parts[-1], [])
            if path.relative_to(self.root).parts[-len(parts) :] == parts
        ]
        return min(roots, key=lambda path: (len(path.parts), path), default=None)


def find(folder: Folder, pieces: Mapping[str, Piece], report: Report, *, accept_changed: bool) -> Found:
    """Finds the pieces: archives first, whose hash can be told, then unpacked copies.

    Raises:
        DataError: A piece is missing or damaged, or its hash is not the known one and `accept_changed` is not set.
    """
    found = Found()
    missing = [piece for piece in pieces.values() if not _is_there(folder, piece)]
    if missing:
        _refuse_missing(folder, missing)
    for key, piece in pieces.items():
        name, path = _packed(folder, piece)
        if path is not None and name is not None:
            found.record.append(_checked(path, piece.names[name], report, accept_changed=accept_changed))
        if path is not None and not piece.marker:
            found.paths[key] = path
            continue
        where = path or folder.having(piece.marker)
        assert where is not None  # `_is_there` has seen it
        if path is None:
            found.record.append({"name": piece.text(), "unpacked": printable(where.name)})
        found.files[key] = _opened(piece, open_archive(where) if path else FolderFiles(where), where)
    return found


def digest(path: Path, algorithm: str, report: Report = silent) -> str:
    """The hash of a file in hex digits."""
    hashed = hashlib.new(algorithm, usedforsecurity=False)
    size, done = path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hashed.update(block)
            done += len(block)
            report(done, max(size, done))
    return hashed.hexdigest()


def _is_there(folder: Folder, piece: Piece) -> bool:
    return _packed(folder, piece)[1] is not None or (bool(piece.marker) and folder.having(piece.marker) is not None)


def _packed(folder: Folder, piece: Piece) -> tuple[str | None, Path | None]:
    for name in piece.names:
        path = folder.named(name)
        if path is not None:
            return name, path
    return None, None


def _refuse_missing(folder: Folder, missing: Sequence[Piece]) -> None:
    wanted = ", ".join(
        f"{piece.text()}{' (or an unpacked copy)' if piece.marker and _is_archive(piece) else ''}" for piece in missing
    )
    raise DataError(
        f"{printable(str(folder.root))} does not have {wanted}; put what is missing there "
        "(`vprompt prepare --list` says where to get it)."
    )


def _opened(piece: Piece, files: Files, where: Path) -> Files:
    inner = next((name for name in files.names() if PurePosixPath(name).name in piece.names), None)
    if inner is not None:
        # An archive within the archive, and under 200 MB where one is: read into memory.
        files = TarFiles(where, io.BytesIO(files.read(inner)))
    opened = below(files, piece.marker)
    if opened is None:
        raise DataError(f"{files.title} has no {piece.marker} in it; it is not the original.")
    return opened


def _is_archive(piece: Piece) -> bool:
    return any(name.endswith(ARCHIVES) for name in piece.names)


def _checked(path: Path, expected: str | None, report: Report, *, accept_changed: bool) -> dict[str, Any]:
    algorithm = "md5" if expected is not None and len(expected) == 32 else "sha256"
    actual = digest(path, algorithm, report)
    if expected is not None and actual != expected and not accept_changed:
        raise DataError(
            f"{printable(str(path))} is not the known file: its {algorithm} should be {expected} and is {actual}; "
            "fetch it again, or go on with --accept-changed."
        )
    known = "no known hash" if expected is None else "as known" if actual == expected else f"changed from {expected}"
    return {"name": path.name, algorithm: actual, "hash": known}
