"""One checksum over all files of an export: their SHA-256, with its own digits taken for zeros."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Sequence
from pathlib import Path

from vprompt.utils.errors import VPromptError
from vprompt.utils.text import printable

BLANK = f"vprompt-sha256:{'0' * 64}"
"""The checksum before it is known: a format writes it into one of its files, in plain ASCII, once."""

_CHECKSUM = re.compile(rb"vprompt-sha256:(.{64})", re.DOTALL)


def add_checksum(files: Sequence[Path]) -> None:
    """Replaces `BLANK` in one of the files, which are all that belong to an export.

    Raises:
        VPromptError: If there is not exactly one.
    """
    digest, places = _digest(files)
    if len(places) != 1:
        raise VPromptError(f"{files[0].name} has {len(places)} places for a checksum; choose other names of classes.")
    file, start, _ = places[0]
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(digest)


def verify_checksum(files: Sequence[Path]) -> None:
    """Checks that files are as they were written; those of vprompt 0.1.0 have no checksum.

    Raises:
        VPromptError: If a bit of them has changed, or they are not of one export.
    """
    digest, places = _digest(files)
    if places and [found for _, _, found in places] != [digest]:
        names = " and ".join(printable(str(file)) for file in files)
        whole = "is not as it was written" if len(files) == 1 else "are not as they were written, or not of one export"
        raise VPromptError(f"{names} {whole} (the checksum differs): copy again, or export the adapter again.")


def _digest(files: Sequence[Path]) -> tuple[bytes, list[tuple[Path, int, bytes]]]:
    """The checksum of files, and where they have one: the file, the place in it, and the digits there."""
    total, places = hashlib.sha256(), list[tuple[Path, int, bytes]]()
    for file in files:
        size = file.stat().st_size
        total.update(f"{size}\n".encode())
        if not size:
            continue
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            done = 0
            with memoryview(content) as view:
                for match in _CHECKSUM.finditer(content):
                    places.append((file, match.start(1), match[1]))
                    total.update(view[done : match.start(1)])
                    total.update(bytes(64))
                    done = match.end(1)
                total.update(view[done:])
    return total.hexdigest().encode(), places
