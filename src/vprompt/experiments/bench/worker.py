"""Worker: does jobs, keeps backbone and images from one to the next, and leaves a whole result or none."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vprompt.experiments.bench.jobs import Job, from_plain_data
from vprompt.experiments.bench.store import StoreError, open_store
from vprompt.experiments.folder import RESULT, BusyError
from vprompt.experiments.run import run, try_settings
from vprompt.experiments.stages import Sources
from vprompt.utils.errors import DivergedError, StorageError, VPromptError, lacks_memory
from vprompt.utils.progress import Report, silent


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
        self.sources = Sources()

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
        about = {"name": job.name, "run": job.identity, "until": job.until}
        place = {"host": platform.node(), "worker": self.name}
        self.store.publish(job.name, {**about, **result, "by": place, "finished": _now()}, adapter)

    def _failed(self, job: Job, error: Exception) -> dict[str, Any]:
        for_all = isinstance(error, StoreError | StorageError)  # what cannot be written, other jobs cannot write either
        sentence = str(error)
        if lacks_memory(error):
            sentence = "There is not enough memory."
        elif not isinstance(error, VPromptError):
            sentence = f"Something unexpected went wrong ({type(error).__name__}: {error})."
        failed: dict[str, Any] = {"state": "failed", "failure": sentence, "for_all": for_all}
        failed["again"] = not isinstance(error, DivergedError)
        if not failed["for_all"]:
            try:
                about = {"name": job.name, "failure": sentence, "again": failed["again"], "failed": _now()}
                self.store.fail(job.name, about | {"traceback": traceback.format_exception(error)})
            except (OSError, StoreError, StorageError):
                failed["for_all"] = True
        return failed


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
