"""From the folder with the original files to a finished folder of a task, or to nothing."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vprompt.data.images import MAX_PIXELS, quiet_pillow, to_rgb
from vprompt.data.prepare.archives import Folder, Found, digest, find
from vprompt.data.prepare.contents import FGVC_FILES, PARTS, SPLIT_SEED, VTAB_FILES, Contents, Item, listed, vtab_1k
from vprompt.data.prepare.registry import Recipe, recipe_of
from vprompt.data.prepare.vtab_arrays import to_png
from vprompt.utils.errors import DataError
from vprompt.utils.io import write_json, write_text
from vprompt.utils.progress import Report, bar
from vprompt.utils.text import printable
from vprompt.utils.version import __version__

NOT_COMPARABLE = (
    "Some images were drawn by vprompt, as the published draw cannot be repeated from the originals: scores are not "
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
            "vprompt": __version__,
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
            f"{printable(str(folder))} was not written by vprompt prepare; move it away, or give another --root."
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


SIGNATURES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png"}
"""How the files of the two formats begin whose bytes are kept."""

VTAB_LISTS = {"train800.txt": ("train",), "val200.txt": ("val",), "train800val200.txt": ("train", "val")}


def write_vtab(contents: Contents, folder: Path, report: Report) -> None:
    """Writes images as `images/PART/NUMBER.jpg` (or png), and the lists `train800.txt` and so on."""
    stems: dict[str, str] = {}
    for part in PARTS:
        names = [item.name for item in contents.items if item.part == part]
        stems.update((name, f"images/{part}/{number:06d}") for number, name in enumerate(names))
    paths: dict[str, str] = {}

    def images() -> Iterator[tuple[str, bytes]]:
        for name, data in contents.images(stems.keys()):
            suffix, kept = kept_bytes(data, name)
            paths[name] = stems[name] + suffix
            yield name, kept

    hashes = _write_images(images(), paths, len(stems), folder, report)
    _refuse_missing(contents.items, paths)
    lists = {**VTAB_LISTS, "test.txt": ("test",)}
    for name, parts in lists.items():
        chosen = [item for part in parts for item in contents.items if item.part == part]
        write_text(folder / name, "".join(f"{paths[item.name]} {item.label}\n" for item in chosen))
    _finish(contents, folder, hashes, list(lists))


def write_fgvc(contents: Contents, folder: Path, prefix: str, report: Report) -> None:
    """Writes images under their own names below `prefix`, and `train.json`, `val.json` and `test.json`."""
    paths = {item.name: prefix + item.name for item in contents.items}
    images = contents.images(paths.keys())
    hashes = _write_images(images, paths, len(paths), folder, report)
    _refuse_missing(contents.items, {name for name, path in paths.items() if path in hashes})
    for part in PARTS:
        write_json(folder / f"{part}.json", {item.name: item.label for item in contents.items if item.part == part})
    _finish(contents, folder, hashes, [f"{part}.json" for part in PARTS])


def kept_bytes(data: bytes, name: str) -> tuple[str, bytes]:
    """The ending and the bytes of an image: as they are for JPEG and PNG, and otherwise as PNG.

    Raises:
        DataError: It is no image.
    """
    for signature, suffix in SIGNATURES.items():
        if data.startswith(signature):
            return suffix, data
    try:
        with quiet_pillow(), Image.open(io.BytesIO(data), formats=("GIF", "BMP", "TIFF", "WEBP", "PPM")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError("it is too large")
            image.load()
            return ".png", to_png(np.asarray(to_rgb(image)))
    except MemoryError:
        raise
    # A damaged file can raise almost anything in a decoder.
    except Exception as error:
        raise DataError(f"{printable(name)} in the original is not an image; fetch the original again.") from error


def _write_images(
    images: Iterator[tuple[str, bytes]], paths: dict[str, str], total: int, folder: Path, report: Report
) -> dict[str, str]:
    hashes: dict[str, str] = {}
    made: set[Path] = set()
    for done, (name, data) in enumerate(images, start=1):
        path = folder / paths[name]
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_bytes(data)
        hashes[paths[name]] = hashlib.sha256(data).hexdigest()
        report(done, total)
    return hashes


def _refuse_missing(items: Sequence[Item], written: Collection[str]) -> None:
    missing = [item.name for item in items if item.name not in written]
    if missing:
        raise DataError(
            f"The original ended before {len(missing)} of its images, such as {printable(missing[0])}; fetch it again."
        )


def _finish(contents: Contents, folder: Path, hashes: dict[str, str], lists: Sequence[str]) -> None:
    write_text(folder / "classes.txt", "".join(f"{printable(name)}\n" for name in contents.classes))
    for name in (*lists, "classes.txt"):
        hashes[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    write_json(folder / "manifest.json", dict(sorted(hashes.items(), key=lambda pair: os.fsencode(pair[0]))))
