"""Tasks of a plan: names, prompts of the papers, sizes, all before any image is read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vprompt.data.benchmarks.tasks import BenchmarkTask, benchmark_tasks, find_task
from vprompt.data.listing import UNSPLIT
from vprompt.data.synthetic.tasks import PREFIX, SIZES, synthetic_names
from vprompt.data.tasks import find_listing
from vprompt.experiments.bench.plan import PlanError
from vprompt.experiments.bench.store import NamedPath
from vprompt.tasks.columns import NO_COLUMNS, Columns
from vprompt.utils.errors import DataError
from vprompt.utils.io import checksum
from vprompt.utils.text import printable

SAMPLED = 2000
"""Files of a folder whose bytes are read to recognise it: all, unless it is large."""

GROUPS = {
    "vtab": benchmark_tasks("vtab"),
    "vtab:natural": benchmark_tasks("vtab", "natural"),
    "vtab:specialized": benchmark_tasks("vtab", "specialized"),
    "vtab:structured": benchmark_tasks("vtab", "structured"),
    "fgvc": benchmark_tasks("fgvc"),
}
"""Names that stand for several tasks in a plan."""


def task_names(entry: str) -> list[str]:
    """The tasks that an entry of a plan stands for: itself, or all of a suite (`vtab`) or group (`vtab:structured`).

    Example:
        >>> task_names("vtab:specialized")[:2], task_names("synthetic:counting")
        (['vtab:patch_camelyon', 'vtab:eurosat'], ['synthetic:counting'])
    """
    if entry.lower() in GROUPS:
        return [task.spec for task in GROUPS[entry.lower()]]
    task = known(entry)
    return [entry if task is None else task.spec]  # one task has one name, or its runs would have two


def known(spec: str) -> BenchmarkTask | None:
    """The benchmark's task that a spec names, if it names one."""
    try:
        return find_task(spec) if spec.lower().startswith(("vtab:", "fgvc:")) else None
    except DataError:
        return None


def paper_prompts(task: str) -> int:
    """Number of prompts that the VPT paper gave each block on a task; of two public sources, the first.

    Raises:
        PlanError: If the papers say nothing of it.

    Example:
        >>> paper_prompts("vtab:svhn")
        50
    """
    benchmark = known(task)
    if benchmark is None:
        raise PlanError(f'The papers say nothing of {task}: prompts = "paper" is for the tasks of VTAB-1k and FGVC.')
    return benchmark.prompts[0]


def why_missing(spec: str, root: str | None, columns: Columns = NO_COLUMNS) -> str | None:
    """Why a task's images cannot be found, in a sentence; None where they are there."""
    if spec.startswith(("bundled:", PREFIX)):
        return None if spec == "bundled:fashion-mnist" or spec in synthetic_names() else f"There is no task {spec}."
    try:
        find_listing(spec, root=root, columns=columns)
    except DataError as error:
        return str(error)
    return None


def named_paths(paths: Iterable[str], known: Mapping[str, NamedPath]) -> dict[str, NamedPath]:
    """What folders and files of a plan are called in the names of runs.

    However a path is written, and wherever a copy lies, the same content has one name: that of the first plan.

    Args:
        paths: As the plan writes them; what is neither folder nor file there is passed over.
        known: Paths of earlier plans.

    Example:
        >>> named_paths(["no such folder", "vtab:svhn"], {})
        {}
    """
    found: dict[str, NamedPath] = {}
    for path in filter(os.path.exists, paths):
        place, others = os.path.realpath(path), {**known, **found}
        if (same := others.get(path)) is None or same["place"] != place:
            same = next((other for other in others.values() if other["place"] == place), None)
        digest = content_fingerprint(path) if same is None else same["fingerprint"]
        same = same or next((other for other in others.values() if other["fingerprint"] == digest), None)
        name = same["name"] if same else place if path in others else path
        found[path] = {"path": path, "name": name, "place": place, "fingerprint": digest}
    return found


def content_fingerprint(path: str) -> str:
    """Sixteen hex digits that change with the bytes of a file, or with names, sizes and bytes of a folder's files.

    Of a folder with many files, the bytes of `SAMPLED` are read.
    """
    if not os.path.isdir(path):
        return checksum(Path(path))[:16]
    files = sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    read = set(files[:: max(1, len(files) // SAMPLED)])
    parts: list[bytes | Path] = []
    for file in files:
        with contextlib.suppress(OSError):  # a run that needs it says so
            parts.append(f"\0{file.relative_to(path)}\0{file.stat().st_size}\0".encode(errors="surrogateescape"))
            parts += [file] if file in read and file.is_file() else []
    return checksum(*parts)[:16]


def split_sizes(spec: str | None, root: str | None, columns: Columns = NO_COLUMNS) -> tuple[int, int, int]:
    """About how many training, validation and test images a task has, without reading any."""
    if spec is None or spec.startswith("bundled:"):
        return 800, 200, 2000
    if spec.startswith(PREFIX):
        return SIZES
    try:
        splits = find_listing(spec, root=root, columns=columns).splits
    except DataError:
        task = known(spec)
        return (800, 200, 2000) if task is None else (task.train, task.val, task.test)
    sizes = {split: len(items) for split, items in splits.items()}
    if UNSPLIT in sizes:
        return tuple(round(sizes[UNSPLIT] * share) for share in (0.64, 0.16, 0.2))  # pyright: ignore[reportReturnType]
    return sizes.get("train", 0), sizes.get("val", 0), sizes.get("test", 0)


def about_task(spec: str) -> dict[str, Any]:
    """Title of a task in a report, and whose published numbers stand beside it."""
    task = known(spec)
    if task is None:
        structured = spec.startswith(PREFIX)
        title = printable(spec.split(":", 1)[-1].rstrip("/").rsplit("/", 1)[-1])
        return {"title": title, "group": "structured" if structured else "other", "published": None, "benchmark": None}
    return {"title": task.title, "group": task.group, "published": task.name, "benchmark": task.suite}
