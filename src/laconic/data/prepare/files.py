"""A folder, a tar or a zip archive as the same thing: named files that are read, never unpacked."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from laconic.data.images import printable
from laconic.errors import DataError

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
