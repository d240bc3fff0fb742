"""The log of a run: a line of JSON for every epoch, and the trackers of Accelerate where any are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vprompt.training.trainer import Log
from vprompt.utils.distributed import accelerator, is_main_process
from vprompt.utils.errors import TrainingError
from vprompt.utils.io import write_text, writing
from vprompt.utils.serialization import parse

LOG = "log.jsonl"
"""File of the log in the folder of a run."""

PROJECT = "vprompt"
"""What the runs are part of, for trackers."""


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
                raise TrainingError(
                    f"The tracker {name} needs its package; pip install {name}, or leave out --track {name}."
                )
        self._accelerator = accelerator(log_with=[*track], project_dir=folder) if track else None
        if self._accelerator is not None and is_main_process():
            plain = {
                key: value if isinstance(value, int | float | str) else str(value) for key, value in config.items()
            }
            names = {
                "wandb": {"name": folder.name},
                "trackio": {"name": folder.name},
                "mlflow": {"run_name": folder.name},
            }
            self._accelerator.init_trackers(PROJECT, config=plain, init_kwargs=names)

    def stage(self, name: str) -> Log:
        """What takes the rows of one of the run's trainings, as `vprompt.fit` gives them.

        The file has each epoch once: what a kill took back goes when the training goes on.
        """
        written: list[int] = []

        def log(rows: Sequence[Mapping[str, float]]) -> None:
            if not is_main_process():
                return
            lines = [json.dumps({"stage": name, **row}) for row in rows]
            if not written:
                others = [line for line in self._lines() if parse(line).get("stage") != name]
                write_text(self.path, "".join(f"{line}\n" for line in others + lines))
            else:
                with writing(self.path), self.path.open("a", encoding="utf-8") as file:
                    file.write(f"{lines[-1]}\n")
                if self._accelerator is not None:
                    figures = {f"{name}/{key}": value for key, value in rows[-1].items() if key != "epoch"}
                    self._accelerator.log(figures, step=len(rows))
            written.append(len(rows))

        return log

    def close(self) -> None:
        """Ends what the trackers write."""
        for tracker in self._accelerator.trackers if self._accelerator is not None else ():
            tracker.finish()

    def _lines(self) -> list[str]:
        """The whole lines that are there: a kill may have cut the last one."""
        found: list[str] = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else ():
            try:
                if isinstance(parse(line), dict):
                    found.append(line)
            except ValueError:
                continue
        return found
