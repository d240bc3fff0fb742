"""What a search has tried so far, on disk, so that it can be resumed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from laconic.errors import LaconicError, TrainingError
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
        if not same_search(document.get("search"), search):
            raise TrainingError(f"{path} is of another search; give its model and settings, or another folder.")
        try:
            self.trials = [_trial(row) for row in document["trials"]]
        except (TypeError, KeyError, LaconicError) as error:
            raise TrainingError(f"{path} is damaged; delete its folder to search anew.") from error

    def of(self, epochs: int) -> dict[Choice, Trial]:
        """What was tried with so many epochs."""
        return {trial.choice: trial for trial in self.trials if trial.epochs == epochs}

    def add(self, trial: Trial) -> None:
        """Notes a trial, also on disk."""
        self.trials.append(trial)
        if self.path is not None and is_main_process():
            write_json(self.path, {"search": self.search, "trials": [asdict(trial) for trial in self.trials]})


def _trial(row: dict[str, Any]) -> Trial:
    return Trial(
        choice=Choice(tokens=row["choice"]["tokens"], segments=row["choice"]["segments"]),
        kept=row["kept"],
        epochs=row["epochs"],
        accuracy=row["accuracy"],
        loss=row["loss"],
    )


def same_search(known: object, mine: dict[str, Any]) -> bool:
    """Whether state on disk is of a search; data without a fingerprint, on either side, is taken on trust."""
    if not isinstance(known, dict):
        return False
    found = cast("dict[str, Any]", known)
    data = zip(found.get("data", ()), mine["data"], strict=False)
    trusted = all(None in pair or pair[0] == pair[1] for pair in data)
    return trusted and {**found, "data": None} == {**mine, "data": None}
