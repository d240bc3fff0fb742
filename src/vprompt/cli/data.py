"""The commands `vprompt prepare` and `vprompt tasks`."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from vprompt.cli.console import UsageError, print_json, print_note, print_table
from vprompt.cli.options import Json
from vprompt.utils.errors import DataError
from vprompt.utils.progress import bar
from vprompt.utils.text import count, printable

if TYPE_CHECKING:
    from vprompt.data.benchmarks.check import State
    from vprompt.data.benchmarks.tasks import BenchmarkTask
    from vprompt.data.prepare.registry import Recipe


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """A task of VTAB-1k or FGVC in its usual layout, from the original archives; nothing is downloaded."""

    task: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TASK]")] = None
    """Such as vtab:cifar or fgvc:cub."""
    source: Path | None = None
    """Folder with the original archives or an unpacked copy of them; also the root of a torchvision data set."""
    root: Path | None = None
    """Folder that the task's own folder is written into."""
    accept_changed: bool = False
    """Go on where a hash or the number of images is not the known one; source.json records it."""
    list: bool = False
    """Print what each task needs and where that can be had, and do nothing else."""
    json: Json = False

    def run(self) -> None:
        """Prepares one task and prints what was written, or prints the table of tasks."""
        from vprompt.data.prepare.prepare import prepare
        from vprompt.data.prepare.registry import RECIPES

        if self.list:
            self._show(RECIPES)
            return
        if self.task is None or self.source is None or self.root is None:
            raise UsageError(
                "Say what to prepare: vprompt prepare TASK --source DIR --root DIR (--list shows the tasks)."
            )
        done = prepare(
            self.task,
            source=self.source,
            root=self.root,
            accept_changed=self.accept_changed,
            show=True,
        )
        if self.json:
            print_json(asdict(done))
            return
        counts = [str(done.classes), *(str(done.images[part]) for part in ("train", "val", "test"))]
        print_table(done.folder, ["classes", "training images", "validation", "test"], [counts])
        print_note(f"Parts: {done.parts}.")
        if done.note:
            print_note(done.note)

    def _show(self, recipes: tuple[Recipe, ...]) -> None:
        if self.json:
            print_json([_as_json(recipe) for recipe in recipes])
            return
        # No table: names and addresses are copied from here.
        for recipe in recipes:
            lines = [f"needs  {piece.text()}" for piece in recipe.pieces.values()]
            lines += [f"needs  the Python package {recipe.needs}"] * bool(recipe.needs)
            lines.append(f"from   {recipe.site}" if recipe.read else f"cannot be prepared: {recipe.site}")
            sys.stdout.write("\n    ".join([recipe.spec, *lines]) + "\n")
        print_note("Tested on small stand-ins in the documented formats; no reader has met the real archives yet.")


def _as_json(recipe: Recipe) -> dict[str, Any]:
    return {
        "task": recipe.spec,
        "supported": recipe.read is not None,
        "files": [[*piece.names] for piece in recipe.pieces.values()],
        "where": recipe.site,
        "needs": recipe.needs or None,
        "folder": (recipe.folder or recipe.task.name) if recipe.read else None,
    }


_NARROW = 80
"""Columns of a terminal that the table of tasks needs."""


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """The benchmark tasks of VTAB-1k and FGVC, and which of them are on this machine."""

    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds them; $VPROMPT_DATA, or else data, when left out."""
    suite: Literal["vtab", "fgvc"] | None = None
    """Only the tasks of one benchmark."""
    check: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None
    """Look at every image of a task (vtab:cifar), or of a folder with such lists, and say all that is wrong."""
    hashes: bool = False
    """With --check: compare the bytes of all files with a manifest.json beside the lists."""
    json: Json = False

    def run(self) -> None:
        """Prints the table of tasks, or checks one of them."""
        if self.hashes and self.check is None:
            raise UsageError("--hashes belongs to --check TASK.")
        if self.check is not None:
            self._check(self.check)
            return
        from vprompt.data.benchmarks.check import state_of
        from vprompt.data.benchmarks.places import data_root
        from vprompt.data.benchmarks.tasks import benchmark_tasks
        from vprompt.data.synthetic.tasks import synthetic_names

        rows = [(task, state_of(task, self.root)) for task in benchmark_tasks(self.suite)]
        if self.json:
            print_json([_document(task, state) for task, state in rows])
            return
        for group in dict.fromkeys(task.group for task, _ in rows):
            _print_group(group, [(task, state) for task, state in rows if task.group == group])
        here = sum(state.folder is not None for _, state in rows)
        print_note(f"{here} of {len(rows)} are in {printable(str(data_root(self.root)))}; --root looks elsewhere.")
        print_note(f"Rendered, with nothing to get: {', '.join(synthetic_names())}.")
        print_note("Images are train/val/test. Prompts are those of VPT-Deep on ViT-B/16, by each public source.")
        if any(state.problems for _, state in rows):
            print_note("What differs, or is wrong: vprompt tasks --check TASK.")

    def _check(self, spec: str) -> None:
        from vprompt.data.benchmarks.check import check
        from vprompt.data.benchmarks.places import locate

        if spec.startswith(("synthetic:", "bundled:")):
            raise DataError(f"{printable(spec)} comes with vprompt and lies in no folder; there is nothing to check.")
        place = locate(spec, self.root)
        if place is None:
            raise DataError(f"{printable(spec)} is no folder with lists of images; `vprompt tasks` says what there is.")
        with bar("reading images") as report:
            problems = check(place.folder, place.task, hashes=self.hashes, progress=report)
        fatal = [problem for problem in problems if problem.severity == "fatal"]
        if self.json:
            print_json(
                {
                    "task": spec,
                    "folder": printable(str(place.folder)),
                    "usable": not fatal,
                    "problems": [asdict(problem) for problem in problems],
                }
            )
        else:
            for problem in problems:
                print(f"{problem.severity}: {problem.sentence}")  # noqa: T201
        what = printable(spec) if str(place.folder) == spec else f"{printable(spec)} in {printable(str(place.folder))}"
        if fatal:
            raise DataError(f"{what} cannot be used: {count(len(fatal), 'fatal problem')}.")
        print_note(f"{what} can be used: {count(len(problems), 'difference')}.")


def _print_group(group: str, rows: list[tuple[BenchmarkTask, State]]) -> None:
    title = "FGVC" if group == "fgvc" else f"VTAB-1k, {group}"
    # A terminal too narrow for the columns gets two lines for each task.
    if shutil.get_terminal_size().columns < _NARROW:
        print(f"\n{title}")  # noqa: T201
        for task, state in rows:
            print(f"{task.spec}: {state.summary}")  # noqa: T201
            print(f"  {task.classes} classes, {_prompts(task)} prompts")  # noqa: T201
            print(f"  {_sizes(task)} images")  # noqa: T201
        return
    print_table(
        title,
        ["task", "classes", "images", "prompts", "here"],
        [[task.spec, str(task.classes), _sizes(task), _prompts(task), state.summary] for task, state in rows],
        whole_first=True,
    )


def _document(task: BenchmarkTask, state: State) -> dict[str, object]:
    return {
        "task": task.spec,
        "title": task.title,
        "group": task.group,
        "classes": task.classes,
        "images": {"train": task.train, "val": task.val, "test": task.test},
        "prompts": list(task.prompts),
        "source": task.source,
        "state": state.summary.partition(":")[0],
        "folder": None if state.folder is None else printable(str(state.folder)),
        "problems": [asdict(problem) for problem in state.problems],
    }


def _sizes(task: BenchmarkTask) -> str:
    return f"{task.train}/{task.val}/{task.test}"


def _prompts(task: BenchmarkTask) -> str:
    return " or ".join(str(count) for count in task.prompts)
