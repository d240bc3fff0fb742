"""The text lists that come with images."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from laconic.data.images import printable
from laconic.data.prepare.files import Files
from laconic.errors import DataError


def rows(files: Files, name: str, columns: int) -> list[list[str]]:
    """The lines of a text file, cut at spaces into `columns`; what is left over stays in the last.

    Raises:
        DataError: It is missing, is no UTF-8 text, or has a shorter line.
    """
    return cells(text(files, name), name, files.title, columns)


def cells(content: str, name: str, title: str, columns: int) -> list[list[str]]:
    """Like `rows`, of a text that has been read."""
    cut = [line.split(maxsplit=columns - 1) for line in content.splitlines() if line.strip()]
    for number, row in enumerate(cut, start=1):
        if len(row) < columns:
            raise DataError(f"Line {number} of {printable(name)} in {title} does not have {columns} columns.")
    return cut


def text(files: Files, name: str) -> str:
    """A text file.

    Raises:
        DataError: It is missing or is no UTF-8 text.
    """
    if name not in files.names():
        raise DataError(f"{files.title} has no {printable(name)}; it is not whole, fetch it again.")
    with documented(files.title, name):
        return files.read(name).decode("utf-8")


@contextmanager
def documented(title: str, name: str) -> Generator[None]:
    """Turns what reading a file raises that is not as its documentation says into a sentence that names it."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{printable(name)} in {title} is not in the documented format ({printable(detail)}); fetch it again."
        ) from error
