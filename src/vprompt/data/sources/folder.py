"""Folders of images: which folders in them are splits, and which are classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vprompt.data.listing import UNSPLIT, Item, Listing
from vprompt.data.scan import PassedOver, images_below, in_words, relative, visible_entries
from vprompt.utils.errors import DataError
from vprompt.utils.text import listed, printable

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Words in the name of a folder, in lower case, and the split they stand for."""

_IMAGES = {"image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "input", "inputs"}

PLAIN = _IMAGES | {"set", "data", "dataset", "datasets", "split", "splits", "folder", "samples", "all"}
"""Words that say nothing about what is in a folder of images."""

ANNOTATIONS = {
    *("annotation", "annotations", "annots", "bbox", "bboxes", "depth", "groundtruth", "gt", "label", "labels", "mask"),
    *("masks", "seg", "segmentation", "segmentations", "segmentationclass", "segmentationobject", "segs", "target"),
    *("targets", "trimap", "trimaps"),
}

_GLUED = re.compile(rf"({'|'.join(SPLIT_WORDS)})(set|sets|data|dataset|images?|imgs?)")


class SplitFolder(NamedTuple):
    """A folder whose name stands for a split, and the words in it that say something else."""

    path: Path
    split: str
    rest: frozenset[str]


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, without numbers.

    Example:
        >>> words_of("TrainingSet_2"), words_of("testdata"), words_of("seg-train2017")
        (['training', 'set'], ['test', 'data'], ['seg', 'train'])
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    glued = [_GLUED.fullmatch(word.lower()) for word in words]
    return [
        part for word, match in zip(words, glued, strict=True) for part in (match.groups() if match else [word.lower()])
    ]


def split_of(name: str) -> tuple[str, frozenset[str]] | None:
    """The split that a name stands for, and the words in it that say something else.

    Example:
        >>> split_of("birds_val"), split_of("birds")
        (('val', {'birds'}), None)
    """
    words = words_of(name)
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if splits == {"train", "val"}:
        splits = {"train"}  # `trainval` is what both are cut from
    return (splits.pop(), frozenset(words) - SPLIT_WORDS.keys() - PLAIN) if len(splits) == 1 else None


def folder_listing(root: Path, *, training: bool = True) -> Listing:
    """The images of `root/CLASS/...`, of `root/{train,val,test}/CLASS/...`, or of `root/CLASS/{train,val,test}/...`.

    Args:
        root: The folder.
        training: Refuse a folder without images to train on.

    Raises:
        DataError: The root is missing or no folder, two folders stand for one split, what there is are images and
            annotations instead of classes, or there is nothing to train on.
    """
    where = printable(str(root))
    if not root.exists():
        raise DataError(f"The image folder or table {where} does not exist; check the path.")
    if not root.is_dir():
        raise DataError(
            f"{where} is a file of a kind that is not read; give a folder with one folder of images per class, or a "
            "table (.csv, .tsv, .jsonl, .parquet) of images and labels."
        )
    passed_over: PassedOver = {}
    remarks: list[str] = []
    notes: list[str] = []
    top = unwrapped(root, root, remarks)
    folders, _ = visible_entries(top, passed_over)
    split_folders = split_folders_of(top, folders, training)
    classes: dict[str, dict[str, list[Path]]] = {}
    for split, folder in (split_folders or {UNSPLIT: top}).items():
        inside = unwrapped(folder, root, remarks) if split_folders else top
        class_folders, loose = visible_entries(inside, passed_over if split_folders else None)
        _refuse_annotations(inside, class_folders)
        if loose:
            place = printable(inside.relative_to(root).as_posix()) if inside != root else "the folder itself"
            images = f"{len(loose)} images" if len(loose) > 1 else f"image {printable(loose[0].name)}"
            notes.append(f"{images} directly in {place} belong{'' if len(loose) > 1 else 's'} to no class")
        inner_splits = {} if split_folders else _inner_splits(top, class_folders, remarks)
        for part in dict.fromkeys(part for parts in inner_splits.values() for part in parts) or (split,):
            places = {path: inner_splits[path].get(part) if inner_splits else path for path in class_folders}
            classes[part] = {
                path.name: images_below(place, above=(root, folder), passed_over=passed_over)
                for path, place in places.items()
                if place is not None
            }
        if not inner_splits:
            _remark_shared(inside, classes[split], remarks)
    if split_folders:
        unused = [folder.name for folder in folders if folder not in split_folders.values()]
        notes += [f"folder {printable(name)} beside the splits is not used" for name in unused]
        if any(folder.name.lower() not in SPLIT_WORDS for folder in split_folders.values()):
            pairs = [f"{printable(folder.name)} as {split}" for split, folder in split_folders.items()]
            remarks.append(f"Folders are taken as splits: {listed(pairs)}.")
    splits = {
        split: [Item(path.relative_to(root).as_posix(), name) for name, paths in files.items() for path in paths]
        for split, files in classes.items()
    }
    if training and not any(splits.values()):
        other = f" (passed over: {other})" if (other := in_words(passed_over)) else ""
        raise DataError(
            f"The image folder {where} has no class folder with images{other}; put the images of each class in a "
            "folder of its own."
        )
    return Listing(
        name=printable(root.resolve().name),
        source=where,
        where=where,
        splits=splits,
        files=root,
        empty={split: [name for name, paths in files.items() if not paths] for split, files in classes.items()},
        notes=notes,
        passed_over=relative(passed_over, root),
        remarks=remarks,
    )


def unwrapped(folder: Path, root: Path, remarks: list[str]) -> Path:
    """The folder itself, or the first with more than one folder, where all above it are alone and hold no images.

    In a folder of a split these must say nothing (`train/images/CLASS`) or the same (`seg_train/seg_train/CLASS`).
    """
    inner, ours = folder, _split_folder(folder)
    while True:
        folders, images = visible_entries(inner)
        if images or not folders:
            return folder
        split = _split_folder(folders[0])
        if len(folders) > 1 or (folder == root and split is not None and not split.rest):
            break
        plain = split.split == ours.split if split and ours else set(words_of(folders[0].name)) <= PLAIN
        if folder != root and not plain:
            break
        inner = folders[0]
    if inner != folder == root:
        remarks.append(f"The images are taken from {printable(inner.relative_to(root).as_posix())}, the only folder.")
    return inner


def _split_folder(path: Path) -> SplitFolder | None:
    found = split_of(path.name)
    return None if found is None else SplitFolder(path, *found)


def split_folders_of(root: Path, folders: list[Path], training: bool) -> dict[str, Path]:
    """The folder of each split, or nothing when the folders of the root are classes.

    Other words in a name count only if a folder beside has them, too (`seg_train` and `seg_test`, `seg_train` with
    folders in it and `seg_pred`): there may be classes `train station` and `test tube`.
    """
    named = [one for folder in folders if (one := _split_folder(folder)) is not None]

    def fits(one: SplitFolder) -> bool:
        if not one.rest or any(other.rest == one.rest and other.split != one.split for other in named):
            return True
        beside = any(one.rest <= set(words_of(folder.name)) for folder in folders if folder != one.path)
        return beside and bool(visible_entries(one.path)[0])

    named = [one for one in named if fits(one)]
    # A class may be called "train": then it holds images, no folders, and other classes lie beside it.
    alone = named[0].path if len(named) == 1 < len(folders) else None
    if alone and alone.name.lower() in SPLIT_WORDS and not visible_entries(alone)[0]:
        return {}
    splits: dict[str, Path] = {}
    for one in named:
        if one.split in splits:
            both = f"{printable(splits[one.split].name)} and {printable(one.path.name)}"
            raise DataError(f"In {printable(str(root))}, both {both} hold the {one.split} images; keep one of them.")
        splits[one.split] = one.path
    if training and splits and "train" not in splits:
        present = " and ".join(folder.name for folder in splits.values())
        raise DataError(
            f"{printable(str(root))} has {present} but no train folder; add train/CLASS/ folders, or put the classes "
            "directly in the folder to have it split."
        )
    return {split: splits[split] for split in ("train", "val", "test") if split in splits}


def _inner_splits(root: Path, class_folders: Sequence[Path], remarks: list[str]) -> dict[Path, dict[str, Path]]:
    """The split folders inside each class folder, where all have two or more of them."""
    inner: dict[Path, dict[str, Path]] = {}
    others: list[str] = []
    for path in class_folders:
        folders, images = visible_entries(path)
        named = [one for folder in folders if (one := _split_folder(folder)) is not None and not one.rest]
        inner[path] = {one.split: one.path for one in named}
        if not named or len(inner[path]) < len(folders) or images:
            others.append(printable(path.name))
    if all(len(splits) < 2 for splits in inner.values()):
        return {}
    names = listed(sorted({printable(folder.name) for splits in inner.values() for folder in splits.values()}))
    if others:
        raise DataError(
            f"Folders in {printable(str(root))} have {names} in them, but {listed(others, 3)} has not, or has more "
            "than these; put all images in train/CLASS and test/CLASS folders, or in folders of their classes alone."
        )
    remarks.append(f"The folders of the classes have {names} inside, which are taken as splits.")
    return inner


def images_and_marks(folders: Sequence[Path]) -> tuple[Path, Path] | None:
    """Of some folders, that of images and that of what is marked in them, masks before others; by their names."""
    words = {path: set(words_of(path.name)) for path in folders}
    images = [path for path, inside in words.items() if inside and inside <= PLAIN]
    marks = [path for path, inside in words.items() if inside & ANNOTATIONS]
    marks.sort(key=lambda path: not words[path] & {"mask", "masks"})
    return (images[0], marks[0]) if images and marks else None


def _refuse_annotations(folder: Path, folders: Sequence[Path]) -> None:
    """Raises a `DataError` where the folders are images and masks or labels of them."""
    if pair := images_and_marks(folders):
        both = " and ".join(printable(path.name) for path in pair)
        raise DataError(
            f"The folders {both} in {printable(str(folder))} are images and what is marked in them, not two classes; "
            "put the images of each class in a folder of its own, or masks of the same names in PNG files."
        )


def _remark_shared(folder: Path, classes: dict[str, list[Path]], remarks: list[str]) -> None:
    """Remarks on folders that are the same in every class: perhaps these are the classes."""
    parts = len(folder.parts)
    inner = [{path.parts[parts + 1] for path in paths if len(path.parts) > parts + 2} for paths in classes.values()]
    shared = sorted(set.intersection(*inner)) if len(inner) > 1 else []
    if len(shared) > 1:
        one, two = (listed(list(map(printable, names)), 4) for names in (sorted(classes), shared))
        remarks.append(f"The classes are {one}; the folders {two}, which are in each of them, are not told apart.")
