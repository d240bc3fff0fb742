"""Folders of images: which folders in them are splits, and which are classes."""

from __future__ import annotations

from pathlib import Path

from vprompt.data.scan import images_below, visible_entries
from vprompt.data.sources.base import UNSPLIT, Item, Listing
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


def folder_listing(root: Path, *, training: bool = True) -> Listing:
    """The images of `root/CLASS/...`, or of `root/{train,val,test}/CLASS/...`.

    Args:
        root: The folder.
        training: Refuse a folder without images to train on.

    Raises:
        DataError: The root is missing or no folder, two folders stand for one split, or there is nothing to train on.
    """
    where = printable(str(root))
    if not root.exists():
        raise DataError(f"The image folder {where} does not exist; check the path.")
    if not root.is_dir():
        raise DataError(f"{where} is a file; give a folder with one folder of images per class.")
    folders, _ = visible_entries(root)
    split_folders = _split_folders(root, folders, training)
    splits: dict[str, list[Item]] = {}
    empty: dict[str, list[str]] = {}
    notes: list[str] = []
    for split, folder in (split_folders or {UNSPLIT: root}).items():
        class_folders, loose = visible_entries(folder)
        if loose:
            place = printable(folder.relative_to(root).as_posix()) if folder != root else "the folder itself"
            images = f"{len(loose)} images" if len(loose) > 1 else f"image {printable(loose[0].name)}"
            notes.append(f"{images} directly in {place} belong{'' if len(loose) > 1 else 's'} to no class")
        files = {inner.name: images_below(inner, above=(root, folder)) for inner in class_folders}
        splits[split] = [Item(path.relative_to(root).as_posix(), name) for name in files for path in files[name]]
        empty[split] = [name for name in files if not files[name]]
    if split_folders:
        unused = [folder.name for folder in folders if folder not in split_folders.values()]
        notes += [f"folder {printable(name)} beside the splits is not used" for name in unused]
    if training and not any(splits.values()):
        raise DataError(
            f"The image folder {where} has no class folder with images; put the images of each class in a folder of "
            "its own."
        )
    return Listing(
        name=printable(root.resolve().name),
        source=where,
        where=where,
        splits=splits,
        files=root,
        empty=empty,
        notes=notes,
    )


def _split_folders(root: Path, folders: list[Path], training: bool) -> dict[str, Path]:
    """The folder of each split, or nothing when the folders of the root are classes."""
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    # A class may be called "train": then it holds images, no folders, and other classes lie beside it.
    if len(named) < len(folders) and not any(visible_entries(folder)[0] for folder in named):
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
    if training and splits and "train" not in splits:
        present = " and ".join(folder.name for folder in splits.values())
        raise DataError(
            f"{printable(str(root))} has {present} but no train folder; add train/CLASS/ folders, or put the classes "
            "directly in the folder to have it split."
        )
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}
