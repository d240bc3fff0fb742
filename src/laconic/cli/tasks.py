"""`laconic tasks`."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from laconic.cli.commands import UsageError, print_json, print_note, print_table
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.data.benchmarks import BenchmarkTask, Problem

_NARROW = 80


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """The benchmark tasks of VTAB-1k and FGVC, and which of them are on this machine."""

    root: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder that holds them; $LACONIC_DATA, or else data, when left out."""
    suite: Literal["vtab", "fgvc"] | None = None
    """Only the tasks of one benchmark."""
    check: Annotated[str | None, tyro.conf.arg(metavar="TASK")] = None
    """Look at every image of a task (vtab:cifar), or of a folder with such lists, and say all that is wrong."""
    hashes: bool = False
    """With --check: compare the bytes of training and test images, and with a manifest.json beside the lists."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        """Looks and prints."""
        if self.hashes and self.check is None:
            raise UsageError("--hashes belongs to --check TASK.")
        if self.check is not None:
            self._check(self.check)
            return
        from laconic.data.benchmarks import benchmark_tasks, data_root
        from laconic.data.images import printable
        from laconic.data.synthetic import synthetic_names

        found = [(task, _State.of(task, self.root)) for task in benchmark_tasks(self.suite)]
        if self.json:
            print_json([_document(task, state) for task, state in found])
            return
        for group in dict.fromkeys(task.group for task, _ in found):
            _print_group(group, [(task, state) for task, state in found if task.group == group])
        here = sum(state.folder is not None for _, state in found)
        print_note(f"{here} of {len(found)} are in {printable(str(data_root(self.root)))}; --root looks elsewhere.")
        print_note(f"Rendered, with nothing to get: {', '.join(synthetic_names())}.")
        print_note("Images are train/val/test. Prompts are those of VPT-Deep on ViT-B/16, by each public source.")
        if any(state.problems for _, state in found):
            print_note("What differs, or is wrong: laconic tasks --check TASK.")

    def _check(self, spec: str) -> None:
        from laconic.data.benchmarks import check, locate
        from laconic.data.images import printable
        from laconic.progress import bar

        if spec.startswith(("synthetic:", "bundled:")):
            raise DataError(f"{printable(spec)} comes with laconic and lies in no folder; there is nothing to check.")
        place = locate(spec, self.root)
        if place is None:
            raise DataError(f"{printable(spec)} is no folder with lists of images; `laconic tasks` says what there is.")
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
            raise DataError(f"{what} cannot be used: {_count(fatal, 'fatal problem')}.")
        print_note(f"{what} can be used: {_count(problems, 'difference')}.")


@dataclass(frozen=True, kw_only=True)
class _State:
    """What is known of a task on this machine, by its lists alone."""

    folder: str | None = None
    problems: tuple[Problem, ...] = ()

    @staticmethod
    def of(task: BenchmarkTask, root: str | None) -> _State:
        from laconic.data.benchmarks import check_lists, find_task_folder, read_layout
        from laconic.data.images import printable

        folder = find_task_folder(task, root)
        if folder is None:
            return _State()
        return _State(folder=printable(str(folder)), problems=tuple(check_lists(read_layout(folder, task), task)))

    @property
    def word(self) -> str:
        if self.folder is None:
            return "not found"
        fatal = sum(problem.severity == "fatal" for problem in self.problems)
        if fatal:
            return f"unusable: {fatal}"
        return f"differs: {len(self.problems)}" if self.problems else "found"


def _print_group(group: str, found: list[tuple[BenchmarkTask, _State]]) -> None:
    title = "FGVC" if group == "fgvc" else f"VTAB-1k, {group}"
    # A terminal too narrow for the columns gets two lines for each task.
    if shutil.get_terminal_size().columns < _NARROW:
        print(f"\n{title}")  # noqa: T201
        for task, state in found:
            print(f"{task.spec}: {state.word}")  # noqa: T201
            print(f"  {task.classes} classes, {_prompts(task)} prompts")  # noqa: T201
            print(f"  {_sizes(task)} images")  # noqa: T201
        return
    print_table(
        title,
        ["task", "classes", "images", "prompts", "here"],
        [[task.spec, str(task.classes), _sizes(task), _prompts(task), state.word] for task, state in found],
        whole_first=True,
    )


def _document(task: BenchmarkTask, state: _State) -> dict[str, object]:
    return {
        "task": task.spec,
        "title": task.title,
        "group": task.group,
        "classes": task.classes,
        "images": {"train": task.train, "val": task.val, "test": task.test},
        "prompts": list(task.prompts),
        "source": task.source,
        "state": state.word.partition(":")[0],
        "folder": state.folder,
        "problems": [asdict(problem) for problem in state.problems],
    }


def _sizes(task: BenchmarkTask) -> str:
    return f"{task.train}/{task.val}/{task.test}"


def _prompts(task: BenchmarkTask) -> str:
    return " or ".join(str(count) for count in task.prompts)


def _count(problems: list[Problem], what: str) -> str:
    return f"{len(problems)} {what}{'s' * (len(problems) != 1)}"
