"""What a plan needs to know of its tasks before any image is read."""

from __future__ import annotations

from laconic.bench.plan import PlanError


def task_names(entry: str) -> list[str]:
    """The tasks that an entry of a plan stands for: itself, or all of a suite (`vtab`) or group (`vtab:structured`)."""
    return [entry]


def paper_prompts(task: str) -> int:
    """How many prompts the VPT paper gave each block on a task.

    Raises:
        PlanError: If the papers say nothing of it.
    """
    raise PlanError(f'The papers say nothing of {task}: prompts = "paper" is for the tasks of VTAB-1k and FGVC.')


def split_sizes(spec: str | None, root: str | None) -> tuple[int, int, int]:
    """About how many training, validation and test images a task has, without reading any."""
    return 800, 200, 2000


def why_missing(spec: str, root: str | None) -> str | None:
    """Why a task's images cannot be found, in a sentence; None where they are there."""
    return None
