"""From the folder with the original files to a finished folder of a task, or to nothing."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vprompt.data.benchmarks.lists import FILES, UNION
from vprompt.data.prepare.archives import Originals, find, open_piece, reading, verify
from vprompt.data.prepare.contents import PARTS, SPLIT_SEED, Contents, vtab_1k
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
    accept_changed: bool = False,
    show: bool = False,
) -> Prepared:
    """Writes a task of VTAB-1k or FGVC in its usual layout, from the original files.

    The folder appears under its name when it is whole; until then it is called `.NAME.part`.

    Args:
        spec: Such as `vtab:cifar`.
        source: Folder with the original archives, or an unpacked copy; also the root of a torchvision data set.
        root: Folder that the task's own folder is written into; originals are unpacked there for a while.
        accept_changed: Go on where a hash or the number of images is not the known one; it is recorded.
        show: Show progress on standard error.

    Raises:
        DataError: The task is not known, a file is missing, damaged or changed, there are too few images, or the folder
            exists.
        StorageError: The disk is full, or cannot be written to.
    """
    recipe = recipe_of(spec)
    folder = root / (recipe.folder or recipe.task.name)
    if os.path.lexists(folder):
        raise DataError(f"{printable(str(folder))} exists; remove it, or give another --root.")
    paths = find(source, recipe.pieces)
    with bar(f"checking {spec}", enabled=show):
        pieces = [verify(recipe.pieces[key], paths[key], accept_changed=accept_changed) for key in paths]
    with _part_of(folder) as part:
        with bar(f"reading {spec}", enabled=show):
            contents = _read(recipe, paths, part / _WORK)
            counted = len(contents.items)
            _check(recipe, contents, accept_changed=accept_changed)
        if recipe.task.suite == "vtab":
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


@contextmanager
def _part_of(folder: Path) -> Generator[Path]:
    """A fresh folder that becomes `folder` when the block ends well, and is removed when it does not."""
    part = folder.with_name(f".{folder.name}.part")
    try:
        with writing(folder):
            if part.exists():
                shutil.rmtree(part)  # what a killed run has left
            part.mkdir(parents=True)
            yield part
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
            # As all of VTAB's images are called; the few of other formats are known by what is in them.
            paths[name] += ".png" if data.startswith(b"\x89PNG") else ".jpg"
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
