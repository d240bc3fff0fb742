"""A check of a task's lists and images: can they be used, and are they the benchmark's."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vprompt.data.benchmarks.lists import (
    FILES,
    Layout,
    Problem,
    clean,
    differs,
    fatal,
    read_layout,
    remedy,
)
from vprompt.data.benchmarks.places import data_root, find_folder
from vprompt.data.benchmarks.tasks import SUITE_TITLES, BenchmarkTask
from vprompt.data.pipeline import Progress, check_files
from vprompt.data.preprocessing import Preprocessing
from vprompt.data.split import content_of
from vprompt.utils.text import listed, printable

# Small, so that JPEG files are read whole but not decoded at full size.
_THUMBNAIL = Preprocessing(size=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")


@dataclass(frozen=True, kw_only=True)
class State:
    """A task on this machine, by its lists alone.

    Args:
        folder: Its folder; None if there is none.
        problems: Findings in its lists.
    """

    folder: Path | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def summary(self) -> str:
        """A few words: `not found`, `found`, `differs: 2` or `unusable: 1`."""
        fatal = sum(problem.severity == "fatal" for problem in self.problems)
        if fatal:
            return f"unusable: {fatal}"
        return f"differs: {len(self.problems)}" if self.problems else "found" if self.folder else "not found"


def state_of(task: BenchmarkTask, root: str | Path | None) -> State:
    """Looks for a task below a root (see `data_root`) and checks its lists."""
    folder = find_folder(data_root(root), task.suite, task.folder_names)
    if folder is None:
        return State()
    return State(folder=folder, problems=tuple(check_lists(read_layout(folder, task), task)))


def check(
    folder: str | Path,
    task: BenchmarkTask | None,
    *,
    hashes: bool = False,
    progress: Progress | None = None,
) -> list[Problem]:
    """Everything that is wrong with a task's folder, or differs from the benchmark; every image is decoded.

    Args:
        folder: Has the lists.
        task: The benchmark's task that it should be; None for a task of the user's own, which is compared with nothing.
        hashes: Compare the bytes of all files with a `manifest.json` (an object from relative paths to SHA-256 in
            hexadecimal) if there is one.
        progress: Called with (done, total) while images are decoded.

    Raises:
        DataError: `task` is None and the folder has no lists.
    """
    layout = read_layout(Path(folder), task)
    paths = list(dict.fromkeys(path for pairs in layout.splits.values() for path, _ in pairs))
    out = "put the image there, or take it off the list" if task is None else remedy(task)
    bad = check_files(layout.folder, [paths], _THUMBNAIL, 0, progress, decode_all=True).bad
    problems = check_lists(layout, task)
    problems += [fatal(path, f"{printable(path)} {reason}", out) for path, reason in bad.items()]
    return [*problems, *_check_hashes(layout.folder)] if hashes else problems


def check_lists(layout: Layout, task: BenchmarkTask | None) -> list[Problem]:
    """Problems that the lists alone tell, without a look at any image."""
    problems = [*layout.problems, *_twice(layout), *_leaks(layout)]
    if task is not None:
        problems += _compared(layout, task)
    return problems + _untrained(layout, task)


def _twice(layout: Layout) -> list[Problem]:
    """Images that one list has more than once: with two classes it is wrong, with one it only counts double."""
    problems: list[Problem] = []
    for split, pairs in layout.splits.items():
        name = FILES[layout.kind][split]
        labels: dict[str, int] = {}
        for (path, label), where in zip(pairs, layout.where[split], strict=True):
            before = labels.setdefault(path, label)
            if before != label:
                classes = f"{layout.classes[before]} and {layout.classes[label]}"
                wrong = f"{name} lists {printable(path)} twice, as {classes}"
                problems.append(fatal(where, wrong, "keep the right one"))
        often = [path for path, count in Counter(pairs).items() if count > 1]
        if often:
            images = listed([printable(path) for path, _ in often], 10)
            problems.append(differs(name, f"{name} lists some images more than once: {images}"))
    return problems


def _leaks(layout: Layout) -> list[Problem]:
    """Images in two splits: what is learned from or chosen by must not be tested on."""
    problems: list[Problem] = []
    names = FILES[layout.kind]
    paths = {split: {path for path, _ in pairs} for split, pairs in layout.splits.items()}
    for first, second in (("train", "test"), ("val", "test"), ("train", "val")):
        for path in sorted(paths.get(first, set()) & paths.get(second, set())):
            wrong = f"{printable(path)} is both in {names[first]} and in {names[second]}"
            problems.append(fatal(names[second], wrong, "take it off one of them"))
    return problems


def _compared(layout: Layout, task: BenchmarkTask) -> list[Problem]:
    """Numbers of images and classes against the benchmark's."""
    suite = SUITE_TITLES[task.suite]
    problems: list[Problem] = []
    for split, pairs in layout.splits.items():
        wanted: int = getattr(task, split)
        if len(pairs) != wanted:
            name = FILES[layout.kind][split]
            problems.append(differs(name, f"{name} lists {len(pairs)} images; {suite} has {wanted}"))
    if len(layout.classes) != task.classes and any(layout.splits.values()):
        sentence = f"The lists have {len(layout.classes)} classes; {suite} has {task.classes}"
        problems.append(differs("classes", sentence))
    return problems


def _untrained(layout: Layout, task: BenchmarkTask | None) -> list[Problem]:
    """Classes that nothing can be learned about."""
    sizes = {split: len(pairs) for split, pairs in layout.splits.items()}
    if task is not None and task.suite == "vtab" and sizes == {"train": task.train, "val": task.val, "test": task.test}:
        return []  # VTAB-1k draws its images from all at once, so that some tasks are like that
    trained = {label for _, label in layout.splits.get("train", ())}
    without = [name for label, name in enumerate(layout.classes) if label not in trained]
    if not without or not trained:
        return []
    name = FILES[layout.kind]["train"]
    what = f"The class {without[0]} has" if len(without) == 1 else f"{len(without)} classes have"
    names = "" if len(without) == 1 else f": {listed(without, 10)}"
    return [differs(name, f"{what} no training image{names}")]


MANIFEST = "manifest.json"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def _check_hashes(folder: Path) -> list[Problem]:
    """Compares the bytes of files with the manifest, if there is one."""
    hint = "write an object from relative paths to SHA-256 in hexadecimal"
    try:
        document = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        return [fatal(MANIFEST, f"{MANIFEST} cannot be read ({printable(str(error))})", hint)]
    problems: list[Problem] = []
    for path, value in document.items():
        name, hashed = printable(path), value.strip().lower().removeprefix("sha256:")
        if clean(folder, path)[0] is None or not _SHA256.fullmatch(hashed):
            wrong = f"{MANIFEST} gives {name!r} what is no SHA-256 of a file in the folder"
            problems.append(fatal(MANIFEST, wrong, hint))
        elif (found := content_of(folder / path)) != hashed:
            why = f"is not the file that {MANIFEST} has the hash of" if found else f"of {MANIFEST} cannot be read"
            problems.append(fatal(path, f"{name} {why}", "get it anew, or correct the manifest"))
    return problems
