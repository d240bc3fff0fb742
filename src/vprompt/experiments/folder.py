"""The output folder of a run: opened at the start, whole at the end; and the lock that keeps others out of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from vprompt.experiments.settings import changed_settings
from vprompt.model.model import PromptedModel
from vprompt.utils.distributed import is_main_process
from vprompt.utils.errors import DivergedError, TrainingError, VPromptError
from vprompt.utils.io import read_json, write_json

RESULT = "result.json"

STATE = ".run"
"""Folder with the state of an unfinished run, inside its output folder."""

OWN_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", RESULT)


class BusyError(VPromptError):
    """Another process is at work on the same run."""


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keeps other processes, also on other machines that share the folder, from working in it; ends with the process.

    Raises:
        BusyError: If another process is there first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"  # beside the folder, which is moved away at the end
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise BusyError(f"Another process is at work on {folder.name}.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


class RunFolder:
    """The folder of a run: hidden state while it goes on, adapter and result.json when it is done.

    Args:
        out: The folder.
        settings: What the run does, as plain data; a resumed run must have the same.
        flags: Setting -> what the command calls it, where that is something else.
    """

    def __init__(self, out: Path, settings: dict[str, Any], *, flags: Mapping[str, str] | None = None) -> None:
        self.out = out
        self.flags = flags or {}
        self.document: dict[str, Any] = json.loads(json.dumps(settings))
        self.is_main = is_main_process()

    def state(self, name: str) -> Path:
        """Place of a stage's state, by the name of a file or of a folder."""
        return self.out / STATE / name

    def open(self, *, resume: bool) -> dict[str, Any] | None:
        """Makes the folder this run's own; returns the result when resuming a run that is finished.

        Raises:
            TrainingError: If something else is in the way.
        """
        if (self.out / RESULT).exists():
            return self._finished(resume)
        if not self.is_main:
            return None
        out, settings = self.out, self.out / STATE / "settings.json"
        if out.exists() and not out.is_dir():
            raise TrainingError(f"The output folder {out} is a file; choose another --out.")
        if any((out / STATE).glob("*.safetensors")):
            if not resume:
                raise TrainingError(f"{out} holds an unfinished run; add --resume to go on, or choose another --out.")
            self._compare(read_json(settings), "unfinished")
        elif not settings.exists() and (taken := [name for name in OWN_FILES if (out / name).exists()]):
            raise TrainingError(f"{out} has a {taken[0]} that this run would overwrite; choose another --out.")
        try:
            write_json(settings, self.document)
        except OSError as error:
            raise TrainingError(f"The output folder {out} cannot be written ({error.strerror}).") from error
        return None

    @contextmanager
    def discarding(self) -> Generator[None]:
        """On an error, deletes the state of a run that nothing was saved of, or that need not go on."""
        try:
            yield
        except VPromptError as error:
            state = self.out / STATE
            saved = any(state.glob("*.safetensors")) and not isinstance(error, DivergedError)
            if self.is_main and state.exists() and not saved:
                shutil.rmtree(state)
                if not any(self.out.iterdir()):
                    self.out.rmdir()
            raise

    def finish(self, model: PromptedModel, result: dict[str, Any]) -> None:
        """Writes the adapter, then the result, then deletes the state."""
        if self.is_main:
            model.save_pretrained(self.out)
            write_json(self.out / RESULT, result)
            self._tidy()

    def _finished(self, resume: bool) -> dict[str, Any]:
        if not resume:
            raise TrainingError(f"{self.out} holds a finished run; choose another --out (its numbers are in {RESULT}).")
        result = read_json(self.out / RESULT)
        self._compare(result.get("settings"), "finished")
        self._tidy()
        return result

    def _tidy(self) -> None:
        """Removes the state, and what a kill in the middle of writing may have left."""
        if not self.is_main:
            return
        shutil.rmtree(self.out / STATE, ignore_errors=True)
        for name in OWN_FILES:
            for part in self.out.glob(f".{name}.*.part"):
                part.unlink(missing_ok=True)

    def _compare(self, earlier: object, state: str) -> None:
        if changed := changed_settings(earlier, self.document):
            named = ", ".join(self.flags.get(name, name) for name in changed)
            raise TrainingError(
                f"The {state} run in {self.out} has other settings ({named}); give the same, or choose another --out."
            )
