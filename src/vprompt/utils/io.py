"""Atomic writing, so that a file is either whole or not there; text and JSON; checksums of what is read back."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from vprompt.utils.errors import StorageError, TrainingError
from vprompt.utils.serialization import parse
from vprompt.utils.text import printable

_REFUSALS = {
    errno.ENOSPC: "no space is left on the disk; make room",
    errno.EDQUOT: "the disk quota is used up; make room",
    errno.EFBIG: "the system allows no file of that size; raise the limit",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.EACCES: "permission is denied; choose another place",
    errno.EPERM: "permission is denied; choose another place",
}


_LOCK = ".writing.lock"
"""Locked by the process that a hidden folder belongs to, for as long as it lives."""


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turns what the system or a library says of a file that cannot be written into one sentence.

    Args:
        path: The file, as the sentence names it.

    Raises:
        StorageError: Nothing could be written.

    Example:
        >>> with writing(Path("a.txt")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        ...
        vprompt.utils.errors.StorageError: a.txt cannot be written: no space is left on the disk; make room.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        # safetensors and torch's writers put the system's error into the text of their own.
        told = re.search(r"os error (\d+)", str(error))
        code = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if code is None:
            raise
        problem = _REFUSALS.get(code, os.strerror(code).lower())
        raise StorageError(f"{printable(str(path))} cannot be written: {problem}.") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path` and puts it in its place in one step, flushed to disk.

    Raises:
        StorageError: There is no room, no right, or a limit; what was there before stays.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch(exist_ok=False)  # where nothing can be written, all writers then fail alike
            write(part)
            _put(part, path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def written_together(path: Path, companions: Sequence[Path] = ()) -> Generator[Path]:
    """A path of the same name in a hidden folder beside; what is written there is moved to its place at the end.

    The file itself comes last. If anything goes wrong before, nothing is left behind; the folder of a process that was
    killed is removed by the next one.

    Args:
        path: The file.
        companions: Files beside it that may be written, too; those that are not are removed.
    """
    import filelock

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for lock in path.parent.glob(f".{glob.escape(path.name)}.*/{_LOCK}"):
            with suppress(filelock.Timeout, OSError), filelock.FileLock(lock, timeout=0):
                shutil.rmtree(lock.parent)
        with (
            tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder,
            filelock.FileLock(Path(folder) / _LOCK),
        ):
            yield Path(folder) / path.name
            for target in (*companions, path):
                part = Path(folder) / target.name
                if part.exists():
                    _put(part, target)
                elif target != path:
                    target.unlink(missing_ok=True)


def _put(part: Path, path: Path) -> None:
    """Moves a file to its place in one step, once all of it is on the disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes atomically."""
    write_atomically(path, lambda part: part.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically; of names that are no text, undecodable bytes as JSON escapes them."""
    write_bytes(path, encoded(text))


def encoded(text: str) -> bytes:
    """UTF-8; what has no place in it, such as a byte of a file's name, is escaped as in JSON.

    Example:
        >>> json.loads(encoded(json.dumps("caf\\udce9", ensure_ascii=False))) == "caf\\udce9"
        True
    """
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically, indented."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def pretty_json(value: object, *, sort: bool = False, ascii_only: bool = False, pad: str = "\n") -> str:
    """JSON with one entry per line, but lists of plain values on one line.

    Args:
        value: Plain data.
        sort: Whether keys are sorted.
        ascii_only: Whether all other letters are escaped.
        pad: How every line begins.

    Example:
        >>> print(pretty_json({"b": [1, 2], "a": {"c": None}}))
        {
          "b": [1, 2],
          "a": {
            "c": null
          }
        }
    """
    inner = pad + "  "

    def within(part: object) -> str:
        return pretty_json(part, sort=sort, ascii_only=ascii_only, pad=inner)

    if isinstance(value, Mapping) and value:
        pairs = list(cast("Mapping[str, Any]", value).items())
        lines = [f"{json.dumps(k)}: {within(v)}" for k, v in (sorted(pairs) if sort else pairs)]
        return "{" + inner + f",{inner}".join(lines) + pad + "}"
    items = cast("list[Any]", value) if isinstance(value, list | tuple) else []
    if any(isinstance(item, Mapping | list | tuple) for item in items):
        return "[" + inner + f",{inner}".join(map(within, items)) + pad + "]"
    return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that a run wrote.

    Raises:
        TrainingError: If it is damaged.
    """
    try:
        document = parse(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("It is no object.")
        return cast("dict[str, Any]", document)
    except (ValueError, OSError) as error:
        raise TrainingError(f"{printable(str(path))} is damaged or cannot be read; choose another --out.") from error


def checksum(*parts: bytes | memoryview | Path) -> str:
    """SHA-256, in hex, of bytes one after the other; of a path, those in the file.

    Example:
        >>> checksum(b"ab", b"c")[:8], checksum(b"abc")[:8]
        ('ba7816bf', 'ba7816bf')
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        else:
            digest.update(part)
    return digest.hexdigest()


def with_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the checksum of everything else in it, under `checksum`.

    Example:
        >>> verified(with_checksum({"a": 1})), verified({"a": 1}), verified({"a": 2, "checksum": "0"})
        (True, False, False)
    """
    rest = {key: value for key, value in document.items() if key != "checksum"}
    return {**rest, "checksum": checksum(json.dumps(rest, sort_keys=True).encode())[:32]}


def verified(document: Mapping[str, Any]) -> bool:
    """Whether a JSON object is as `with_checksum` made it: not damaged, and not changed by hand."""
    try:
        return document.get("checksum") == with_checksum(document)["checksum"]
    except RecursionError:  # what is nested so deeply is nothing that we wrote
        return False
