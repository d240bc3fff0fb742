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

from vprompt.data.columns import Columns
from vprompt.data.scan import IMAGE_SUFFIXES
from vprompt.data.sources.folder import split_of
from vprompt.utils.errors import DataError
from vprompt.utils.text import listed, printable

_IMAGES = (
    *("image", "imagepath", "imagefile", "imagefilename", "imagename", "imgpath", "imgname", "img", "images"),
    *("filename", "filepath", "file", "files", "path", "paths", "photo", "picture", "jpg", "jpeg", "png", "webp"),
    *("imageid", "imgid", "id"),
)
"""Usual names of columns of images, without case and signs; the first counts."""

_LABELS = (
    *("label", "labels", "labelname", "labelid", "class", "classes", "classname", "classid", "category", "categories"),
    *("categoryname", "target", "targets", "tag", "tags", "cls", "species", "breed", "diagnosis", "y"),
)
"""Usual names of columns of labels."""

SAMPLED = 100
"""Cells of a column that are looked at to tell whether they name files."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The rows of one table.

    Args:
        name: The name of the table in messages, such as `birds.csv`.
        unit: What a row is called there.
        numbers: The number of each row.
        columns: Name -> cells, as text; one without anything in it is empty.
        images: Name -> rows, and the key of the image in each, where images are in the table itself.
        classes: Columns of which it is known that they hold classes.
        split: The split that the name of the table says.
        problems: What is wrong with rows that cannot be read.
        remarks: Sentences on how the table was read.
    """

    name: str
    unit: str = "line"
    numbers: Sequence[int]
    columns: Mapping[str, Sequence[str]]
    images: Mapping[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])
    classes: Sequence[str] = ()
    split: str | None = None
    problems: Sequence[str] = ()
    remarks: Sequence[str] = ()

    @property
    def names(self) -> list[str]:
        """The names of all columns."""
        return [*self.images, *self.columns]

    def place(self, row: int) -> str:
        """A row in words."""
        return f"{self.name}, {self.unit} {self.numbers[row]}"


class Roles(NamedTuple):
    """The columns of a table by what they say."""

    image: str
    labels: tuple[str, ...]
    split: str | None
    group: str | None


def text_of(value: Any) -> str:
    """A cell as text: a list as JSON, a number so that `float` gives it back, nothing as an empty text.

    Example:
        >>> [text_of(value) for value in (" cat ", 3.0, 0.1, None, float("nan"), ["a", "b"], True)]
        ['cat', '3', '0.1', '', '', '["a", "b"]', 'true']
    """
    if isinstance(value, str):
        return value.strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | tuple) else str(value)


def read_csv(file: Path) -> Sheet:
    """The rows of a file with commas, semicolons, tabs or bars between cells, whichever its first line has most of.

    Raises:
        DataError: It cannot be read as text, a quote is not closed, or two columns have one name.
    """
    text, name = _text(file), printable(file.name)
    first = re.sub(r'"[^"]*"', "", text.lstrip().partition("\n")[0])
    rows: list[tuple[int, list[str]]] = []
    before = csv.field_size_limit(max(len(text), 2**17))
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=max("\t;,|", key=first.count), strict=True, skipinitialspace=True
    )
    line = 1
    try:
        for cells in reader:
            if any(cells := [cell.strip() for cell in cells]):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}, line {line} cannot be read ({error}); write a quote inside quotes twice.") from error
    finally:
        csv.field_size_limit(before)
    header, remarks = rows[0][1] if rows else [], list[str]()
    if any(Path(cell).suffix.lower() in IMAGE_SUFFIXES for cell in header):
        header = [str(number) for number in range(1, len(header) + 1)]
        remarks.append(f"{name} has no line of names above its rows; its columns are called {listed(header)}.")
    else:
        rows = rows[1:]
    header = [cell or str(number) for number, cell in enumerate(header, 1)]
    if twice := [cell for cell in header if header.count(cell) > 1]:
        raise DataError(f"{name} has two columns called {printable(twice[0])}; give each a name of its own.")
    problems = [
        f"{name}, line {line}: it has {len(cells)} cells, but the first line has {len(header)}"
        for line, cells in rows
        if len(cells) != len(header)
    ]
    rows = [(line, cells) for line, cells in rows if len(cells) == len(header)]
    return Sheet(
        name=name,
        numbers=[line for line, _ in rows],
        columns={column: [cells[place] for _, cells in rows] for place, column in enumerate(header)},
        problems=problems,
        remarks=remarks,
    )


def read_json_lines(file: Path) -> Sheet:
    """The rows of a file with a JSON object on each line; what is in an object inside has columns of its own.

    Raises:
        DataError: It cannot be read as text.
    """
    records: dict[int, dict[str, Any]] = {}
    problems: list[str] = []
    name = printable(file.name)
    for number, line in enumerate(_text(file).split("\n"), 1):
        try:
            if line.strip():
                records[number] = dict(flat_cells(json.loads(line).items()))
        except (ValueError, AttributeError, RecursionError):
            problems.append(f"{name}, line {number}: it is no JSON object")
    names = dict.fromkeys(column for record in records.values() for column in record)
    cells = {column: [text_of(record.get(column)) for record in records.values()] for column in names}
    return Sheet(name=name, numbers=[*records], columns=cells, problems=problems)


def flat_cells(cells: Any) -> list[tuple[str, Any]]:
    """Pairs of a name and a cell, with what is in a cell that has names itself beside them; an image is its path.

    Example:
        >>> flat_cells({"image": {"path": "a.jpg"}, "json": {"label": 3}}.items())
        [('image', 'a.jpg'), ('label', 3)]
    """
    found: list[tuple[str, Any]] = []
    for name, cell in cells:
        inner = dict[str, Any](cell) if isinstance(cell, dict) else {}
        found += [(name, inner["path"])] if "path" in inner else inner.items() if inner else [(name, cell)]
    return found


def roles_of(sheet: Sheet, columns: Columns, is_file: Callable[[str], bool]) -> Roles:
    """The columns of a table by what they say: as the user names them, by usual names, or by what is in them.

    Args:
        sheet: The table.
        columns: As the user names them.
        is_file: Whether a cell names a file.

    Raises:
        ColumnError: There is no such column, or it cannot be told which is meant.
    """
    labels = [_named(sheet, name, "label") for name in columns.labels(sheet.names)]
    group = columns.group and _named(sheet, columns.group, "group")
    split = _named(sheet, columns.split_column, "split") if columns.split_column else _split_column(sheet, labels)
    rest = [name for name in sheet.names if name not in (*labels, group, split)]
    image = _named(sheet, columns.image_column, "image") if columns.image_column else _image_column(sheet, rest, is_file)
    rest = [name for name in sheet.columns if name in rest and name != image]
    return Roles(image, tuple(labels) or (_label_column(sheet, rest),), split, group)


class ColumnError(DataError):
    """A table has not the column that is wanted, or it cannot be told which is meant."""


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(str(file))} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{printable(file.name)}, line {line} is not UTF-8; save the table as UTF-8.") from error


def _plain(name: str) -> str:
    return "".join(sign for sign in name.lower() if sign.isalnum())


def _named(sheet: Sheet, name: str, role: str) -> str:
    """The column that a user means."""
    near = [column for column in sheet.names if _plain(column) == _plain(name)]
    if name in sheet.names or len(near) == 1:
        return name if name in sheet.names else near[0]
    close = difflib.get_close_matches(name, sheet.names, n=1)
    hint = f"did you mean {printable(close[0])}?" if close else f"it has {_all(sheet)}."
    flag = "--group" if role == "group" else f"--{role}-column"
    raise ColumnError(f"{sheet.name} has no column {printable(name)} ({flag}); {hint}")


def _all(sheet: Sheet) -> str:
    return f"the columns {listed(list(map(printable, sheet.names)), 12)}"


def _unclear(sheet: Sheet, role: str, names: Sequence[str]) -> ColumnError:
    which = f" ({' or '.join(map(printable, names[:4]))})" if len(names) > 1 else ""
    return ColumnError(
        f"It cannot be told which column of {sheet.name} has the {role}s{which}; it has {_all(sheet)}: say which by "
        f"--{role}-column NAME."
    )


def _usual(names: Sequence[str], usual: Sequence[str]) -> list[str]:
    """Those of some names that are usual, the most usual first."""
    return sorted((name for name in names if _plain(name) in usual), key=lambda name: usual.index(_plain(name)))


def _image_column(sheet: Sheet, names: Sequence[str], is_file: Callable[[str], bool]) -> str:
    if within := [name for name in names if name in sheet.images]:
        found = within
    else:
        filled = {name: [cell for cell in sheet.columns[name] if cell] for name in names}
        samples = {name: cells[:: max(1, len(cells) // SAMPLED)] for name, cells in filled.items()}
        found = [name for name, cells in samples.items() if 2 * sum(map(is_file, cells)) > len(cells)]
    # Where no column names files that are there, the rows of the most usual one say which are missing.
    likely = _usual(found or names, _IMAGES) or found
    if not likely or (len(likely) > 1 and not _usual(likely, _IMAGES)):
        raise _unclear(sheet, "image", likely)
    return likely[0]


def _label_column(sheet: Sheet, names: Sequence[str]) -> str:
    known = [name for name in names if name in sheet.classes]
    likely = (known if len(known) == 1 else _usual(names, _LABELS)) or list(names)
    # Of a name and a number for each class, the name is taken.
    if len(likely) == 2 and len({*zip(*(sheet.columns[name] for name in likely), strict=True)}) == max(
        len({*sheet.columns[name]}) for name in likely
    ) == min(len({*sheet.columns[name]}) for name in likely):
        likely = [name for name in likely if not all(map(str.isdigit, sheet.columns[name]))][:1] or likely[:1]
    if len(likely) != 1:
        raise _unclear(sheet, "label", likely)
    return likely[0]


def _split_column(sheet: Sheet, labels: Sequence[str]) -> str | None:
    """The column whose cells are words for two or more splits."""
    for name, cells in sheet.columns.items():
        words = {*cells} if name not in labels else set[str]()
        if len(words) > 1 and len(words) < 20 and all(map(split_of_cell, words)):
            return name
    return None


def split_of_cell(cell: str) -> str | None:
    """The split that a cell stands for, such as `train` for `Training set`.

    Example:
        >>> split_of_cell("VALID"), split_of_cell("test tube"), split_of_cell("2")
        ('val', None, None)
    """
    found = split_of(cell)
    return found[0] if found is not None and not found[1] else None
