"""Tables of labelled images: their rows as CSV and JSON lines have them, and what each column says."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vprompt.data.scan import IMAGE_SUFFIXES
from vprompt.data.sources.folder import split_of
from vprompt.tasks.columns import Columns
from vprompt.utils.errors import DataError
from vprompt.utils.text import listed, printable

_USUAL = {
    "image": "image imagepath imagefile imagefilename imagename imgpath imgname img images filename filepath file "
    "files path paths photo picture jpg jpeg png webp imageid imgid id",
    "label": "label labels labelname labelid class classes classname classid category categories categoryname "
    "target targets tag tags cls species breed diagnosis dx y",
    "split": "split splits subset partition fold set",
}
"""Names that columns usually have, without case and signs; the first comes first."""

SAMPLED = 100
"""Cells of a column that are looked at to tell whether they name files, or splits."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The rows of one table.

    Args:
        name: The name of the table in messages, such as `birds.csv`.
        unit: What a row is called there.
        numbers: The number of each row.
        columns: Name -> cells as text, empty where there is nothing.
        images: Name -> rows, and the key of the image in each, where images are in the table itself.
        split: The split that the name of the table says.
        problems: What is wrong with rows that cannot be read.
    """

    name: str
    unit: str = "line"
    numbers: Sequence[int]
    columns: Mapping[str, Sequence[str]]
    images: Mapping[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])
    split: str | None = None
    problems: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """The names of all columns."""
        return [*self.images, *self.columns]


class Roles(NamedTuple):
    """The columns of a table by what they say."""

    image: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None

    @property
    def all(self) -> list[str]:
        """The columns that are read."""
        return [self.image, *self.labels, *filter(None, (self.split, self.group))]


def text_of(value: Any) -> str:
    """A cell as text: a list as JSON, a number so that `float` gives it back, nothing as an empty text.

    Example:
        >>> [text_of(value) for value in (" cat ", 3.0, 0.1, None, float("nan"), ["a", "b"], True)]
        ['cat', '3', '0.1', '', '', '["a", "b"]', 'true']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | tuple) else str(value).strip()


def columns_of(records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The cells of each column of rows; what is in a cell with names of its own has columns beside it.

    Example:
        >>> columns_of([{"image": {"path": "a.jpg"}, "json": {"label": 3}}, {"label": 4}])
        {'image': ['a.jpg', ''], 'label': ['3', '4']}
    """
    flat: list[dict[str, Any]] = []
    for record in records:
        flat.append({})
        for name, cell in record.items():
            inner = dict[str, Any](cell) if isinstance(cell, dict) else {}
            flat[-1] |= {name: inner["path"]} if "path" in inner else inner or {name: cell}
    return {
        name: [text_of(row.get(name)) for row in flat] for name in dict.fromkeys(key for row in flat for key in row)
    }


def read_csv(file: Path, name: str) -> Sheet:
    """The rows of a file with commas, semicolons, tabs or bars between cells, whichever its first line has most of.

    Args:
        file: The file.
        name: What messages call it.

    Raises:
        DataError: It cannot be read as text, a quote is not closed, or two columns have one name.
    """
    text = _text(file, name)
    first = re.sub(r'"[^"]*"', "", text.lstrip("\r\n").partition("\n")[0])
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=max("\t;,|", key=first.count), strict=True, skipinitialspace=True
    )
    rows: dict[int, list[str]] = {}
    line, longest = 1, csv.field_size_limit(len(text) + 1)
    try:
        for cells in reader:
            if any(cells := [cell.strip() for cell in cells]):
                rows[line] = cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}, line {line} cannot be read ({error}); write a quote inside quotes twice.") from error
    finally:
        csv.field_size_limit(longest)
    header = rows.get(min(rows, default=0), [])
    if any(Path(cell).suffix.lower() in IMAGE_SUFFIXES for cell in header):
        header = [""] * len(header)  # no names: they are called 1, 2 and so on
    elif rows:
        del rows[min(rows)]
    header = [cell or str(number) for number, cell in enumerate(header, 1)]
    if twice := [cell for cell in header if header.count(cell) > 1]:
        raise DataError(f"{name} has two columns called {printable(twice[0])}; give each a name of its own.")
    ragged = {line: len(cells) for line, cells in rows.items() if len(cells) != len(header)}
    rows = {line: cells for line, cells in rows.items() if line not in ragged}
    return Sheet(
        name=name,
        numbers=[*rows],
        columns={column: [cells[place] for cells in rows.values()] for place, column in enumerate(header)},
        problems=[f"{name}, line {line}: it has {size} cells, not {len(header)}" for line, size in ragged.items()],
    )


def read_json_lines(file: Path, name: str) -> Sheet:
    """The rows of a file with a JSON object on each line; arguments and errors as those of `read_csv`."""
    records: dict[int, dict[str, Any]] = {}
    problems: list[str] = []
    for number, line in enumerate(_text(file, name).split("\n"), 1):
        try:
            if line.strip():
                records[number] = dict(json.loads(line).items())
        except (ValueError, AttributeError, RecursionError):
            problems.append(f"{name}, line {number}: it is no JSON object")
    return Sheet(name=name, numbers=[*records], columns=columns_of([*records.values()]), problems=problems)


def _text(file: Path, name: str) -> str:
    try:
        data = file.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line} is not UTF-8; save the table as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{printable(str(file))} cannot be read: {(error.strerror or str(error)).lower()}.") from error


def roles_of(sheet: Sheet, columns: Columns, find: Callable[[str], str]) -> Roles:
    """The columns of a table by what they say: as the user names them, by usual names, or by what is in them.

    Args:
        sheet: The table.
        columns: As the user names them.
        find: Gives the path of the file that a cell names, or raises a `ValueError`.

    Raises:
        DataError: There is no such column, or it cannot be told which is meant.
    """
    labels = [_named(sheet, name, "--label-column") for name in columns.labels(sheet.names)]
    group = _named(sheet, columns.group, "--group") if columns.group else None
    image = _named(sheet, columns.image_column, "--image-column") if columns.image_column else None
    split = _named(sheet, columns.split_column, "--split-column") if columns.split_column else None
    rest = [name for name in sheet.columns if name not in (*labels, group, image, split)]
    said = {name: _splits_in({*sheet.columns[name]}) for name in rest}
    split = split or next((name for name in rest if len(said[name]) > 1 and None not in said[name]), None)
    # In a column of that name a cell that says none is a mistake.
    split = split or next((name for name in usual(rest, "split") if len(said[name] - {None}) > 1), None)
    rest = [name for name in rest if name != split]
    if image is None:
        # Where no column names files that are there, the rows of the most usual one say which are missing.
        found = [*sheet.images] or [name for name in rest if _names_files(sheet.columns[name], find)]
        image = _one(sheet, "image", found if len(found) == 1 else usual(found or rest, "image")[:1] or found)
    rest = [name for name in rest if name != image]
    labels = labels or [_one(sheet, "label", _alike(sheet, usual(rest, "label")) or rest)]
    return Roles(image, tuple(labels), split, group)


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def _named(sheet: Sheet, name: str, flag: str) -> str:
    """The column that a user means; labels, splits and groups are no images."""
    names = sheet.names if flag == "--image-column" else [*sheet.columns]
    near = [name] if name in names else [column for column in names if _plain(column) == _plain(name)]
    if len(near) == 1:
        return near[0]
    close = difflib.get_close_matches(name, names, n=1) or names
    raise DataError(f"{sheet.name} has no column {printable(name)} ({flag}); there is {_all(close)}.")


def _all(names: Sequence[str]) -> str:
    return listed(list(map(printable, names)), 12)


def _one(sheet: Sheet, role: str, names: Sequence[str]) -> str:
    """The only one of some columns."""
    if len(names) == 1:
        return names[0]
    if not sheet.names:
        raise DataError(f"{sheet.name} is empty.")
    raise DataError(
        f"It cannot be told which column of {sheet.name} has the {role}s; there is {_all(sheet.names)}: give "
        f"--{role}-column NAME."
    )


def usual(names: Sequence[str], role: str) -> list[str]:
    """The names that columns of images, labels or splits usually have, the most usual first."""
    known = _USUAL[role].split()
    return sorted((name for name in names if _plain(name) in known), key=lambda name: known.index(_plain(name)))


def _names_files(cells: Sequence[str], find: Callable[[str], str]) -> bool:
    sample, there = list(filter(None, cells))[:: max(1, len(cells) // SAMPLED)], 0
    for cell in sample:
        try:
            there += bool(find(cell))
        except ValueError:
            continue
    return 2 * there > len(sample)


def _alike(sheet: Sheet, names: Sequence[str]) -> Sequence[str]:
    """The one with words, of two columns that say the same: a number of each class, and its name."""
    cells = [{*sheet.columns[name]} for name in names]
    pairs = {*zip(*(sheet.columns[name] for name in names), strict=True)}
    if len(names) != 2 or not len(cells[0]) == len(cells[1]) == len(pairs):
        return names
    return names[1:] if all(map(str.isdigit, cells[0])) else names[:1]


def _splits_in(words: set[str]) -> set[str | None]:
    """The splits that the words in a column, which are few, stand for; None among them for those that are none."""
    return {split_of_cell(word) for word in words} if len(words) < SAMPLED else {None}


def split_of_cell(cell: str) -> str | None:
    """The split that a cell stands for.

    Example:
        >>> split_of_cell("VALID"), split_of_cell("Training set"), split_of_cell("test tube")
        ('val', 'train', None)
    """
    found = split_of(cell)
    return found[0] if found is not None and not found[1] else None
