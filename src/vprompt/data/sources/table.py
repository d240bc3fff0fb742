"""Tables of images and labels: files of paths and labels, and files that hold the images themselves."""

from __future__ import annotations

import glob
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from vprompt.data.listing import UNSPLIT, Item, Listing
from vprompt.data.masks import TABLES
from vprompt.data.scan import images_below, visible_entries
from vprompt.data.sources.base import SOURCES, Query
from vprompt.data.sources.folder import folder_listing, split_of
from vprompt.data.sources.rows import RowFiles, read_rows
from vprompt.data.sources.sheet import Roles, Sheet, read_csv, read_json_lines, roles_of, split_of_cell
from vprompt.tasks.base import CELLS, TARGETS, kind_of
from vprompt.utils.errors import DataError
from vprompt.utils.text import count, listed, printable

_TEXT = {".csv": read_csv, ".tsv": read_csv, ".jsonl": read_json_lines, ".ndjson": read_json_lines}

_READERS = {**_TEXT, ".parquet": read_rows, ".tar": read_rows}
"""Ending of a table's name -> what reads its rows."""


class Table:
    """A file with a row for each image, a pattern of such files, or a folder with some and no class folders."""

    name = "table"

    def find(self, query: Query) -> Listing | None:
        """See `DataSource`."""
        path = Path(query.spec)
        files = (
            _tables_in(path) if path.is_dir() else [path] if path.exists() else sorted(map(Path, glob.glob(str(path))))
        )
        files = [file for file in files if file.suffix.lower() in _READERS]
        if not files:
            return None
        base = path if path.is_dir() else files[0].parent
        sheets = [
            replace(_READERS[file.suffix.lower()](file, _name(file, base)), split=_split_of(file, base))
            for file in files
        ]
        try:
            found, why = listing_of(sheets, query, base), "its labels are no masks"
        except DataError as error:
            found, why = None, str(error)
            if (beside := _masks_beside(path, query)) is None:
                raise
        else:
            labels = [item.label for items in found.splits.values() for item in items]
            wanted = query.target is not None and TARGETS.get(query.target).dense
            stray = wanted and not kind_of(labels, found.label_names).dense
            beside = _masks_beside(path, query) if stray else None
        if beside is not None:
            names = listed([sheet.name for sheet in sheets], 4)
            return replace(beside, remarks=[*beside.remarks, f"Left aside: {names} ({why.rstrip('.')})."])
        assert found is not None
        return replace(found, name=printable(path.resolve().stem))


def _masks_beside(path: Path, query: Query) -> Listing | None:
    """The images and masks in a folder whose table is of something else."""
    from vprompt.data.sources.pairs import Pairs  # which comes after tables

    return Pairs().find(query) if path.is_dir() else None


def listing_of(sheets: Sequence[Sheet], query: Query, base: Path) -> Listing:
    """The images in the rows of tables of one layout.

    Args:
        sheets: The tables.
        query: What the user asked for.
        base: The folder that paths are relative to.

    Raises:
        DataError: It cannot be told which columns have images and labels, or there is nothing to train on.
    """
    paths, where = _Paths(base), printable(query.spec)
    first = next((sheet for sheet in sheets if sheet.split == "train"), sheets[0])
    roles = roles_of(first, query.columns, partial(paths.find, split=first.split))
    cells = zip(*(first.columns[name] for name in roles.labels), strict=True)
    kind = kind_of([*map(CELLS.join, cells)], roles.labels, query.target)
    may_lack = {*roles.labels} if kind.blank else set[str]()
    used = [sheet for sheet in sheets if set(roles.all) <= {*sheet.names}]
    rows, problems = _gathered(used, roles, may_lack, paths)
    splits: dict[str, list[Item]] = {}
    for row in rows.values():
        splits.setdefault(row.split, []).append(row.item)
    if query.training and not {"train", UNSPLIT} & splits.keys():
        why = f" ({count(len(problems), 'problem')}; the first: {problems[0]})" if problems else ""
        what = f"{listed([*splits])}, but nothing to train on" if splits else "no image to train on"
        raise DataError(f"{where} has {what}{why}.")
    said = {"image": roles.image, "label": " and ".join(roles.labels), "split": roles.split, "group": roles.group}
    said = ", ".join(f"{role} from {printable(name)}" for role, name in said.items() if name)
    within = {sheet.name: sheet.images[roles.image] for sheet in used if roles.image in sheet.images}
    return Listing(
        name=where,
        source=where,
        where=where,
        splits=splits,
        files=RowFiles(within, base) if within else base,
        notes=[f"{sheet.name} lacks a column of {listed(roles.all)}" for sheet in sheets if sheet not in used],
        remarks=[f"Columns of {where}: {said}."],
        label_names=roles.labels,
        groups={name: row.group for name, row in rows.items() if roles.group},
        places={name: row.place for name, row in rows.items()},
        problems=problems,
    )


class _Row(NamedTuple):
    item: Item
    split: str
    group: str
    place: str


def _gathered(
    sheets: Sequence[Sheet], roles: Roles, may_lack: set[str], paths: _Paths
) -> tuple[dict[str, _Row], list[str]]:
    """The row of each image, sorted by name, and what is wrong with others; what a row says again counts once."""
    problems = [problem for sheet in sheets for problem in sheet.problems]
    whole = len({sheet.split for sheet in sheets}) == 1  # a table of all there is may be called train.csv
    rows: dict[str, _Row] = {}
    unclear = set[str]()
    for sheet in sheets:
        for row in _rows(sheet, UNSPLIT if whole else sheet.split or UNSPLIT, roles, may_lack, paths):
            if isinstance(row, str):
                problems.append(row)
            elif (before := rows.setdefault(row.item.name, row))[:3] != row[:3]:
                unclear.add(row.item.name)
                here, there = (printable(f"{same.item.label} ({same.split})") for same in (row, before))
                name = printable(row.item.name)
                problems.append(f"{row.place}: {name} is {here} here, but {there} in {before.place}")
    names = sorted(rows.keys() - unclear, key=lambda name: name.split("/"))
    return {name: rows[name] for name in names}, problems


def _rows(sheet: Sheet, usual: str, roles: Roles, may_lack: set[str], paths: _Paths) -> Iterator[_Row | str]:
    """The rows of a table, of the usual split where no column says it; of a bad one, what is wrong with it."""
    inside, images = roles.image in sheet.images, sheet.columns.get(roles.image, ())
    columns = {name: sheet.columns[name] for name in roles.all if name != roles.image}
    for row, number in enumerate(sheet.numbers):
        place = f"{sheet.name}, {sheet.unit} {number}"
        cells = {name: column[row] for name, column in columns.items()}
        try:
            if empty := [name for name, cell in cells.items() if not cell and name not in may_lack]:
                raise ValueError(f"the cell of {printable(empty[0])} is empty")
            split = split_of_cell(cells[roles.split]) if roles.split else usual
            if split is None:
                raise ValueError(f"'{printable(cells[roles.split or ''])}' is no split such as train, val or test")
            name = f"{sheet.name}#{number}" if inside else paths.find(images[row], sheet.split or split)
        except ValueError as error:
            yield f"{place}: {error}"
        else:
            label = CELLS.join(cells[label] for label in roles.labels)
            yield _Row(Item(name, label), split, cells.get(roles.group or "", ""), place)


class _Paths:
    """The files that the cells of a table name: relative to its folder, or else to any folder in it."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def find(self, cell: str, split: str | None = None) -> str:
        """The path of a file from the folder, or a `ValueError`; of files of one name, that in the folder of a split.

        A cell may lack folders and the ending, and have another case or Unicode form.
        """
        shown, above = printable(cell), os.path.join(os.path.abspath(self.base), "")
        if not cell or "://" in cell:
            raise ValueError(f"{shown} is an address; download the images and give their paths" if cell else "no image")
        path = os.path.normpath(os.path.join(above, cell if "/" in cell else cell.replace("\\", "/"))).removeprefix(
            above
        )
        if os.path.isfile(os.path.join(above, path)):
            return path
        hits = self._files.get(_folded(path), [])
        hits = [hit for hit in hits if split in map(split_of_cell, hit.split("/")[:-1])] or hits
        hits = [hit for hit in hits if os.path.splitext(hit)[0].endswith(os.path.splitext(path)[0])] or hits
        if len(hits) != 1:
            raise ValueError(f"{shown} may be {' or '.join(hits[:3])}" if hits else f"{shown} does not exist")
        return hits[0]

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """The images below the folder by the ends of their paths, with and without the ending of the name."""
        found: dict[str, list[str]] = {}
        for file in images_below(self.base):
            path = file.relative_to(self.base).as_posix()
            for whole in (_folded(path), os.path.splitext(_folded(path))[0]):
                for start in (0, *(place + 1 for place, sign in enumerate(whole) if sign == "/")):
                    found.setdefault(whole[start:], []).append(path)
        return found


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _tables_in(folder: Path) -> list[Path]:
    """The tables that a folder consists of: one, or one for each split; none where it has folders of classes."""
    inner = [path for path in visible_entries(folder)[0] if split_of(path.name) or path.name == "data"]
    places = [
        [file for file in sorted(place.glob("[!.]*.*")) if file.suffix.lower() in _READERS and file.name not in TABLES]
        for place in (folder, *inner)
    ]
    tables = places[0] or [file for files in places for file in files]
    if not tables or _has_classes(folder):
        return []
    of_splits = [file for file in tables if _split_of(file, folder)]
    used = of_splits if len(of_splits) > 1 else tables
    texts, splits = {file.suffix.lower() for file in used} & _TEXT.keys(), {_split_of(file, folder) for file in used}
    if texts and len(splits) < len(used):
        names = listed([_name(file, folder) for file in used], 4)
        raise DataError(f"{printable(str(folder))} has several tables, {names}; give one of them as DATA.")
    return used


def _name(file: Path, base: Path) -> str:
    return printable(file.relative_to(base).as_posix())


def _has_classes(folder: Path) -> bool:
    try:
        splits = folder_listing(folder).splits
    except DataError:
        return False
    return len({item.label for items in splits.values() for item in items}) > 1


def _split_of(file: Path, base: Path) -> str | None:
    """The split that the name of a table says, or that of its folder."""
    found = split_of(file.stem) or (split_of(file.parent.name) if file.parent != base else None)
    return found and found[0]


SOURCES.register(Table())
