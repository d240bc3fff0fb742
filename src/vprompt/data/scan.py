"""Finding image files in folders, and counting what lies beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vprompt.utils.errors import DataError
from vprompt.utils.text import listed, printable

IMAGE_SUFFIXES = frozenset(
    "." + name
    for name in (
        *("avif", "bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg"),
        *("pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)
"""Lower-case endings of files that count as images."""

SYSTEM, HIDDEN, RUNS = "made by a system", "hidden", "output of vprompt"
"""Reasons to pass over a folder or file; any other reason is the ending of a file."""

# Of NAS boxes (thumbnails, wastebaskets, snapshots), Windows, macOS and Python; `@` begins no other folder's name.
_SYSTEM = re.compile(
    r"@.*|#(recycle|snapshot).*|\$recycle\.bin|recycler|recycled|system volume information|lost\+found|"
    r"__macosx|__pycache__|network trash folder|temporary items|found\.\d{3}",
    re.IGNORECASE,
)

_RUN_FILES = ("adapter_config.json", "result.json", ".run")

PassedOver = dict[str, list[str]]
"""Reason -> paths of what is no image, or no image of the user's."""


def list_images(paths: Sequence[str | Path], passed_over: PassedOver | None = None) -> list[Path]:
    """The image files that `paths` stand for: files as they are, folders with all that is in them, sorted.

    Args:
        paths: Files and folders.
        passed_over: Takes up what else lies in the folders.

    Raises:
        DataError: A path does not exist, or a folder has no image.

    Example:
        >>> list_images([])
        []
    """
    files: list[Path] = []
    others: PassedOver = {} if passed_over is None else passed_over
    for path in map(Path, paths):
        if path.is_dir():
            images = images_below(path, passed_over=others)
            if not images:
                where, found = printable(str(path)), in_words(others)
                found = f" (there are {found})" if found else ""
                raise DataError(f"The folder {where} has no image{found}; give image files or a folder of them.")
            files += images
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"The image {printable(str(path))} does not exist; check the path.")
    return files


def images_below(folder: Path, *, above: Sequence[Path] = (), passed_over: PassedOver | None = None) -> list[Path]:
    """All image files in a folder and its folders, sorted; links are followed, no folder is entered twice.

    Args:
        folder: Where to look.
        above: Folders that a link must not lead back to.
        passed_over: Takes up what else lies there.
    """
    entered = {_identity(path) for path in (*above, folder)}
    files: list[Path] = []
    waiting = [folder]
    while waiting:
        folders, images = visible_entries(waiting.pop(), passed_over)
        files += images
        for inner in folders:
            identity = _identity(inner)
            if identity not in entered:
                entered.add(identity)
                waiting.append(inner)
    return sorted(files)


def visible_entries(folder: Path, passed_over: PassedOver | None = None) -> tuple[list[Path], list[Path]]:
    """Folders and image files directly in a folder, each sorted by name, without what is not the user's."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _is_folder(entry)) for entry in entries)
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise DataError(f"The folder {printable(str(folder))} cannot be read: {problem}.") from error
    folders: list[Path] = []
    images: list[Path] = []
    for name, is_folder in found:
        path, ending = folder / name, os.path.splitext(name)[1].lower()
        if reason := _reason(path, ending, is_folder):
            if passed_over is not None:
                passed_over.setdefault(reason, []).append(str(path))
        elif is_folder or ending in IMAGE_SUFFIXES:
            (folders if is_folder else images).append(path)
    return folders, images


def in_words(passed_over: Mapping[str, Sequence[str]]) -> str:
    """What was passed over, counted by reasons; empty where there is nothing to say.

    Example:
        >>> in_words({".heic": ["a/1.HEIC", "a/2.HEIC"], SYSTEM: ["a/@eaDir"], HIDDEN: ["a/._1.jpg"]})
        '2 .heic files (convert them to JPEG), 1 made by a system (@eaDir) and 1 hidden'
    """
    words: list[str] = []
    for reason, paths in sorted(passed_over.items(), key=lambda pair: (not pair[0].startswith("."), -len(pair[1]))):
        files = f" file{'s' * (len(paths) > 1)}" if reason.startswith(".") else ""
        names = listed(sorted({printable(os.path.basename(path)) for path in paths}), 3)
        more = " (convert them to JPEG)" if reason in (".heic", ".heif") else ""
        words.append(f"{len(paths)} {reason}{files}{more}" + (f" ({names})" if reason in (SYSTEM, RUNS) else ""))
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def relative(passed_over: PassedOver, root: Path) -> dict[str, list[str]]:
    """What was passed over, by reasons, with paths from a folder."""
    return {
        reason: [Path(path).relative_to(root).as_posix() for path in paths] for reason, paths in passed_over.items()
    }


def _reason(path: Path, ending: str, is_folder: bool) -> str | None:
    """Why a folder or file is passed over; None where it is not, or where it is not worth a word."""
    name = path.name
    if name.startswith("."):
        return HIDDEN if is_folder or ending in IMAGE_SUFFIXES else None
    if _SYSTEM.fullmatch(name):
        return SYSTEM
    if is_folder:
        return RUNS if _holds_runs(path) else None
    return None if ending in IMAGE_SUFFIXES else ending or "without an ending"


def _holds_runs(folder: Path) -> bool:
    """Whether a folder is what a command of ours left: a run, or a folder of runs, which may have begun just now."""
    if any((folder / name).exists() for name in _RUN_FILES):
        return True
    try:
        with os.scandir(folder) as entries:
            found = [(entry.path, entry.name, _is_folder(entry)) for entry in entries]
    except OSError:
        return False  # whoever reads it says so
    runs = (path for path, _, is_folder in found if is_folder)
    if any(os.path.exists(os.path.join(path, name)) for path in runs for name in _RUN_FILES):
        return True
    return folder.name == "runs" and all(name.startswith(".") for _, name, _ in found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `entry.is_dir()` raises for a link to itself; `os.path.isdir` does not.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino
