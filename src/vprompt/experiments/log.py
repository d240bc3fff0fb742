"""The log of a run: a line of JSON for every epoch, and the trackers of Accelerate where any are asked for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vprompt.experiments.folder import LOG
from vprompt.training.precision import accelerator
from vprompt.training.trainer import Log
from vprompt.utils.distributed import is_main_process
from vprompt.utils.errors import TrainingError
from vprompt.utils.io import write_text

PROJECT = "vprompt"
"""What trackers call all runs together."""


class RunLog:
    """Writes each epoch of a run to its folder as it ends, and to trackers.

    Args:
        folder: Of the run.
        config: Its settings, for trackers.
        track: Names of trackers that Accelerate knows.

    Raises:
        TrainingError: If the package of a tracker is not there.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], track: Sequence[str] = ()) -> None:
        self.path = folder / LOG
        for name in track:
            if find_spec(name) is None:
                raise TrainingError(f"The tracker {name} is not installed; pip install {name}, or leave out --track.")
        self._accelerator = accelerator(log_with=[*track], project_dir=folder) if track else None
        if self._accelerator is not None and is_main_process():
            plain = {key: value if isinstance(value, int | float) else str(value) for key, value in config.items()}
            names = {tracker: {"name": folder.name} for tracker in ("trackio", "wandb")}
            self._accelerator.init_trackers(PROJECT, config=plain, init_kwargs=names)

    def stage(self, name: str) -> Log:
        """What takes the rows of one of the run's trainings, as `vprompt.fit` gives them.

        The file is written anew each time, so that a kill leaves no half line, and a resumed training none twice.
        """
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        others = [line for line in lines if f'"stage": {json.dumps(name)}' not in line]
        calls = itertools.count()

        def log(rows: Sequence[Mapping[str, float]]) -> None:
            ended, own = next(calls) > 0, [json.dumps({"stage": name, **row}) for row in rows]
            if is_main_process() and (rows or lines):
                write_text(self.path, "".join(f"{line}\n" for line in others + own))
            if self._accelerator is not None and ended:
                figures = {f"{name}/{key}": value for key, value in rows[-1].items() if key != "epoch"}
                self._accelerator.log(figures, step=len(rows))

        return log

    def close(self) -> None:
        """Ends what the trackers write."""
        for tracker in self._accelerator.trackers if self._accelerator is not None else ():
            tracker.finish()
