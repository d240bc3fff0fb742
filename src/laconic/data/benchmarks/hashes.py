"""Bytes of images: the same in training and in test, or other than a manifest says."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laconic.data.benchmarks.layout import FILES, Layout
from laconic.data.benchmarks.lists import clean
from laconic.data.benchmarks.problem import Problem, differs, fatal
from laconic.data.images import printable
from laconic.data.threads import in_threads

MANIFEST = "manifest.json"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_hashes(layout: Layout, paths: Sequence[str]) -> list[Problem]:
    """Compares the bytes of the files at `paths` with each other and with the manifest, if there is one."""
    expected, problems = _manifest(layout.folder)
    wanted = list(dict.fromkeys([*paths, *expected]))
    hashes = dict(zip(wanted, in_threads(lambda path: _sha256(layout.folder / path), wanted), strict=True))
    for path, hashed in expected.items():
        found = hashes[path]
        if found is None:
            wrong = f"{printable(path)} stands in {MANIFEST} but cannot be read"
            problems.append(fatal(path, wrong, "get it anew"))
        elif found != hashed:
            wrong = f"{printable(path)} is not the file that {MANIFEST} has the hash of"
            problems.append(fatal(path, wrong, "get it anew, or correct the manifest"))
    return problems + _same_bytes(layout, hashes)


def _same_bytes(layout: Layout, hashes: dict[str, str | None]) -> list[Problem]:
    test = {hashed: path for path, _ in layout.splits.get("test", ()) if (hashed := hashes.get(path)) is not None}
    problems: list[Problem] = []
    for split in ("train", "val"):
        for path in dict.fromkeys(path for path, _ in layout.splits.get(split, ())):
            other = test.get(hashes.get(path) or "")
            if other is not None and other != path:
                name = FILES[layout.kind][split]
                sentence = (
                    f"The images {printable(path)} ({name}) and {printable(other)} (test) are the same, byte for byte"
                )
                problems.append(differs(path, sentence))
    return problems


def _manifest(folder: Path) -> tuple[dict[str, str], list[Problem]]:
    file = folder / MANIFEST
    if not file.exists():
        return {}, []
    hint = "write an object from relative paths to SHA-256 in hexadecimal"
    try:
        document: Any = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}, [fatal(MANIFEST, f"{MANIFEST} cannot be read as JSON", hint)]
    if not isinstance(document, dict):
        return {}, [fatal(MANIFEST, f"{MANIFEST} is no object", hint)]
    expected: dict[str, str] = {}
    problems: list[Problem] = []
    for key, value in document.items():
        path, reason = clean(folder, str(key))
        hashed = value.strip().lower().removeprefix("sha256:") if isinstance(value, str) else ""
        if path is None:
            wrong = f"{MANIFEST} names {printable(str(key))!r}, which {reason}"
            problems.append(fatal(MANIFEST, wrong, hint))
        elif not _SHA256.fullmatch(hashed):
            problems.append(fatal(MANIFEST, f"{MANIFEST} gives {printable(path)} something that is no SHA-256", hint))
        else:
            expected[path] = hashed
    return expected, problems


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
