"""Worker: does jobs, keeps backbone and images from one to the next, and leaves a whole result or none."""

from __future__ import annotations

import errno
import os
import platform
import re
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vprompt.experiments.bench.jobs import Job, from_plain_data, identity
from vprompt.experiments.bench.store import StoreError, open_store
from vprompt.experiments.folder import RESULT, BusyError
from vprompt.experiments.run import run, try_settings
from vprompt.experiments.stages import CachedSources
from vprompt.utils.errors import DivergedError, VPromptError
from vprompt.utils.progress import Report, silent

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the system that only writing meets, and all jobs would."""

REFUSED = (errno.EACCES, errno.EPERM)
"""Errors that images meet as well, which is then the fault of one task alone."""

NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory")
"""Messages of torch on a CPU, where it has no error of its own for that, and the system."""


class Worker:
    """Does jobs one after the other.

    Args:
        address: Of the store.
        name: What it is called in results.
        rehearse: Leave empty results without doing anything, to see that all else works.
    """

    def __init__(self, address: str, name: str, *, rehearse: bool = False) -> None:
        self.store = open_store(address)
        self.name = name
        self.rehearse = rehearse
        self.sources = CachedSources()

    def do(self, document: Mapping[str, Any], report: bool | Report = silent) -> dict[str, Any]:
        """Does a job and leaves its result in the store.

        Args:
            document: What `to_plain_data` made of the job.
            report: Told how far the training is; True shows bars.

        Returns:
            `state`: `"finished"`, `"failed"` (with `failure`, a sentence, and `for_all`, whether other jobs would fail
            likewise), or `"busy"` when another process is at work on it.

        Raises:
            Interrupted: When it was told to stop; the job goes on later from where it was.
        """
        job = from_plain_data(document)
        try:
            with self.store.locked(job.work) as scratch:
                if self.store.result(job.name) is None:
                    self._do(job, scratch, report)
            return {"state": "finished"}
        except BusyError:
            return {"state": "busy"}
        except Exception as error:  # whatever it is, the jobs that follow can go on
            return self._failed(job, error)

    def _do(self, job: Job, scratch: Path, report: bool | Report) -> None:
        common: dict[str, Any] = {"progress": report, "sources": self.sources}
        adapter = None
        if self.rehearse:
            result = {"val_accuracy": 0.0, "val_loss": 0.0, "rehearsed": True}
        elif job.until is not None:
            result = try_settings(job.settings, scratch / "training.safetensors", until=job.until, **common)
        else:
            trained = None if job.first is None else self.store.adapter(job.first.name)
            if trained is not None and not (trained / RESULT).exists():
                trained = None  # somebody removed it, as adapters are large: this run then trains by itself
            result = run(job.settings, scratch, resume=True, trained=trained, **common)
            adapter = scratch
        about = {"name": job.name, "run": identity(job.settings), "until": job.until}
        place = {"host": platform.node(), "worker": self.name}
        self.store.publish(job.name, {**about, **result, "by": place, "finished": _now()}, adapter)

    def _failed(self, job: Job, error: Exception) -> dict[str, Any]:
        sentence = str(error)
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in sentence for words in NO_MEMORY):
            sentence = "There is not enough memory."
        elif not isinstance(error, VPromptError):
            sentence = f"Something unexpected went wrong ({type(error).__name__}: {error})."
        if no_room := _no_room(error, self.store.here):
            sentence = f"Nothing can be written to {self.store.address} ({no_room})."
        failed = {"state": "failed", "failure": sentence, "for_all": bool(no_room) or isinstance(error, StoreError)}
        failed["again"] = not isinstance(error, DivergedError)
        if not failed["for_all"]:
            try:
                about = {"name": job.name, "failure": sentence, "again": failed["again"], "failed": _now()}
                self.store.fail(job.name, about | {"traceback": traceback.format_exception(error)})
            except (OSError, StoreError):
                failed["for_all"] = True
        return failed


def _no_room(error: BaseException | None, root: Path) -> str:
    """Message of the system for a disk that is full or must not be written to; nothing where that is not at fault."""
    while error is not None:
        # Libraries that write files themselves only hand on the words of the system.
        number = error.errno if isinstance(error, OSError) else next(iter(re.findall(r"os error (\d+)", str(error))), 0)
        place = error.filename if isinstance(error, OSError) else None
        ours = isinstance(place, str) and Path(place).is_relative_to(root)
        if int(number or 0) in (NO_ROOM + REFUSED if ours else NO_ROOM):
            return os.strerror(int(number or 0)).lower()
        error = error.__cause__ or error.__context__
    return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
