"""Original archives and files: found in the user's folder, compared with known hashes, unpacked safely."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import shutil
import tarfile
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

ZIPS = (".zip", ".npz")
"""NumPy's collections of arrays are zip archives."""

_DAMAGE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
"""Numbers of OSErrors that say something about an archive; bad gzip headers and wrong checksums have none."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One original archive or file.

    Args:
        names: The names under which it is given out, and the MD5 (32 digits) or SHA-256 (64) where one is known.
        marker: The path of a file that every copy of an archive has in it, below the folder that readers start from.
            Empty for a piece that is a single file.
    """

    names: Mapping[str, str | None]
    marker: str = ""

    def text(self) -> str:
        """Its names, for a table."""
        return " or ".join(self.names)


@dataclass(frozen=True, kw_only=True)
class Originals:
    """The pieces of a task, ready to be read.

    Args:
        pieces: The file of each, or the folder that its marker lies below.
        work: An empty folder for a reader's use.
    """

    pieces: Mapping[str, Path]
    work: Path

    def __getitem__(self, key: str) -> Path:
        return self.pieces[key]

    def arranged(self, places: Mapping[str, Path]) -> Path:
        """A folder that has files or folders of the pieces at the relative paths where a reader looks for them."""
        for place, path in places.items():
            (self.work / place).parent.mkdir(parents=True, exist_ok=True)
            (self.work / place).symlink_to(path.resolve())
        return self.work


class Folder:
    """All files below a folder, to be found by their names.

    Raises:
        DataError: It does not exist, or is a file.
    """

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

    def named(self, piece: Piece) -> Path | None:
        """The file with the first of a piece's names that is there, the outermost one if there are several."""
        paths = next((self._where[name] for name in piece.names if name in self._where), [])
        return min(paths, key=_outermost, default=None)

    def having(self, marker: str) -> Path | None:
        """The outermost folder that has a file at the relative path `marker`; None for an empty one."""
        place = PurePosixPath(marker)
        files = [path for path in self._where.get(place.name, []) if path.relative_to(self.root).match(marker)]
        return min((path.parents[len(place.parts) - 1] for path in files), key=_outermost, default=None)


def _outermost(path: Path) -> tuple[int, Path]:
    return len(path.parts), path


def find(source: Path, pieces: Mapping[str, Piece]) -> dict[str, Path]:
    """Finds the pieces in the user's folder: archives first, whose hash can be told, then unpacked copies.

    Raises:
        DataError: A piece is missing.
    """
    folder = Folder(source)
    paths = {key: folder.named(piece) or folder.having(piece.marker) for key, piece in pieces.items()}
    missing = [piece.text() for key, piece in pieces.items() if paths[key] is None]
    if missing:
        raise DataError(
            f"{printable(str(source))} does not have {', '.join(missing)}; put what is missing there, packed or "
            "unpacked (`vprompt prepare --list` says where to get it)."
        )
    return {key: path for key, path in paths.items() if path is not None}


def verify(piece: Piece, path: Path, *, accept_changed: bool) -> dict[str, Any]:
    """Compares a piece with its known hash.

    Returns:
        For `source.json`: name, hash, and whether that is the known one.

    Raises:
        DataError: It is not, and `accept_changed` is not set.
    """
    if path.is_dir():
        return {"name": piece.text(), "unpacked": printable(path.name)}
    expected = piece.names[path.name]
    algorithm = "md5" if expected is not None and len(expected) == 32 else "sha256"
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if expected is not None and actual != expected and not accept_changed:
        raise DataError(
            f"{printable(str(path))} is not the known file: its {algorithm} should be {expected} and is {actual}; "
            "fetch it again, or go on with --accept-changed."
        )
    known = "no known hash" if expected is None else "as known" if actual == expected else f"changed from {expected}"
    return {"name": path.name, algorithm: actual, "hash": known}


def open_piece(piece: Piece, path: Path, work: Path) -> Path:
    """The file or folder that a piece is read from: itself, or what is unpacked of it below `work`.

    Raises:
        DataError: It is damaged, holds paths that leave its folder, or is another archive.
        OSError: There is no room for it.
    """
    if path.is_dir():
        return path
    if not piece.marker:
        if path.suffix != ".gz":
            return path
        # Under the same name, so that errors name the user's file.
        with reading(printable(str(path))), gzip.open(path) as packed, (work / path.name).open("wb") as file:
            shutil.copyfileobj(packed, file)
        return work / path.name
    unpack(path, work)
    if (inner := Folder(work).named(piece)) is not None:
        # Some collections are an archive of archives.
        unpack(inner, work)
    root = Folder(work).having(piece.marker)
    if root is None:
        raise DataError(f"{printable(str(path))} has no {piece.marker} in it; it is not the original.")
    return root


def unpack(path: Path, target: Path) -> None:
    """Unpacks the regular files of an archive.

    Raises:
        DataError: It is damaged, or holds a path that leaves its folder; nothing is written outside `target`.
    """

    def check(name: str) -> None:
        if leaves(name):
            raise ValueError(f"{name} leaves its folder")

    def regular(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        check(member.name)
        # Links could stand for files outside; the original archives need none.
        return tarfile.data_filter(member, folder) if member.isreg() else None

    with reading(printable(str(path))):
        if path.suffix.lower() in ZIPS:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    check(name)
                archive.extractall(target)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(target, filter=regular)


def leaves(name: str) -> bool:
    """True for a path that may lead out of the folder that it is relative to, on any system.

    Example:
        >>> leaves("a/./b.jpg"), leaves("a/../../b.jpg"), leaves("C:\\\\b.jpg"), leaves("/b.jpg")
        (False, True, True, True)
    """
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or any(part.endswith(":") for part in path.parts[:1])


@contextmanager
def reading(title: str) -> Generator[None]:
    """Turns whatever reading a damaged or unknown file raises into one sentence that names it."""
    try:
        yield
    except (DataError, ImportError, MemoryError):
        raise
    # A damaged file can raise almost anything in a reader.
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _DAMAGE:
            raise
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{title} is damaged, not whole or not in its documented format ({printable(detail)}); fetch it again."
        ) from error
