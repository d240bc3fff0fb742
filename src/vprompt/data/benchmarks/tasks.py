"""The tasks of VTAB-1k and FGVC: names, sizes, prompts, and where their data can be had."""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import msgspec

from vprompt.data.preprocessing import Augment, Resize
from vprompt.utils.errors import DataError

Suite = Literal["vtab", "fgvc"]

Group = Literal["natural", "specialized", "structured", "fgvc"]

SUITE_TITLES: dict[Suite, str] = {"vtab": "VTAB-1k", "fgvc": "FGVC"}

_LISTS: dict[Suite, str] = {
    "vtab": "copies with these lists are linked from https://github.com/luogen1996/RepAdapter",
    "fgvc": "the JSON files are linked from https://github.com/KMnP/vpt",
}


@dataclass(frozen=True, kw_only=True)
class Transforms:
    """Preparation of images that the benchmark's results are made with.

    Args:
        resize: See `vprompt.data.preprocessing.Preprocessing`.
        augment: What training images go through: nothing, or random crops and flips.
    """

    resize: Resize
    augment: Augment


@dataclass(frozen=True, kw_only=True)
class BenchmarkTask:
    """One task of a benchmark.

    Args:
        suite: The benchmark.
        name: Short name, unique in the suite; for VTAB-1k that of its folder.
        title: Name for people.
        group: Group of tasks that averages are made over.
        classes: Their number.
        train: Images to learn from while choosing settings.
        val: Images to choose by.
        test: Images to test on.
        prompts: Prompts per block of VPT-Deep on ViT-B/16; two numbers where two public sources differ.
        site: Where the images come from.
        aliases: Other names.
        folders: Other names of its folder; case, hyphens and underscores are nothing.
    """

    suite: Suite
    name: str
    title: str
    group: Group
    classes: int
    train: int
    val: int
    test: int
    prompts: tuple[int, ...]
    site: str
    aliases: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """Its full name: `vtab:cifar`."""
        return f"{self.suite}:{self.name}"

    @property
    def folder_names(self) -> tuple[str, ...]:
        """Names that its folder may have; `fold` makes more of each."""
        return (self.name, *self.folders)

    @property
    def source(self) -> str:
        """Source of the data, as the end of a sentence."""
        return f"the images come from {self.site}, and {_LISTS[self.suite]}"


_PLAIN = Transforms(resize="squash", augment="none")

_FGVC = Transforms(resize="crop", augment="crop-flip")


def benchmark_tasks(suite: Suite | None = None, group: Group | None = None) -> tuple[BenchmarkTask, ...]:
    """The tasks in the order of the papers' tables.

    Sizes: Zhai et al. 2019 (arXiv 1910.04867) and Jia et al. 2022 (arXiv 2203.12119), whose validation images of FGVC
    are a tenth of the official training images. Prompts: the latter and its published settings.

    Example:
        >>> [task.name for task in benchmark_tasks(group="fgvc")]
        ['cub', 'nabirds', 'flowers', 'dogs', 'cars']
    """
    return tuple(task for task in _TASKS if suite in (None, task.suite) and group in (None, task.group))


def find_task(spec: str) -> BenchmarkTask:
    """The task that `spec` names, also by an alias; case, hyphens and underscores are nothing.

    Raises:
        DataError: There is none.

    Example:
        >>> find_task("VTAB:dSprites-Orientation").spec
        'vtab:dsprites_ori'
    """
    suite, colon, name = spec.partition(":")
    suite = suite.strip().lower()
    if colon and (task := _BY_NAME.get((suite, fold(name)))) is not None:
        return task
    if colon and suite not in SUITE_TITLES:
        raise DataError(f"There is no benchmark {suite!r}; tasks are called vtab:NAME or fgvc:NAME.")
    # A name without its suite is compared with all.
    known = {alias: task.spec for (of, alias), task in _BY_NAME.items() if not colon or of == suite}
    close = difflib.get_close_matches(fold(name if colon else spec), known, n=6, cutoff=0.6)
    near = list(dict.fromkeys(known[alias] for alias in close))[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`vprompt tasks` lists those there are."
    raise DataError(f"There is no benchmark task {spec!r}; {hint}")


def transforms_of(spec: str | None) -> Transforms:
    """Preparation of the images of what a user wrote as DATA, unless asked otherwise.

    Example:
        >>> transforms_of("fgvc:cub").augment, transforms_of("vtab:cifar").augment, transforms_of(None).resize
        ('crop-flip', 'none', 'squash')
    """
    return _FGVC if suite_of(spec) == "fgvc" else _PLAIN


def suite_of(spec: object) -> Suite | None:
    """The suite that a spec begins with, if any.

    Example:
        >>> suite_of("VTAB:cifar"), suite_of("images/vtab")
        ('vtab', None)
    """
    prefix, colon, _ = str(spec).partition(":")
    suite = prefix.strip().lower()
    return suite if colon and suite in ("vtab", "fgvc") else None


def fold(name: str) -> str:
    """A name without what people write differently.

    Example:
        >>> fold("Stanford-dogs") == fold("stanford_Dogs")
        True
    """
    return "".join(sign for sign in name.casefold() if sign.isalnum())


def read_table(package: str, name: str) -> list[dict[str, str]]:
    """The rows of a CSV file in a package, by the names of its columns."""
    text = resources.files(package).joinpath(name).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def _task(row: dict[str, str]) -> BenchmarkTask:
    """The task in a row of `tasks.csv`; where a cell has several values, spaces part them."""
    several = {key: row[key].split() for key in ("prompts", "aliases", "folders")}
    return msgspec.convert(row | several, BenchmarkTask, strict=False)


_TASKS = tuple(map(_task, read_table("vprompt.data.benchmarks", "tasks.csv")))

_BY_NAME = {(task.suite, fold(name)): task for task in _TASKS for name in (task.name, *task.aliases)}
