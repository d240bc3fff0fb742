"""Finding image files in folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

IMAGE_SUFFIXES = frozenset(
    "." + name
    for name in (
        *("avif", "bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg"),
        *("pbm", "pgm", "png", "pnm", "ppm", "tif", "tiff", "webp"),
    )
)
"""Lower-case endings of files that count as images."""


def list_images(paths: Sequence[str | Path]) -> list[Path]:
    """The image files that `paths` stand for: files as they are, folders with all that is in them, sorted.

    Raises:
        DataError: A path does not exist, or a folder has no image.

    Example:
        >>> list_images([])
        []
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images = images_below(path)
            if not images:
                raise DataError(
                    f"The folder {printable(str(path))} has no image; give image files or a folder of them."
                )
            files += images
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"The image {printable(str(path))} does not exist; check the path.")
    return files


def images_below(folder: Path, *, above: Sequence[Path] = ()) -> list[Path]:
    """All image files in a folder and its folders, sorted; links are followed, no folder is entered twice.

    Args:
        folder: Where to look.
        above: Folders that a link must not lead back to.
    """
    entered = {_identity(path) for path in (*above, folder)}
    files: list[Path] = []
    waiting = [folder]
    while waiting:
        folders, images = visible_entries(waiting.pop())
        files += images
        for inner in folders:
            identity = _identity(inner)
            if identity not in entered:
                entered.add(identity)
                waiting.append(inner)
    return sorted(files)


def visible_entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and image files directly in a folder, each sorted by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry.name, _is_folder(entry)) for entry in entries if not _hidden(entry.name))
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise DataError(f"The folder {printable(str(folder))} cannot be read: {problem}.") from error
    folders = [folder / name for name, is_folder in visible if is_folder]
    files = [folder / name for name, is_folder in visible if not is_folder]
    images = [file for file in files if os.path.splitext(file.name)[1].lower() in IMAGE_SUFFIXES]
    return folders, images


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `entry.is_dir()` raises for a link to itself; `os.path.isdir` does not.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _hidden(name: str) -> bool:
    # `__MACOSX` holds what macOS adds to archives.
    return name.startswith(".") or name == "__MACOSX"


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino
