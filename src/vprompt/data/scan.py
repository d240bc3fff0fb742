"""Finding images in folders, and which folders are splits and which are classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vprompt.data.images import IMAGE_SUFFIXES
from vprompt.utils.errors import DataError
from vprompt.utils.text import printable

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Folder names, in lower case, and the split they stand for."""

UNSPLIT = "all"
"""The only split of a folder that is not cut into splits yet."""

Splits = dict[str, dict[str, list[str]]]
"""For every split and class the files, as paths relative to the root."""


@dataclass(kw_only=True)
class Listing:
    """What lies in an image folder; `notes` name what is there but has no part in the task."""

    splits: Splits = field(default_factory=dict[str, dict[str, list[str]]])
    notes: list[str] = field(default_factory=list[str])


def scan(root: Path, *, need_train: bool = True) -> Listing:
    """Lists an image folder; classes without images are listed too, with no files.

    Args:
        root: The folder.
        need_train: Refuse a folder that has splits but no `train`.

    Raises:
        DataError: The root is missing or no folder, two folders stand for one split, or there is no `train`.
    """
    if not root.exists():
        raise DataError(f"The image folder {printable(str(root))} does not exist; check the path.")
    if not root.is_dir():
        raise DataError(f"{printable(str(root))} is a file; give a folder with one folder of images per class.")
    listing = Listing()
    folders, _ = _entries(root)
    splits = _split_folders(root, folders, need_train)
    for split, folder in (splits or {UNSPLIT: root}).items():
        listing.splits[split] = _classes(root, folder, listing.notes)
    if splits:
        used = set(splits.values())
        unused = [folder.name for folder in folders if folder not in used]
        listing.notes += [f"folder {printable(name)} beside the splits is not used" for name in unused]
    return listing


def list_images(paths: Sequence[str | Path]) -> list[Path]:
    """The image files that `paths` stand for: files as they are, folders with all that is in them, sorted.

    Raises:
        DataError: A path does not exist, or a folder has no image.

    Example:
        >>> list_images([])
        []
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images = images_below(path)
            if not images:
                raise DataError(
                    f"The folder {printable(str(path))} has no image; give image files or a folder of them."
                )
            found += images
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"The image {printable(str(path))} does not exist; check the path.")
    return found


def images_below(folder: Path, *, above: Sequence[Path] = ()) -> list[Path]:
    """All image files in a folder and its folders, sorted; links are followed, no folder is entered twice.

    Args:
        folder: Where to look.
        above: Folders that a link must not lead back to.
    """
    entered = {_identity(path) for path in (*above, folder)}
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        folders, images = _entries(waiting.pop())
        found += images
        for inner in folders:
            identity = _identity(inner)
            if identity not in entered:
                entered.add(identity)
                waiting.append(inner)
    return sorted(found)


def _classes(root: Path, folder: Path, notes: list[str]) -> dict[str, list[str]]:
    folders, loose = _entries(folder)
    if loose:
        where = printable(folder.relative_to(root).as_posix()) if folder != root else "the folder itself"
        count = f"{len(loose)} images" if len(loose) > 1 else f"image {printable(loose[0].name)}"
        notes.append(f"{count} directly in {where} belong{'' if len(loose) > 1 else 's'} to no class")
    return {
        inner.name: [path.relative_to(root).as_posix() for path in images_below(inner, above=(root, folder))]
        for inner in folders
    }


def _split_folders(root: Path, folders: list[Path], need_train: bool) -> dict[str, Path]:
    """The folder of each split, or nothing when the folders of the root are classes."""
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    # A class may be called "train": then it holds images, no folders, and other classes lie beside it.
    if len(named) < len(folders) and not any(_entries(folder)[0] for folder in named):
        return {}
    splits: dict[str, Path] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in splits:
            raise DataError(
                f"In {printable(str(root))}, both {splits[split].name} and {folder.name} hold the {split} images; "
                "keep one of them."
            )
        splits[split] = folder
    if need_train and splits and "train" not in splits:
        present = " and ".join(folder.name for folder in splits.values())
        raise DataError(
            f"{printable(str(root))} has {present} but no train folder; add train/CLASS/ folders, or put the classes "
            "directly in the folder to have it split."
        )
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and image files directly in a folder, each sorted by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            visible = [(entry.name, _is_folder(entry)) for entry in entries if not _hidden(entry.name)]
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise DataError(f"The folder {printable(str(folder))} cannot be read: {problem}.") from error
    folders = [folder / name for name, is_dir in sorted(visible) if is_dir]
    images = [folder / name for name, is_dir in sorted(visible) if not is_dir and is_image_name(name)]
    return folders, images


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as an image's does."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `entry.is_dir()` raises for a link to itself; `os.path.isdir` does not.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _hidden(name: str) -> bool:
    # `__MACOSX` holds what macOS adds to archives.
    return name.startswith(".") or name == "__MACOSX"


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino
