"""Writing a task in the layout of its benchmark: images, lists, classes, hashes."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from laconic.data.images import MAX_PIXELS, printable
from laconic.data.modes import to_rgb
from laconic.data.prepare.arrays import to_png
from laconic.data.prepare.contents import PARTS, Contents, Item
from laconic.data.quiet import quiet_pillow
from laconic.errors import DataError
from laconic.files import write_json, write_text
from laconic.progress import Report

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
