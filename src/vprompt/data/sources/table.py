"""Tables of images and labels: files of paths and labels, and files that hold the images themselves."""

from __future__ import annotations

import glob
import os
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from vprompt.data.listing import CELLS, UNSPLIT, Item, Listing
from vprompt.data.rows import RowFiles, read_rows
from vprompt.data.scan import IMAGE_SUFFIXES, visible_entries
from vprompt.data.sources.base import SOURCES, Query
from vprompt.data.sources.folder import says_nothing, split_of
from vprompt.data.table import Roles, Sheet, read_csv, read_json_lines, roles_of, split_of_cell
from vprompt.utils.errors import DataError
from vprompt.utils.text import count, listed, printable

_TEXT = {".csv": read_csv, ".tsv": read_csv, ".jsonl": read_json_lines, ".ndjson": read_json_lines}

_READERS = {**_TEXT, ".parquet": read_rows, ".tar": read_rows}
"""Ending of a table's name -> what reads its rows."""


class Table:
    """A file with a row for each image, several for the splits, or a folder with such files and no class folders."""

    name = "table"

    def find(self, query: Query) -> Listing | None:
        """See `DataSource`."""
        path = Path(query.spec)
        if path.is_dir():
            files, notes = _tables_in(path)
        else:
            paths = [path] if path.exists() else sorted(map(Path, glob.glob(query.spec)))
            files, notes = [file for file in paths if file.is_file() and file.suffix.lower() in _READERS], list[str]()
        if not files:
            return None
        base = path if path.is_dir() else files[0].parent
        sheets = [
            replace(_READERS[file.suffix.lower()](file), split=_split_of(file, base), name=_name(file, base))
            for file in files
        ]
        listing = listing_of(sheets, query, base)
        name = path.resolve() if path.is_dir() else path
        return replace(listing, name=printable(name.stem or name.name), notes=[*notes, *listing.notes])


def listing_of(sheets: Sequence[Sheet], query: Query, base: Path) -> Listing:
    """The images in the rows of some tables.

    Args:
        sheets: The tables, of one layout.
        query: What the user asked for.
        base: The folder that paths are relative to.

    Raises:
        ColumnError: It cannot be told which columns have images and labels.
        DataError: There is nothing to train on.
    """
    paths = _Paths(base)
    first = next((sheet for sheet in sheets if sheet.split == "train"), sheets[0])
    roles = roles_of(first, query.columns, lambda cell: paths.has(cell, first.split))
    wanted = [roles.image, *roles.labels, *filter(None, (roles.split, roles.group))]
    used = [sheet for sheet in sheets if set(wanted) <= {*sheet.names}]
    notes = [
        f"{sheet.name} has no column {next(name for name in wanted if name not in sheet.names)} and is not used"
        for sheet in sheets
        if sheet not in used
    ]
    if len({sheet.split for sheet in used}) == 1:  # a table of all there is may be called train.csv
        used = [replace(sheet, split=None) for sheet in used]
    problems = [problem for sheet in used for problem in sheet.problems]
    rows: dict[str, _Row] = {}
    again, conflicts = 0, set[str]()
    for row in (row for sheet in used for row in _rows(sheet, roles, paths)):
        if isinstance(row, str):
            problems.append(row)
            continue
        before = rows.setdefault(row.item.name, row)
        if (row.item.label, row.split, row.group) != (before.item.label, before.split, before.group):
            conflicts.add(row.item.name)
            here, there = (printable(f"{one.item.label} {one.split if roles.split else ''}") for one in (row, before))
            problems.append(f"{row.place}: {printable(row.item.name)} is {here.strip()} here and {there.strip()} in "
                            f"{before.place}")
        else:
            again += before is not row
    kept = sorted((row for name, row in rows.items() if name not in conflicts), key=lambda row: row.item.name.split("/"))
    splits: dict[str, list[Item]] = {}
    for row in kept:
        splits.setdefault(row.split, []).append(row.item)
    where = printable(query.spec)
    if query.training and not {"train", UNSPLIT} & splits.keys():
        wrong = f"; the first of {len(problems)} problems: {problems[0]}" if problems else ""
        have = listed([*splits]) or "no usable row"
        raise DataError(f"{where} has {have}, but no training images{wrong}.")
    remarks = [remark for sheet in used for remark in sheet.remarks]
    if again:
        remarks.append(f"{count(again, 'row')} of {where} repeat images of rows above; each image counts once.")
    if paths.respelled:
        one, other = map(printable, next(iter(paths.respelled.items())))
        many = count(len(paths.respelled), "path")
        remarks.append(f"{many} in {where} differ in case or Unicode form from the files ({one} and {other}).")
    as_said = ", ".join(f"{role} from {printable(name)}" for role, name in _said(roles))
    return Listing(
        name=where,
        source=where,
        where=where,
        splits=splits,
        files=RowFiles({sheet.name: sheet.images[roles.image] for sheet in used}, base)
        if roles.image in first.images
        else base,
        notes=notes,
        remarks=[f"Columns: {as_said}.", *remarks],
        label_names=roles.labels,
        groups={row.item.name: row.group for row in kept if roles.group},
        places={name: row.place for name, row in rows.items()},
        problems=problems,
    )


def _said(roles: Roles) -> Iterator[tuple[str, str]]:
    yield "images", roles.image
    yield "labels", " and ".join(roles.labels)
    yield from ((role, name) for role, name in (("splits", roles.split), ("groups", roles.group)) if name)


class _Row(NamedTuple):
    item: Item
    split: str
    group: str
    place: str


def _rows(sheet: Sheet, roles: Roles, paths: _Paths) -> Iterator[_Row | str]:
    """The rows of a table; of a bad one, what is wrong with it."""
    columns = {name: sheet.columns[name] for name in (*roles.labels, roles.split, roles.group) if name}
    for row in range(len(sheet.numbers)):
        place, cells = sheet.place(row), {name: column[row] for name, column in columns.items()}
        split: str | None = sheet.split or UNSPLIT
        try:
            if empty := [name for name, cell in cells.items() if not cell]:
                raise ValueError(f"the cell of {printable(empty[0])} is empty")
            if roles.split and (split := split_of_cell(cells[roles.split])) is None:
                raise ValueError(f"'{printable(cells[roles.split])}' is no split, such as train, val or test")
            if roles.image in sheet.images:
                name = f"{sheet.name}#{sheet.numbers[row]}"
            else:
                name = paths.find(sheet.columns[roles.image][row], split)
        except ValueError as error:
            yield f"{place}: {error}"
            continue
        assert split is not None
        label = CELLS.join(cells[label] for label in roles.labels)
        yield _Row(Item(name, label), split, cells.get(roles.group or "", ""), place)


class _Paths:
    """The files that the cells of a table name, below its folder, or else below a folder in it or in one of these."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.respelled: dict[str, str] = {}
        self._entries = cache(self._read)
        self._holders = cache(self._read_holders)

    def has(self, cell: str, split: str | None) -> bool:
        """Whether a cell names a file."""
        try:
            return bool(self.find(cell, split))
        except ValueError:
            return False

    def find(self, cell: str, split: str | None) -> str:
        """The path of a file, relative to the folder.

        Args:
            cell: Its path, perhaps without its ending, or in other spelling.
            split: Of files in several folders, the one in a folder of this split is meant.

        Raises:
            ValueError: There is none, or more than one; the message is the end of a sentence.
        """
        shown = printable(cell)
        if not cell or "://" in cell:
            raise ValueError(f"{shown} is an address; download the images, and give their paths" if cell else "no image")
        above = os.path.abspath(self.base)
        path = os.path.normpath(os.path.join(above, cell if "/" in cell else cell.replace("\\", "/")))
        if not path.startswith(os.path.join(above, "")):
            hits = [path] if os.path.isfile(path) else []
        else:
            path = path[len(os.path.join(above, "")) :]
            parts = path.split("/")
            folders = _like(self._holders(len(parts) == 1), parts[0])
            hits = self._below("", parts) or [hit for folder in folders for hit in self._below(folder, parts)]
            hits = [hit for hit in hits if len(hits) > 1 and split in map(split_of_cell, hit.split("/")[:-1])] or hits
        if len(hits) != 1:
            raise ValueError(f"{shown} may be {listed(hits, 3)}" if hits else f"{shown} does not exist")
        tail = hits[0][-len(path) :]
        if tail != path and _folded(hits[0]).endswith(_folded(path)):
            self.respelled[path] = hits[0]
        return hits[0]

    def _below(self, folder: str, parts: Sequence[str]) -> list[str]:
        places = [folder]
        for number, part in enumerate(parts, 1):
            last = number == len(parts)
            places = [
                posixpath.join(place, name) for place in places for name in _like(self._entries(place)[last], part)
            ]
        return places

    def _read(self, place: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The folders and the files in a folder, by their names and by what is like these, see `_like`."""
        folders, files = dict[str, list[str]](), dict[str, list[str]]()
        with suppress(OSError), os.scandir(self.base / place) as entries:
            for entry in entries:
                kind, (stem, ending) = folders if os.path.isdir(entry.path) else files, os.path.splitext(entry.name)
                kind[entry.name] = [entry.name]
                kind.setdefault("/" + _folded(entry.name), []).append(entry.name)
                if kind is files and ending.lower() in IMAGE_SUFFIXES:
                    kind.setdefault("/" + _folded(stem), []).append(entry.name)
        return folders, files

    def _read_holders(self, last: bool) -> dict[str, list[str]]:
        """The folders in that of the table and in these, by the names of the folders, or files, in them."""
        outer = visible_entries(self.base)[0]
        inner = [inside for folder in outer for inside in visible_entries(folder)[0]]
        holders: dict[str, list[str]] = {}
        for folder in (path.relative_to(self.base).as_posix() for path in (*outer, *inner)):
            for name in self._entries(folder)[last]:
                holders.setdefault(name, []).append(folder)
        return holders


def _like(entries: Mapping[str, list[str]], name: str) -> list[str]:
    """What belongs to a name, or else to names that differ in case, Unicode form or the ending of an image."""
    return entries.get(name) or entries.get("/" + _folded(name), [])


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _tables_in(folder: Path) -> tuple[list[Path], list[str]]:
    """The tables that a folder consists of, and what is to be said of others; none where it has folders of classes."""
    places = [folder, *(inner for inner in visible_entries(folder)[0] if says_nothing(inner.name))]
    per_place = [sorted(file for file in place.iterdir() if file.suffix.lower() in _READERS) for place in places]
    tables = [file for file in per_place[0] or sum(per_place[1:], []) if file.is_file() and file.name[0] != "."]
    if not tables or len(_class_folders(folder)) > 1:
        return [], []
    split = [file for file in tables if _split_of(file, folder)]
    used = split if len(split) > 1 else tables
    splits = [_split_of(file, folder) for file in used]
    if any(file.suffix.lower() in _TEXT for file in used) and len({*splits}) < len(used):
        names = listed([_name(file, folder) for file in used], 4)
        raise DataError(f"{printable(str(folder))} has several tables, {names}; give one of them as DATA.")
    return used, [f"table {_name(file, folder)} is not used" for file in tables if file not in used]


def _class_folders(folder: Path, depth: int = 2) -> set[str]:
    """The names of folders with images in them that say more than that there are images."""
    inner = visible_entries(folder)[0] if depth else []
    named = {path.name for path in inner if not says_nothing(path.name) and visible_entries(path)[1]}
    return named.union(*(_class_folders(path, depth - 1) for path in inner))


def _name(file: Path, base: Path) -> str:
    return printable(file.relative_to(base).as_posix())


def _split_of(file: Path, base: Path) -> str | None:
    """The split that the name of a table says, or that of its folder."""
    found = split_of(file.stem) or (split_of(file.parent.name) if file.parent != base else None)
    return found and found[0]


SOURCES.register(Table())
