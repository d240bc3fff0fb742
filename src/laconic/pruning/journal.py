"""What a search has tried so far, on disk, so that it can be resumed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from laconic.errors import TrainingError
from laconic.files import write_json
from laconic.processes import is_main_process
from laconic.pruning.choices import Choice, Trial
from laconic.runfolder import read_json


class Journal:
    """The trials of a search, in order.

    Args:
        path: The file; None keeps nothing.
        search: By what the search is known, as plain data.

    Raises:
        TrainingError: If the file is damaged, or the journal of another search.
    """

    def __init__(self, path: Path | None, search: dict[str, Any]) -> None:
        self.path = path
        self.search = search
        self.trials: list[Trial] = []
        if path is None or not path.exists():
            return
        document = read_json(path)
        if document.get("search") != search:
            raise TrainingError(f"{path} is the journal of another search; give its settings, or another folder.")
        try:
            rows: list[dict[str, Any]] = document["trials"]
            for row in rows:
                choice = Choice(tokens=row["choice"]["tokens"], segments=row["choice"]["segments"])
                self.trials.append(
                    Trial(choice=choice, epochs=row["epochs"], accuracy=row["accuracy"], loss=row["loss"])
                )
        except (TypeError, KeyError) as error:
            raise TrainingError(f"{path} is damaged; delete it to search anew.") from error

    def of(self, epochs: int) -> dict[Choice, Trial]:
        """What was tried with so many epochs."""
        return {trial.choice: trial for trial in self.trials if trial.epochs == epochs}

    def add(self, trial: Trial) -> None:
        """Notes a trial, also on disk."""
        self.trials.append(trial)
        if self.path is not None and is_main_process():
            write_json(self.path, {"search": self.search, "trials": [asdict(trial) for trial in self.trials]})
