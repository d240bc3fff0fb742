"""From the folder with the original files to a finished folder of a task, or to nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from laconic import __version__
from laconic.data.images import printable
from laconic.data.prepare.contents import PARTS, SPLIT_SEED, Contents, vtab_1k
from laconic.data.prepare.pieces import Folder, Found, digest, find
from laconic.data.prepare.published import FGVC_FILES, VTAB_FILES, listed
from laconic.data.prepare.recipes import Recipe, recipe_of
from laconic.data.prepare.write import write_fgvc, write_vtab
from laconic.errors import DataError
from laconic.files import write_json
from laconic.progress import bar

NOT_COMPARABLE = (
    "Some images were drawn by laconic, as the published draw cannot be repeated from the originals: scores are not "
    "comparable to published ones image for image."
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was written.

    Args:
        folder: Where it is.
        classes: Number of classes.
        images: Number of images of each part.
        parts: Where training, validation and test images come from.
        note: What to know about scores, if anything.
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
        root: Where the task's folder is written.
        lists: Folder with published lists that say which images to use for what.
        accept_changed: Go on where a hash or the number of images is not the known one; it is recorded.
        overwrite: Replace a folder that was written by this function.
        show: Show progress on standard error.

    Raises:
        DataError: The task is not known, a file is missing, damaged or changed, there are too few images, the folder
            exists, or the disk is full.
    """
    recipe = recipe_of(spec)
    folder = root / recipe.folder
    _restore(folder)
    _refuse_existing(folder, overwrite=overwrite)
    with bar(f"checking {recipe.spec}", enabled=show) as report:
        found = find(Folder(source), recipe.pieces, report, accept_changed=accept_changed)
    with bar(f"reading {recipe.spec}", enabled=show):
        contents, counted = _read(recipe, found, accept_changed=accept_changed)
    files = VTAB_FILES if recipe.suite == "vtab" else FGVC_FILES
    if lists is not None:
        contents = listed(contents, lists, files)
    elif recipe.suite == "vtab":
        contents = vtab_1k(contents)
    drawn = {part: sum(item.part == part for item in contents.items) for part in PARTS}
    with _part_of(folder) as part, bar(f"writing {recipe.spec}", enabled=show) as report:
        if recipe.suite == "vtab":
            write_vtab(contents, part, report)
        else:
            write_fgvc(contents, part, recipe.prefix, report)
        note = NOT_COMPARABLE if contents.drawn else ""
        about = {
            "task": recipe.spec,
            "laconic": __version__,
            "pieces": found.record,
            "original_images": counted,
            "images": drawn,
            "parts": contents.parts,
            "lists": None if lists is None else {name: digest(lists / name, "sha256") for name in files},
            "split_seed": SPLIT_SEED if contents.drawn else None,
            "note": note,
        }
        write_json(part / "source.json", about)
    return Prepared(folder=str(folder), classes=len(contents.classes), images=drawn, parts=contents.parts, note=note)


def _read(recipe: Recipe, found: Found, *, accept_changed: bool) -> tuple[Contents, int]:
    assert recipe.read is not None  # `recipe_of` has refused those without
    contents = recipe.read(found)
    counted = len(contents.items)
    wrong = next((item for item in contents.items if not 0 <= item.label < len(contents.classes)), None)
    if wrong is not None:
        raise DataError(
            f"{printable(wrong.name)} has the label {wrong.label}, but there are {len(contents.classes)} classes; "
            "fetch the original again."
        )
    if counted != recipe.images and not accept_changed:
        raise DataError(
            f"{recipe.spec} has {recipe.images} images, but {counted} were found; fetch the original again, or go on "
            "with --accept-changed."
        )
    return contents, counted


def _refuse_existing(folder: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise DataError(f"{printable(str(folder))} exists; give another --root, or --overwrite to replace it.")
    if folder.is_symlink() or not (folder / "source.json").is_file():
        raise DataError(
            f"{printable(str(folder))} was not written by laconic prepare; move it away, or give another --root."
        )


@contextmanager
def _part_of(folder: Path) -> Generator[Path]:
    """A fresh folder that takes the place of `folder` when the block ends well, and is removed when it does not."""
    part, old = folder.with_name(f".{folder.name}.part"), folder.with_name(f".{folder.name}.old")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if part.exists():
            shutil.rmtree(part)  # what a killed run has left
        part.mkdir()
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = printable(str(folder.parent))
            raise DataError(
                f"There is no room left for {folder.name} in {where}; free some, or give another --root."
            ) from error
        raise
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _restore(folder: Path) -> None:
    """Puts back what a run had moved aside that was killed just then."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not os.path.lexists(folder):
        old.rename(folder)
