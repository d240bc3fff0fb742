"""From the folder with the original files to a finished folder of a task, or to nothing."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vprompt.data.benchmarks.lists import FILES, UNION
from vprompt.data.images import UnusableImageError, opened, to_rgb
from vprompt.data.prepare.archives import Originals, find, open_piece, reading, verify
from vprompt.data.prepare.contents import PARTS, SPLIT_SEED, Contents, listed, to_png, vtab_1k
from vprompt.data.prepare.registry import Recipe, recipe_of
from vprompt.data.split import content_of
from vprompt.utils.errors import DataError
from vprompt.utils.io import write_json, write_text, writing
from vprompt.utils.progress import Report, bar
from vprompt.utils.text import printable
from vprompt.utils.version import __version__

NOT_COMPARABLE = (
    "Some images were drawn by vprompt, as the published draw cannot be repeated from the originals: scores are not "
    "comparable to published ones image for image."
)

_WORK = ".originals"
"""Folder that originals are unpacked to, until all is written."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A folder that was written.

    Args:
        folder: Its path.
        classes: Number of classes.
        images: Number of images of each part.
        parts: Origin of training, validation and test images.
        note: A warning about scores; empty if there is none.
    """

    folder: str
    classes: int
    images: dict[str, int]
    parts: str
    note: str


def prepare(
    spec: str,
    *,
    source: Path,
    root: Path,
    lists: Path | None = None,
    accept_changed: bool = False,
    overwrite: bool = False,
    show: bool = False,
) -> Prepared:
    """Writes a task of VTAB-1k or FGVC in its usual layout, from the original files.

    The folder appears under its name when it is whole; until then it is called `.NAME.part`.

    Args:
        spec: Such as `vtab:cifar`.
        source: Folder with the original archives, or an unpacked copy; also the root of a torchvision data set.
        root: Folder that the task's own folder is written into; originals are unpacked there for a while.
        lists: Folder with published lists that say which images to use for what.
        accept_changed: Go on where a hash or the number of images is not the known one; it is recorded.
        overwrite: Replace a folder that was written by this function.
        show: Show progress on standard error.

    Raises:
        DataError: The task is not known, a file is missing, damaged or changed, there are too few images, or the folder
            exists.
        StorageError: The disk is full, or cannot be written to.
    """
    recipe = recipe_of(spec)
    files = FILES[recipe.task.suite]
    folder = root / (recipe.folder or recipe.task.name)
    _restore(folder)
    _refuse_existing(folder, overwrite=overwrite)
    paths = find(source, recipe.pieces)
    with bar(f"checking {spec}", enabled=show):
        pieces = [verify(recipe.pieces[key], paths[key], accept_changed=accept_changed) for key in paths]
    with _part_of(folder) as part:
        with bar(f"reading {spec}", enabled=show):
            contents = _read(recipe, paths, part / _WORK)
            counted = len(contents.items)
            _check(recipe, contents, accept_changed=accept_changed)
        if lists is not None:
            contents = listed(contents, lists, recipe.task)
        elif recipe.task.suite == "vtab":
            contents = vtab_1k(contents)
        drawn = {part: sum(item.part == part for item in contents.items) for part in PARTS}
        with bar(f"writing {spec}", enabled=show) as report:
            write_task(contents, part, recipe, report)
        note = NOT_COMPARABLE if contents.drawn else ""
        about = {
            "task": recipe.spec,
            "vprompt": __version__,
            "pieces": pieces,
            "original_images": counted,
            "images": drawn,
            "parts": contents.parts,
            "lists": None if lists is None else {name: content_of(lists / name) for name in files.values()},
            "split_seed": SPLIT_SEED if contents.drawn else None,
            "note": note,
        }
        write_json(part / "source.json", about)
        shutil.rmtree(part / _WORK)
    return Prepared(folder=str(folder), classes=len(contents.classes), images=drawn, parts=contents.parts, note=note)


def _read(recipe: Recipe, paths: Mapping[str, Path], work: Path) -> Contents:
    """Unpacks what is packed below `work`, and reads all of it."""
    assert recipe.read is not None  # `recipe_of` has refused those without
    try:
        if recipe.needs:
            importlib.import_module(recipe.needs)
        opened: dict[str, Path] = {}
        for key, path in paths.items():
            (work / key).mkdir(parents=True)
            opened[key] = open_piece(recipe.pieces[key], path, work / key)
        (work / "arranged").mkdir()
        with reading(" or ".join(printable(path.name) for path in paths.values())):
            return recipe.read(Originals(pieces=opened, work=work / "arranged"))
    except ImportError:
        raise DataError(
            f"{recipe.spec} is read with {recipe.needs}, which is not installed; run `pip install {recipe.needs}`."
        ) from None


def _check(recipe: Recipe, contents: Contents, *, accept_changed: bool) -> None:
    counted, classes = len(contents.items), len(contents.classes)
    wrong = next((item for item in contents.items if not 0 <= item.label < classes), None)
    if wrong is not None:
        raise DataError(
            f"{printable(wrong.name)} has the label {wrong.label}, but there are {classes} classes; fetch the original "
            "again."
        )
    if counted != recipe.images and not accept_changed:
        raise DataError(
            f"{recipe.spec} has {recipe.images} images, but {counted} were found; fetch the original again, or go on "
            "with --accept-changed."
        )


def _refuse_existing(folder: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise DataError(f"{printable(str(folder))} exists; give another --root, or --overwrite to replace it.")
    if folder.is_symlink() or not (folder / "source.json").is_file():
        raise DataError(
            f"{printable(str(folder))} was not written by vprompt prepare; move it away, or give another --root."
        )


@contextmanager
def _part_of(folder: Path) -> Generator[Path]:
    """A fresh folder that takes the place of `folder` when the block ends well, and is removed when it does not."""
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    try:
        with writing(folder):
            if part.exists():
                shutil.rmtree(part)  # what a killed run has left
            part.mkdir(parents=True)
            yield part
            if folder.exists():
                folder.rename(old)
            part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _restore(folder: Path) -> None:
    """Puts back what a run had moved aside that was killed just then."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not os.path.lexists(folder):
        old.rename(folder)


def write_task(contents: Contents, folder: Path, recipe: Recipe, report: Report) -> None:
    """Writes images, lists, `classes.txt` and `manifest.json`.

    Images of VTAB are called `images/PART/NUMBER.jpg` (or png) and listed in text files; those of FGVC have their own
    names below the recipe's prefix and are listed in JSON.
    """
    vtab = recipe.task.suite == "vtab"
    numbers = dict.fromkeys(PARTS, 0)
    paths: dict[str, str] = {}
    for item in contents.items:
        paths[item.name] = f"images/{item.part}/{numbers[item.part]:06d}" if vtab else recipe.prefix + item.name
        numbers[item.part] += 1
    hashes: dict[str, str] = {}

    for done, name in enumerate(sorted(paths), start=1):
        data = contents.read(name)
        if vtab:
            suffix, data = as_jpeg_or_png(data, name)
            paths[name] += suffix
        path = folder / paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        hashes[paths[name]] = content_of(data)
        report(done, len(paths))
    lists = {file: (part,) for part, file in FILES[recipe.task.suite].items()}
    for file, parts in (lists | {UNION: ("train", "val")} if vtab else lists).items():
        items = [item for part in parts for item in contents.items if item.part == part]
        if vtab:
            write_text(folder / file, "".join(f"{paths[item.name]} {item.label}\n" for item in items))
        else:
            write_json(folder / file, {item.name: item.label for item in items})
        hashes[file] = content_of(folder / file)
    write_text(folder / "classes.txt", "".join(f"{printable(name)}\n" for name in contents.classes))
    hashes["classes.txt"] = content_of(folder / "classes.txt")
    write_json(folder / "manifest.json", dict(sorted(hashes.items(), key=lambda pair: os.fsencode(pair[0]))))


_SIGNATURES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png"}
"""First bytes of the two formats whose files are written as they are."""


def as_jpeg_or_png(data: bytes, name: str) -> tuple[str, bytes]:
    """The ending and the bytes of an image: as they are for JPEG and PNG, and otherwise as PNG.

    Raises:
        DataError: It is no image.
    """
    for signature, suffix in _SIGNATURES.items():
        if data.startswith(signature):
            return suffix, data
    try:
        with opened(data) as image:
            image.load()
            return ".png", to_png(np.asarray(to_rgb(image)))
    except UnusableImageError as error:
        raise DataError(f"{printable(name)} in the original is not an image; fetch the original again.") from error
