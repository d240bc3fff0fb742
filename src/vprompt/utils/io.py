"""Atomic writing, so that a file is either whole or not there; text and JSON."""

from __future__ import annotations

import errno
import glob
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
        companions: Files beside it that may be written, too.
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


def _put(part: Path, path: Path) -> None:
    """Moves a file to its place in one step, once all of it is on the disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


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
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TrainingError(f"{path} is damaged or cannot be read; choose another --out.") from error
    if not isinstance(document, dict):
        raise TrainingError(f"{path} is damaged; choose another --out.")
    return document
