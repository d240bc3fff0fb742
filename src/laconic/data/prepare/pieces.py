"""What a task is made from, and finding it in the folder that the user has put it into."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from laconic.data.images import printable
from laconic.data.prepare.files import ARCHIVES, Files, FolderFiles, TarFiles, below, open_archive
from laconic.errors import DataError
from laconic.progress import Report, silent


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
        "(`laconic prepare --list` says where to get it)."
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
